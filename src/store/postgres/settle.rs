//! Settles deliveries.
//!
//! If a run continues, its claim stays for the next delivery. That delivery is handed out when the
//! end of the one before it is recorded. So a crash repeats no attempts beyond those that it would
//! repeat otherwise.
//!
//! **Invariant:** only the holder of the lease changes anything: the whole settlement depends on
//! the row of `claims` that it deletes or updates.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
};

use jiff::{Timestamp, civil::Date};
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use super::{
    Shared, error::PgError, escape, leases::ClaimedDelivery, pool::PgConnection,
    registry::HandlerId,
};
use crate::store::{Claim, Lease, Settlement, Verdict, shorten};

/// The numbers of verdicts in the statements. A verdict that ends a delivery has the number of the
/// state.
const RELEASED: i16 = 0;
const RETRY: i16 = 1;
pub(super) const PARKED: i16 = 2;
pub(super) const DONE: i16 = 3;
pub(super) const SKIPPED: i16 = 4;

/// Settles deliveries of one handler, each claim once. For each valid lease it returns the number
/// of the settlement, whether the run continues, and whether the delivery was missed: it is gone,
/// or has changed since the claim.
///
/// Claims that continue precede claims that end. The parameters of a claim are found by its index
/// in the arrays: a join would compare every pair, since the planner assumes that `claims` is
/// empty.
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

/// Wakes the deliveries that are queued behind finished ones, except those that continue a run, and
/// the oldest of each ordering group without a continuing run. It is a second statement, since the
/// first one may have waited for the lock of a transaction that queued something: the second one
/// sees it.
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

/// Records the results of deliveries that were parked during the attempt, since their handler was
/// abandoned.
pub(super) const SETTLE_PARKED: &str = "WITH
    saved AS (UPDATE ended e SET state = t.verdict, attempts = e.attempts + 1,
            ended_at = t.finished_at, why = t.why
        FROM unnest($2::date[], $3::bigint[], $4::integer[], $5::smallint[], $6::timestamptz[],
            $7::text[]) AS t (day, position, replays, verdict, finished_at, why)
        WHERE e.day = t.day AND e.position = t.position AND e.handler = $1 AND e.state = 2
            AND e.position = ANY($3) AND e.replays = t.replays AND t.verdict > 2
        RETURNING e.position)
    INSERT INTO tally (handler, open, parked)
    SELECT $1, 0, -count(*) FROM saved HAVING count(*) > 0";

/// One settlement, as the statement's parameters.
struct SettlementRow {
    lease: Lease,
    delivery: ClaimedDelivery,
    /// The position of the next delivery of the run, if the claim stays for it.
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

    /// The position and the token that identify the claim.
    const fn claim(&self) -> (i64, Uuid) {
        (self.delivery.first, self.delivery.token)
    }
}

/// Settles claimed deliveries, and returns the claims of the next deliveries of their runs.
pub(super) async fn settle(
    shared: &Shared,
    settlements: &[Settlement],
) -> Result<Vec<Claim>, PgError> {
    let mut by_handler: BTreeMap<HandlerId, Vec<SettlementRow>> = BTreeMap::new();
    for settlement in settlements {
        if let Some((delivery, next)) = shared.leases.get(settlement.lease) {
            let handler = shared.registry.find(&settlement.handler);
            let next = next.filter(|_| handler.is_some_and(|handler| handler.subscription.ordered));
            let row = SettlementRow::new(delivery, next, settlement);
            by_handler.entry(delivery.handler).or_default().push(row);
        }
    }
    let mut kept = HashSet::new();
    for (handler, rows) in &mut by_handler {
        // All replicas use one order, so that they cannot deadlock. Of two claims of one delivery
        // the later one is valid: tokens ascend.
        rows.sort_unstable_by_key(|row| (row.delivery.first, Reverse(row.delivery.token)));
        rows.dedup_by_key(|row| row.delivery.first);
        rows.sort_by_key(|row| row.next.is_none());
        let (handler, rows) = (*handler, rows.as_slice());
        let settled = shared.pool.with(async |mut connection| {
            let settled = settle_on(&mut connection, handler, rows).await;
            (connection, settled)
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

/// Settles `rows`, and returns the leases whose runs continue.
async fn settle_on(
    connection: &mut PgConnection,
    handler: HandlerId,
    rows: &[SettlementRow],
) -> Result<Vec<Lease>, PgError> {
    let answers = run_statements(connection, handler, rows).await?;
    let (mut leases, mut missed) = (Vec::with_capacity(answers.len()), Vec::new());
    for answer in answers {
        // Arrays are numbered from 1.
        let number = usize::try_from(answer.try_get::<_, i32>(0)? - 1).ok();
        let Some(row) = number.and_then(|number| rows.get(number)) else {
            continue;
        };
        if answer.try_get(1)? {
            leases.push(row.lease);
        }
        if answer.try_get(2)? {
            missed.push(row);
        }
    }
    if !missed.is_empty() {
        settle_parked(connection, handler, &missed).await?;
    }
    Ok(leases)
}

/// Runs [`SETTLE`] and [`WAKE`] as one transaction, in one round trip. Returns the answers of the
/// former.
async fn run_statements(
    connection: &mut PgConnection,
    handler: HandlerId,
    rows: &[SettlementRow],
) -> Result<Vec<Row>, PgError> {
    let (kept, freed) = rows.split_at(rows.partition_point(|row| row.next.is_some()));
    let next: Vec<_> = kept.iter().filter_map(|row| row.next).collect();
    let (kept, kept_tokens): (Vec<_>, Vec<_>) = kept.iter().map(SettlementRow::claim).unzip();
    let (freed, freed_tokens): (Vec<_>, Vec<_>) = freed.iter().map(SettlementRow::claim).unzip();
    let positions: Vec<_> = rows.iter().map(|row| row.delivery.position).collect();
    let replays: Vec<_> = rows.iter().map(|row| row.delivery.replays).collect();
    let verdicts: Vec<_> = rows.iter().map(|row| row.verdict).collect();
    let started: Vec<_> = rows.iter().map(|row| row.started_at).collect();
    let finished: Vec<_> = rows.iter().map(|row| row.finished_at).collect();
    let due: Vec<_> = rows.iter().map(|row| row.due_at).collect();
    let why: Vec<_> = rows.iter().map(|row| row.why.as_deref()).collect();
    let over = rows.iter().filter(|row| row.verdict >= PARKED);
    let ends = over.clone().filter(|row| row.next.is_none());
    let (scopes, keys): (Vec<_>, Vec<_>) = ends.filter_map(|row| row.delivery.group).unzip();
    let over: Vec<_> = over.map(|row| row.delivery.position).collect();
    let settle = connection.prepare(SETTLE).await?;
    let wake = connection.prepare(WAKE).await?;
    let settling: &[&(dyn ToSql + Sync)] = &[
        &handler,
        &kept,
        &kept_tokens,
        &next,
        &freed,
        &freed_tokens,
        &positions,
        &replays,
        &verdicts,
        &started,
        &finished,
        &due,
        &why,
    ];
    let waking: &[&(dyn ToSql + Sync)] = &[&handler, &over, &next, &scopes, &keys];
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
    Ok(answers)
}

/// Records the results of `rows` whose deliveries were parked during the attempt.
async fn settle_parked(
    connection: &mut PgConnection,
    handler: HandlerId,
    rows: &[&SettlementRow],
) -> Result<(), PgError> {
    let days: Vec<Date> = rows.iter().map(|row| row.delivery.day).collect();
    let positions: Vec<_> = rows.iter().map(|row| row.delivery.position).collect();
    let replays: Vec<_> = rows.iter().map(|row| row.delivery.replays).collect();
    let verdicts: Vec<_> = rows.iter().map(|row| row.verdict).collect();
    let finished: Vec<_> = rows.iter().map(|row| row.finished_at).collect();
    let why: Vec<_> = rows.iter().map(|row| row.why.as_deref()).collect();
    let settle_parked = connection.prepare(SETTLE_PARKED).await?;
    connection
        .client
        .execute(
            &settle_parked,
            &[
                &handler, &days, &positions, &replays, &verdicts, &finished, &why,
            ],
        )
        .await?;
    Ok(())
}
