//! The operator's side: the same database on a connection of its own, beside a running service.

use std::{collections::BTreeMap, path::Path};

use jiff::Timestamp;
use rusqlite::{
    Connection, OptionalExtension, Result, Row, Transaction, TransactionBehavior, params,
};

use super::{
    database,
    delivery::{self, HandlerId, PARKED, QUEUED, READY, Tally},
    micros, time,
};
use crate::{
    event::{EventId, EventName, HandlerName, Key},
    store::{
        Attempt, DeliveryRecord, EventFilter, EventRecord, EventSummary, ParkedDelivery,
        ParkedFilter, Records, ReplaySelection, ReplaySummary, StoreError,
        embedded::{
            reader::{Bodies, Directory},
            segment::Position,
        },
        lane,
        record::id_range,
    },
};

/// Events looked at in one transaction of a replay, so that the service is never held up long.
const SLICE: usize = 256;

/// An operator's connection to a store.
pub(in super::super) struct Operator {
    pub(super) db: Connection,
    pub(super) journal: Directory,
}

impl Operator {
    /// Opens the ledger at `path` over the journal in `journal`.
    ///
    /// # Errors
    ///
    /// When there is none, or it cannot be read.
    pub(in super::super) fn open(path: &Path, journal: Directory) -> Result<Self, StoreError> {
        if !path.exists() {
            let store = path.parent().unwrap_or(path);
            return Err(StoreError::Absent(store.display().to_string()));
        }
        let db = database::open(path, false)?;
        Ok(Self { db, journal })
    }
}

impl Records for Operator {
    fn events(&self, filter: &EventFilter) -> Result<Vec<EventSummary>, StoreError> {
        list_events(&self.db, filter).map_err(StoreError::database("reading events"))
    }

    fn event(&self, id: EventId) -> Result<Option<EventRecord>, StoreError> {
        let failed = StoreError::database("reading an event");
        let Some((position, deliveries)) = find_event(&self.db, id).map_err(failed)? else {
            return Ok(None);
        };
        let read = Bodies::new(self.journal.clone()).read(position);
        let notification = read.map_err(|unread| StoreError::Io {
            what: format!("reading the event {id}"),
            error: std::io::Error::other(unread),
        })?;
        Ok(Some(EventRecord {
            notification,
            deliveries,
        }))
    }

    fn parked(&self, filter: &ParkedFilter) -> Result<Vec<ParkedDelivery>, StoreError> {
        list_parked(&self.db, filter).map_err(StoreError::database("reading parked deliveries"))
    }

    fn plan(&self, selection: &ReplaySelection) -> Result<ReplaySummary, StoreError> {
        let failed = StoreError::database("planning a replay");
        let plan = Plan::new(&self.db, selection)?;
        let mut count = BTreeMap::new();
        plan.walk(&self.db, |page| {
            page.into_iter().try_for_each(|event| {
                plan.each(&self.db, &event, |chosen| {
                    *count.entry(chosen.handler).or_default() += 1;
                    Ok(())
                })
            })
        })
        .map_err(failed)?;
        Ok(plan.summary(&count))
    }

    fn replay(
        &mut self,
        selection: &ReplaySelection,
        reason: &str,
        now: Timestamp,
        progress: &mut dyn FnMut(u64),
    ) -> Result<ReplaySummary, StoreError> {
        let failed = StoreError::database("making a replay");
        let plan = Plan::new(&self.db, selection)?;
        let mut count: BTreeMap<HandlerId, u64> = BTreeMap::new();
        let db = &self.db;
        plan.walk(db, |page| {
            let change = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
            let mut tally = Tally::default();
            for event in &page {
                plan.each(&change, event, |chosen| {
                    *count.entry(chosen.handler).or_default() += 1;
                    chosen.replay(&change, &mut tally, reason, micros(now))
                })?;
            }
            tally.write(&change)?;
            change.commit()?;
            progress(count.values().sum());
            Ok(())
        })
        .map_err(failed)?;
        Ok(plan.summary(&count))
    }
}

/// What a [`ReplaySelection`] means in this ledger.
struct Plan<'a> {
    selection: &'a ReplaySelection,
    /// Handlers that are configured, and whether each is ordered.
    handlers: Vec<(HandlerId, HandlerName, bool)>,
}

/// One event that a replay looks at.
struct Event {
    position: Position,
    key: Option<Key>,
}

/// One delivery that a replay makes.
struct Chosen {
    handler: HandlerId,
    position: Position,
    lane: Option<lane::Lane>,
    /// Its state; `None` when there is no such delivery yet.
    state: Option<i64>,
}

impl Chosen {
    fn replay(&self, db: &Connection, tally: &mut Tally, reason: &str, now: i64) -> Result<()> {
        if self.state.is_none() {
            delivery::insert_done(db, (self.handler, self.position), now)?;
        }
        let Some(row) = delivery::find(db, self.handler, self.position)? else {
            return Ok(());
        };
        // The lane that it belongs to now, which need not be the one that it was in.
        let row = delivery::Row {
            lane: self.lane,
            ..row
        };
        delivery::replay(db, tally, row, reason, now)
    }
}

impl<'a> Plan<'a> {
    fn new(db: &Connection, selection: &'a ReplaySelection) -> Result<Self, StoreError> {
        let handlers = configured(db).map_err(StoreError::database("reading handlers"))?;
        selection.check(|asked| handlers.iter().any(|(_, name, _)| name == asked))?;
        Ok(Self {
            selection,
            handlers,
        })
    }

    fn summary(&self, count: &BTreeMap<HandlerId, u64>) -> ReplaySummary {
        let handlers = self.handlers.iter();
        ReplaySummary::new(handlers.map(|(id, name, _)| (name.clone(), count.get(id).copied())))
    }

    /// Gives all events that may be meant to `look`, oldest first, in slices.
    fn walk(&self, db: &Connection, mut look: impl FnMut(Vec<Event>) -> Result<()>) -> Result<()> {
        if !self.selection.ids.is_empty() {
            for ids in self.selection.ids.chunks(SLICE) {
                let mut page = Vec::new();
                for id in ids {
                    page.extend(self.by_id(db, *id)?);
                }
                look(page)?;
            }
            return Ok(());
        }
        let (mut from, to) = id_range(self.selection.since, self.selection.until);
        loop {
            let (page, last) = self.page(db, from, to)?;
            look(page)?;
            match last {
                Some(last) => from = last,
                None => return Ok(()),
            }
        }
    }

    fn by_id(&self, db: &Connection, id: EventId) -> Result<Option<Event>> {
        let found = db
            .prepare_cached("SELECT position, name, key, received_at FROM events WHERE id = ?1")?
            .query_row([id.as_bytes()], |row| self.event(row))
            .optional()?;
        Ok(found.flatten())
    }

    /// The events of one slice that are meant, and where the next slice begins.
    fn page(
        &self,
        db: &Connection,
        after: [u8; 16],
        to: [u8; 16],
    ) -> Result<(Vec<Event>, Option<[u8; 16]>)> {
        let mut slice = db.prepare_cached(
            "SELECT position, name, key, received_at, id FROM events
             WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3",
        )?;
        let mut rows = slice.query(params![after, to, SLICE as i64])?;
        let (mut page, mut last) = (Vec::new(), None);
        while let Some(row) = rows.next()? {
            last = Some(row.get(4)?);
            page.extend(self.event(row)?);
        }
        Ok((page, last))
    }

    /// The event in `row`, if it is meant.
    fn event(&self, row: &Row<'_>) -> Result<Option<Event>> {
        let name = EventName::new(row.get::<_, String>(1)?);
        let received_at: i64 = row.get(3)?;
        let selection = self.selection;
        let meant = selection.name.as_ref().is_none_or(|p| p.matches(&name))
            && selection.since.is_none_or(|t| received_at >= micros(t))
            && selection.until.is_none_or(|t| received_at < micros(t));
        if !meant {
            return Ok(None);
        }
        Ok(Some(Event {
            position: Position::from_sql(row.get(0)?),
            key: row.get::<_, Option<String>>(2)?.map(Key::new),
        }))
    }

    /// Gives each delivery of `event` that is meant to `make`.
    fn each(
        &self,
        db: &Connection,
        event: &Event,
        mut make: impl FnMut(&Chosen) -> Result<()>,
    ) -> Result<()> {
        let named = &self.selection.handlers;
        for (id, name, ordered) in &self.handlers {
            if !named.is_empty() && !named.contains(name) {
                continue;
            }
            let state = delivery::find(db, *id, event.position)?.map(|row| row.state);
            let meant = match state {
                Some(state) => state == PARKED || !self.selection.parked_only,
                None => !named.is_empty() && !self.selection.parked_only,
            };
            if meant {
                let key = event.key.as_ref().filter(|_| *ordered);
                make(&Chosen {
                    handler: *id,
                    position: event.position,
                    lane: key.map(lane::of),
                    state,
                })?;
            }
        }
        Ok(())
    }
}

fn configured(db: &Connection) -> Result<Vec<(HandlerId, HandlerName, bool)>> {
    let mut handlers =
        db.prepare_cached("SELECT id, name, ordered FROM handlers WHERE configured = 1")?;
    let rows = handlers.query_map([], |row| {
        let name: String = row.get(1)?;
        Ok((row.get(0)?, HandlerName::new(name), row.get(2)?))
    })?;
    rows.collect()
}

/// Newest first. Ids sort by time of arrival, so a range of times is a range of ids.
fn list_events(db: &Connection, filter: &EventFilter) -> Result<Vec<EventSummary>> {
    let (from, to) = id_range(filter.since, filter.until);
    let key = filter.key.as_ref().map(Key::as_str);
    let mut list = db.prepare_cached(
        "SELECT id, name, endpoint, key, occurred_at, received_at, position FROM events
         WHERE id > ?1 AND id <= ?2 AND (?3 IS NULL OR key = ?3) ORDER BY id DESC",
    )?;
    let mut rows = list.query(params![from, to, key])?;
    let mut found = Vec::new();
    while found.len() < filter.limit
        && let Some(row) = rows.next()?
    {
        let event = summary(db, row)?;
        if filter.takes(&event.name, event.received_at) {
            found.push(event);
        }
    }
    Ok(found)
}

fn summary(db: &Connection, row: &Row<'_>) -> Result<EventSummary> {
    let position: i64 = row.get(6)?;
    let (open, parked) = db
        .prepare_cached(
            "SELECT count(*) FILTER (WHERE state < 2), count(*) FILTER (WHERE state = 2)
             FROM handlers CROSS JOIN deliveries ON handler = id WHERE position = ?1",
        )?
        .query_row([position], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
        })?;
    Ok(EventSummary {
        id: EventId::from_bytes(row.get(0)?),
        name: EventName::new(row.get::<_, String>(1)?),
        endpoint: row.get::<_, String>(2)?.as_str().into(),
        key: row.get::<_, Option<String>>(3)?.map(Key::new),
        occurred_at: row.get::<_, Option<i64>>(4)?.map(time),
        received_at: time(row.get(5)?),
        open: open.cast_unsigned(),
        parked: parked.cast_unsigned(),
    })
}

fn find_event(db: &Connection, id: EventId) -> Result<Option<(Position, Vec<DeliveryRecord>)>> {
    let position: Option<i64> = db
        .prepare_cached("SELECT position FROM events WHERE id = ?1")?
        .query_row([id.as_bytes()], |row| row.get(0))
        .optional()?;
    let Some(position) = position else {
        return Ok(None);
    };
    let mut list = db.prepare_cached(
        "SELECT name, state, attempts, due_at, replay, id FROM handlers CROSS JOIN deliveries
         ON handler = id WHERE position = ?1 ORDER BY name",
    )?;
    let rows = list.query_map([position], |row| {
        let state: i64 = row.get(1)?;
        let due_at = (state == READY || state == QUEUED).then_some(row.get(3)?);
        Ok(DeliveryRecord {
            handler: HandlerName::new(row.get::<_, String>(0)?),
            state: delivery::state(state),
            attempts: row.get(2)?,
            due_at: due_at.map(time),
            replay: row.get(4)?,
            failures: failures(db, row.get(5)?, position)?,
        })
    })?;
    Ok(Some((
        Position::from_sql(position),
        rows.collect::<Result<_>>()?,
    )))
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

fn list_parked(db: &Connection, filter: &ParkedFilter) -> Result<Vec<ParkedDelivery>> {
    let mut list = db.prepare_cached(
        "SELECT e.id, e.name, h.name, e.key, e.received_at, d.due_at, d.attempts, d.why
         FROM handlers h
         CROSS JOIN deliveries d ON d.handler = h.id AND d.state = 2 AND d.state < 3
         CROSS JOIN events e ON e.position = d.position
         WHERE ?1 IS NULL OR h.name = ?1
         ORDER BY d.position, h.name LIMIT ?2",
    )?;
    let handler = filter.handler.as_ref().map(HandlerName::as_str);
    let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
    let rows = list.query_map(params![handler, limit], |row| {
        Ok(ParkedDelivery {
            id: EventId::from_bytes(row.get(0)?),
            name: EventName::new(row.get::<_, String>(1)?),
            handler: HandlerName::new(row.get::<_, String>(2)?),
            key: row.get::<_, Option<String>>(3)?.map(Key::new),
            received_at: time(row.get(4)?),
            parked_at: time(row.get(5)?),
            attempts: row.get(6)?,
            why: row.get::<_, Option<String>>(7)?.unwrap_or_default(),
        })
    })?;
    rows.collect()
}
