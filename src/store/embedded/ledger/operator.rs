//! The operator's side: a connection to the ledger of its own, which works beside a running
//! service.

use std::{
    cell::OnceCell,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Result, Transaction, TransactionBehavior};

use super::{
    delivery::{self, HandlerId, Tally},
    listing, micros, ordering, parked, replay, sqlite, statistics, time,
};
use crate::{
    event::{EventId, HandlerName, OrderingKeys},
    store::{
        Attempt, AuditEntry, AuditLog, AuditRecord, DeliveryDetails, DeliveryState, EventDetails,
        EventFilter, EventList, HandlerSummary, Operator, ParkedFilter, ParkedList, ParkedReason,
        Pause, ReplaySelection, ReplaySummary, StoreError,
        embedded::audit::AuditDatabase,
        embedded::{Embedded, Settings, reader::EventReader, segment::Position},
    },
};

/// The most deliveries that one transaction skips, so that the service is not delayed for long.
const SLICE: usize = 256;

/// How long a command waits until the service has written its changes to the journal.
const PATIENCE: Duration = Duration::from_secs(5);

/// The interval of checks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// An operator's connection to a store.
pub(in super::super) struct OperatorConnection {
    pub(super) db: Connection,
    settings: Settings,
    clock: fn() -> Timestamp,
    /// Opened when it is first needed: a command that only lists events creates no file.
    audit: OnceCell<AuditDatabase>,
}

impl OperatorConnection {
    /// Opens the ledger of the store.
    ///
    /// # Errors
    ///
    /// When the store does not exist or cannot be read.
    pub(in super::super) fn open(
        settings: &Settings,
        clock: fn() -> Timestamp,
    ) -> Result<Self, StoreError> {
        settings.require_ledger()?;
        Ok(Self {
            db: sqlite::open(&settings.ledger(), false)?,
            settings: settings.clone(),
            clock,
            audit: OnceCell::new(),
        })
    }

    /// The audit log.
    fn audit_log(&self) -> Result<&AuditDatabase, StoreError> {
        if let Some(audit) = self.audit.get() {
            return Ok(audit);
        }
        let audit = AuditDatabase::open(&self.settings.audit())?;
        Ok(self.audit.get_or_init(|| audit))
    }

    /// A reader of the journal.
    pub(super) fn event_reader(&self) -> EventReader {
        EventReader::new(self.settings.journal())
    }

    /// Waits until this command's changes are in the journal. The running service writes them, or
    /// this process if there is none.
    fn flush_outbox(&self) -> Result<(), StoreError> {
        let began = Instant::now();
        while self.has_unwritten_changes()? {
            match Embedded::flush_outbox(&self.settings, self.clock) {
                Err(StoreError::Locked(_)) if began.elapsed() < PATIENCE => {
                    thread::sleep(LOOK_EVERY)
                }
                Err(StoreError::Locked(_)) => {
                    tracing::warn!(
                        "the running service has not written this change to its journal yet, and \
                         will do so later"
                    );
                    return Ok(());
                }
                snapshot => snapshot?,
            }
        }
        Ok(())
    }

    fn has_unwritten_changes(&self) -> Result<bool, StoreError> {
        let look = "SELECT EXISTS (SELECT 1 FROM outbox)";
        let found = self.db.query_row(look, [], |row| row.get(0));
        found.map_err(StoreError::database("reading the ledger"))
    }
}

impl AuditLog for OperatorConnection {
    fn record(&mut self, entry: &AuditEntry) -> Result<(), StoreError> {
        let recorded = self.audit_log()?.record(entry);
        recorded.map_err(StoreError::database("writing the audit log"))
    }

    fn audit(&self, before: Option<i64>, limit: usize) -> Result<Vec<AuditRecord>, StoreError> {
        let listed = self.audit_log()?.list(before, limit);
        listed.map_err(StoreError::database("reading the audit log"))
    }

    fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        let listed = self.audit_log()?.pauses();
        listed.map_err(StoreError::database("reading the paused handlers"))
    }

    fn set_paused(
        &mut self,
        handler: &HandlerName,
        entry: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let changed = self.audit_log()?.set_paused(handler, entry);
        changed.map_err(StoreError::database("writing the paused handlers"))
    }
}

impl Operator for OperatorConnection {
    fn events(&self, filter: &EventFilter) -> Result<EventList, StoreError> {
        let listed = listing::list(&self.db, self.event_reader(), filter);
        listed.map_err(StoreError::database("reading events"))
    }

    fn event(&self, id: EventId) -> Result<Option<EventDetails>, StoreError> {
        let failed = StoreError::database("reading an event");
        let Some((position, deliveries)) = find_event(&self.db, id).map_err(failed)? else {
            return Ok(None);
        };
        let read = self.event_reader().read(position);
        let event = read.map_err(|unread| {
            StoreError::io(&format!("reading the event {id}"))(std::io::Error::other(unread))
        })?;
        Ok(Some(EventDetails {
            notification: Arc::unwrap_or_clone(event.notification),
            deliveries,
        }))
    }

    fn parked(&self, filter: &ParkedFilter) -> Result<ParkedList, StoreError> {
        let listed = parked::list(&self.db, filter);
        listed.map_err(StoreError::database("reading parked deliveries"))
    }

    fn parked_reasons(&self) -> Result<Vec<ParkedReason>, StoreError> {
        let counted = parked::reasons(&self.db);
        counted.map_err(StoreError::database("counting parked deliveries"))
    }

    fn handlers(&self) -> Result<Vec<HandlerSummary>, StoreError> {
        let counted = statistics::handlers(&self.db);
        counted.map_err(StoreError::database("counting deliveries"))
    }

    fn plan(&self, selection: &ReplaySelection) -> Result<ReplaySummary, StoreError> {
        replay::plan(&self.db, selection)
    }

    fn replay(
        &mut self,
        selection: &ReplaySelection,
        reason: &str,
        now: Timestamp,
        progress: &mut dyn FnMut(u64),
    ) -> Result<ReplaySummary, StoreError> {
        let journal = self.event_reader();
        let made = replay::make(&self.db, journal, selection, reason, now, progress)?;
        self.flush_outbox()?;
        Ok(made)
    }

    fn skip(
        &mut self,
        parked: &[(EventId, HandlerName)],
        reason: &str,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let mut skipped = 0;
        for parked in parked.chunks(SLICE) {
            let slice = skip(&self.db, parked, reason, micros(now));
            skipped += slice.map_err(StoreError::database("skipping parked deliveries"))?;
        }
        self.flush_outbox()?;
        Ok(skipped)
    }
}

fn find_event(db: &Connection, id: EventId) -> Result<Option<(Position, Vec<DeliveryDetails>)>> {
    let position: Option<i64> = db
        .prepare_cached("SELECT position FROM events WHERE id = ?1")?
        .query_row([id.as_bytes()], |row| row.get(0))
        .optional()?;
    let Some(position) = position else {
        return Ok(None);
    };
    let mut list = db.prepare_cached(
        "SELECT h.name, d.state, d.attempts, d.due_at, d.replay, d.why, h.id, d.scope, d.key, d.keys
         FROM handlers h CROSS JOIN deliveries d ON d.handler = h.id
         WHERE d.position = ?1 ORDER BY h.name",
    )?;
    let rows = list.query_map([position], |row| {
        let state: DeliveryState = row.get(1)?;
        let at = time(row.get(3)?);
        let keys = ordering::read(row, 7)?.filter(|_| state.is_open());
        let waits_for = match keys {
            Some(keys) => blocker(db, (row.get(6)?, Position::from_sql(position)), &keys)?,
            None => None,
        };
        Ok(DeliveryDetails {
            handler: HandlerName::new(row.get::<_, String>(0)?),
            state: match waits_for {
                Some(_) => DeliveryState::Queued,
                None => state,
            },
            waits_for,
            attempts: row.get(2)?,
            due_at: state.is_open().then_some(at),
            ended_at: (!state.is_open()).then_some(at),
            replay: row.get(4)?,
            why: row.get(5)?,
            failures: failures(db, row.get(6)?, position)?,
        })
    })?;
    Ok(Some((
        Position::from_sql(position),
        rows.collect::<Result<_>>()?,
    )))
}

/// The event whose delivery blocks a delivery of the same handler.
fn blocker(
    db: &Connection,
    (handler, position): (HandlerId, Position),
    keys: &OrderingKeys,
) -> Result<Option<EventId>> {
    let Some(blocker) = ordering::blocker(db, handler, position, keys)? else {
        return Ok(None);
    };
    db.prepare_cached("SELECT id FROM events WHERE position = ?1")?
        .query_row([blocker.to_sql()], |row| {
            Ok(EventId::from_bytes(row.get(0)?))
        })
        .optional()
}

pub(super) fn failures(db: &Connection, handler: HandlerId, position: i64) -> Result<Vec<Attempt>> {
    let mut list = db.prepare_cached(
        "SELECT started_at, took_ms, why FROM attempts
         WHERE handler = ?1 AND position = ?2 ORDER BY started_at",
    )?;
    let rows = list.query_map((handler, position), |row| {
        Ok(Attempt {
            started_at: time(row.get(0)?),
            took_ms: row.get::<_, i64>(1)?.cast_unsigned(),
            why: row.get(2)?,
        })
    })?;
    rows.collect()
}

/// Skips the deliveries in `parked` that are still parked.
fn skip(db: &Connection, parked: &[(EventId, HandlerName)], reason: &str, now: i64) -> Result<u64> {
    let change = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
    let (mut skipped, mut tally) = (0, Tally::default());
    for (id, handler) in parked {
        let found = change
            .prepare_cached(
                "SELECT h.id, e.position FROM events e JOIN handlers h ON h.name = ?2
                 WHERE e.id = ?1",
            )?
            .query_row((id.as_bytes(), handler.as_str()), |row| {
                Ok((row.get(0)?, Position::from_sql(row.get(1)?)))
            })
            .optional()?;
        let Some((handler, position)) = found else {
            continue;
        };
        let row = delivery::find(&change, handler, position)?;
        if let Some(row) = row.filter(|row| row.state == DeliveryState::Parked) {
            let state = DeliveryState::Skipped;
            delivery::end(&change, &mut tally, &row, state, now, Some(reason))?;
            delivery::add_to_outbox(&change, handler, position)?;
            skipped += 1;
        }
    }
    tally.write(&change)?;
    change.commit()?;
    Ok(skipped)
}
