//! What becomes of deliveries: the rules of states and lanes, on one connection. Used by the
//! service's ledger and by the operator's commands alike.
//!
//! **Invariant:** of the open deliveries of a lane exactly one is ready: the oldest.
//!
//! **Invariant:** each change of a state is counted in the [`Tally`] of its transaction.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Result, params};

use crate::store::{DeliveryState, embedded::segment::Position, lane::Lane, shorten};

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
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) handler: HandlerId,
    pub(super) position: Position,
    pub(super) lane: Option<Lane>,
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
        "SELECT lane, state, replays FROM deliveries WHERE handler = ?1 AND position = ?2",
    )?
    .query_row((handler, position.to_sql()), |row| {
        Ok(Row {
            handler,
            position,
            lane: row.get(0)?,
            state: row.get(1)?,
            replays: row.get(2)?,
        })
    })
    .optional()
}

/// Adds the delivery of the newest event of all to `handler`.
pub(super) fn add(
    db: &Connection,
    tally: &mut Tally,
    (handler, position): (HandlerId, Position),
    lane: Option<Lane>,
    due_at: i64,
) -> Result<()> {
    let state = at_the_end(db, handler, lane)?;
    db.prepare_cached(
        "INSERT INTO deliveries (handler, position, lane, state, due_at)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute((handler, position.to_sql(), lane, state, due_at))?;
    tally.count(handler, None, Some(state));
    Ok(())
}

/// The state of a delivery that comes to the end of a lane, or that has none.
fn at_the_end(db: &Connection, handler: HandlerId, lane: Option<Lane>) -> Result<i64> {
    let waits = match lane {
        Some(lane) => head(db, handler, lane)?.is_some(),
        None => false,
    };
    Ok(if waits { QUEUED } else { READY })
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

/// Gives an open delivery another lane, or none. To be done for all of a handler, oldest first.
pub(super) fn place(
    db: &Connection,
    (handler, position): (HandlerId, Position),
    lane: Option<Lane>,
) -> Result<()> {
    let state = at_the_end(db, handler, lane)?;
    db.prepare_cached(
        "UPDATE deliveries SET lane = ?3, state = ?4 WHERE handler = ?1 AND position = ?2",
    )?
    .execute((handler, position.to_sql(), lane, state))?;
    Ok(())
}

/// Ends a delivery: done, skipped or parked.
pub(super) fn end(
    db: &Connection,
    tally: &mut Tally,
    row: Row,
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
    promote(db, row.handler, row.lane)
}

/// Makes an open delivery due at `due_at`, with its lane waiting for it.
pub(super) fn postpone(db: &Connection, row: Row, due_at: i64) -> Result<()> {
    db.prepare_cached("UPDATE deliveries SET due_at = ?3 WHERE handler = ?1 AND position = ?2")?
        .execute((row.handler, row.position.to_sql(), due_at))?;
    Ok(())
}

/// Makes a delivery again, at its own place in the lane of `row`, for `reason`. Makes an open one
/// due.
pub(super) fn replay(
    db: &Connection,
    tally: &mut Tally,
    row: Row,
    reason: &str,
    now: i64,
) -> Result<()> {
    let Row {
        handler, position, ..
    } = row;
    let state = match (row.is_open(), row.lane) {
        (true, _) => row.state,
        (false, None) => READY,
        (false, Some(_)) => QUEUED,
    };
    db.prepare_cached(
        "UPDATE deliveries
         SET lane = ?3, state = ?4, attempts = 0, due_at = ?5, since = NULL, replay = ?6,
             replays = replays + 1, why = NULL
         WHERE handler = ?1 AND position = ?2",
    )?
    .execute(params![
        handler,
        position.to_sql(),
        row.lane,
        state,
        now,
        shorten(reason)
    ])?;
    tally.count(handler, Some(row.state), Some(state));
    let Some(lane) = row.lane.filter(|_| state == QUEUED) else {
        return Ok(());
    };
    // Whoever was the oldest so far, and is no longer, steps back. It can only be the next after
    // this one. If it is being attempted at this moment, the service lets nobody else of the lane
    // start until that has ended.
    db.prepare_cached(STEP_BACK)?
        .execute((handler, lane, position.to_sql()))?;
    promote(db, handler, row.lane)
}

/// Makes the oldest open delivery of a lane ready.
pub(super) fn promote(db: &Connection, handler: HandlerId, lane: Option<Lane>) -> Result<()> {
    let Some(lane) = lane else { return Ok(()) };
    if let Some((position, QUEUED)) = head(db, handler, lane)? {
        db.prepare_cached("UPDATE deliveries SET state = 0 WHERE handler = ?1 AND position = ?2")?
            .execute((handler, position))?;
    }
    Ok(())
}

/// Position and state of the oldest open delivery of a lane.
pub(super) fn head(db: &Connection, handler: HandlerId, lane: Lane) -> Result<Option<(i64, i64)>> {
    db.prepare_cached(HEAD)?
        .query_row((handler, lane), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

/// The query of [`head`]. Here and elsewhere the predicate of the index is repeated, since it could
/// not be used otherwise, and the index is named, since the primary key would be used otherwise.
pub(super) const HEAD: &str = "SELECT position, state FROM deliveries INDEXED BY lanes
    WHERE handler = ?1 AND lane = ?2 AND state < 2 AND lane IS NOT NULL
    ORDER BY position LIMIT 1";

/// Takes the next delivery after a position of a lane out of the ready ones, if it is one.
pub(super) const STEP_BACK: &str = "UPDATE deliveries SET state = 1
    WHERE handler = ?1 AND state = 0 AND position = (
        SELECT position FROM deliveries INDEXED BY lanes
        WHERE handler = ?1 AND lane = ?2 AND state < 2 AND lane IS NOT NULL AND position > ?3
        ORDER BY position LIMIT 1)";
