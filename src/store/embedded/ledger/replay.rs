//! Making deliveries again.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::{
    Connection, OptionalExtension, Result, Row, Transaction, TransactionBehavior, params,
};

use super::{
    delivery::{self, HandlerId, PARKED, Tally},
    micros,
};
use crate::{
    event::{EventId, EventName, HandlerName},
    store::{
        ReplaySelection, ReplaySummary, StoreError,
        embedded::{reader::Bodies, segment::Position},
        record::id_range,
    },
};

/// Events looked at in one transaction, so that the service is never held up long.
const SLICE: usize = 256;

/// What a replay would do.
pub(super) fn plan(
    db: &Connection,
    selection: &ReplaySelection,
) -> std::result::Result<ReplaySummary, StoreError> {
    let plan = Plan::new(db, selection)?;
    let mut count = BTreeMap::new();
    plan.walk(db, |page| {
        page.into_iter().try_for_each(|position| {
            plan.each(db, position, |chosen| {
                *count.entry(chosen.handler).or_default() += 1;
                Ok(())
            })
        })
    })
    .map_err(StoreError::database("planning a replay"))?;
    Ok(plan.summary(&count))
}

/// Does it. `journal` is where the events are.
pub(super) fn make(
    db: &Connection,
    mut journal: Bodies,
    selection: &ReplaySelection,
    reason: &str,
    now: Timestamp,
    progress: &mut dyn FnMut(u64),
) -> std::result::Result<ReplaySummary, StoreError> {
    let plan = Plan::new(db, selection)?;
    let mut count: BTreeMap<HandlerId, u64> = BTreeMap::new();
    plan.walk(db, |page| {
        let change = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
        let mut tally = Tally::default();
        for position in page {
            plan.each(&change, position, |chosen| {
                *count.entry(chosen.handler).or_default() += 1;
                chosen.replay(&change, &mut tally, &mut journal, reason, micros(now))
            })?;
        }
        tally.write(&change)?;
        change.commit()?;
        progress(count.values().sum());
        Ok(())
    })
    .map_err(StoreError::database("making a replay"))?;
    Ok(plan.summary(&count))
}

/// What a [`ReplaySelection`] means in this ledger.
struct Plan<'a> {
    selection: &'a ReplaySelection,
    /// Handlers that are configured, and whether each is ordered.
    handlers: Vec<(HandlerId, HandlerName, bool)>,
}

/// One delivery that a replay makes.
struct Chosen {
    handler: HandlerId,
    position: Position,
    ordered: bool,
    /// Its state; `None` when there is no such delivery yet.
    state: Option<i64>,
}

impl Chosen {
    fn replay(
        &self,
        db: &Connection,
        tally: &mut Tally,
        journal: &mut Bodies,
        reason: &str,
        now: i64,
    ) -> Result<()> {
        if self.state.is_none() {
            delivery::insert_done(db, (self.handler, self.position), now)?;
        }
        let Some(row) = delivery::find(db, self.handler, self.position)? else {
            return Ok(());
        };
        if !row.is_open() {
            // Whether the handler is ordered may have changed since. What cannot be read is parked
            // when its turn comes.
            let event = journal.read(self.position).ok();
            let keys = event.and_then(|event| event.keys);
            let keys = keys.filter(|_| self.ordered);
            delivery::place(db, (self.handler, self.position), keys.as_ref())?;
        }
        delivery::replay(db, tally, &row, reason, now)?;
        delivery::list(db, self.handler, self.position)
    }
}

impl<'a> Plan<'a> {
    fn new(
        db: &Connection,
        selection: &'a ReplaySelection,
    ) -> std::result::Result<Self, StoreError> {
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
    fn walk(
        &self,
        db: &Connection,
        mut look: impl FnMut(Vec<Position>) -> Result<()>,
    ) -> Result<()> {
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

    fn by_id(&self, db: &Connection, id: EventId) -> Result<Option<Position>> {
        let found = db
            .prepare_cached("SELECT position, name, received_at FROM events WHERE id = ?1")?
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
    ) -> Result<(Vec<Position>, Option<[u8; 16]>)> {
        let mut slice = db.prepare_cached(
            "SELECT position, name, received_at, id FROM events
             WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3",
        )?;
        let mut rows = slice.query(params![after, to, SLICE as i64])?;
        let (mut page, mut last) = (Vec::new(), None);
        while let Some(row) = rows.next()? {
            last = Some(row.get(3)?);
            page.extend(self.event(row)?);
        }
        Ok((page, last))
    }

    /// The position of the event in `row`, if it is meant.
    fn event(&self, row: &Row<'_>) -> Result<Option<Position>> {
        let name = EventName::new(row.get::<_, String>(1)?);
        let received_at: i64 = row.get(2)?;
        let selection = self.selection;
        let meant = selection.name.as_ref().is_none_or(|p| p.matches(&name))
            && selection.since.is_none_or(|t| received_at >= micros(t))
            && selection.until.is_none_or(|t| received_at < micros(t));
        if !meant {
            return Ok(None);
        }
        Ok(Some(Position::from_sql(row.get(0)?)))
    }

    /// Gives each delivery of the event at `position` that is meant to `make`.
    fn each(
        &self,
        db: &Connection,
        position: Position,
        mut make: impl FnMut(&Chosen) -> Result<()>,
    ) -> Result<()> {
        let named = &self.selection.handlers;
        for (id, name, ordered) in &self.handlers {
            if !named.is_empty() && !named.contains(name) {
                continue;
            }
            let state = delivery::find(db, *id, position)?.map(|row| row.state);
            let meant = match state {
                Some(state) => state == PARKED || !self.selection.parked_only,
                None => !named.is_empty() && !self.selection.parked_only,
            };
            if meant {
                make(&Chosen {
                    handler: *id,
                    position,
                    ordered: *ordered,
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
