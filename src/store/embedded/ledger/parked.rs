//! Lists of parked deliveries.
//!
//! **Invariant:** a page looks at a bounded number of rows, however many there are.

use std::cmp::Reverse;

use rusqlite::{Connection, OptionalExtension, Result, params};

use super::{delivery::HandlerId, time};
use crate::{
    event::{EventId, EventName, HandlerName, Key},
    store::{
        ParkedCursor, ParkedDelivery, ParkedFilter, ParkedList, ParkedReason,
        operator::{MOST_COUNTED, MOST_LOOKED_AT, MOST_REASONS, needle},
    },
};

/// The positions of a handler's parked deliveries.
pub(super) const POSITIONS: &str = "SELECT position FROM deliveries INDEXED BY unfinished
    WHERE handler = ?1 AND state = 2 AND state < 3 AND position >= ?2 ORDER BY position LIMIT ?3";

/// The oldest parked deliveries of a handler, by reason.
pub(super) const REASONS: &str = "SELECT why, count(*), min(position) FROM
        (SELECT handler AS h, position AS p FROM deliveries INDEXED BY unfinished
         WHERE handler = ?1 AND state = 2 AND state < 3 ORDER BY position LIMIT ?2)
    CROSS JOIN deliveries ON handler = h AND position = p GROUP BY why";

/// Oldest first.
pub(super) fn list(db: &Connection, filter: &ParkedFilter) -> Result<ParkedList> {
    let needle = filter.why.as_deref().map(needle);
    let mut list = ParkedList::default();
    let (places, mut is_cut) = places(db, filter)?;
    let mut last = None;
    for (handler, place) in places {
        if list.deliveries.len() >= filter.limit {
            is_cut = true;
            break;
        }
        let delivery = delivery(db, handler, &place, needle.as_deref())?;
        list.deliveries.extend(delivery);
        last = Some(place);
    }
    list.next = last.filter(|_| is_cut);
    Ok(list)
}

/// The deliveries to look at, and whether there are more behind them.
fn places(
    db: &Connection,
    filter: &ParkedFilter,
) -> Result<(Vec<(HandlerId, ParkedCursor)>, bool)> {
    let at_most = match filter.why {
        Some(_) => MOST_LOOKED_AT,
        None => MOST_LOOKED_AT.min(filter.limit),
    };
    let mut handlers = db.prepare_cached("SELECT id, name FROM handlers WHERE parked > 0")?;
    let mut positions = db.prepare_cached(POSITIONS)?;
    let mut places = Vec::new();
    let handlers = handlers.query_map([], |row| {
        Ok((row.get(0)?, HandlerName::new(row.get::<_, String>(1)?)))
    })?;
    for handler in handlers {
        let (id, handler): (HandlerId, _) = handler?;
        if filter
            .handler
            .as_ref()
            .is_some_and(|wanted| *wanted != handler)
        {
            continue;
        }
        let from = filter.after.as_ref().map_or(0, |after| {
            after
                .position
                .saturating_add((handler <= after.handler).into())
        });
        // One more shows whether there is more.
        let found = positions.query_map(params![id, from, at_most as i64 + 1], |row| row.get(0))?;
        for position in found {
            let (position, handler) = (position?, handler.clone());
            places.push((id, ParkedCursor { position, handler }));
        }
    }
    places.sort_unstable_by(|(_, one), (_, other)| one.cmp(other));
    let is_cut = places.len() > at_most;
    places.truncate(at_most);
    Ok((places, is_cut))
}

/// The parked delivery, if its reason has `needle` in it.
fn delivery(
    db: &Connection,
    handler: HandlerId,
    place: &ParkedCursor,
    needle: Option<&str>,
) -> Result<Option<ParkedDelivery>> {
    db.prepare_cached(
        "SELECT e.id, e.name, e.key, e.received_at, d.due_at, d.attempts, d.why
         FROM deliveries d CROSS JOIN events e ON e.position = d.position
         WHERE d.handler = ?1 AND d.position = ?2 AND d.state = 2
             AND (?3 IS NULL OR instr(lower(d.why), ?3) > 0)",
    )?
    .query_row(params![handler, place.position, needle], |row| {
        Ok(ParkedDelivery {
            id: EventId::from_bytes(row.get(0)?),
            name: EventName::new(row.get::<_, String>(1)?),
            handler: place.handler.clone(),
            key: row.get::<_, Option<String>>(2)?.map(Key::new),
            received_at: time(row.get(3)?),
            parked_at: time(row.get(4)?),
            attempts: row.get(5)?,
            why: row.get::<_, Option<String>>(6)?.unwrap_or_default(),
        })
    })
    .optional()
}

/// The reasons, most frequent first.
pub(super) fn reasons(db: &Connection) -> Result<Vec<ParkedReason>> {
    let mut handlers =
        db.prepare_cached("SELECT id, name, parked FROM handlers WHERE parked > 0")?;
    let mut list = db.prepare_cached(REASONS)?;
    let mut received = db.prepare_cached("SELECT received_at FROM events WHERE position = ?1")?;
    let mut reasons = Vec::new();
    let mut rows = handlers.query([])?;
    while let Some(row) = rows.next()? {
        let (id, parked): (HandlerId, i64) = (row.get(0)?, row.get(2)?);
        let handler = HandlerName::new(row.get::<_, String>(1)?);
        let mut found = list.query(params![id, MOST_COUNTED as i64])?;
        while let Some(row) = found.next()? {
            let oldest = received.query_row([row.get::<_, i64>(2)?], |row| row.get(0))?;
            reasons.push(ParkedReason {
                handler: handler.clone(),
                why: row.get::<_, Option<String>>(0)?.unwrap_or_default(),
                count: row.get::<_, i64>(1)?.cast_unsigned(),
                at_least: parked > MOST_COUNTED as i64,
                oldest: time(oldest),
            });
        }
    }
    reasons.sort_by_key(|reason| Reverse(reason.count));
    reasons.truncate(MOST_REASONS);
    Ok(reasons)
}
