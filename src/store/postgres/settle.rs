//! Taking in how deliveries went.
//!
//! **Invariant:** only whoever still has the lease changes anything: all of a settlement hangs on
//! the row of `held` that is deleted with it.

use std::{cmp::Reverse, collections::BTreeMap, time::Instant};

use jiff::{Timestamp, civil::Date};
use uuid::Uuid;

use super::{
    Parts,
    fault::Fault,
    leases::Held,
    pool::{Session, within},
    roster::HandlerId,
    text,
};
use crate::store::{Settlement, Verdict, shorten};

/// Verdicts as the statements number them: those that end a delivery as its state.
const RELEASED: i16 = 0;
const RETRY: i16 = 1;
pub(super) const PARKED: i16 = 2;
pub(super) const DONE: i16 = 3;
pub(super) const SKIPPED: i16 = 4;

/// Settles all of one handler, each slot once. Gives back the positions whose delivery was not there,
/// or not as it was when it was claimed.
///
/// What is told of a slot is found by its place in the arrays: a join would compare all with all,
/// since the planner takes `held` for empty.
pub(super) const SETTLE: &str = "WITH
    freed AS (DELETE FROM held WHERE handler = $1 AND slot = ANY($2::bigint[])
            AND token = ($3::uuid[])[array_position($2::bigint[], slot)]
        RETURNING array_position($2::bigint[], slot) AS n),
    mine AS MATERIALIZED (SELECT ($4::bigint[])[n] AS position, ($5::integer[])[n] AS replays,
            ($6::smallint[])[n] AS verdict, ($7::timestamptz[])[n] AS started_at,
            ($8::timestamptz[])[n] AS finished_at, ($9::timestamptz[])[n] AS due_at,
            ($10::text[])[n] AS why
        FROM freed),
    over AS (DELETE FROM deliveries d USING mine m
        WHERE d.handler = $1 AND d.position = m.position AND d.replays = m.replays AND m.verdict > 1
        RETURNING d.day, d.position, d.lane, d.attempts, d.replays, d.replay, m.verdict,
            m.started_at, m.finished_at, m.why),
    kept AS (INSERT INTO ended
            (day, position, handler, state, attempts, replays, ended_at, replay, why)
        SELECT day, position, $1, verdict, attempts + 1, replays, finished_at, replay, why
        FROM over),
    again AS (UPDATE deliveries d SET due_at = m.due_at, attempts = d.attempts + 1,
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
    next AS (UPDATE deliveries d SET state = 0
        FROM over o CROSS JOIN LATERAL (SELECT n.position, n.state FROM deliveries n
            WHERE n.handler = $1 AND n.lane = o.lane AND n.position > o.position
            ORDER BY n.handler, n.lane, n.position LIMIT 1) n
        WHERE d.handler = $1 AND d.position = n.position AND n.state = 1),
    counted AS (INSERT INTO tally (handler, open, parked)
        SELECT $1, -count(*), count(*) FILTER (WHERE verdict = 2) FROM over HAVING count(*) > 0)
    SELECT position FROM mine WHERE verdict > 0
        AND position NOT IN (SELECT position FROM over)
        AND position NOT IN (SELECT position FROM again)";

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
struct Told {
    held: Held,
    verdict: i16,
    started_at: Timestamp,
    finished_at: Timestamp,
    due_at: Option<Timestamp>,
    why: Option<String>,
}

impl Told {
    fn new(held: Held, settlement: &Settlement) -> Self {
        let (verdict, due_at, why) = match &settlement.verdict {
            Verdict::Released => (RELEASED, None, None),
            Verdict::Retry { due_at, why } => (RETRY, Some(*due_at), Some(why)),
            Verdict::Parked { why } => (PARKED, None, Some(why)),
            Verdict::Done => (DONE, None, None),
            Verdict::Skipped { why } => (SKIPPED, None, Some(why)),
        };
        Self {
            held,
            verdict,
            started_at: settlement.started_at,
            finished_at: settlement.finished_at,
            due_at,
            why: why.map(|why| text::to_sql(shorten(why)).into_owned()),
        }
    }
}

/// Takes in how claimed deliveries went.
pub(super) async fn settle(parts: &Parts, settlements: &[Settlement]) -> Result<(), Fault> {
    let mut by_handler: BTreeMap<HandlerId, Vec<Told>> = BTreeMap::new();
    for settlement in settlements {
        if let Some(held) = parts.leases.get(settlement.lease) {
            let told = Told::new(held, settlement);
            by_handler.entry(held.handler).or_default().push(told);
        }
    }
    for (handler, told) in &mut by_handler {
        // In one order, so that two that wait for each other do not do so for ever. Of two claims of
        // one slot the later one is ours: tokens ascend.
        told.sort_unstable_by_key(|told| (told.held.slot, Reverse(told.held.token)));
        told.dedup_by_key(|told| told.held.slot);
        let began = Instant::now();
        loop {
            let mut taken = parts.pool.take().await?;
            let deadline = taken.deadline();
            let work = settle_on(&mut taken, *handler, told);
            let done = within(deadline, work).await;
            match taken.give_back(done) {
                Err(fault) if fault.is_worth_another_try(began) => {}
                done => break done?,
            }
        }
    }
    for settlement in settlements {
        parts.leases.remove(settlement.lease);
    }
    Ok(())
}

async fn settle_on(session: &mut Session, handler: HandlerId, told: &[Told]) -> Result<(), Fault> {
    let slots: Vec<_> = told.iter().map(|told| told.held.slot).collect();
    let tokens: Vec<Uuid> = told.iter().map(|told| told.held.token).collect();
    let positions: Vec<_> = told.iter().map(|told| told.held.position).collect();
    let replays: Vec<_> = told.iter().map(|told| told.held.replays).collect();
    let verdicts: Vec<_> = told.iter().map(|told| told.verdict).collect();
    let started: Vec<_> = told.iter().map(|told| told.started_at).collect();
    let finished: Vec<_> = told.iter().map(|told| told.finished_at).collect();
    let due: Vec<_> = told.iter().map(|told| told.due_at).collect();
    let why: Vec<_> = told.iter().map(|told| told.why.as_deref()).collect();
    let settle = session.prepare(SETTLE).await?;
    let left = session
        .client
        .query(
            &settle,
            &[
                &handler, &slots, &tokens, &positions, &replays, &verdicts, &started, &finished,
                &due, &why,
            ],
        )
        .await?;
    let mut missed: Vec<i64> = Vec::with_capacity(left.len());
    for row in left {
        missed.push(row.try_get(0)?);
    }
    if missed.is_empty() {
        return Ok(());
    }
    redeem(session, handler, told, &missed).await
}

async fn redeem(
    session: &mut Session,
    handler: HandlerId,
    told: &[Told],
    missed: &[i64],
) -> Result<(), Fault> {
    let told: Vec<_> = told
        .iter()
        .filter(|told| missed.contains(&told.held.position))
        .collect();
    let days: Vec<Date> = told.iter().map(|told| told.held.day).collect();
    let positions: Vec<_> = told.iter().map(|told| told.held.position).collect();
    let replays: Vec<_> = told.iter().map(|told| told.held.replays).collect();
    let verdicts: Vec<_> = told.iter().map(|told| told.verdict).collect();
    let finished: Vec<_> = told.iter().map(|told| told.finished_at).collect();
    let why: Vec<_> = told.iter().map(|told| told.why.as_deref()).collect();
    let redeem = session.prepare(REDEEM).await?;
    session
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
