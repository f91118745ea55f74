//! The rows of deliveries and their changes of state, on one connection. The service and the
//! operator's commands use them. The [queue](crate::store::embedded::queue) decides which open
//! deliveries can be attempted.
//!
//! **Invariant:** each change of a state is counted in the [`Tally`] of its transaction.

use std::collections::BTreeMap;

use rusqlite::{
    Connection, OptionalExtension, Result, ToSql, params,
    types::{FromSql, FromSqlResult, ToSqlOutput, ValueRef},
};

use super::{micros, ordering};
use crate::{
    event::OrderingKeys,
    store::{Attempt, DeliverySnapshot, DeliveryState, embedded::segment::Position, shorten},
};

/// The id of a handler's row.
pub(super) type HandlerId = i64;

impl ToSql for DeliveryState {
    fn to_sql(&self) -> Result<ToSqlOutput<'_>> {
        Ok((*self as i64).into())
    }
}

impl FromSql for DeliveryState {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        i16::column_result(value).map(Self::numbered)
    }
}

/// The changes of the counts of open and parked deliveries in one transaction.
#[derive(Debug, Default)]
pub(super) struct Tally(BTreeMap<HandlerId, (i64, i64)>);

impl Tally {
    /// Counts a change from state `before` to `after`. `None` stands for no row.
    pub(super) fn count(
        &mut self,
        handler: HandlerId,
        before: Option<DeliveryState>,
        after: Option<DeliveryState>,
    ) {
        let (open, parked) = self.0.entry(handler).or_default();
        for (state, by) in [(before, -1), (after, 1)] {
            *open += by * i64::from(state.is_some_and(DeliveryState::is_open));
            *parked += by * i64::from(state == Some(DeliveryState::Parked));
        }
    }

    /// Adds the changes to the counts. To be called at the end of the transaction.
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

    /// Drops the changes, with their transaction.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// A delivery's row.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) handler: HandlerId,
    pub(super) position: Position,
    pub(super) state: DeliveryState,
    pub(super) attempts: u32,
    /// The number of replays.
    pub(super) replays: u32,
}

impl Row {
    /// Whether `snapshot` is newer: it has more replays, or else more attempts, or else a later
    /// state.
    pub(super) fn is_behind(&self, snapshot: &DeliverySnapshot) -> bool {
        let rank = |state| (state as i64).min(DeliveryState::Done as i64);
        let own = (self.replays, self.attempts, rank(self.state));
        own < (snapshot.replays, snapshot.attempts, rank(snapshot.state))
    }
}

/// Finds a delivery.
pub(super) fn find(db: &Connection, handler: HandlerId, position: Position) -> Result<Option<Row>> {
    db.prepare_cached(
        "SELECT state, attempts, replays FROM deliveries
         WHERE handler = ?1 AND position = ?2",
    )?
    .query_row((handler, position.to_sql()), |row| {
        Ok(Row {
            handler,
            position,
            state: row.get(0)?,
            attempts: row.get(1)?,
            replays: row.get(2)?,
        })
    })
    .optional()
}

/// Adds an open delivery of an event to `handler`.
pub(super) fn add(
    db: &Connection,
    tally: &mut Tally,
    (handler, position): (HandlerId, Position),
    keys: Option<&OrderingKeys>,
    due_at: i64,
) -> Result<()> {
    let (scope, key, several) = ordering::columns(keys);
    db.prepare_cached(
        "INSERT INTO deliveries (handler, position, scope, key, keys, state, due_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        handler,
        position.to_sql(),
        scope,
        key,
        several,
        DeliveryState::Ready,
        due_at
    ])?;
    tally.count(handler, None, Some(DeliveryState::Ready));
    Ok(())
}

/// Adds a delivery in the state of `snapshot`.
pub(super) fn add_snapshot(
    db: &Connection,
    tally: &mut Tally,
    (handler, position): (HandlerId, Position),
    snapshot: &DeliverySnapshot,
) -> Result<()> {
    let insert = "INSERT INTO deliveries
            (handler, position, state, attempts, replays, due_at, since, replay, why)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    write(db, insert, (handler, position), snapshot)?;
    tally.count(handler, None, Some(snapshot.state));
    Ok(())
}

/// Adds a delivery to a handler that did not get the event, as done, so that it can be replayed.
pub(super) fn insert_done(
    db: &Connection,
    (handler, position): (HandlerId, Position),
    now: i64,
) -> Result<Row> {
    let state = DeliveryState::Done;
    db.prepare_cached(
        "INSERT INTO deliveries (handler, position, state, due_at) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute((handler, position.to_sql(), state, now))?;
    Ok(Row {
        handler,
        position,
        state,
        attempts: 0,
        replays: 0,
    })
}

/// Sets or removes the ordering keys of a delivery.
pub(super) fn set_keys(
    db: &Connection,
    (handler, position): (HandlerId, Position),
    keys: Option<&OrderingKeys>,
) -> Result<()> {
    let (scope, key, several) = ordering::columns(keys);
    db.prepare_cached(
        "UPDATE deliveries SET scope = ?3, key = ?4, keys = ?5
         WHERE handler = ?1 AND position = ?2",
    )?
    .execute(params![handler, position.to_sql(), scope, key, several])?;
    Ok(())
}

/// Deletes a delivery.
pub(super) fn delete(db: &Connection, tally: &mut Tally, row: &Row) -> Result<()> {
    db.prepare_cached("DELETE FROM deliveries WHERE handler = ?1 AND position = ?2")?
        .execute((row.handler, row.position.to_sql()))?;
    tally.count(row.handler, Some(row.state), None);
    Ok(())
}

/// Adds a failed attempt.
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
    state: DeliveryState,
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
    Ok(())
}

/// The statement that updates a delivery, with a condition.
macro_rules! update {
    ($condition:literal) => {
        concat!(
            "UPDATE deliveries SET state = ?3, attempts = ?4, replays = ?5, due_at = ?6,
                 since = ?7, replay = ?8, why = ?9
             WHERE handler = ?1 AND position = ?2 ",
            $condition
        )
    };
}

/// Updates a delivery to the state of `snapshot`.
pub(super) fn change(
    db: &Connection,
    tally: &mut Tally,
    row: &Row,
    snapshot: &DeliverySnapshot,
) -> Result<()> {
    write(db, update!(""), (row.handler, row.position), snapshot)?;
    tally.count(row.handler, Some(row.state), Some(snapshot.state));
    Ok(())
}

/// The same for the usual case of an open delivery without a newer replay. Returns `false` in other
/// cases.
pub(super) fn advance(
    db: &Connection,
    tally: &mut Tally,
    (handler, position): (HandlerId, Position),
    snapshot: &DeliverySnapshot,
) -> Result<bool> {
    let still_open = update!("AND state = 0 AND attempts <= ?4 AND replays = ?5");
    let is_changed = write(db, still_open, (handler, position), snapshot)?;
    if is_changed {
        tally.count(handler, Some(DeliveryState::Ready), Some(snapshot.state));
    }
    Ok(is_changed)
}

/// Runs `statement` with the state of `snapshot`. Returns whether it changed a row.
fn write(
    db: &Connection,
    statement: &str,
    (handler, position): (HandlerId, Position),
    snapshot: &DeliverySnapshot,
) -> Result<bool> {
    let changed = db.prepare_cached(statement)?.execute(params![
        handler,
        position.to_sql(),
        snapshot.state,
        snapshot.attempts,
        snapshot.replays,
        micros(snapshot.at),
        snapshot.since.map(micros),
        snapshot.replay,
        snapshot.why,
    ])?;
    Ok(changed > 0)
}

/// Replays a delivery for `reason`. An open delivery becomes due.
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
        "UPDATE deliveries SET state = ?3, attempts = 0, due_at = ?4, since = NULL, replay = ?5,
             replays = replays + 1, why = NULL
         WHERE handler = ?1 AND position = ?2",
    )?
    .execute(params![
        handler,
        position.to_sql(),
        DeliveryState::Ready,
        now,
        shorten(reason)
    ])?;
    tally.count(handler, Some(row.state), Some(DeliveryState::Ready));
    Ok(())
}

/// Adds a delivery to the outbox, since a command has changed it.
pub(super) fn add_to_outbox(db: &Connection, handler: HandlerId, position: Position) -> Result<()> {
    db.prepare_cached("INSERT OR IGNORE INTO outbox (handler, position) VALUES (?1, ?2)")?
        .execute((handler, position.to_sql()))?;
    Ok(())
}
