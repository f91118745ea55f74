//! Lists of parked deliveries.
//!
//! **Invariant:** a page looks at a bounded number of rows, however many there are.

use tokio_postgres::{Row, types::ToSql};

use super::{error::PgError, escape, pool::PgConnection, rows};
use crate::{
    event::{EventName, HandlerName, Key},
    store::{
        ParkedCursor, ParkedDelivery, ParkedFilter, ParkedList, ParkedReason,
        operator::{MOST_COUNTED, MOST_LOOKED_AT, MOST_REASONS, needle},
    },
};

/// The parked deliveries from a place on, and whether each of them matches: those of the handler
/// `$4` with the text `$5` in their reason.
pub(super) const WALK: &str = "SELECT e.id, e.name, h.name, e.key, e.received_at, x.ended_at,
        x.attempts, x.why, x.position, ($4::text IS NULL OR h.name = $4)
            AND ($5::text IS NULL OR strpos(lower(x.why), $5) > 0)
    FROM ended x JOIN handlers h ON h.id = x.handler
    JOIN events e ON e.day = x.day AND e.position = x.position
    WHERE x.state = 2 AND x.position >= $1 AND (x.position > $1 OR h.name > $2)
    ORDER BY x.position, h.name LIMIT $3";

/// The oldest parked deliveries, by handler and reason, with the number of all that were counted.
pub(super) const REASONS: &str = "SELECT h.name, g.why, g.count, e.received_at,
        (sum(g.count) OVER ())::bigint
    FROM (SELECT handler, why, count(*) AS count, min(position) AS position,
            (array_agg(day ORDER BY position))[1] AS day
        FROM (SELECT handler, why, position, day FROM ended WHERE state = 2
            ORDER BY position LIMIT $1) x
        GROUP BY handler, why) g
    JOIN handlers h ON h.id = g.handler
    JOIN events e ON e.day = g.day AND e.position = g.position
    ORDER BY g.count DESC LIMIT $2";

/// Oldest first.
pub(super) async fn list(
    connection: &PgConnection,
    filter: &ParkedFilter,
) -> Result<ParkedList, PgError> {
    let handler = filter.handler.as_ref();
    let handler = handler.map(|handler| escape::to_sql(handler.as_str()));
    let needle = filter
        .why
        .as_deref()
        .map(|why| escape::to_sql(&needle(why)).into_owned());
    let at_most = match handler.is_none() && needle.is_none() {
        true => MOST_LOOKED_AT.min(filter.limit),
        false => MOST_LOOKED_AT,
    };
    let from = filter.after.as_ref().map_or(0, |after| after.position);
    let behind = filter
        .after
        .as_ref()
        .map_or("", |after| after.handler.as_str());
    let behind = escape::to_sql(behind);
    // One more shows whether there is more.
    let size = at_most as i64 + 1;
    let parameters: &[&(dyn ToSql + Sync)] = &[&from, &behind, &size, &handler, &needle];
    let found = connection.client.query(WALK, parameters).await?;
    let mut list = ParkedList::default();
    let (mut is_cut, mut last) = (found.len() > at_most, None);
    for row in found.iter().take(at_most) {
        if list.deliveries.len() >= filter.limit {
            is_cut = true;
            break;
        }
        let delivery = delivery(row)?;
        last = Some(ParkedCursor {
            position: row.try_get(8)?,
            handler: delivery.handler.clone(),
        });
        if row.try_get::<_, Option<bool>>(9)? == Some(true) {
            list.deliveries.push(delivery);
        }
    }
    list.next = last.filter(|_| is_cut);
    Ok(list)
}

fn delivery(row: &Row) -> Result<ParkedDelivery, PgError> {
    Ok(ParkedDelivery {
        id: rows::event_id(row.try_get(0)?),
        name: EventName::new(escape::get(row, 1)?),
        handler: HandlerName::new(escape::get(row, 2)?),
        key: escape::find(row, 3)?.map(Key::new),
        received_at: row.try_get(4)?,
        parked_at: row.try_get(5)?,
        attempts: row.try_get::<_, i32>(6)?.cast_unsigned(),
        why: escape::find(row, 7)?.unwrap_or_default(),
    })
}

/// The reasons, most frequent first.
pub(super) async fn reasons(connection: &PgConnection) -> Result<Vec<ParkedReason>, PgError> {
    let (counted, returned) = (MOST_COUNTED as i64, MOST_REASONS as i64);
    let parameters: &[&(dyn ToSql + Sync)] = &[&counted, &returned];
    let rows = connection.client.query(REASONS, parameters).await?;
    let reason = |row: &Row| {
        Ok(ParkedReason {
            handler: HandlerName::new(escape::get(row, 0)?),
            why: escape::find(row, 1)?.unwrap_or_default(),
            count: row.try_get::<_, i64>(2)?.cast_unsigned(),
            at_least: row.try_get::<_, i64>(4)? >= counted,
            oldest: row.try_get(3)?,
        })
    };
    rows.iter().map(reason).collect()
}
