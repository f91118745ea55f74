//! Work that one replica does for all: it creates the partitions of the coming days, drops old
//! ones, adds up counts, stores deferred topics and terms, parks the deliveries of abandoned handlers, and
//! makes queued deliveries of unordered handlers ready. It would be harmless if two replicas did it
//! at once.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp, ToSpan, civil::Date};
use tokio::time::{sleep, timeout};
use tokio_postgres::types::ToSql;

use super::{
    Shared,
    error::PgError,
    partition,
    pool::{Durability, PgConnection},
    registry::HandlerId,
    rows, statistics, terms, topics,
};
use crate::store::NO_HANDLER;

/// The interval of adding up counts, and of attempts to be elected.
const TICK: Duration = Duration::from_secs(5);

/// The interval of all other work.
const ROUND: Duration = Duration::from_secs(60);

/// The limit for making the connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// The number of days for which partitions are created in advance.
const DAYS_AHEAD: i64 = 2;

/// The most rows that one statement changes.
const SLICE: i64 = 1000;

/// The lock of the elected replica's connection. Its name must not change: replicas of several
/// versions share it.
const ELECT: &str = "SELECT pg_try_advisory_lock(hashtext('hookswitch.upkeep'))";

/// Marks the handlers that no replica has named for a while.
const MARK_ABANDONED: &str = "UPDATE handlers SET configured = false
    WHERE configured AND id <> ALL($1)
        AND named_at < clock_timestamp() - $2::bigint * interval '1 ms'";

const ABANDONED: &str = "SELECT id FROM handlers WHERE NOT configured";

/// Parks a batch of open deliveries of an abandoned handler.
pub(super) const PARK: &str = "WITH
    gone AS (DELETE FROM deliveries d USING handlers h
        WHERE h.id = $1 AND NOT h.configured AND d.handler = $1 AND d.position IN
            (SELECT position FROM deliveries WHERE handler = $1 ORDER BY handler, position LIMIT $4)
        RETURNING d.*),
    unkeyed AS (DELETE FROM further_keys f USING gone g CROSS JOIN unnest(g.keys[2:]) AS k (key)
        WHERE f.handler = g.handler AND f.scope = g.scope AND f.key = k.key
            AND f.position = g.position),
    kept AS (INSERT INTO ended
            (day, position, handler, state, attempts, replays, ended_at, replay, why)
        SELECT day, position, handler, 2, attempts, replays, $2, replay, $3 FROM gone),
    counted AS (INSERT INTO tally (handler, open, parked)
        SELECT $1, -count(*), count(*) FROM gone HAVING count(*) > 0)
    SELECT count(*) FROM gone";

const UNORDERED: &str = "SELECT id FROM handlers WHERE NOT ordered";

/// Makes the queued deliveries in a batch of an unordered handler's deliveries ready. A replica
/// that did not know yet that the handler had become unordered may have queued them, and no
/// settlement would wake them.
pub(super) const UNQUEUE: &str = "WITH
    slice AS MATERIALIZED (SELECT position, state FROM deliveries
        WHERE handler = $1 AND position > $2 ORDER BY handler, position LIMIT $3),
    made AS (UPDATE deliveries d SET state = 0, behind = NULL FROM slice
        WHERE slice.state = 1 AND d.handler = $1 AND d.position = slice.position)
    SELECT max(position), count(*) FILTER (WHERE state = 1) FROM slice";

/// The days with open or parked deliveries.
const NEEDED: &str = "SELECT DISTINCT day FROM deliveries UNION
    SELECT DISTINCT day FROM ended WHERE state = 2";

/// Deletes the dedupe keys and topics of a batch of a day's events.
pub(super) const FORGET: &str = "WITH
    slice AS MATERIALIZED (SELECT position, dedupe, topic_keys, occurred_at FROM events
        WHERE day = $1 AND position > $2 ORDER BY day, position LIMIT $3),
    keys AS (DELETE FROM seen s
        USING (SELECT unnest(dedupe) AS key, position FROM slice) k
        WHERE s.dedupe = k.key AND s.position = k.position),
    topics AS (DELETE FROM topics t
        USING (SELECT unnest(topic_keys) AS topic, max(occurred_at) AS latest FROM slice
            GROUP BY 1) k
        WHERE t.topic = k.topic AND t.latest <= k.latest)
    SELECT max(position) FROM slice";

/// Tries to elect this connection. The election lasts until the connection ends.
pub(super) async fn elect(connection: &PgConnection) -> Result<bool, PgError> {
    let elected = connection.client.query_one(ELECT, &[]).await?;
    Ok(elected.try_get(0)?)
}

/// Does the work until the store is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    let follower = shared
        .health
        .followers()
        .background("upkeep", "maintaining the store");
    let mut maintenance = Maintenance {
        connection: None,
        round: None,
    };
    loop {
        let requested = tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.maintenance.notified() => true,
            () = sleep(TICK) => false,
        };
        if !shared.is_sound() {
            continue;
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            done = maintenance.tick(&shared, requested) => {
                match done {
                    Ok(()) => follower.progressed(),
                    Err(error) => {
                        if follower.failed(&error) {
                            tracing::warn!(
                                "the store's maintenance failed, and will be repeated: {error}"
                            );
                        }
                        maintenance.connection = None;
                    }
                }
            }
        }
    }
}

struct Maintenance {
    /// The elected connection, if it is ours.
    connection: Option<PgConnection>,
    /// The time of the last full round.
    round: Option<Instant>,
}

impl Maintenance {
    async fn tick(&mut self, shared: &Shared, requested: bool) -> Result<(), PgError> {
        let Some(connection) = self.elected(shared).await? else {
            return Ok(());
        };
        connection.client.execute(statistics::ADD_UP, &[]).await?;
        topics::store_all_topics(connection).await?;
        let hasher = shared.hasher(&connection.client).await?;
        terms::add_late(connection, hasher).await?;
        if requested || self.round.is_none_or(|round| round.elapsed() >= ROUND) {
            self.round(shared).await?;
            self.round = Some(Instant::now());
        }
        Ok(())
    }

    /// The connection, if this replica is elected.
    async fn elected(&mut self, shared: &Shared) -> Result<Option<&mut PgConnection>, PgError> {
        if self
            .connection
            .as_ref()
            .is_none_or(|connection| connection.client.is_closed())
        {
            self.connection = None;
            let connecting = shared.connector.connect(Durability::Lazy);
            let connection = timeout(PATIENCE, connecting)
                .await
                .map_err(|_| PgError::Unavailable("the database does not answer".to_owned()))??;
            if elect(&connection).await? {
                self.connection = Some(connection);
            }
        }
        Ok(self.connection.as_mut())
    }

    async fn round(&mut self, shared: &Shared) -> Result<(), PgError> {
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        let now = (shared.context.clock)();
        make_ahead(shared, connection, now).await?;
        park_abandoned(shared, connection, now).await?;
        retain(shared, connection, now).await?;
        if make_unordered_ready(connection).await? {
            shared.wake_all();
        }
        Ok(())
    }
}

async fn make_ahead(
    shared: &Shared,
    connection: &PgConnection,
    now: Timestamp,
) -> Result<(), PgError> {
    let today = rows::day(now);
    let wanted = (0..=DAYS_AHEAD).filter_map(|ahead| today.checked_add(ahead.days()).ok());
    let missing = partition::missing(connection, wanted).await?;
    if missing.is_empty() {
        return Ok(());
    }
    partition::make(&shared.pool, missing.into_iter()).await
}

async fn park_abandoned(
    shared: &Shared,
    connection: &PgConnection,
    now: Timestamp,
) -> Result<(), PgError> {
    let patience = shared.settings.abandon_after;
    // Replicas that were stopped together with this one need time to come back.
    if shared.opened.elapsed() < patience {
        return Ok(());
    }
    let client = &connection.client;
    let millis = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
    client
        .execute(MARK_ABANDONED, &[&shared.registry.ids(), &millis])
        .await?;
    for row in client.query(ABANDONED, &[]).await? {
        let handler: i32 = row.try_get(0)?;
        let mut parked = 0;
        loop {
            let slice = client
                .query_one(PARK, &[&handler, &now, &NO_HANDLER, &SLICE])
                .await?;
            let slice: i64 = slice.try_get(0)?;
            parked += slice;
            if slice < SLICE {
                break;
            }
        }
        if parked > 0 {
            tracing::warn!(
                parked,
                "deliveries are parked, since their handler is no longer configured"
            );
        }
    }
    Ok(())
}

/// Makes the queued deliveries of unordered handlers ready, and returns whether there were any.
async fn make_unordered_ready(connection: &mut PgConnection) -> Result<bool, PgError> {
    let statement = connection.prepare(UNQUEUE).await?;
    let client = &connection.client;
    let mut found = false;
    for row in client.query(UNORDERED, &[]).await? {
        let handler: HandlerId = row.try_get(0)?;
        let mut from = 0_i64;
        loop {
            let slice: &[&(dyn ToSql + Sync)] = &[&handler, &from, &SLICE];
            let row = client.query_one(&statement, slice).await?;
            found |= row.try_get::<_, i64>(1)? > 0;
            match row.try_get(0)? {
                Some(last) => from = last,
                None => break,
            }
        }
    }
    Ok(found)
}

/// Drops the partitions that retention no longer needs.
pub(super) async fn retain(
    shared: &Shared,
    connection: &mut PgConnection,
    now: Timestamp,
) -> Result<(), PgError> {
    let retain = SignedDuration::try_from(shared.settings.retain).unwrap_or(SignedDuration::MAX);
    let Ok(limit) = now.checked_sub(retain) else {
        return Ok(());
    };
    let mut old = partition::days(connection).await?;
    old.retain(|day| *day < rows::day(limit));
    if old.is_empty() {
        return Ok(());
    }
    let needed = needed(connection).await?;
    for day in old {
        if !needed.contains(&day) {
            forget(connection, day).await?;
            drop_day(connection, day).await?;
        }
    }
    Ok(())
}

async fn needed(connection: &PgConnection) -> Result<HashSet<Date>, PgError> {
    let rows = connection.client.query(NEEDED, &[]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

async fn forget(connection: &mut PgConnection, day: Date) -> Result<(), PgError> {
    let statement = connection.prepare(FORGET).await?;
    let mut from = 0_i64;
    loop {
        let row = connection
            .client
            .query_one(&statement, &[&day, &from, &SLICE])
            .await?;
        match row.try_get(0)? {
            Some(last) => from = last,
            None => return Ok(()),
        }
    }
}

/// Drops the partitions of `day`, unless a delivery of that day is open or parked. Once the events
/// are locked, no replay can select them. Appends wait for the lock, but not for long.
async fn drop_day(connection: &mut PgConnection, day: Date) -> Result<(), PgError> {
    let names = partition::names(day);
    let [events, ..] = &names;
    let change = connection.client.transaction().await?;
    // A program of an older version has dropped the tables that it knows.
    let is_there = "SELECT to_regclass($1) IS NOT NULL";
    if change
        .query_one(is_there, &[events])
        .await?
        .try_get::<_, bool>(0)?
    {
        change
            .batch_execute(&format!(
                "SET LOCAL lock_timeout = '200ms'; LOCK TABLE {events} IN ACCESS EXCLUSIVE MODE"
            ))
            .await?;
    }
    let rows = change.query(NEEDED, &[]).await?;
    for row in rows {
        if row.try_get::<_, Date>(0)? == day {
            return Ok(());
        }
    }
    change
        .batch_execute(&format!(
            "DROP TABLE IF EXISTS {}; DELETE FROM unindexed WHERE day = '{day}'",
            names.join(", ")
        ))
        .await?;
    change.commit().await?;
    tracing::info!(%day, "the events of an old day were deleted");
    Ok(())
}
