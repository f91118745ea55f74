//! Exports events and deliveries to another store.

use std::sync::Arc;

use rusqlite::{Connection, Result, Row};

use super::{delivery::HandlerId, operator::failures, time};
use crate::{
    event::{EventId, HandlerName, Topic},
    store::{
        Cursor, DeliverySnapshot, DeliveryState, EventPage, LatestReport, StoreError, StoredEvent,
        embedded::{reader::ReadError, segment::Position, source::TransferSource},
    },
};

/// The most bytes of bodies in one page, besides the last one. A page is in memory as a whole.
const SLICE_BYTES: usize = 4 << 20;

impl TransferSource {
    /// The number of events behind `place`.
    pub(in crate::store) fn count(&self, place: i64) -> std::result::Result<u64, StoreError> {
        let count = "SELECT count(*) FROM events WHERE position > ?1";
        let counted: Result<i64> = self.operator.db.query_row(count, [place], |row| row.get(0));
        let counted = counted.map_err(StoreError::database("counting events"))?;
        Ok(counted.cast_unsigned())
    }

    /// The next page of events behind `place`, in the order of storage; `None` at the end.
    pub(in crate::store) fn read(
        &self,
        place: i64,
        at_most: usize,
    ) -> std::result::Result<Option<EventPage>, StoreError> {
        let failed = StoreError::database("reading events");
        let positions = positions(&self.operator.db, place, at_most).map_err(failed)?;
        let Some(&(place, event)) = positions.first() else {
            return Ok(None);
        };
        let mut event_reader = self.operator.event_reader();
        let mut slice = EventPage {
            last: Cursor { place, event },
            stored: Vec::with_capacity(positions.len()),
            damaged: Vec::new(),
        };
        let mut bytes = 0;
        for (place, id) in positions {
            if bytes >= SLICE_BYTES {
                break;
            }
            slice.last = Cursor { place, event: id };
            let failed = StoreError::database("reading deliveries");
            let notification = match event_reader.read(Position::from_sql(place)) {
                Ok(event) => {
                    let mut event = Arc::unwrap_or_clone(event.notification);
                    event.complete_subjects();
                    event
                }
                Err(ReadError::Missing | ReadError::Damaged | ReadError::Erased) => {
                    slice.damaged.push(id);
                    continue;
                }
                Err(ReadError::Io(error)) => {
                    return Err(StoreError::io("reading an event")(error));
                }
            };
            bytes += notification.body.len();
            slice.stored.push(StoredEvent {
                notification,
                deliveries: deliveries(&self.operator.db, place).map_err(failed)?,
            });
        }
        Ok(Some(slice))
    }

    /// The next topics behind `last`, in the order of their texts; empty at the end.
    pub(in crate::store) fn topics(
        &self,
        last: &str,
        at_most: usize,
    ) -> std::result::Result<Vec<LatestReport>, StoreError> {
        topics(&self.operator.db, last, at_most).map_err(StoreError::database("reading topics"))
    }
}

fn topics(db: &Connection, last: &str, at_most: usize) -> Result<Vec<LatestReport>> {
    let mut list = db.prepare_cached(
        "SELECT topic, latest FROM topics WHERE topic > ?1 ORDER BY topic LIMIT ?2",
    )?;
    let rows = list.query_map((last, at_most as i64), |row| {
        Ok(LatestReport {
            topic: Topic::new(row.get::<_, String>(0)?),
            latest: time(row.get(1)?),
        })
    })?;
    rows.collect()
}

fn positions(db: &Connection, after: i64, at_most: usize) -> Result<Vec<(i64, EventId)>> {
    let mut list = db.prepare_cached(
        "SELECT position, id FROM events WHERE position > ?1 ORDER BY position LIMIT ?2",
    )?;
    let rows = list.query_map((after, at_most as i64), |row| {
        Ok((row.get(0)?, EventId::from_bytes(row.get(1)?)))
    })?;
    rows.collect()
}

/// The query of deliveries for [`read`].
macro_rules! deliveries {
    ($which:literal) => {
        concat!(
            "SELECT name, ordered, state, attempts, replays, due_at, since, replay, why, id, position
             FROM handlers CROSS JOIN deliveries ON handler = id ",
            $which
        )
    };
}

fn deliveries(db: &Connection, position: i64) -> Result<Vec<DeliverySnapshot>> {
    let mut list = db.prepare_cached(deliveries!("WHERE position = ?1 ORDER BY name"))?;
    let rows = list.query_map([position], |row| read(db, row))?;
    rows.map(|row| Ok(row?.1)).collect()
}

/// The first deliveries to a handler of the events in a range of positions.
pub(super) fn of_handler(
    db: &Connection,
    handler: HandlerId,
    (from, to): (Position, Position),
    at_most: usize,
) -> Result<Vec<(Position, DeliverySnapshot)>> {
    let mut list = db.prepare_cached(deliveries!(
        "WHERE id = ?1 AND handler = ?1 AND position >= ?2 AND position < ?3
         ORDER BY position LIMIT ?4"
    ))?;
    let place = (handler, from.to_sql(), to.to_sql(), at_most as i64);
    let rows = list.query_map(place, |row| read(db, row))?;
    rows.collect()
}

fn read(db: &Connection, row: &Row<'_>) -> Result<(Position, DeliverySnapshot)> {
    let (state, attempts, replays) = (row.get(2)?, row.get(3)?, row.get(4)?);
    let position: i64 = row.get(10)?;
    // A delivery that was done at the first attempt has no failures.
    let failures = match (state, attempts, replays) {
        (DeliveryState::Done, 1, 0) | (_, 0, 0) => Vec::new(),
        _ => failures(db, row.get(9)?, position)?,
    };
    let delivery = DeliverySnapshot {
        handler: HandlerName::new(row.get::<_, String>(0)?),
        ordered: row.get(1)?,
        state,
        attempts,
        replays,
        at: time(row.get(5)?),
        since: row.get::<_, Option<i64>>(6)?.map(time),
        replay: row.get(7)?,
        why: row.get(8)?,
        failures,
    };
    Ok((Position::from_sql(position), delivery))
}
