//! Checks that the ledger belongs to the journal, and truncates it where the journal has lost events.
//!
//! The two may be of different times if a running store was copied file by file, if a store was put
//! together from several copies, or if a disk has lost the journal's end. The journal decides:
//!
//! | the ledger | consequence |
//! |---|---|
//! | is behind the journal | it reads the rest |
//! | has read beyond the journal's end | it is [truncated](LedgerDatabase::truncate) there; everything else stays |
//! | contradicts the journal or itself | it is set aside, and a new one is created |
//!
//! One comparison suffices. An event's id is unique to one record at one position, and a record is
//! written after all earlier ones. So if the journal has the ledger's last event at its position, it has
//! everything before it too. If that record cannot be read, the journal must be known to be damaged or
//! to lack the segment there, and then the event before it is compared. A ledger contradicts itself if it
//! has rows at or behind its watermark: then it was put together from files of different times.

use std::io;

use rusqlite::{OptionalExtension, Transaction, TransactionBehavior, params};

use super::{
    LedgerDatabase,
    delivery::{self, Tally},
    micros, sqlite,
};
use crate::{
    event::EventId,
    store::{
        DeliveryState, StoreError,
        embedded::{
            reader::{Directory, ReadError, Scan, ScanItem},
            segment::{Position, Watermark},
        },
    },
};

/// Why the deliveries of lost events are parked.
const LOST: &str = "the event is not in the journal any more";

impl LedgerDatabase {
    /// Whether the ledger is consistent in itself, and with the journal up to its `end`.
    pub(in super::super) fn is_consistent(
        &mut self,
        journal: &Directory,
        end: Position,
    ) -> Result<bool, StoreError> {
        match self.compare(journal, end) {
            Ok(compared) => compared.map_err(StoreError::reading(journal.path())),
            Err(error) if sqlite::is_corruption(&error) => Ok(false),
            Err(error) => Err(StoreError::database("reading the ledger")(error)),
        }
    }

    fn compare(
        &mut self,
        journal: &Directory,
        end: Position,
    ) -> rusqlite::Result<io::Result<bool>> {
        if self.is_beyond_itself()? {
            return Ok(Ok(false));
        }
        let mut before = end;
        while let Some((position, id)) = self.last_event(before)? {
            before = match self.event_reader.read_public(position) {
                Ok(event) => return Ok(Ok(event.notification.id == id)),
                Err(ReadError::Io(error)) => return Ok(Err(error)),
                Err(ReadError::Missing) => Position::new(position.segment(), 0),
                Err(ReadError::Damaged | ReadError::Erased) => match damage_at(journal, position) {
                    Ok(Some(begin)) => begin,
                    Ok(None) => return Ok(Ok(false)),
                    Err(error) => return Ok(Err(error)),
                },
            };
        }
        Ok(Ok(true))
    }

    /// Whether the ledger has rows at or behind its own watermark.
    fn is_beyond_itself(&self) -> rusqlite::Result<bool> {
        self.db.query_row(
            "SELECT EXISTS (SELECT 1 FROM events WHERE position >= through)
                 OR EXISTS (SELECT 1 FROM handlers CROSS JOIN deliveries
                     ON handler = id AND position >= through)
             FROM progress",
            [],
            |row| row.get(0),
        )
    }

    fn last_event(&self, before: Position) -> rusqlite::Result<Option<(Position, EventId)>> {
        self.db
            .prepare_cached(
                "SELECT position, id FROM events WHERE position < ?1
                 ORDER BY position DESC LIMIT 1",
            )?
            .query_row([before.to_sql()], |row| {
                let position = Position::from_sql(row.get(0)?);
                Ok((position, EventId::from_bytes(row.get(1)?)))
            })
            .optional()
    }

    /// Whether the whole database is intact.
    pub(in super::super) fn is_sound(&self) -> Result<bool, StoreError> {
        sqlite::is_sound(&self.path)
    }

    /// Removes the finished deliveries of the events from `lost` on, which the journal has lost,
    /// and parks the others, where a person can see them. The journal continues at `end`, of which
    /// the ledger has nothing.
    pub(in super::super) fn truncate(
        &mut self,
        lost: Position,
        end: Watermark,
    ) -> Result<(), StoreError> {
        match self.try_truncate(lost, end) {
            Err(error)
                if sqlite::is_corruption(&error) || sqlite::is_constraint_violation(&error) =>
            {
                self.reset("it is damaged")
            }
            truncated => truncated.map_err(StoreError::database("truncating the ledger")),
        }
    }

    fn try_truncate(&self, lost: Position, end: Watermark) -> rusqlite::Result<()> {
        let known = self.watermark()?.through;
        let change = Transaction::new_unchecked(&self.db, TransactionBehavior::Immediate)?;
        let (from, now) = (lost.to_sql(), micros((self.core.context.clock)()));
        let events = change.query_row(
            "SELECT count(*) FROM events WHERE position >= ?1",
            [from],
            |row| row.get::<_, i64>(0),
        )?;
        let open = change
            .prepare(
                "SELECT handler, position FROM handlers CROSS JOIN deliveries
                 ON handler = id AND position >= ?1 WHERE state < 2",
            )?
            .query_map([from], |row| {
                Ok((row.get(0)?, Position::from_sql(row.get(1)?)))
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let mut tally = Tally::default();
        for (handler, position) in &open {
            if let Some(row) = delivery::find(&change, *handler, *position)? {
                let state = DeliveryState::Parked;
                delivery::end(&change, &mut tally, &row, state, now, Some(LOST))?;
            }
        }
        tally.write(&change)?;
        for delete in DELETE {
            change.execute(delete, [from])?;
        }
        // The lost records may have included states of older deliveries.
        change.execute(
            "UPDATE progress SET through = ?1, records = ?2, journaled = 0",
            params![end.through.to_sql(), end.records.cast_signed()],
        )?;
        change.commit()?;
        tracing::error!(
            journal.segment = lost.segment(),
            journal.offset = lost.offset(),
            ledger.segment = known.segment(),
            ledger.offset = known.offset(),
            events,
            parked = open.len(),
            "the journal ends before the ledger's watermark: stored events are lost, and their \
             unfinished deliveries are parked"
        );
        Ok(())
    }
}

/// Deletes what is finished from a position on.
const DELETE: &[&str] = &[
    "DELETE FROM attempts WHERE handler IN (SELECT id FROM handlers) AND position >= ?1
        AND EXISTS (SELECT 1 FROM deliveries d WHERE d.handler = attempts.handler
            AND d.position = attempts.position AND d.state > 2)",
    "DELETE FROM deliveries WHERE handler IN (SELECT id FROM handlers) AND position >= ?1
        AND state > 2",
    "DELETE FROM events WHERE position >= ?1 AND NOT EXISTS
        (SELECT 1 FROM handlers CROSS JOIN deliveries
            ON handler = id AND deliveries.position = events.position)",
];

/// The begin of the damage at `position`, or of the missing end of the segment. `None` if there are
/// intact records that begin elsewhere.
fn damage_at(journal: &Directory, position: Position) -> io::Result<Option<Position>> {
    let mut scan = Scan::open(journal, Position::new(position.segment(), 0))?;
    loop {
        let step = scan.next()?;
        if step.is_some() && scan.position() <= position {
            continue;
        }
        return Ok(match step {
            Some(ScanItem::Record { .. }) => None,
            Some(ScanItem::Damage { position, .. }) => Some(position),
            None => Some(scan.position()),
        });
    }
}
