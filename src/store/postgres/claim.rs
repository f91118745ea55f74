//! Claims deliveries.
//!
//! Claims of one handler are made one at a time, on all replicas: a lock of the database makes sure
//! of it. A claim takes its snapshot under the lock, and so sees every earlier claim. The state
//! "ready" is a hint: the claim checks whether each candidate has to wait for an older open
//! delivery that shares a key. A candidate that has to wait is queued behind that delivery, in a
//! transaction of its own.
//!
//! A candidate is claimed together with its successors in its ordering group, as a run. The first
//! delivery of a run is handed out by the claim. Each of the others is handed out by the settlement
//! of the one before it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, LazyLock},
    time::Instant,
};

use jiff::Timestamp;
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use super::{
    Shared,
    error::PgError,
    escape,
    leases::{ClaimedDelivery, PreparedClaim},
    ordering,
    pool::PgConnection,
    registry::{ActiveHandler, HandlerId},
    rows, topics,
};
use crate::store::Claims;

/// The most deliveries of one key that one transaction queues, so that it stays short.
const MOST_QUEUED: i64 = 1000;

/// The most deliveries in a run: enough to share the cost of a claim, and few enough that new
/// deliveries of the key do not wait long.
pub(super) const MOST_RUN_DELIVERIES: i64 = 32;

/// The most bytes of bodies in a run of several deliveries.
const MOST_RUN_BYTES: i64 = 64 << 10;

/// Serializes the claims of a handler until the end of the transaction.
const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtext('hookswitch.claims'), $1)";

/// The columns of a claimed delivery. [`rows::COLUMNS`] follow.
const DELIVERY: &str = "l.position, l.blocker, t.first IS NOT NULL, e.position, e.day, e.attempts,
    e.since, e.replay, e.replays, e.due_at, e.keys IS NOT NULL, f.fence, l.scope, l.key,
    e.occurred_at IS NOT NULL AND e.topic_keys <> '{}' AND NOT EXISTS (
        SELECT FROM unnest(e.topic_keys) AS k (topic) LEFT JOIN topics t ON t.topic = k.topic
        WHERE t.latest IS NULL OR t.latest <= e.occurred_at)";

/// The number of columns in [`DELIVERY`].
const DELIVERY_COLUMNS: usize = 15;

/// Claims ready and due deliveries, oldest first, without waiting for locks. It ignores deliveries
/// that are claimed, and replayed ones while a younger delivery that shares a key is claimed. It
/// looks at one candidate more than it claims. It also ignores deliveries in a run that is in
/// progress: to queue them would delay the run's settlements.
///
/// A run has a single key: it ends before a delivery of its ordering group with several keys, and
/// before a delivery outside the group that shares the key (`fence`).
pub(super) static TAKE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH
    due AS MATERIALIZED (SELECT d.* FROM deliveries d
        WHERE d.handler = $1 AND d.state = 0 AND d.due_at <= $2
            AND NOT EXISTS (SELECT FROM claims c WHERE c.handler = d.handler
                AND c.first = d.position AND c.until > clock_timestamp())
            AND NOT EXISTS (SELECT FROM claims c WHERE c.handler = d.handler
                AND c.scope = d.scope AND c.until > clock_timestamp()
                AND (c.position = d.position OR $6 AND c.position > d.position AND {share_a_key}
                    OR $6 AND d.position <= c.last AND c.keys[1] = d.key AND d.keys IS NULL))
        ORDER BY d.due_at, d.position LIMIT $3::bigint + 1),
    candidates AS MATERIALIZED (SELECT d.*,
            CASE WHEN NOT $6::boolean THEN NULL WHEN d.before IS NOT NULL THEN d.before
            ELSE {blocker} END AS blocker,
            $6 AND d.scope IS NOT NULL AND d.keys IS NULL AS in_line
        FROM (SELECT d.*, CASE WHEN d.scope IS NOT NULL THEN lag(d.position)
                OVER (PARTITION BY d.scope, d.key ORDER BY d.position) END AS before
            FROM due d) d),
    claimed AS (INSERT INTO claims AS c (handler, first, position, last, scope, keys, token, until)
        SELECT handler, position, position, last, scope, coalesce(keys, ARRAY[key]), $4,
            clock_timestamp() + $5::bigint * interval '1 ms'
        FROM (SELECT * FROM candidates WHERE blocker IS NULL ORDER BY due_at, position LIMIT $3) l
        CROSS JOIN LATERAL (SELECT CASE WHEN l.in_line THEN (SELECT max(o.position)
            FROM (SELECT o.position FROM deliveries o
                WHERE o.handler = $1 AND o.scope = l.scope AND o.key = l.key
                    AND o.position >= l.position
                ORDER BY o.handler, o.scope, o.key, o.position LIMIT $7) o) END AS last) r
        ORDER BY position
        ON CONFLICT (handler, first) DO UPDATE SET position = excluded.position,
            last = excluded.last, scope = excluded.scope, keys = excluded.keys, token = excluded.token,
            until = excluded.until
            WHERE c.until <= clock_timestamp()
        RETURNING first)
    SELECT {DELIVERY}, {columns}
    FROM candidates l LEFT JOIN claimed t ON t.first = l.position
    LEFT JOIN LATERAL (SELECT CASE WHEN t.first IS NULL OR NOT l.in_line THEN NULL
            WHEN l.key = 0 THEN (SELECT l.position + 1 FROM deliveries o WHERE o.handler = $1
                AND o.scope = l.scope AND o.key > 0 ORDER BY o.handler, o.scope, o.key LIMIT 1)
            ELSE least((SELECT o.position FROM deliveries o WHERE o.handler = $1
                    AND o.scope = l.scope AND o.key = 0 AND o.position > l.position
                    ORDER BY o.handler, o.scope, o.key, o.position LIMIT 1),
                (SELECT o.position FROM further_keys o WHERE o.handler = $1
                    AND o.scope = l.scope AND o.key = l.key AND o.position > l.position
                    ORDER BY o.handler, o.scope, o.key, o.position LIMIT 1)) END AS fence
        OFFSET 0) f ON true
    LEFT JOIN LATERAL (SELECT o.attempts, o.since, o.replay, o.replays, o.due_at, o.keys,
            row_number() OVER run AS place, sum(octet_length(e.body)) OVER run AS bytes, e.*
        FROM ((SELECT o.* FROM deliveries o
                WHERE NOT l.in_line AND t.first IS NOT NULL
                    AND o.handler = $1 AND o.position = l.position)
            UNION ALL (SELECT o.* FROM deliveries o
                WHERE l.in_line AND t.first IS NOT NULL
                    AND o.handler = $1 AND o.scope = l.scope AND o.key = l.key
                    AND o.position >= l.position
                ORDER BY o.handler, o.scope, o.key, o.position LIMIT $7)) o
        JOIN events e ON e.day = o.day AND e.position = o.position
        WINDOW run AS (ORDER BY o.position ROWS UNBOUNDED PRECEDING)) e
        ON e.place = 1 OR e.bytes <= $8
    WHERE t.first IS NOT NULL OR l.blocker IS NOT NULL",
        share_a_key = ordering::share_a_key("c", "d"),
        blocker = ordering::blocker("d"),
        columns = rows::COLUMNS,
    )
});

/// The due time of the next delivery that is not due yet.
pub(super) const NEXT_DUE: &str = "SELECT due_at FROM deliveries
    WHERE handler = $1 AND state = 0 AND due_at > $2 ORDER BY due_at LIMIT 1";

/// Queues blocked deliveries behind their blockers. With the first delivery of each ordering group,
/// it queues up to `$4` of its successors.
///
/// The blocker is locked against its end until the queueing is committed, and blockers that are
/// ending are skipped. So the settlement of the blocker, which wakes queued deliveries by a later
/// statement, finds every delivery that was queued. A queued delivery of a group cannot be claimed,
/// and so cannot end, before the ones in front of it. (`state < 1` keeps the planner from the index
/// of ready deliveries, which does not lead to a position.)
pub(super) const QUEUE: &str = "WITH
    blocked AS MATERIALIZED (SELECT DISTINCT ON (d.scope, d.key, d.keys)
            d.position, t.blocker, d.scope, d.key, d.keys
        FROM unnest($2::bigint[], $3::bigint[]) AS t (position, blocker)
        CROSS JOIN LATERAL (SELECT * FROM deliveries d
            WHERE d.handler = $1 AND d.position = t.position OFFSET 0) d
        ORDER BY d.scope, d.key, d.keys, d.position),
    blockers AS MATERIALIZED (SELECT b.position, b.scope, b.key FROM deliveries b
        WHERE b.handler = $1 AND b.position = ANY(ARRAY(SELECT blocker FROM blocked))
        FOR KEY SHARE SKIP LOCKED),
    pairs AS MATERIALIZED (SELECT o.position, CASE WHEN o.position = t.position
                AND (b.scope, b.key) IS DISTINCT FROM (t.scope, t.key) THEN b.position END AS behind
        FROM blocked t JOIN blockers b ON b.position = t.blocker
        CROSS JOIN LATERAL (SELECT o.position, o.state FROM deliveries o WHERE o.handler = $1
                AND o.scope = t.scope AND o.key = t.key AND o.position >= t.position
            ORDER BY o.handler, o.scope, o.key, o.position
            LIMIT CASE WHEN t.keys IS NULL THEN $4::bigint ELSE 1 END) o
        WHERE o.state = 0)
    UPDATE deliveries d SET state = 1, behind = p.behind FROM pairs p
    WHERE d.handler = $1 AND d.position = p.position AND d.state < 1
        AND NOT EXISTS (SELECT FROM claims c WHERE c.handler = d.handler
            AND c.first = d.position AND c.until > clock_timestamp())";

/// Releases claims whose events could not be read.
const RELEASE: &str = "DELETE FROM claims WHERE handler = $1 AND token = $2 AND first = ANY($3)";

/// Claims up to `at_most` deliveries of `handler` that are due at `now`.
pub(super) async fn claim(
    shared: &Shared,
    handler: &ActiveHandler,
    at_most: usize,
    now: Timestamp,
) -> Result<Claims, PgError> {
    let since = Instant::now();
    let token = Uuid::now_v7();
    let at_most = i64::try_from(at_most).unwrap_or(i64::MAX);
    let taking = shared.claims.with(async |mut connection| {
        let done = take(shared, &mut connection, handler, at_most, now, token).await;
        (connection, done)
    });
    let (rows, next_due) = taking.await?;
    let mut ascending = BTreeMap::new();
    for row in &rows {
        ascending.insert(
            (row.try_get::<_, i64>(0)?, row.try_get::<_, Option<i64>>(3)?),
            row,
        );
    }
    let mut found = Found::default();
    for row in ascending.into_values() {
        found.add(row, (handler.id, token), since, now)?;
    }
    if let Err(error) = queue_blocked(shared, &found, handler.id, token).await {
        // The claims are valid all the same, and a later claim looks at the blocked deliveries
        // again.
        tracing::debug!("deliveries could not be queued: {error}");
        shared.health_check.notify_one();
    }
    for position in found.deferred_topics() {
        topics::store_topics(shared, position).await?;
    }
    let is_short = !found.blocked.is_empty();
    let runs = found.runs.into_values();
    let mut runs: Vec<_> = runs.map(|run| run.prepared).collect();
    runs.sort_by_key(|run| {
        run.front()
            .map(|prepared| (prepared.due_at, prepared.delivery.position))
    });
    Ok(Claims {
        claims: runs
            .into_iter()
            .filter_map(|run| shared.leases.hand_out(run))
            .collect(),
        // More deliveries may be behind the blocked ones.
        next_due: if is_short { Some(now) } else { next_due },
    })
}

/// Makes the claims and reads the claimed deliveries, in one round trip.
async fn take(
    shared: &Shared,
    connection: &mut PgConnection,
    handler: &ActiveHandler,
    at_most: i64,
    now: Timestamp,
    token: Uuid,
) -> Result<(Vec<Row>, Option<Timestamp>), PgError> {
    let lock = connection.prepare(LOCK).await?;
    let take = connection.prepare(&TAKE).await?;
    let look_ahead = connection.prepare(NEXT_DUE).await?;
    let client = &connection.client;
    let (millis, ordered) = (shared.leases.millis(), handler.subscription.ordered);
    let locking: &[&(dyn ToSql + Sync)] = &[&handler.id];
    let taking: &[&(dyn ToSql + Sync)] = &[
        &handler.id,
        &now,
        &at_most,
        &token,
        &millis,
        &ordered,
        &MOST_RUN_DELIVERIES,
        &MOST_RUN_BYTES,
    ];
    let looking: &[&(dyn ToSql + Sync)] = &[&handler.id, &now];
    let (begun, locked, claimed, next_due, committed) = tokio::join!(
        biased;
        client.batch_execute("BEGIN"),
        client.execute(&lock, locking),
        client.query(&take, taking),
        client.query_opt(&look_ahead, looking),
        client.batch_execute("COMMIT"),
    );
    begun?;
    locked?;
    let claimed = claimed?;
    let next_due = next_due?.map(|row| row.try_get(0)).transpose()?;
    committed?;
    Ok((claimed, next_due))
}

/// Queues blocked deliveries, and releases claims without an event.
async fn queue_blocked(
    shared: &Shared,
    found: &Found,
    handler: HandlerId,
    token: Uuid,
) -> Result<(), PgError> {
    if found.blocked.is_empty() && found.empty.is_empty() {
        return Ok(());
    }
    let tidying = shared.pool.with(async |mut connection| {
        let done = found.queue_blocked(&mut connection, handler, token).await;
        (connection, done)
    });
    tidying.await
}

/// What a claim found.
#[derive(Default)]
struct Found {
    /// The claimed runs, by the position of the first delivery.
    runs: BTreeMap<i64, Run>,
    /// The blocked deliveries, with their blockers.
    blocked: BTreeMap<i64, i64>,
    /// Claims whose events could not be read.
    empty: Vec<i64>,
}

/// Deliveries that were claimed together.
#[derive(Default)]
struct Run {
    prepared: VecDeque<PreparedClaim>,
    /// The run is complete. Rows come in the order of their positions.
    is_complete: bool,
}

impl Found {
    /// Adds one row.
    fn add(
        &mut self,
        row: &Row,
        (handler, token): (HandlerId, Uuid),
        since: Instant,
        now: Timestamp,
    ) -> Result<(), PgError> {
        let first: i64 = row.try_get(0)?;
        if !row.try_get::<_, bool>(2)? {
            let blocker: Option<i64> = row.try_get(1)?;
            self.blocked.extend(blocker.map(|blocker| (first, blocker)));
            return Ok(());
        }
        let Some(position) = row.try_get(3)? else {
            self.empty.push(first);
            return Ok(());
        };
        let run = self.runs.entry(first).or_default();
        let due_at: Timestamp = row.try_get(9)?;
        let (several, fence): (bool, Option<i64>) = (row.try_get(10)?, row.try_get(11)?);
        // A delivery that is not due ends the run, so that nothing overtakes it.
        let follows = due_at <= now && !several && fence.is_none_or(|fence| position < fence);
        run.is_complete |= position != first && !follows;
        if run.is_complete {
            return Ok(());
        }
        let delivery = ClaimedDelivery {
            handler,
            first,
            token,
            position,
            group: row.try_get::<_, Option<_>>(12)?.zip(row.try_get(13)?),
            day: row.try_get(4)?,
            replays: row.try_get(8)?,
            since,
        };
        let attempts: i32 = row.try_get(5)?;
        let replay: Option<String> = row.try_get(7)?;
        run.prepared.push_back(PreparedClaim {
            delivery,
            due_at,
            notification: Arc::new(rows::notification(row, DELIVERY_COLUMNS)?),
            attempt: attempts.cast_unsigned() + 1,
            since: row.try_get::<_, Option<Timestamp>>(6)?.unwrap_or(now),
            replay: replay.map(escape::from_sql),
            superseded: row.try_get(14)?,
        });
        Ok(())
    }

    /// The positions of events whose topics may not have been stored yet.
    fn deferred_topics(&self) -> impl Iterator<Item = i64> {
        let prepared = self.runs.values().flat_map(|run| &run.prepared);
        let has_many =
            |prepared: &&PreparedClaim| prepared.notification.topics.len() > topics::MOST_TOPICS;
        prepared
            .filter(has_many)
            .map(|prepared| prepared.delivery.position)
    }

    async fn queue_blocked(
        &self,
        connection: &mut PgConnection,
        handler: HandlerId,
        token: Uuid,
    ) -> Result<(), PgError> {
        if !self.blocked.is_empty() {
            let positions: Vec<_> = self.blocked.keys().copied().collect();
            let blockers: Vec<_> = self.blocked.values().copied().collect();
            // If most candidates are blocked, many of them have one key.
            let is_crowded = self.blocked.len() > self.runs.len();
            let at_once = if is_crowded {
                MOST_QUEUED
            } else {
                MOST_RUN_DELIVERIES
            };
            let queue = connection.prepare(QUEUE).await?;
            let queueing: &[&(dyn ToSql + Sync)] = &[&handler, &positions, &blockers, &at_once];
            connection.client.execute(&queue, queueing).await?;
        }
        if !self.empty.is_empty() {
            let release = connection.prepare(RELEASE).await?;
            connection
                .client
                .execute(&release, &[&handler, &token, &self.empty])
                .await?;
        }
        Ok(())
    }
}
