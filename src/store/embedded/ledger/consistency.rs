//! Whether the ledger is one of this journal, and what to do with what the journal has no longer.
//!
//! The two are of different moments where a store was copied file by file while a service ran, was put
//! together from several copies, or where a disk has lost the journal's end. The journal decides:
//!
//! | the ledger | what becomes of it |
//! |---|---|
//! | is behind the journal | it reads on |
//! | has read beyond the journal's end | it is [cut](LedgerDatabase::truncate) there; all else that it knows stays |
//! | says otherwise than the journal, or than itself | it is set aside, and a new one is made |
//!
//! One look is enough to tell: an event's id is made once, for one record at one place, and a record is
//! written behind all that came before it. So if the last event that the ledger has before the journal's
//! end is in the journal at its place, so is everything before it. Where that record cannot be read, the
//! journal must be known to be damaged or to miss its segment there, and then the event before that is
//! looked at. Itself, a ledger has nothing from where it says that it has read to: where it has, it was
//! put together from pieces of the database's files.

use std::io;

use rusqlite::{OptionalExtension, Transaction, TransactionBehavior, params};

use super::{
    LedgerDatabase, Watermark,
    delivery::{self, Tally},
    micros, sqlite,
};
use crate::{
    event::EventId,
    store::{
        DeliveryState, StoreError,
        embedded::{
            reader::{Directory, ReadError, Scan, ScanItem},
            segment::Position,
        },
    },
};

/// Why deliveries of events are parked that the journal has lost.
const LOST: &str = "the event is not in the journal any more";

/// What [`LedgerDatabase::truncate`] did.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Truncation {
    /// Events that are lost.
    pub(in super::super) events: u64,
    /// Deliveries that nobody can make any more.
    pub(in super::super) parked: u64,
}

impl LedgerDatabase {
    /// Whether the ledger agrees with itself, and with the journal up to its `end`.
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

    /// Whether it has anything from where it has read the journal to.
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

    /// Reads the whole ledger, and says whether its parts fit.
    pub(in super::super) fn is_sound(&self) -> Result<bool, StoreError> {
        sqlite::is_sound(&self.path)
    }

    /// Forgets what is finished of the events from `lost` on, which the journal has lost, and parks what
    /// is not, where a person can see it. The journal goes on at `end`, where nothing of the ledger is.
    pub(in super::super) fn truncate(
        &mut self,
        lost: Position,
        end: Watermark,
    ) -> Result<Truncation, StoreError> {
        match self.try_truncate(lost, end) {
            Err(error)
                if sqlite::is_corruption(&error) || sqlite::is_constraint_violation(&error) =>
            {
                self.renew("it is damaged")?;
                Ok(Truncation::default())
            }
            truncate => truncate.map_err(StoreError::database("cutting the ledger")),
        }
    }

    fn try_truncate(&self, lost: Position, end: Watermark) -> rusqlite::Result<Truncation> {
        let change = Transaction::new_unchecked(&self.db, TransactionBehavior::Immediate)?;
        let (from, now) = (lost.to_sql(), micros((self.clock)()));
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
        for forget in FORGET {
            change.execute(forget, [from])?;
        }
        // What the journal has lost may also have said what became of older ones.
        change.execute(
            "UPDATE progress SET through = ?1, records = ?2, journaled = 0",
            params![end.through.to_sql(), end.records.cast_signed()],
        )?;
        change.commit()?;
        Ok(Truncation {
            events: events.cast_unsigned(),
            parked: open.len() as u64,
        })
    }
}

/// Forgets what is finished from a position on.
const FORGET: &[&str] = &[
    "DELETE FROM attempts WHERE handler IN (SELECT id FROM handlers) AND position >= ?1
        AND EXISTS (SELECT 1 FROM deliveries d WHERE d.handler = attempts.handler
            AND d.position = attempts.position AND d.state > 2)",
    "DELETE FROM deliveries WHERE handler IN (SELECT id FROM handlers) AND position >= ?1
        AND state > 2",
    "DELETE FROM events WHERE position >= ?1 AND NOT EXISTS
        (SELECT 1 FROM handlers CROSS JOIN deliveries
            ON handler = id AND deliveries.position = events.position)",
];

/// Where the damage begins that is at `position` in the journal, or the lack of a segment's end.
/// `None` when whole records are there, which begin elsewhere.
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
