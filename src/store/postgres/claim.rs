//! Handing deliveries out.
//!
//! First slots are taken, by what looks ready; then, with nobody else in them, it is seen which
//! delivery is the oldest of each. What looked ready and is not the oldest is queued, so that
//! nobody looks at it again before its turn.

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock},
    time::Instant,
};

use jiff::Timestamp;
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use super::{
    Parts,
    fault::Fault,
    leases::Held,
    pool::{Session, within},
    roster::{Active, HandlerId},
    rows, text,
};
use crate::store::{Claim, Claims};

/// The most deliveries of one lane that are queued at once, so that no claim takes long.
const QUEUED_AT_ONCE: i64 = 1000;

/// Takes slots for what is ready and due, oldest first. A slot that somebody has is passed over, in
/// the index and, where somebody takes it at this moment, by its unique key. Where order does not
/// hold each delivery has a slot of its own; a handler whose order has just changed waits until
/// nothing is attempted that was claimed before. One more is looked at than is taken, so that a
/// second one of a lane is seen, from which on others may look ready as well.
pub(super) const TAKE_LANES: &str = "WITH
    due AS MATERIALIZED (SELECT d.lane, d.position, d.due_at FROM deliveries d
        WHERE d.handler = $1 AND d.state = 0 AND d.due_at <= $2
            AND NOT EXISTS (SELECT FROM held h WHERE h.handler = d.handler AND h.slot = d.lane
                AND h.until > clock_timestamp())
            AND NOT EXISTS (SELECT FROM held h WHERE h.handler = $1 AND NOT h.ordered
                AND h.until > clock_timestamp())
        ORDER BY d.due_at, d.position LIMIT $3::bigint + 1 FOR UPDATE OF d SKIP LOCKED),
    lanes AS (SELECT lane, min(position) AS first, (array_agg(position ORDER BY position))[2] AS second
        FROM due GROUP BY lane ORDER BY min(due_at), min(position) LIMIT $3)
    INSERT INTO held (handler, slot, position, crowd, ordered, token, until)
    SELECT $1, lane, first, second, true, $4, clock_timestamp() + $5::bigint * interval '1 ms'
    FROM lanes ORDER BY lane
    ON CONFLICT (handler, slot) DO UPDATE SET position = excluded.position, crowd = excluded.crowd,
        ordered = true, token = excluded.token, until = excluded.until
        WHERE held.until <= clock_timestamp()
    RETURNING slot";

pub(super) const TAKE_SINGLY: &str = "WITH due AS MATERIALIZED (
        SELECT d.position FROM deliveries d
        WHERE d.handler = $1 AND d.state = 0 AND d.due_at <= $2
            AND NOT EXISTS (SELECT FROM held h WHERE h.handler = d.handler AND h.slot = d.position
                AND h.until > clock_timestamp())
            AND NOT EXISTS (SELECT FROM held h WHERE h.handler = d.handler AND h.slot = d.lane
                AND h.position = d.position AND h.until > clock_timestamp())
        ORDER BY d.due_at, d.position LIMIT $3 FOR UPDATE OF d SKIP LOCKED)
    INSERT INTO held (handler, slot, position, ordered, token, until)
    SELECT $1, position, position, false, $4, clock_timestamp() + $5::bigint * interval '1 ms'
    FROM due ORDER BY position
    ON CONFLICT (handler, slot) DO UPDATE SET position = excluded.position, ordered = false,
        token = excluded.token, until = excluded.until WHERE held.until <= clock_timestamp()
    RETURNING slot";

/// What a delivery tells of itself; [`rows::COLUMNS`] follow.
const DELIVERY: &str = "h.slot, d.position, d.day, d.attempts, d.since, d.replay, d.replays,
    d.due_at <= $3,
    e.occurred_at IS NOT NULL AND e.topic_keys <> '{}' AND NOT EXISTS (
        SELECT FROM unnest(e.topic_keys) AS k (topic) LEFT JOIN topics t ON t.topic = k.topic
        WHERE t.latest IS NULL OR t.latest <= e.occurred_at)";

/// How many columns those are, with the one that says from where on others of the lane look ready.
const DELIVERY_COLUMNS: usize = 10;

/// The oldest delivery of each lane that was taken.
pub(super) static READ_LANES: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {DELIVERY}, CASE WHEN h.position > d.position THEN h.position ELSE h.crowd END, {}
         FROM held h
         CROSS JOIN LATERAL (SELECT * FROM deliveries o WHERE o.handler = h.handler
             AND o.lane = h.slot ORDER BY o.handler, o.lane, o.position LIMIT 1) d
         JOIN events e ON e.day = d.day AND e.position = d.position
         WHERE h.handler = $1 AND h.token = $2 ORDER BY d.due_at, d.position",
        rows::COLUMNS
    )
});

/// The deliveries that were taken one by one.
pub(super) static READ_SINGLY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {DELIVERY}, NULL::bigint, {}
         FROM held h
         CROSS JOIN LATERAL (SELECT * FROM deliveries o WHERE o.handler = h.handler
             AND o.position = h.slot OFFSET 0) d
         JOIN events e ON e.day = d.day AND e.position = d.position
         WHERE h.handler = $1 AND h.token = $2 ORDER BY d.due_at, d.position",
        rows::COLUMNS
    )
});

/// When the next one is due that is not due yet.
pub(super) const NEXT_DUE: &str = "SELECT due_at FROM deliveries
    WHERE handler = $1 AND state = 0 AND due_at > $2 ORDER BY due_at LIMIT 1";

/// Queues what looks ready in a lane from some position on, which is behind its oldest.
pub(super) const QUEUE: &str = "UPDATE deliveries d SET state = 1
    FROM unnest($2::bigint[], $3::bigint[]) AS t (lane, crowd)
    CROSS JOIN LATERAL (SELECT o.position FROM deliveries o WHERE o.handler = $1
        AND o.lane = t.lane AND o.position >= t.crowd AND o.state = 0
        ORDER BY o.handler, o.lane, o.position LIMIT $4) o
    WHERE d.handler = $1 AND d.position = o.position";

/// Gives slots back in which nothing is to be done.
const RELEASE: &str = "DELETE FROM held WHERE handler = $1 AND token = $2 AND slot = ANY($3)";

/// Hands out up to `at_most` deliveries of `handler` that are due at `now`.
pub(super) async fn claim(
    parts: &Parts,
    handler: &Active,
    at_most: usize,
    now: Timestamp,
) -> Result<Claims, Fault> {
    let since = Instant::now();
    let token = Uuid::now_v7();
    let at_most = i64::try_from(at_most).unwrap_or(i64::MAX);
    let (slots, found, next_due) = loop {
        let mut taken = parts.claims.take().await?;
        let deadline = taken.deadline();
        let work = take(parts, &mut taken, handler, at_most, now, token);
        let done = within(deadline, work).await;
        match taken.give_back(done) {
            Err(fault) if fault.is_worth_another_try(since) => {}
            done => break done?,
        }
    };
    let mut claims = Vec::with_capacity(found.len());
    let (mut idle, mut crowded): (HashSet<i64>, _) = (slots.iter().copied().collect(), Vec::new());
    for row in &found {
        let (slot, position): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        if let Some(crowd) = row.try_get::<_, Option<i64>>(9)? {
            crowded.push((slot, crowd));
        }
        // Something younger looked ready, and the oldest waits for its retry.
        if !row.try_get::<_, bool>(7)? {
            continue;
        }
        idle.remove(&slot);
        let held = Held {
            handler: handler.id,
            slot,
            token,
            day: row.try_get(2)?,
            position,
            replays: row.try_get(6)?,
            since,
        };
        claims.push((held, row));
    }
    if !crowded.is_empty() || !idle.is_empty() {
        let idle = idle.into_iter().collect();
        let mut taken = parts.pool.take().await?;
        let deadline = taken.deadline();
        let work = put_in_order(&mut taken, handler.id, token, &crowded, idle);
        let done = within(deadline, work).await;
        taken.give_back(done)?;
    }
    let as_claim = |(held, row): (Held, &Row)| as_claim(parts, held, row, now);
    let is_short = claims.len() < slots.len() || !crowded.is_empty();
    Ok(Claims {
        claims: claims.into_iter().map(as_claim).collect::<Result<_, _>>()?,
        // There may be more behind what only looked ready.
        next_due: if is_short { Some(now) } else { next_due },
    })
}

/// Takes slots and reads what is in them, in one round trip.
async fn take(
    parts: &Parts,
    session: &mut Session,
    handler: &Active,
    at_most: i64,
    now: Timestamp,
    token: Uuid,
) -> Result<(Vec<i64>, Vec<Row>, Option<Timestamp>), Fault> {
    let (take, read) = if handler.asked.ordered {
        (TAKE_LANES, LazyLock::force(&READ_LANES))
    } else {
        (TAKE_SINGLY, LazyLock::force(&READ_SINGLY))
    };
    let take = session.prepare(take).await?;
    let read = session.prepare(read).await?;
    let look_ahead = session.prepare(NEXT_DUE).await?;
    let client = &session.client;
    let millis = parts.leases.millis();
    let taking: &[&(dyn ToSql + Sync)] = &[&handler.id, &now, &at_most, &token, &millis];
    let reading: &[&(dyn ToSql + Sync)] = &[&handler.id, &token, &now];
    let looking: &[&(dyn ToSql + Sync)] = &[&handler.id, &now];
    let (begun, taken, found, next_due, committed) = tokio::join!(
        biased;
        client.batch_execute("BEGIN"),
        client.query(&take, taking),
        client.query(&read, reading),
        client.query_opt(&look_ahead, looking),
        client.batch_execute("COMMIT"),
    );
    begun?;
    let taken = taken?;
    let found = found?;
    let next_due = next_due?.map(|row| row.try_get(0)).transpose()?;
    committed?;
    let slots = taken.iter().map(|row| row.try_get(0));
    Ok((slots.collect::<Result<_, _>>()?, found, next_due))
}

/// Queues what only looked ready, and gives idle slots back after that.
async fn put_in_order(
    session: &mut Session,
    handler: HandlerId,
    token: Uuid,
    crowded: &[(i64, i64)],
    idle: Vec<i64>,
) -> Result<(), Fault> {
    if !crowded.is_empty() {
        let (lanes, crowds): (Vec<_>, Vec<_>) = crowded.iter().copied().unzip();
        let queue = session.prepare(QUEUE).await?;
        session
            .client
            .execute(&queue, &[&handler, &lanes, &crowds, &QUEUED_AT_ONCE])
            .await?;
    }
    if !idle.is_empty() {
        let release = session.prepare(RELEASE).await?;
        session
            .client
            .execute(&release, &[&handler, &token, &idle])
            .await?;
    }
    Ok(())
}

fn as_claim(parts: &Parts, held: Held, row: &Row, now: Timestamp) -> Result<Claim, Fault> {
    let attempts: i32 = row.try_get(3)?;
    let replay: Option<String> = row.try_get(5)?;
    Ok(Claim {
        notification: Arc::new(rows::notification(row, DELIVERY_COLUMNS)?),
        attempt: attempts.cast_unsigned() + 1,
        since: row.try_get::<_, Option<Timestamp>>(4)?.unwrap_or(now),
        replay: replay.map(text::from_sql),
        superseded: row.try_get(8)?,
        lease: parts.leases.add(held),
    })
}
