//! Replays deliveries.

use std::collections::{HashMap, HashSet};

use jiff::{Timestamp, civil::Date};
use tokio_postgres::{Row, Transaction, types::ToSql};
use uuid::Uuid;

use super::{
    error::PgError, escape, notify, ordering, pool::PgConnection, registry::HandlerId, rows,
};
use crate::{
    event::{self, EventName, HandlerName, Key, OrderingKeys},
    store::{
        DeliveryState, ReplaySelection, ReplaySummary, StoreError, operator::id_range,
        replay::ReplayPlan, shorten,
    },
};

/// The number of events in one transaction, so that no service is delayed for long.
const SLICE: i64 = 256;

const BY_ID: &str = "SELECT id, name, received_at, day, position FROM events
    WHERE id = ANY($1)";

const BY_TIME: &str = "SELECT id, name, received_at, day, position FROM events
    WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3";

/// The states of some events' deliveries, open and ended.
const STATES: &str = "SELECT handler, position, state FROM deliveries
    WHERE handler = ANY($1) AND position = ANY($3)
    UNION ALL
    SELECT x.handler, x.position, x.state FROM unnest($2::date[], $3::bigint[]) AS t (day, position)
    JOIN ended x ON x.day = t.day AND x.position = t.position WHERE x.handler = ANY($1)";

/// The events that still exist, with what their ordering keys are computed from. Large bodies are
/// read one by one. The query keeps the events' partitions from being dropped until the transaction
/// ends; retention checks afterwards whether a delivery is open.
const KEEP: &str = "SELECT e.position, e.name, e.key,
        CASE WHEN octet_length(e.body) <= 65536 THEN e.body END, e.day
    FROM unnest($1::date[], $2::bigint[]) AS t (day, position)
    JOIN events e ON e.day = t.day AND e.position = t.position";

const BODY: &str = "SELECT body FROM events WHERE day = $1 AND position = $2";

/// Makes open deliveries due, in their place. The next claim checks whether they are blocked.
const MAKE_DUE: &str =
    "UPDATE deliveries d SET state = 0, behind = NULL, attempts = 0, due_at = $3, since = NULL,
        replay = $4, replays = d.replays + 1
    FROM unnest($1::integer[], $2::bigint[]) AS t (handler, position)
    WHERE d.handler = t.handler AND d.position = t.position
    RETURNING d.handler, d.position";

/// Opens ended deliveries again, in their place. Claims check whether they are blocked.
const REOPEN: &str = "WITH
    old AS (DELETE FROM ended x
        USING unnest($1::integer[], $2::bigint[], $3::date[], $4::bigint[], $5::bigint[], $6::text[])
            AS t (handler, position, day, scope, key, keys)
        WHERE x.day = t.day AND x.position = t.position AND x.handler = t.handler
        RETURNING x.handler, x.position, x.day, t.scope, t.key, t.keys::bigint[] AS keys, x.replays,
            x.state),
    new AS (INSERT INTO deliveries
            (handler, position, day, scope, key, keys, replays, due_at, replay)
        SELECT handler, position, day, scope, key, keys, replays + 1, $7, $8 FROM old),
    keyed AS (INSERT INTO further_keys (handler, scope, key, position)
        SELECT o.handler, o.scope, k.key, o.position
        FROM old o CROSS JOIN unnest(o.keys[2:]) AS k (key)),
    counted AS (INSERT INTO tally (handler, open, parked)
        SELECT handler, count(*), -count(*) FILTER (WHERE state = 2) FROM old GROUP BY handler)
    SELECT handler, position FROM old";

/// Adds deliveries to handlers that did not get the event.
const ADD: &str = "WITH
    new AS (INSERT INTO deliveries
            (handler, position, day, scope, key, keys, replays, due_at, replay)
        SELECT handler, position, day, scope, key, keys::bigint[], 1, $7, $8
        FROM unnest($1::integer[], $2::bigint[], $3::date[], $4::bigint[], $5::bigint[], $6::text[])
            AS t (handler, position, day, scope, key, keys)
        ON CONFLICT DO NOTHING RETURNING handler, position, scope, keys),
    keyed AS (INSERT INTO further_keys (handler, scope, key, position)
        SELECT n.handler, n.scope, k.key, n.position
        FROM new n CROSS JOIN unnest(n.keys[2:]) AS k (key))
    INSERT INTO tally (handler, open, parked)
    SELECT handler, count(*), 0 FROM new GROUP BY handler";

/// An event that a replay considers.
struct Event {
    day: Date,
    position: i64,
}

/// A delivery that a replay makes.
struct Chosen {
    handler: HandlerId,
    day: Date,
    position: i64,
    keys: Option<OrderingKeys>,
}

/// Counts what a replay would select.
pub(super) async fn plan(
    connection: &PgConnection,
    selection: &ReplaySelection,
) -> Result<ReplaySummary, StoreError> {
    let mut plan = of(connection, selection).await?;
    let failed = |error: PgError| error.into_store_error("planning a replay");
    let mut pages = Pages::new(selection);
    while let Some(page) = pages.next(connection).await.map_err(failed)? {
        let chosen = choose(connection, &plan, &page).await.map_err(failed)?;
        chosen.iter().for_each(|chosen| plan.count(&chosen.handler));
    }
    Ok(plan.summary())
}

/// Makes the selected deliveries due again.
pub(super) async fn make(
    connection: &mut PgConnection,
    selection: &ReplaySelection,
    reason: &str,
    now: Timestamp,
    progress: &mut dyn FnMut(u64),
) -> Result<ReplaySummary, StoreError> {
    let mut plan = of(connection, selection).await?;
    let failed = |error: PgError| error.into_store_error("making a replay");
    let reason = escape::to_sql(shorten(reason));
    let mut pages = Pages::new(selection);
    while let Some(page) = pages.next(connection).await.map_err(failed)? {
        let mut chosen = choose(connection, &plan, &page).await.map_err(failed)?;
        let made = apply(connection, &mut chosen, &reason, now).await;
        made.map_err(failed)?;
        notify::announce(connection, "operator")
            .await
            .map_err(failed)?;
        chosen.iter().for_each(|chosen| plan.count(&chosen.handler));
        progress(plan.total());
    }
    Ok(plan.summary())
}

/// Resolves `selection` in this store.
async fn of<'a>(
    connection: &PgConnection,
    selection: &'a ReplaySelection,
) -> Result<ReplayPlan<'a, HandlerId>, StoreError> {
    let handlers = configured(connection).await;
    ReplayPlan::new(
        selection,
        handlers.map_err(|error| error.into_store_error("reading handlers"))?,
    )
}

/// Replays those of `chosen` whose events still exist, and removes the others.
async fn apply(
    connection: &mut PgConnection,
    chosen: &mut Vec<Chosen>,
    reason: &str,
    now: Timestamp,
) -> Result<(), PgError> {
    let change = connection.client.transaction().await?;
    let Columns {
        positions, days, ..
    } = Columns::of(chosen.iter());
    let mut there: HashMap<i64, Option<OrderingKeys>> = HashMap::new();
    for row in change.query(KEEP, &[&days, &positions]).await? {
        there.insert(row.try_get(0)?, ordering_keys(&change, &row).await?);
    }
    chosen.retain_mut(|chosen| {
        let found = there.get(&chosen.position);
        chosen.keys = found.cloned().flatten();
        found.is_some()
    });
    make_again(&change, chosen, reason, now).await?;
    Ok(change.commit().await?)
}

/// The ordering keys of an event, from a row of [`KEEP`].
async fn ordering_keys(
    change: &Transaction<'_>,
    row: &Row,
) -> Result<Option<OrderingKeys>, PgError> {
    let name = EventName::new(escape::get(row, 1)?);
    let key = escape::find(row, 2)?.map(Key::new);
    let body: Vec<u8> = match row.try_get(3)? {
        Some(body) => body,
        None => {
            let (day, position): (Date, i64) = (row.try_get(4)?, row.try_get(0)?);
            let row = change.query_one(BODY, &[&day, &position]).await?;
            row.try_get(0)?
        }
    };
    Ok(event::ordering_keys(&name, key.as_ref(), &body))
}

/// Replays every delivery, whatever has become of it meanwhile: a delivery that is no longer open
/// has ended.
async fn make_again(
    change: &Transaction<'_>,
    chosen: &[Chosen],
    reason: &str,
    now: Timestamp,
) -> Result<(), PgError> {
    let Columns {
        handlers,
        positions,
        ..
    } = Columns::of(chosen.iter());
    let made_due = change
        .query(MAKE_DUE, &[&handlers, &positions, &now, &reason])
        .await?;
    let mut made = identities(&made_due)?;
    for (statement, gives_back) in [(REOPEN, true), (ADD, false)] {
        let left = Columns::of(chosen.iter().filter(|c| !made.contains(&c.identity())));
        let rows = change.query(statement, &left.with(&now, &reason)).await?;
        if gives_back {
            made.extend(identities(&rows)?);
        }
    }
    Ok(())
}

#[derive(Default)]
struct Columns {
    handlers: Vec<HandlerId>,
    positions: Vec<i64>,
    days: Vec<Date>,
    keys: ordering::Columns,
}

impl Columns {
    fn of<'a>(chosen: impl Iterator<Item = &'a Chosen>) -> Self {
        let mut columns = Self::default();
        for chosen in chosen {
            columns.handlers.push(chosen.handler);
            columns.positions.push(chosen.position);
            columns.days.push(chosen.day);
            columns.keys.push(chosen.keys.as_ref());
        }
        columns
    }

    /// The parameters of [`REOPEN`] and [`ADD`].
    fn with<'a>(&'a self, now: &'a Timestamp, reason: &'a &str) -> [&'a (dyn ToSql + Sync); 8] {
        let ordering::Columns { scope, key, keys } = &self.keys;
        let Self {
            handlers,
            positions,
            days,
            ..
        } = self;
        [handlers, positions, days, scope, key, keys, now, reason]
    }
}

fn identities(rows: &[Row]) -> Result<HashSet<(HandlerId, i64)>, PgError> {
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect()
}

impl Chosen {
    const fn identity(&self) -> (HandlerId, i64) {
        (self.handler, self.position)
    }
}

/// The selected deliveries of `events`.
async fn choose(
    connection: &PgConnection,
    plan: &ReplayPlan<'_, HandlerId>,
    events: &[Event],
) -> Result<Vec<Chosen>, PgError> {
    let handlers: Vec<_> = plan.handlers().copied().collect();
    let days: Vec<_> = events.iter().map(|event| event.day).collect();
    let positions: Vec<_> = events.iter().map(|event| event.position).collect();
    let states = connection
        .client
        .query(STATES, &[&handlers, &days, &positions])
        .await?;
    let mut known: HashMap<(HandlerId, i64), DeliveryState> = HashMap::new();
    for row in states {
        let state = DeliveryState::numbered(row.try_get(2)?);
        known.insert((row.try_get(0)?, row.try_get(1)?), state);
    }
    let mut chosen = Vec::new();
    for event in events {
        for handler in &handlers {
            if plan.means(known.get(&(*handler, event.position)).copied()) {
                chosen.push(Chosen {
                    handler: *handler,
                    day: event.day,
                    position: event.position,
                    keys: None,
                });
            }
        }
    }
    Ok(chosen)
}

async fn configured(connection: &PgConnection) -> Result<Vec<(HandlerId, HandlerName)>, PgError> {
    let rows = connection
        .client
        .query("SELECT id, name FROM handlers WHERE configured", &[])
        .await?;
    let handler = |row: &Row| Ok((row.try_get(0)?, HandlerName::new(escape::get(row, 1)?)));
    rows.iter().map(handler).collect()
}

/// The selected events, oldest first, page by page.
struct Pages<'a> {
    selection: &'a ReplaySelection,
    left: Left<'a>,
}

/// The events that have not been read yet.
enum Left<'a> {
    ByTime { from: Uuid, to: Uuid },
    ById(std::slice::Chunks<'a, crate::event::EventId>),
    Over,
}

impl<'a> Pages<'a> {
    fn new(selection: &'a ReplaySelection) -> Self {
        let (from, to) = id_range(selection.since, selection.until);
        let left = match &*selection.ids {
            [] => Left::ByTime {
                from: Uuid::from_bytes(from),
                to: Uuid::from_bytes(to),
            },
            ids => Left::ById(ids.chunks(SLICE as usize)),
        };
        Self { selection, left }
    }

    /// The selected events of the next page; `None` after the last page.
    async fn next(&mut self, connection: &PgConnection) -> Result<Option<Vec<Event>>, PgError> {
        let found = match &mut self.left {
            Left::Over => return Ok(None),
            Left::ById(chunks) => {
                let Some(ids) = chunks.next() else {
                    return Ok(None);
                };
                let ids: Vec<_> = ids.iter().copied().map(rows::uuid).collect();
                connection.client.query(BY_ID, &[&ids]).await?
            }
            Left::ByTime { from, to } => {
                let found = connection
                    .client
                    .query(BY_TIME, &[from, to, &SLICE])
                    .await?;
                match found.last() {
                    Some(last) => *from = last.try_get(0)?,
                    None => self.left = Left::Over,
                }
                found
            }
        };
        let mut page = Vec::with_capacity(found.len());
        for row in &found {
            page.extend(self.event(row)?);
        }
        Ok(Some(page))
    }

    /// The event in `row`, if it is selected.
    fn event(&self, row: &Row) -> Result<Option<Event>, PgError> {
        let name = EventName::new(escape::get(row, 1)?);
        if !self.selection.takes(&name, row.try_get(2)?) {
            return Ok(None);
        }
        Ok(Some(Event {
            day: row.try_get(3)?,
            position: row.try_get(4)?,
        }))
    }
}
