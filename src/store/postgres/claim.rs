//! Handing deliveries out.
//!
//! First slots are taken, by what looks ready; then, with nobody else in them, it is seen which
//! deliveries are the oldest of each. What looked ready and is not the oldest is queued, so that
//! nobody looks at it again before its turn.
//!
//! Of a lane a run of deliveries is claimed. The first one is handed out; each of the others when
//! the one before it is over, by its settlement. The last of a run is made ready, so that the lane is
//! found by it if its holder dies on the way.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Instant,
};

use jiff::Timestamp;
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use super::{
    Parts,
    fault::Fault,
    leases::{Held, Offer, Run},
    pool::Session,
    roster::{Active, HandlerId},
    rows, text,
};
use crate::store::Claims;

/// The state of a delivery that is behind another of its lane.
const QUEUED: i16 = 1;

/// The most deliveries of one lane that are queued at once, so that no claim takes long.
const QUEUED_AT_ONCE: i64 = 1000;

/// The most deliveries of one run: so many that a claim costs little for each of them, and so few
/// that what is new waits for the lane no longer than it has to.
const LONGEST_RUN: i64 = 16;

/// The most bytes of bodies of one run that is more than one delivery.
const LARGEST_RUN: i64 = 64 << 10;

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
const DELIVERY: &str = "h.slot, e.position, e.day, e.attempts, e.since, e.replay, e.replays,
    e.due_at, e.state,
    e.occurred_at IS NOT NULL AND e.topic_keys <> '{}' AND NOT EXISTS (
        SELECT FROM unnest(e.topic_keys) AS k (topic) LEFT JOIN topics t ON t.topic = k.topic
        WHERE t.latest IS NULL OR t.latest <= e.occurred_at)";

/// How many columns those are, with the one that says from where on others of the lane look ready.
const DELIVERY_COLUMNS: usize = 11;

/// The oldest deliveries of each lane that was taken.
pub(super) static READ_LANES: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {DELIVERY}, CASE WHEN h.position > e.position THEN h.position ELSE h.crowd END, {}
         FROM held h
         CROSS JOIN LATERAL (SELECT o.attempts, o.since, o.replay, o.replays, o.due_at, o.state,
                row_number() OVER run AS place, sum(octet_length(e.body)) OVER run AS bytes, e.*
            FROM (SELECT * FROM deliveries d WHERE d.handler = h.handler AND d.lane = h.slot
                ORDER BY d.handler, d.lane, d.position LIMIT $2) o
            JOIN events e ON e.day = o.day AND e.position = o.position
            WINDOW run AS (ORDER BY o.position ROWS UNBOUNDED PRECEDING)) e
         WHERE h.token = $1 AND (e.place = 1 OR e.bytes <= $3)",
        rows::COLUMNS
    )
});

/// The deliveries that were taken one by one.
pub(super) static READ_SINGLY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {DELIVERY}, NULL::bigint, {}
         FROM held h
         CROSS JOIN LATERAL (SELECT o.attempts, o.since, o.replay, o.replays, o.due_at, o.state, e.*
            FROM (SELECT * FROM deliveries d WHERE d.handler = h.handler AND d.position = h.slot
                OFFSET 0) o
            JOIN events e ON e.day = o.day AND e.position = o.position) e
         WHERE h.token = $1",
        rows::COLUMNS
    )
});

/// When the next one is due that is not due yet.
pub(super) const NEXT_DUE: &str = "SELECT due_at FROM deliveries
    WHERE handler = $1 AND state = 0 AND due_at > $2 ORDER BY due_at LIMIT 1";

/// Queues what looks ready in a lane from some position on, which is behind its oldest, but for one.
pub(super) const QUEUE: &str = "UPDATE deliveries d SET state = 1
    FROM unnest($2::bigint[], $3::bigint[], $4::bigint[]) AS t (lane, crowd, mark)
    CROSS JOIN LATERAL (SELECT o.position FROM deliveries o WHERE o.handler = $1
        AND o.lane = t.lane AND o.position >= t.crowd AND o.state = 0 AND o.position <> t.mark
        ORDER BY o.handler, o.lane, o.position LIMIT $5) o
    WHERE d.handler = $1 AND d.position = o.position";

/// Makes the last of runs ready.
pub(super) const MARK: &str = "UPDATE deliveries SET state = 0
    WHERE handler = $1 AND position = ANY($2) AND state = 1";

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
    let taking = parts.claims.with(async |mut taken| {
        let done = take(parts, &mut taken, handler, at_most, now, token).await;
        (taken, done)
    });
    let (slots, rows, next_due) = taking.await?;
    let read = |row| Read::new(row, handler.id, token, since, now);
    let reads = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let mut found = Found::new(&slots, reads, now);
    if let Err(fault) = put_in_order(parts, &found, handler.id, token).await {
        // They are ours all the same; but nobody would find the rest of a run if we died.
        tracing::debug!("deliveries are handed out one by one: {fault}");
        parts.alarm.notify_one();
        for (_, run) in &mut found.runs {
            run.truncate(1);
        }
    }
    // There may be more behind what only looked ready.
    let is_short = found.runs.len() < slots.len() || !found.crowds.is_empty();
    let hand_out = |(_, run)| parts.leases.hand_out(run);
    Ok(Claims {
        claims: found.runs.into_iter().filter_map(hand_out).collect(),
        next_due: if is_short { Some(now) } else { next_due },
    })
}

async fn put_in_order(
    parts: &Parts,
    found: &Found,
    handler: HandlerId,
    token: Uuid,
) -> Result<(), Fault> {
    if found.is_in_order() {
        return Ok(());
    }
    let ordering = parts.pool.with(async |mut taken| {
        let done = found.put_in_order(&mut taken, handler, token).await;
        (taken, done)
    });
    ordering.await
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
    let (alone, in_runs): (&[&(dyn ToSql + Sync)], &[&(dyn ToSql + Sync)]) =
        (&[&token], &[&token, &LONGEST_RUN, &LARGEST_RUN]);
    let (take, read, reading) = if handler.asked.ordered {
        (TAKE_LANES, LazyLock::force(&READ_LANES), in_runs)
    } else {
        (TAKE_SINGLY, LazyLock::force(&READ_SINGLY), alone)
    };
    let take = session.prepare(take).await?;
    let read = session.prepare(read).await?;
    let look_ahead = session.prepare(NEXT_DUE).await?;
    let client = &session.client;
    let millis = parts.leases.millis();
    let taking: &[&(dyn ToSql + Sync)] = &[&handler.id, &now, &at_most, &token, &millis];
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

/// One of the oldest deliveries of a slot.
struct Read {
    due_at: Timestamp,
    is_queued: bool,
    /// From where on others of the lane look ready. Of the oldest one this is true.
    crowd: Option<i64>,
    offer: Offer,
}

impl Read {
    fn new(
        row: &Row,
        handler: HandlerId,
        token: Uuid,
        since: Instant,
        now: Timestamp,
    ) -> Result<Self, Fault> {
        let held = Held {
            handler,
            slot: row.try_get(0)?,
            token,
            position: row.try_get(1)?,
            day: row.try_get(2)?,
            replays: row.try_get(6)?,
            since,
        };
        let attempts: i32 = row.try_get(3)?;
        let replay: Option<String> = row.try_get(5)?;
        Ok(Self {
            due_at: row.try_get(7)?,
            is_queued: row.try_get::<_, i16>(8)? == QUEUED,
            crowd: row.try_get(10)?,
            offer: Offer {
                held,
                notification: Arc::new(rows::notification(row, DELIVERY_COLUMNS)?),
                attempt: attempts.cast_unsigned() + 1,
                since: row.try_get::<_, Option<Timestamp>>(4)?.unwrap_or(now),
                replay: replay.map(text::from_sql),
                superseded: row.try_get(9)?,
            },
        })
    }
}

/// What there is to hand out, and what has to be put in order before that.
#[derive(Default)]
struct Found {
    /// With the time at which the first one of each was due, oldest first.
    runs: Vec<(Timestamp, Run)>,
    /// Lanes in which others look ready, from where on, and the one that is to.
    crowds: Vec<(i64, i64, i64)>,
    /// What is to look ready, and does not.
    marks: Vec<i64>,
    /// Slots in which nothing is due: something younger looked ready, and the oldest waits for its
    /// retry.
    idle: Vec<i64>,
}

impl Found {
    fn new(slots: &[i64], mut reads: Vec<Read>, now: Timestamp) -> Self {
        reads.sort_unstable_by_key(|read| read.offer.held.position);
        let mut by_slot: BTreeMap<i64, Vec<Read>> =
            slots.iter().map(|slot| (*slot, Vec::new())).collect();
        for read in reads {
            by_slot.entry(read.offer.held.slot).or_default().push(read);
        }
        let mut found = Self::default();
        for (slot, reads) in by_slot {
            found.add(slot, reads, now);
        }
        found.runs.sort_by_key(|(due_at, _)| *due_at);
        found
    }

    /// `reads` are those of `slot`, oldest first.
    fn add(&mut self, slot: i64, reads: Vec<Read>, now: Timestamp) {
        // Nothing overtakes what is not due.
        let due = reads.iter().take_while(|read| read.due_at <= now).count();
        if let Some(mark) = reads.get(due.saturating_sub(1)) {
            let position = mark.offer.held.position;
            if mark.is_queued {
                self.marks.push(position);
            }
            if let Some(crowd) = reads.first().and_then(|oldest| oldest.crowd) {
                self.crowds.push((slot, crowd, position));
            }
        }
        match reads.first() {
            Some(oldest) if due > 0 => {
                let due_at = oldest.due_at;
                let run = reads.into_iter().take(due).map(|read| read.offer);
                self.runs.push((due_at, run.collect()));
            }
            _ => self.idle.push(slot),
        }
    }

    const fn is_in_order(&self) -> bool {
        self.crowds.is_empty() && self.marks.is_empty() && self.idle.is_empty()
    }

    /// Has what looks ready be what is meant to, and gives idle slots back after that. Wherever this
    /// is cut short, something of each lane looks ready.
    async fn put_in_order(
        &self,
        session: &mut Session,
        handler: HandlerId,
        token: Uuid,
    ) -> Result<(), Fault> {
        if !self.marks.is_empty() {
            let mark = session.prepare(MARK).await?;
            session
                .client
                .execute(&mark, &[&handler, &self.marks])
                .await?;
        }
        if !self.crowds.is_empty() {
            let lanes: Vec<_> = self.crowds.iter().map(|(lane, ..)| *lane).collect();
            let crowds: Vec<_> = self.crowds.iter().map(|(_, crowd, _)| *crowd).collect();
            let marks: Vec<_> = self.crowds.iter().map(|(.., mark)| *mark).collect();
            let queue = session.prepare(QUEUE).await?;
            session
                .client
                .execute(
                    &queue,
                    &[&handler, &lanes, &crowds, &marks, &QUEUED_AT_ONCE],
                )
                .await?;
        }
        if !self.idle.is_empty() {
            let release = session.prepare(RELEASE).await?;
            session
                .client
                .execute(&release, &[&handler, &token, &self.idle])
                .await?;
        }
        Ok(())
    }
}
