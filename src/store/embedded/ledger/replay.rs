//! Replays deliveries.

use jiff::Timestamp;
use rusqlite::{
    Connection, OptionalExtension, Result, Row, Transaction, TransactionBehavior, params,
};

use super::{
    delivery::{self, HandlerId, Tally},
    micros, time,
};
use crate::{
    event::{EventName, HandlerName},
    store::{
        ReplaySelection, ReplaySummary, StoreError,
        embedded::{reader::EventReader, segment::Position},
        operator::id_range,
        replay::ReplayPlan,
    },
};

/// The number of events in one transaction, so that the service is not delayed for long.
const SLICE: usize = 256;

/// A handler, and whether it is ordered.
type Handler = (HandlerId, bool);

/// Counts what a replay would select.
pub(super) fn plan(
    db: &Connection,
    selection: &ReplaySelection,
) -> std::result::Result<ReplaySummary, StoreError> {
    let mut plan = of(db, selection)?;
    let walked = walk(db, selection, |page| {
        for position in page {
            for (handler, _) in choose(db, &plan, position)? {
                plan.count(&handler);
            }
        }
        Ok(())
    });
    walked.map_err(StoreError::database("planning a replay"))?;
    Ok(plan.summary())
}

/// Makes the selected deliveries due again. `journal` has the events.
pub(super) fn make(
    db: &Connection,
    mut journal: EventReader,
    selection: &ReplaySelection,
    reason: &str,
    now: Timestamp,
    progress: &mut dyn FnMut(u64),
) -> std::result::Result<ReplaySummary, StoreError> {
    let mut plan = of(db, selection)?;
    let walked = walk(db, selection, |page| {
        let change = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
        let mut tally = Tally::default();
        for position in page {
            for (handler, row) in choose(&change, &plan, position)? {
                plan.count(&handler);
                let (id, ordered) = handler;
                let place = (id, position);
                let row = match row {
                    Some(row) => row,
                    None => delivery::insert_done(&change, place, micros(now))?,
                };
                if !row.state.is_open() {
                    // The handler may have become ordered or unordered since. An unreadable event
                    // is parked when its delivery is next.
                    let event = journal.read(position).ok();
                    let keys = event.and_then(|event| event.keys).filter(|_| ordered);
                    delivery::set_keys(&change, place, keys.as_ref())?;
                }
                delivery::replay(&change, &mut tally, &row, reason, micros(now))?;
                delivery::add_to_outbox(&change, id, position)?;
            }
        }
        tally.write(&change)?;
        change.commit()?;
        progress(plan.total());
        Ok(())
    });
    walked.map_err(StoreError::database("making a replay"))?;
    Ok(plan.summary())
}

/// Resolves `selection` in this ledger.
fn of<'a>(
    db: &Connection,
    selection: &'a ReplaySelection,
) -> std::result::Result<ReplayPlan<'a, Handler>, StoreError> {
    let handlers = configured(db).map_err(StoreError::database("reading handlers"))?;
    ReplayPlan::new(selection, handlers)
}

/// The selected deliveries of the event at `position`, with the rows of those that exist.
fn choose(
    db: &Connection,
    plan: &ReplayPlan<'_, Handler>,
    position: Position,
) -> Result<Vec<(Handler, Option<delivery::Row>)>> {
    let mut chosen = Vec::new();
    for handler in plan.handlers() {
        let row = delivery::find(db, handler.0, position)?;
        if plan.means(row.as_ref().map(|row| row.state)) {
            chosen.push((*handler, row));
        }
    }
    Ok(chosen)
}

/// Passes the selected events to `look`, oldest first, page by page.
fn walk(
    db: &Connection,
    selection: &ReplaySelection,
    mut look: impl FnMut(Vec<Position>) -> Result<()>,
) -> Result<()> {
    if !selection.ids.is_empty() {
        let mut by_id =
            db.prepare_cached("SELECT position, name, received_at FROM events WHERE id = ?1")?;
        for ids in selection.ids.chunks(SLICE) {
            let mut page = Vec::new();
            for id in ids {
                let found = by_id.query_row([id.as_bytes()], |row| event(selection, row));
                page.extend(found.optional()?.flatten());
            }
            look(page)?;
        }
        return Ok(());
    }
    let mut slice = db.prepare_cached(
        "SELECT position, name, received_at, id FROM events
         WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3",
    )?;
    let (from, to) = id_range(selection.since, selection.until);
    let mut next = Some(from);
    while let Some(from) = next.take() {
        let mut rows = slice.query(params![from, to, SLICE as i64])?;
        let mut page = Vec::new();
        while let Some(row) = rows.next()? {
            next = Some(row.get(3)?);
            page.extend(event(selection, row)?);
        }
        drop(rows);
        look(page)?;
    }
    Ok(())
}

/// The position of the event in `row`, if it is selected.
fn event(selection: &ReplaySelection, row: &Row<'_>) -> Result<Option<Position>> {
    let name = EventName::new(row.get::<_, String>(1)?);
    let is_meant = selection.takes(&name, time(row.get(2)?));
    let position = Position::from_sql(row.get(0)?);
    Ok(is_meant.then_some(position))
}

fn configured(db: &Connection) -> Result<Vec<(Handler, HandlerName)>> {
    let mut handlers =
        db.prepare_cached("SELECT id, ordered, name FROM handlers WHERE configured = 1")?;
    let rows = handlers.query_map([], |row| {
        let name: String = row.get(2)?;
        Ok(((row.get(0)?, row.get(1)?), HandlerName::new(name)))
    })?;
    rows.collect()
}
