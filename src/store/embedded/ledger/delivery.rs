//! What becomes of deliveries: the rules of states, on one connection. Used by the service's ledger and
//! by the operator's commands alike. Which of the open ones are ready is up to [`order`].
//!
//! **Invariant:** each change of a state is counted in the [`Tally`] of its transaction.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Result, params};

use super::{micros, order};
use crate::{
    event::OrderingKeys,
    store::{Attempt, DeliveryState, embedded::segment::Position, shorten},
};

/// A handler's row.
pub(super) type HandlerId = i64;

/// The states as the schema numbers them.
pub(super) const READY: i64 = 0;
pub(super) const QUEUED: i64 = 1;
pub(super) const PARKED: i64 = 2;
pub(super) const DONE: i64 = 3;
pub(super) const SKIPPED: i64 = 4;

/// The state that the schema numbers `state`.
pub(super) const fn state(state: i64) -> DeliveryState {
    match state {
        READY => DeliveryState::Ready,
        QUEUED => DeliveryState::Queued,
        PARKED => DeliveryState::Parked,
        SKIPPED => DeliveryState::Skipped,
        _ => DeliveryState::Done,
    }
}

/// The number of a state. What is open is taken for ready.
pub(super) const fn number(state: DeliveryState) -> i64 {
    match state {
        DeliveryState::Ready | DeliveryState::Queued => READY,
        DeliveryState::Parked => PARKED,
        DeliveryState::Done => DONE,
        DeliveryState::Skipped => SKIPPED,
    }
}

/// By how much a transaction changes the counts of open and parked deliveries.
#[derive(Debug, Default)]
pub(super) struct Tally(BTreeMap<HandlerId, (i64, i64)>);

impl Tally {
    /// A delivery went from state `before`, or from nothing, to `after`, or to nothing.
    pub(super) fn count(&mut self, handler: HandlerId, before: Option<i64>, after: Option<i64>) {
        let (open, parked) = self.0.entry(handler).or_default();
        for (state, by) in [(before, -1), (after, 1)] {
            match state {
                Some(READY | QUEUED) => *open += by,
                Some(PARKED) => *parked += by,
                _ => {}
            }
        }
    }

    /// Adds it to the counts. To be done last in the transaction.
    pub(super) fn write(&mut self, db: &Connection) -> Result<()> {
        for (handler, (open, parked)) in std::mem::take(&mut self.0) {
            if (open, parked) != (0, 0) {
                db.prepare_cached(
                    "UPDATE handlers SET open = open + ?2, parked = parked + ?3 WHERE id = ?1",
                )?
                .execute((handler, open, parked))?;
            }
        }
        Ok(())
    }

    /// Forgets it, with the transaction that it belongs to.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// One delivery's row.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) handler: HandlerId,
    pub(super) position: Position,
    pub(super) keys: Option<OrderingKeys>,
    pub(super) state: i64,
    /// How often it has been replayed.
    pub(super) replays: u32,
}

impl Row {
    /// Whether it is to be attempted, now or later.
    pub(super) const fn is_open(&self) -> bool {
        self.state == READY || self.state == QUEUED
    }
}

/// Looks one delivery up.
pub(super) fn find(db: &Connection, handler: HandlerId, position: Position) -> Result<Option<Row>> {
    db.prepare_cached(
        "SELECT scope, key, keys, state, replays FROM deliveries
         WHERE handler = ?1 AND position = ?2",
    )?
    .query_row((handler, position.to_sql()), |row| {
        Ok(Row {
            handler,
            position,
            keys: order::read(row, 0)?,
            state: row.get(3)?,
            replays: row.get(4)?,
        })
    })
    .optional()
}

/// Adds the delivery of the newest event of all to `handler`.
pub(super) fn add(
    db: &Connection,
    tally: &mut Tally,
    (handler, position): (HandlerId, Position),
    keys: Option<&OrderingKeys>,
    due_at: i64,
) -> Result<()> {
    let (state, behind) = order::state(db, (handler, position), keys)?;
    let (scope, key, several) = order::columns(keys);
    db.prepare_cached(
        "INSERT INTO deliveries (handler, position, scope, key, keys, behind, state, due_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        handler,
        position.to_sql(),
        scope,
        key,
        several,
        behind.map(Position::to_sql),
        state,
        due_at
    ])?;
    order::change_further_keys(db, order::NOTE, (handler, position), keys)?;
    tally.count(handler, None, Some(state));
    Ok(())
}

/// Adds a delivery that nobody asked for when the event came, as if it had been made: so that it
/// can be made again.
pub(super) fn insert_done(
    db: &Connection,
    (handler, position): (HandlerId, Position),
    now: i64,
) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO deliveries (handler, position, state, due_at) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute((handler, position.to_sql(), DONE, now))?;
    Ok(())
}

/// Gives an open delivery ordering keys, or takes them away. To be done for all of a handler, oldest
/// first.
pub(super) fn place(
    db: &Connection,
    (handler, position): (HandlerId, Position),
    keys: Option<&OrderingKeys>,
) -> Result<i64> {
    let (state, behind) = order::state(db, (handler, position), keys)?;
    let (scope, key, several) = order::columns(keys);
    db.prepare_cached(
        "UPDATE deliveries SET scope = ?3, key = ?4, keys = ?5, state = ?6, behind = ?7
         WHERE handler = ?1 AND position = ?2",
    )?
    .execute(params![
        handler,
        position.to_sql(),
        scope,
        key,
        several,
        state,
        behind.map(Position::to_sql)
    ])?;
    order::change_further_keys(db, order::NOTE, (handler, position), keys)?;
    Ok(state)
}

/// Opens a delivery that has ended, at its own place in the order of `keys`.
pub(super) fn reopen(
    db: &Connection,
    tally: &mut Tally,
    row: &Row,
    keys: Option<&OrderingKeys>,
) -> Result<()> {
    let place_of = (row.handler, row.position);
    let state = place(db, place_of, keys)?;
    tally.count(row.handler, Some(row.state), Some(state));
    match keys {
        Some(keys) => order::step_back(db, row.handler, row.position, keys),
        None => Ok(()),
    }
}

/// Forgets a delivery, as if nobody had asked for it.
pub(super) fn forget(db: &Connection, tally: &mut Tally, row: &Row) -> Result<()> {
    let place = (row.handler, row.position);
    db.prepare_cached("DELETE FROM deliveries WHERE handler = ?1 AND position = ?2")?
        .execute((row.handler, row.position.to_sql()))?;
    tally.count(row.handler, Some(row.state), None);
    order::change_further_keys(db, order::FORGET, place, row.keys.as_ref())?;
    order::wake(db, row.handler, row.position)
}

/// Adds an attempt that did not end well.
pub(super) fn add_failure(
    db: &Connection,
    (handler, position): (HandlerId, Position),
    failure: &Attempt,
) -> Result<()> {
    db.prepare_cached(
        "INSERT OR REPLACE INTO attempts (handler, position, started_at, took_ms, why)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        handler,
        position.to_sql(),
        micros(failure.started_at),
        i64::try_from(failure.took_ms).unwrap_or(i64::MAX),
        shorten(&failure.why),
    ])?;
    Ok(())
}

/// Ends a delivery: done, skipped or parked.
pub(super) fn end(
    db: &Connection,
    tally: &mut Tally,
    row: &Row,
    state: i64,
    at: i64,
    why: Option<&str>,
) -> Result<()> {
    db.prepare_cached(
        "UPDATE deliveries SET state = ?3, due_at = ?4, why = ?5
         WHERE handler = ?1 AND position = ?2",
    )?
    .execute(params![
        row.handler,
        row.position.to_sql(),
        state,
        at,
        why.map(shorten)
    ])?;
    tally.count(row.handler, Some(row.state), Some(state));
    let place = (row.handler, row.position);
    order::change_further_keys(db, order::FORGET, place, row.keys.as_ref())?;
    order::wake(db, row.handler, row.position)
}

/// Makes an open delivery due at `due_at`. What waits for it goes on waiting.
pub(super) fn postpone(db: &Connection, row: &Row, due_at: i64) -> Result<()> {
    db.prepare_cached("UPDATE deliveries SET due_at = ?3 WHERE handler = ?1 AND position = ?2")?
        .execute((row.handler, row.position.to_sql(), due_at))?;
    Ok(())
}

/// Makes a delivery again, at its own place in the order of the keys of `row`, for `reason`. Makes an
/// open one due.
pub(super) fn replay(
    db: &Connection,
    tally: &mut Tally,
    row: &Row,
    reason: &str,
    now: i64,
) -> Result<()> {
    let &Row {
        handler, position, ..
    } = row;
    db.prepare_cached(
        "UPDATE deliveries
         SET attempts = 0, due_at = ?3, since = NULL, replay = ?4, replays = replays + 1, why = NULL
         WHERE handler = ?1 AND position = ?2",
    )?
    .execute(params![handler, position.to_sql(), now, shorten(reason)])?;
    if row.is_open() {
        return Ok(());
    }
    reopen(db, tally, row, row.keys.as_ref())
}

/// Lists a delivery as changed by a command, for the service to tell the journal.
pub(super) fn list(db: &Connection, handler: HandlerId, position: Position) -> Result<()> {
    db.prepare_cached("INSERT OR IGNORE INTO outbox (handler, position) VALUES (?1, ?2)")?
        .execute((handler, position.to_sql()))?;
    Ok(())
}
