//! What one replica does for all, and would do no harm if two did it: making the partitions of the
//! days to come, dropping old ones, adding counts up, learning topics, parking what is left of handlers that are
//! gone, and making ready what was queued of those that have left order behind.

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
    rows, statistics, topics,
};
use crate::store::NO_HANDLER;

/// How often counts are added up, and how often a replica tries to become the one that does this.
const TICK: Duration = Duration::from_secs(5);

/// How often all the rest is done.
const ROUND: Duration = Duration::from_secs(60);

/// How long the connection may take to be made.
const PATIENCE: Duration = Duration::from_secs(10);

/// For how many days there are partitions ahead.
const DAYS_AHEAD: i64 = 2;

/// The most rows that are changed at once.
const SLICE: i64 = 1000;

/// Held by the connection of the one replica.
const ELECT: &str = "SELECT pg_try_advisory_lock(hashtext('hookswitch.upkeep'))";

/// Handlers that nobody has named for a while.
const MISS: &str = "UPDATE handlers SET configured = false
    WHERE configured AND id <> ALL($1)
        AND named_at < clock_timestamp() - $2::bigint * interval '1 ms'";

const MISSING: &str = "SELECT id FROM handlers WHERE NOT configured";

/// Parks a slice of what is open of a handler that is gone.
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

/// Makes ready what is queued in a slice of what is open of a handler without order: a replica for
/// which order still held can have queued it after the others had left order behind, and nobody is
/// left to say whose turn it is.
pub(super) const UNQUEUE: &str = "WITH
    slice AS MATERIALIZED (SELECT position, state FROM deliveries
        WHERE handler = $1 AND position > $2 ORDER BY handler, position LIMIT $3),
    made AS (UPDATE deliveries d SET state = 0, behind = NULL FROM slice
        WHERE slice.state = 1 AND d.handler = $1 AND d.position = slice.position)
    SELECT max(position), count(*) FILTER (WHERE state = 1) FROM slice";

/// The days of which something is open or parked.
const NEEDED: &str = "SELECT DISTINCT day FROM deliveries UNION
    SELECT DISTINCT day FROM ended WHERE state = 2";

/// Forgets what a slice of a day's events is known by.
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

/// Whether this connection is now the one of the replica that does it: nobody else's is, until it
/// ends.
pub(super) async fn elect(connection: &PgConnection) -> Result<bool, PgError> {
    let elected = connection.client.query_one(ELECT, &[]).await?;
    Ok(elected.try_get(0)?)
}

/// Does it until the store is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    let follower = shared
        .health
        .followers()
        .background("upkeep", "the store's upkeep");
    let mut maintenance = Maintenance {
        connection: None,
        round: None,
    };
    loop {
        let asked = tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.maintenance.notified() => true,
            () = sleep(TICK) => false,
        };
        if !shared.is_sound() {
            continue;
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            done = maintenance.tick(&shared, asked) => {
                match done {
                    Ok(()) => follower.progressed(),
                    Err(error) => {
                        if follower.failed(&error) {
                            tracing::warn!(
                                "the store's upkeep was cut short, and will be done again: {error}"
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
    /// The connection that makes us the one, if we are.
    connection: Option<PgConnection>,
    /// When the last round was.
    round: Option<Instant>,
}

impl Maintenance {
    async fn tick(&mut self, shared: &Shared, asked: bool) -> Result<(), PgError> {
        let Some(connection) = self.elected(shared).await? else {
            return Ok(());
        };
        connection.client.execute(statistics::ADD_UP, &[]).await?;
        topics::store_all_topics(connection).await?;
        if asked || self.round.is_none_or(|round| round.elapsed() >= ROUND) {
            self.round(shared).await?;
            self.round = Some(Instant::now());
        }
        Ok(())
    }

    /// The connection, if we are the one.
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
        park_the_abandoned(shared, connection, now).await?;
        retain(shared, connection, now).await?;
        if unqueue(connection).await? {
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
    let there = partition::days(connection).await?;
    let today = rows::day(now);
    let wanted = (0..=DAYS_AHEAD).filter_map(|ahead| today.checked_add(ahead.days()).ok());
    let wanted: Vec<_> = wanted.filter(|day| !there.contains(day)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    partition::make(&shared.pool, wanted.into_iter()).await
}

async fn park_the_abandoned(
    shared: &Shared,
    connection: &PgConnection,
    now: Timestamp,
) -> Result<(), PgError> {
    let patience = shared.settings.abandon_after;
    // Others that were stopped with us need their time to come back too.
    if shared.opened.elapsed() < patience {
        return Ok(());
    }
    let client = &connection.client;
    let millis = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
    client
        .execute(MISS, &[&shared.registry.ids(), &millis])
        .await?;
    for row in client.query(MISSING, &[]).await? {
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

/// Makes ready what is queued of handlers without order, and says whether anything was.
async fn unqueue(connection: &mut PgConnection) -> Result<bool, PgError> {
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

/// Drops the partitions of which nothing is needed any more.
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

/// Drops the partitions of `day`, unless something there is needed after all: nobody can make a
/// replay of its events once they are locked. Whoever appends waits meanwhile, but not for long.
async fn drop_day(connection: &mut PgConnection, day: Date) -> Result<(), PgError> {
    let names = partition::names(day);
    let [events, ..] = &names;
    let change = connection.client.transaction().await?;
    change
        .batch_execute(&format!(
            "SET LOCAL lock_timeout = '200ms'; LOCK TABLE {events} IN ACCESS EXCLUSIVE MODE"
        ))
        .await?;
    let rows = change.query(NEEDED, &[]).await?;
    for row in rows {
        if row.try_get::<_, Date>(0)? == day {
            return Ok(());
        }
    }
    change
        .batch_execute(&format!("DROP TABLE {}", names.join(", ")))
        .await?;
    change.commit().await?;
    tracing::info!(%day, "the events of an old day were deleted");
    Ok(())
}
