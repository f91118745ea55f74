//! Taking in how deliveries went.
//!
//! A claim whose run goes on stays, for the next delivery of the run. That is handed out when the end of
//! the one before is on record, and so nothing is attempted twice that could not be before.
//!
//! **Invariant:** only whoever still has the lease changes anything: all of a settlement hangs on
//! the row of `claims` that is deleted with it, or changed.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
};

use jiff::{Timestamp, civil::Date};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    Shared, error::PgError, escape, leases::ClaimedDelivery, pool::PgConnection,
    registry::HandlerId,
};
use crate::store::{Claim, Lease, Settlement, Verdict, shorten};

/// Verdicts as the statements number them: those that end a delivery as its state.
const RELEASED: i16 = 0;
const RETRY: i16 = 1;
pub(super) const PARKED: i16 = 2;
pub(super) const DONE: i16 = 3;
pub(super) const SKIPPED: i16 = 4;

/// Settles all of one handler, each claim once. Gives back the number of each whose lease was good,
/// whether its run is gone on with, and whether its delivery was missed: not there, or not as it was
/// when it was claimed.
///
/// Claims that are gone on with come before those that are given up. What is told of a claim is found by
/// its place in the arrays: a join would compare all with all, since the planner takes `claims` for empty.
pub(super) const SETTLE: &str = "WITH
    kept AS (UPDATE claims SET position = ($4::bigint[])[array_position($2::bigint[], first)]
        WHERE handler = $1 AND first = ANY($2::bigint[])
            AND token = ($3::uuid[])[array_position($2::bigint[], first)]
        RETURNING array_position($2::bigint[], first) AS n),
    freed AS (DELETE FROM claims WHERE handler = $1 AND first = ANY($5::bigint[])
            AND token = ($6::uuid[])[array_position($5::bigint[], first)]
        RETURNING cardinality($2::bigint[]) + array_position($5::bigint[], first) AS n),
    mine AS MATERIALIZED (SELECT n, ($7::bigint[])[n] AS position,
            ($8::integer[])[n] AS replays, ($9::smallint[])[n] AS verdict,
            ($10::timestamptz[])[n] AS started_at, ($11::timestamptz[])[n] AS finished_at,
            ($12::timestamptz[])[n] AS due_at, ($13::text[])[n] AS why, goes_on
        FROM (SELECT n, true AS goes_on FROM kept UNION ALL SELECT n, false FROM freed) AS ours),
    over AS (DELETE FROM deliveries d USING mine m
        WHERE d.handler = $1 AND d.position = m.position AND d.replays = m.replays AND m.verdict > 1
        RETURNING d.day, d.position, d.scope, d.keys, d.attempts, d.replays, d.replay, m.verdict,
            m.started_at, m.finished_at, m.why),
    unkeyed AS (DELETE FROM further_keys f
        USING (SELECT * FROM over WHERE keys IS NOT NULL) o CROSS JOIN unnest(o.keys[2:]) AS k (key)
        WHERE f.handler = $1 AND f.scope = o.scope AND f.key = k.key AND f.position = o.position),
    noted AS (INSERT INTO ended
            (day, position, handler, state, attempts, replays, ended_at, replay, why)
        SELECT day, position, $1, verdict, attempts + 1, replays, finished_at, replay, why
        FROM over),
    again AS (UPDATE deliveries d SET state = 0, behind = NULL, due_at = m.due_at, attempts = d.attempts + 1,
            since = coalesce(d.since, m.started_at)
        FROM mine m
        WHERE d.handler = $1 AND d.position = m.position AND d.replays = m.replays AND m.verdict = 1
        RETURNING d.day, d.position, m.started_at, m.finished_at, m.why),
    failed AS (INSERT INTO attempts (day, position, handler, started_at, took_ms, why)
        SELECT day, position, $1, started_at,
            greatest(0, extract(epoch FROM finished_at - started_at) * 1000)::bigint, why
        FROM (SELECT day, position, started_at, finished_at, why FROM again UNION ALL
            SELECT day, position, started_at, finished_at, why FROM over WHERE verdict = 2) f
        ON CONFLICT DO NOTHING),
    released AS (UPDATE deliveries d SET state = 0, behind = NULL FROM mine m
        WHERE d.handler = $1 AND d.position = m.position AND d.state > 0 AND m.verdict = 0),
    counted AS (INSERT INTO tally (handler, open, parked)
        SELECT $1, -count(*), count(*) FILTER (WHERE verdict = 2) FROM over HAVING count(*) > 0)
    SELECT n, goes_on, verdict > 0 AND position NOT IN (SELECT position FROM over)
        AND position NOT IN (SELECT position FROM again) FROM mine";

/// Wakes what is queued behind deliveries that are over, but for those that go on, and the oldest of each
/// line in which nobody goes on. A statement of its own, after the one that ends them: that may have
/// waited for the lock of somebody who queued something behind them, and this one sees it.
pub(super) const WAKE: &str = "UPDATE deliveries d SET state = 0, behind = NULL
    WHERE d.handler = $1 AND d.state = 1 AND d.position = ANY(ARRAY(
        SELECT w.position FROM deliveries w
            WHERE w.handler = $1 AND w.behind = ANY($2) AND w.position <> ALL($3)
        UNION ALL
        SELECT o.position FROM unnest($4::bigint[], $5::bigint[]) AS t (scope, key)
            CROSS JOIN LATERAL (SELECT o.position, o.behind FROM deliveries o
                WHERE o.handler = $1 AND o.scope = t.scope AND o.key = t.key
                ORDER BY o.handler, o.scope, o.key, o.position LIMIT 1) o
            WHERE o.behind IS NULL))";

/// Ends deliveries that were parked while they were attempted, their handler being gone.
pub(super) const REDEEM: &str = "WITH
    saved AS (UPDATE ended e SET state = t.verdict, attempts = e.attempts + 1,
            ended_at = t.finished_at, why = t.why
        FROM unnest($2::date[], $3::bigint[], $4::integer[], $5::smallint[], $6::timestamptz[],
            $7::text[]) AS t (day, position, replays, verdict, finished_at, why)
        WHERE e.day = t.day AND e.position = t.position AND e.handler = $1 AND e.state = 2
            AND e.position = ANY($3) AND e.replays = t.replays AND t.verdict > 2
        RETURNING e.position)
    INSERT INTO tally (handler, open, parked)
    SELECT $1, 0, -count(*) FROM saved HAVING count(*) > 0";

/// One settlement as the database takes it.
struct SettlementRow {
    lease: Lease,
    delivery: ClaimedDelivery,
    /// The position of what comes next of its run, when the claim stays for it.
    next: Option<i64>,
    verdict: i16,
    started_at: Timestamp,
    finished_at: Timestamp,
    due_at: Option<Timestamp>,
    why: Option<String>,
}

impl SettlementRow {
    fn new(delivery: ClaimedDelivery, next: Option<i64>, settlement: &Settlement) -> Self {
        let (verdict, due_at, why) = match &settlement.verdict {
            Verdict::Released => (RELEASED, None, None),
            Verdict::Retry { due_at, why } => (RETRY, Some(*due_at), Some(why)),
            Verdict::Parked { why } => (PARKED, None, Some(why)),
            Verdict::Done => (DONE, None, None),
            Verdict::Skipped { why } => (SKIPPED, None, Some(why)),
        };
        Self {
            lease: settlement.lease,
            delivery,
            next: next.filter(|_| verdict >= PARKED),
            verdict,
            started_at: settlement.started_at,
            finished_at: settlement.finished_at,
            due_at,
            why: why.map(|why| escape::to_sql(shorten(why)).into_owned()),
        }
    }

    /// The claim, and what shows that it is ours.
    const fn claim(&self) -> (i64, Uuid) {
        (self.delivery.first, self.delivery.token)
    }
}

/// Takes in how claimed deliveries went, and hands out what comes after them.
pub(super) async fn settle(
    shared: &Shared,
    settlements: &[Settlement],
) -> Result<Vec<Claim>, PgError> {
    let mut by_handler: BTreeMap<HandlerId, Vec<SettlementRow>> = BTreeMap::new();
    for settlement in settlements {
        if let Some((delivery, next)) = shared.leases.get(settlement.lease) {
            let handler = shared.registry.find(&settlement.handler);
            let next = next.filter(|_| handler.is_some_and(|handler| handler.asked.ordered));
            let told = SettlementRow::new(delivery, next, settlement);
            by_handler.entry(delivery.handler).or_default().push(told);
        }
    }
    let mut kept = HashSet::new();
    for (handler, told) in &mut by_handler {
        // In one order, so that two that wait for each other do not do so for ever. Of two claims of
        // one delivery the later one is ours: tokens ascend.
        told.sort_unstable_by_key(|told| (told.delivery.first, Reverse(told.delivery.token)));
        told.dedup_by_key(|told| told.delivery.first);
        told.sort_by_key(|told| told.next.is_none());
        let (handler, told) = (*handler, told.as_slice());
        let settled = shared.pool.with(async |mut taken| {
            let settled = settle_on(&mut taken, handler, told).await;
            (taken, settled)
        });
        kept.extend(settled.await?);
    }
    let mut next = Vec::with_capacity(kept.len());
    for Settlement { lease, .. } in settlements {
        if kept.remove(lease) {
            next.extend(shared.leases.next_claim(*lease));
        } else {
            shared.leases.remove(*lease);
        }
    }
    Ok(next)
}

/// Settles all of `told`, and gives back the leases of those that are gone on with.
async fn settle_on(
    connection: &mut PgConnection,
    handler: HandlerId,
    told: &[SettlementRow],
) -> Result<Vec<Lease>, PgError> {
    let (kept, freed) = told.split_at(told.partition_point(|told| told.next.is_some()));
    let going_on: Vec<_> = kept.iter().filter_map(|told| told.next).collect();
    let (kept, kept_by): (Vec<_>, Vec<_>) = kept.iter().map(SettlementRow::claim).unzip();
    let (freed, freed_by): (Vec<_>, Vec<_>) = freed.iter().map(SettlementRow::claim).unzip();
    let positions: Vec<_> = told.iter().map(|told| told.delivery.position).collect();
    let replays: Vec<_> = told.iter().map(|told| told.delivery.replays).collect();
    let verdicts: Vec<_> = told.iter().map(|told| told.verdict).collect();
    let started: Vec<_> = told.iter().map(|told| told.started_at).collect();
    let finished: Vec<_> = told.iter().map(|told| told.finished_at).collect();
    let due: Vec<_> = told.iter().map(|told| told.due_at).collect();
    let why: Vec<_> = told.iter().map(|told| told.why.as_deref()).collect();
    let over = told.iter().filter(|told| told.verdict >= PARKED);
    let ends = over.clone().filter(|told| told.next.is_none());
    let (scopes, keys): (Vec<_>, Vec<_>) = ends.filter_map(|told| told.delivery.group).unzip();
    let over: Vec<_> = over.map(|told| told.delivery.position).collect();
    let settle = connection.prepare(SETTLE).await?;
    let wake = connection.prepare(WAKE).await?;
    let settling: &[&(dyn ToSql + Sync)] = &[
        &handler, &kept, &kept_by, &going_on, &freed, &freed_by, &positions, &replays, &verdicts,
        &started, &finished, &due, &why,
    ];
    let waking: &[&(dyn ToSql + Sync)] = &[&handler, &over, &going_on, &scopes, &keys];
    let client = &connection.client;
    let (begun, answers, woken, committed) = tokio::join!(
        biased;
        client.batch_execute("BEGIN"),
        client.query(&settle, settling),
        client.execute(&wake, waking),
        client.batch_execute("COMMIT"),
    );
    begun?;
    let answers = answers?;
    woken?;
    committed?;
    let (mut leases, mut missed) = (Vec::with_capacity(answers.len()), Vec::new());
    for row in answers {
        // Arrays count from 1.
        let number = usize::try_from(row.try_get::<_, i32>(0)? - 1).ok();
        let Some(told) = number.and_then(|number| told.get(number)) else {
            continue;
        };
        if row.try_get(1)? {
            leases.push(told.lease);
        }
        if row.try_get(2)? {
            missed.push(told);
        }
    }
    if !missed.is_empty() {
        redeem(connection, handler, &missed).await?;
    }
    Ok(leases)
}

async fn redeem(
    connection: &mut PgConnection,
    handler: HandlerId,
    told: &[&SettlementRow],
) -> Result<(), PgError> {
    let days: Vec<Date> = told.iter().map(|told| told.delivery.day).collect();
    let positions: Vec<_> = told.iter().map(|told| told.delivery.position).collect();
    let replays: Vec<_> = told.iter().map(|told| told.delivery.replays).collect();
    let verdicts: Vec<_> = told.iter().map(|told| told.verdict).collect();
    let finished: Vec<_> = told.iter().map(|told| told.finished_at).collect();
    let why: Vec<_> = told.iter().map(|told| told.why.as_deref()).collect();
    let redeem = connection.prepare(REDEEM).await?;
    connection
        .client
        .execute(
            &redeem,
            &[
                &handler, &days, &positions, &replays, &verdicts, &finished, &why,
            ],
        )
        .await?;
    Ok(())
}
