//! The target of a transfer.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::civil::Date;
use tokio_postgres::{Row, Transaction};
use uuid::Uuid;

use super::{
    append::{self, ADD},
    batch::InsertBatch,
    error::PgError,
    escape, exclusive_lock,
    operator::OperatorConnection,
    ordering, partition,
    pool::PgConnection,
    registry::HandlerId,
    rows, terms,
};
use crate::{
    event::{EventId, HandlerName, Notification},
    store::{
        Attempt, Cursor, DeliverySnapshot, DeliveryState, LatestReport, StoreError, StoredEvent,
        TransferTarget,
    },
};

const HANDLERS: &str = "INSERT INTO handlers (name, ordered)
    SELECT * FROM unnest($1::text[], $2::boolean[]) ON CONFLICT (name) DO NOTHING";

const IDS: &str = "SELECT name, id FROM handlers WHERE name = ANY($1)";

const PRESENT: &str = "SELECT id FROM events WHERE id = ANY($1)";

/// All open deliveries are added as ready. Claims check whether they are blocked.
const ADD_OPEN: &str = "WITH
    new AS (INSERT INTO deliveries
            (handler, position, day, scope, key, keys, attempts, replays, due_at, since, replay)
        SELECT handler, position, day, scope, key, keys::bigint[], attempts, replays, due_at, since,
            replay
        FROM unnest($1::integer[], $2::bigint[], $3::date[], $4::bigint[], $5::bigint[], $6::text[],
            $7::integer[], $8::integer[], $9::timestamptz[], $10::timestamptz[], $11::text[])
            AS t (handler, position, day, scope, key, keys, attempts, replays, due_at, since, replay)
        RETURNING handler, scope, keys, position)
    INSERT INTO further_keys (handler, scope, key, position)
    SELECT n.handler, n.scope, k.key, n.position
    FROM new n CROSS JOIN unnest(n.keys[2:]) AS k (key)";

const ADD_ENDED: &str = "INSERT INTO ended
        (handler, position, day, state, attempts, replays, ended_at, replay, why)
    SELECT * FROM unnest($1::integer[], $2::bigint[], $3::date[], $4::smallint[], $5::integer[],
        $6::integer[], $7::timestamptz[], $8::text[], $9::text[])";

const ADD_FAILED: &str = "INSERT INTO attempts (handler, position, day, started_at, took_ms, why)
    SELECT * FROM unnest($1::integer[], $2::bigint[], $3::date[], $4::timestamptz[], $5::bigint[],
        $6::text[])";

const ADD_COUNTS: &str = "INSERT INTO tally (handler, open, parked)
    SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bigint[])";

const DELIVERIES: &str = "SELECT d.position, h.name, h.ordered, d.state, d.attempts, d.replays,
        d.due_at, d.since, d.replay, NULL AS why, h.id
    FROM handlers h JOIN deliveries d ON d.handler = h.id AND d.position = ANY($2)
    UNION ALL
    SELECT x.position, h.name, h.ordered, x.state, x.attempts, x.replays, x.ended_at, NULL, x.replay,
        x.why, h.id
    FROM unnest($1::date[], $2::bigint[]) AS t (day, position)
    JOIN ended x ON x.day = t.day AND x.position = t.position JOIN handlers h ON h.id = x.handler
    ORDER BY 2";

const FAILED: &str = "SELECT a.position, a.handler, a.started_at, a.took_ms, a.why
    FROM unnest($1::date[], $2::bigint[]) AS t (day, position)
    JOIN attempts a ON a.day = t.day AND a.position = t.position ORDER BY a.started_at";

impl TransferTarget for OperatorConnection {
    fn begin(&mut self) -> Result<Vec<Cursor>, StoreError> {
        let begun = self
            .runtime
            .block_on(exclusive_lock::begin(&self.connection));
        begun.map_err(|error| error.into_store_error("beginning to move a store into the database"))
    }

    fn end(&mut self, last: Option<Cursor>) -> Result<(), StoreError> {
        let ended = self
            .runtime
            .block_on(exclusive_lock::end(&self.connection, last));
        ended
            .map_err(|error| error.into_store_error("ending the move of a store into the database"))
    }

    fn add(&mut self, events: &[StoredEvent]) -> Result<Vec<EventId>, StoreError> {
        let added = self.runtime.block_on(add(&mut self.connection, events));
        added.map_err(|error| error.into_store_error("adding events to the database"))
    }

    fn look(&mut self, ids: &[EventId]) -> Result<Vec<StoredEvent>, StoreError> {
        let looked = self.runtime.block_on(look(&self.connection, ids));
        looked.map_err(|error| error.into_store_error("reading events back from the database"))
    }

    fn add_topics(&mut self, topics: &[LatestReport]) -> Result<(), StoreError> {
        let learnt = self.runtime.block_on(add_topics(&self.connection, topics));
        learnt.map_err(|error| error.into_store_error("adding topics to the database"))
    }
}

async fn add(
    connection: &mut PgConnection,
    events: &[StoredEvent],
) -> Result<Vec<EventId>, PgError> {
    let arrivals = events.iter().map(|stored| stored.notification.received_at);
    partition::make_on(connection, &arrivals.map(rows::day).collect()).await?;
    let change = connection.client.transaction().await?;
    let handlers = handlers(&change, events).await?;
    let new = absent(&change, events).await?;
    // The events are added without deliveries, which follow below.
    let notifications = || new.iter().map(|stored| (&stored.notification, None));
    let statement = change.prepare(ADD).await?;
    let hasher = terms::hasher(&change).await?;
    let added = append::add(&change, &statement, notifications, &[], &hasher).await?;
    let ids = added.batch.events.id.iter().copied();
    let added: HashMap<Uuid, i64> = ids.zip(added.positions).collect();
    let (mut moved, mut duplicates) = (Moved::default(), Vec::new());
    for stored in new {
        let id = stored.notification.id;
        match added.get(&rows::uuid(id)) {
            Some(position) => moved.add(stored, *position, &handlers),
            None => duplicates.push(id),
        }
    }
    moved.write(&change).await?;
    change.commit().await?;
    Ok(duplicates)
}

/// The ids of the handlers that `events` name. Missing handlers are created.
async fn handlers(
    change: &Transaction<'_>,
    events: &[StoredEvent],
) -> Result<HashMap<HandlerName, HandlerId>, PgError> {
    let named = events.iter().flat_map(|stored| &stored.deliveries);
    let named: BTreeMap<_, _> = named
        .map(|delivery| (&delivery.handler, delivery.ordered))
        .collect();
    let names: Vec<_> = named
        .keys()
        .map(|handler| escape::to_sql(handler.as_str()))
        .collect();
    let ordered: Vec<_> = named.values().copied().collect();
    change.execute(HANDLERS, &[&names, &ordered]).await?;
    let rows = change.query(IDS, &[&names]).await?;
    let handler = |row: &Row| Ok((HandlerName::new(escape::get(row, 0)?), row.try_get(1)?));
    rows.iter().map(handler).collect()
}

/// The events that the store does not have.
async fn absent<'a>(
    change: &Transaction<'_>,
    events: &'a [StoredEvent],
) -> Result<Vec<&'a StoredEvent>, PgError> {
    let ids: Vec<_> = events
        .iter()
        .map(|stored| rows::uuid(stored.notification.id))
        .collect();
    let mut there: HashSet<Uuid> = HashSet::new();
    for row in change.query(PRESENT, &[&ids]).await? {
        there.insert(row.try_get(0)?);
    }
    let absent = events
        .iter()
        .filter(|stored| !there.contains(&rows::uuid(stored.notification.id)));
    Ok(absent.collect())
}

/// The deliveries of a page, and the changes of counts.
#[derive(Default)]
struct Moved<'a> {
    open: Vec<(HandlerId, i64, &'a Notification, &'a DeliverySnapshot)>,
    ended: Vec<(HandlerId, i64, &'a Notification, &'a DeliverySnapshot)>,
    counts: BTreeMap<HandlerId, (i64, i64)>,
}

impl<'a> Moved<'a> {
    fn add(
        &mut self,
        stored: &'a StoredEvent,
        position: i64,
        handlers: &HashMap<HandlerName, HandlerId>,
    ) {
        for delivery in &stored.deliveries {
            let Some(handler) = handlers.get(&delivery.handler) else {
                continue;
            };
            let row = (*handler, position, &stored.notification, delivery);
            let (open, parked) = self.counts.entry(*handler).or_default();
            *parked += i64::from(delivery.state == DeliveryState::Parked);
            if delivery.is_over() {
                self.ended.push(row);
            } else {
                *open += 1;
                self.open.push(row);
            }
        }
    }

    async fn write(&self, change: &Transaction<'_>) -> Result<(), PgError> {
        self.write_open(change).await?;
        self.write_ended(change).await?;
        self.write_failed(change).await?;
        let handlers: Vec<_> = self.counts.keys().copied().collect();
        let open: Vec<_> = self.counts.values().map(|counts| counts.0).collect();
        let parked: Vec<_> = self.counts.values().map(|counts| counts.1).collect();
        change
            .execute(ADD_COUNTS, &[&handlers, &open, &parked])
            .await?;
        Ok(())
    }

    async fn write_open(&self, change: &Transaction<'_>) -> Result<(), PgError> {
        let rows = || self.open.iter();
        let handlers: Vec<_> = rows().map(|row| row.0).collect();
        let positions: Vec<_> = rows().map(|row| row.1).collect();
        let days: Vec<_> = rows().map(|row| rows::day(row.2.received_at)).collect();
        let mut keys = ordering::Columns::default();
        for row in rows() {
            keys.push(row.2.ordering_keys().as_ref());
        }
        let attempts: Vec<_> = rows().map(|row| row.3.attempts.cast_signed()).collect();
        let replays: Vec<_> = rows().map(|row| row.3.replays.cast_signed()).collect();
        let due: Vec<_> = rows().map(|row| row.3.at).collect();
        let since: Vec<_> = rows().map(|row| row.3.since).collect();
        let replay: Vec<_> = rows().map(|row| column(row.3.replay.as_deref())).collect();
        change
            .execute(
                ADD_OPEN,
                &[
                    &handlers,
                    &positions,
                    &days,
                    &keys.scope,
                    &keys.key,
                    &keys.keys,
                    &attempts,
                    &replays,
                    &due,
                    &since,
                    &replay,
                ],
            )
            .await?;
        Ok(())
    }

    async fn write_ended(&self, change: &Transaction<'_>) -> Result<(), PgError> {
        let rows = || self.ended.iter();
        let handlers: Vec<_> = rows().map(|row| row.0).collect();
        let positions: Vec<_> = rows().map(|row| row.1).collect();
        let days: Vec<_> = rows().map(|row| rows::day(row.2.received_at)).collect();
        let states: Vec<_> = rows().map(|row| row.3.state as i16).collect();
        let attempts: Vec<_> = rows().map(|row| row.3.attempts.cast_signed()).collect();
        let replays: Vec<_> = rows().map(|row| row.3.replays.cast_signed()).collect();
        let ended: Vec<_> = rows().map(|row| row.3.at).collect();
        let replay: Vec<_> = rows().map(|row| column(row.3.replay.as_deref())).collect();
        let why: Vec<_> = rows().map(|row| column(row.3.why.as_deref())).collect();
        change
            .execute(
                ADD_ENDED,
                &[
                    &handlers, &positions, &days, &states, &attempts, &replays, &ended, &replay,
                    &why,
                ],
            )
            .await?;
        Ok(())
    }

    async fn write_failed(&self, change: &Transaction<'_>) -> Result<(), PgError> {
        let rows = || {
            let deliveries = self.open.iter().chain(&self.ended);
            deliveries.flat_map(|row| row.3.failures.iter().map(move |failure| (row, failure)))
        };
        let handlers: Vec<_> = rows().map(|(row, _)| row.0).collect();
        let positions: Vec<_> = rows().map(|(row, _)| row.1).collect();
        let days: Vec<_> = rows()
            .map(|(row, _)| rows::day(row.2.received_at))
            .collect();
        let started: Vec<_> = rows().map(|(_, failure)| failure.started_at).collect();
        let took = rows().map(|(_, failure)| failure.took_ms.cast_signed());
        let took: Vec<_> = took.collect();
        let why: Vec<_> = rows()
            .map(|(_, failure)| escape::to_sql(&failure.why))
            .collect();
        change
            .execute(
                ADD_FAILED,
                &[&handlers, &positions, &days, &started, &took, &why],
            )
            .await?;
        Ok(())
    }
}

fn column(text: Option<&str>) -> Option<String> {
    text.map(|text| escape::to_sql(text).into_owned())
}

async fn add_topics(connection: &PgConnection, topics: &[LatestReport]) -> Result<(), PgError> {
    let ascending: BTreeMap<_, _> = topics
        .iter()
        .map(|reported| (rows::topic_key(&reported.topic), reported.latest))
        .collect();
    let mut batch = InsertBatch::default();
    (batch.topics.topic, batch.topics.latest) = ascending.into_iter().unzip();
    connection.client.query_one(ADD, &batch.columns()).await?;
    Ok(())
}

async fn look(connection: &PgConnection, ids: &[EventId]) -> Result<Vec<StoredEvent>, PgError> {
    let client = &connection.client;
    let (mut found, mut days) = (BTreeMap::new(), Vec::new());
    for (notification, day, place) in rows::find(client, ids).await? {
        days.push((day, place));
        let stored = StoredEvent {
            notification,
            deliveries: Vec::new(),
        };
        found.insert(place, stored);
    }
    let (days, positions): (Vec<Date>, Vec<i64>) = days.into_iter().unzip();
    let mut failures: HashMap<(i64, HandlerId), Vec<Attempt>> = HashMap::new();
    for row in client.query(FAILED, &[&days, &positions]).await? {
        let attempts = failures.entry((row.try_get(0)?, row.try_get(1)?));
        attempts.or_default().push(rows::attempt(&row, 2)?);
    }
    for row in client.query(DELIVERIES, &[&days, &positions]).await? {
        let position: i64 = row.try_get(0)?;
        let failures = failures.remove(&(position, row.try_get(10)?));
        if let Some(event) = found.get_mut(&position) {
            let failures = failures.unwrap_or_default();
            event.deliveries.push(delivery(&row, failures)?);
        }
    }
    let by_id = found
        .into_values()
        .map(|event| (event.notification.id, event));
    let mut found: HashMap<_, _> = by_id.collect();
    Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
}

fn delivery(row: &Row, failures: Vec<Attempt>) -> Result<DeliverySnapshot, PgError> {
    Ok(DeliverySnapshot {
        handler: HandlerName::new(escape::get(row, 1)?),
        ordered: row.try_get(2)?,
        state: DeliveryState::numbered(row.try_get(3)?),
        attempts: row.try_get::<_, i32>(4)?.cast_unsigned(),
        replays: row.try_get::<_, i32>(5)?.cast_unsigned(),
        at: row.try_get(6)?,
        since: row.try_get(7)?,
        replay: escape::find(row, 8)?,
        why: escape::find(row, 9)?,
        failures,
    })
}
