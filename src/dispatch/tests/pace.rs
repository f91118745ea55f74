//! What a worker waits for, and that it asks its store no more often than it has to.

use std::num::NonZeroU32;

use tokio::{runtime, sync::watch};

use super::*;

#[tokio::test]
async fn a_slow_claim_is_waited_for() {
    let gate = Arc::new(Semaphore::new(0));
    let harness = Harness::new(vec![gated(gate.clone())]).await;
    for _ in 0..2 {
        harness.store.push(None, "{}").await;
    }
    let are_claimed = |rows: &[recorder::Row]| rows.iter().all(recorder::Row::is_claimed);
    harness.store.until(are_claimed).await;
    let slow = harness.store.results.lock().await;
    harness.store.push(None, "{}").await;
    harness.store.until(are_claimed).await;
    // The worker has an attempt in flight, and would have room for a claim.
    gate.add_permits(1);
    let is_done = |row: &recorder::Row| row.is(&Verdict::Done);
    harness.store.until(|rows| rows.iter().any(is_done)).await;
    drop(slow);
    gate.add_permits(2);
    harness.store.until(|rows| rows.iter().all(is_done)).await;
    assert!(harness.drain().await);
}

#[tokio::test]
async fn a_slow_settlement_is_waited_for() {
    let gate = Arc::new(Semaphore::new(0));
    let harness = Harness::new(vec![gated(gate.clone())]).await;
    for key in ["a", "b", "a", "b"] {
        harness.store.push(Some(key), "{}").await;
    }
    let are_claimed = |rows: &[recorder::Row]| rows[0].is_claimed() && rows[1].is_claimed();
    harness.store.until(are_claimed).await;
    let slow = harness.store.results.lock().await;
    gate.add_permits(1);
    let is_done = |row: &recorder::Row| row.is(&Verdict::Done);
    harness.store.until(|rows| rows.iter().any(is_done)).await;
    // Another attempt ends before the result of the settlement is there.
    gate.add_permits(1);
    drop(slow);
    gate.add_permits(2);
    harness.store.until(|rows| rows.iter().all(is_done)).await;
    assert!(harness.drain().await);
}

#[tokio::test]
async fn an_idle_worker_claims_once_a_second() {
    let harness = Harness::new(vec![handler("crm", |_, _| done())]).await;
    // The new subscription wakes the worker at first.
    harness.store.until_claims(3).await;
    let begun = Instant::now();
    harness.store.until_claims(5).await;
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert!(harness.drain().await);
}

#[tokio::test]
async fn a_backlog_is_claimed_without_pauses() {
    let gate = Arc::new(Semaphore::new(0));
    let harness = Harness::new(vec![gated(gate.clone())]).await;
    // With a pause of a second after each claim of 12, they would take longer than the test waits.
    for _ in 0..400 {
        harness.store.push(None, "{}").await;
    }
    gate.add_permits(400);
    let is_done = |row: &recorder::Row| row.is(&Verdict::Done);
    harness.store.until(|rows| rows.iter().all(is_done)).await;
    assert!(harness.drain().await);
}

#[tokio::test]
async fn a_retry_is_made_when_it_is_due_and_not_asked_for_before() {
    let fail = |_, _| -> Attempt { Box::pin(async { Outcome::retry("not yet") }) };
    let mut often = handler("often", fail);
    often.settings.retry.attempts = NonZeroU32::new(50).unwrap();
    often.settings.retry.ceiling = Duration::from_millis(1);
    let harness = Harness::new(vec![often]).await;
    harness.store.push(None, "{}").await;
    // With a pause of a second, 50 attempts would take longer than the test waits.
    harness.store.until(|rows| rows[0].attempts == 50).await;
    assert!(harness.drain().await);

    let mut late = handler("late", fail);
    late.settings.retry.first = Duration::from_secs(2);
    late.settings.retry.attempts = NonZeroU32::new(2).unwrap();
    let harness = Harness::new(vec![late]).await;
    harness.store.push(None, "{}").await;
    harness.store.until(|rows| rows[0].attempts == 2).await;
    let claims = harness.store.claims();
    assert!(claims < 20, "{claims} claims");
    assert!(harness.drain().await);
}

#[tokio::test]
async fn deliveries_that_fail_together_are_not_retried_together() {
    let mut crm = handler("crm", |_, _| Box::pin(async { Outcome::retry("not yet") }));
    let full = Duration::from_secs(3600);
    crm.settings.retry.first = full;
    let harness = Harness::new(vec![crm]).await;
    for _ in 0..50 {
        harness.store.push(None, "{}").await;
    }
    let have_failed = |rows: &[recorder::Row]| rows.iter().all(|row| row.due_at.is_some());
    harness.store.until(have_failed).await;
    let middle = clock() + full * 3 / 4;
    let early = |row: &&recorder::Row| row.due_at < Some(middle);
    let early = harness.store.rows(|rows| rows.iter().filter(early).count());
    assert!((5..=45).contains(&early), "{early} of 50 in the first half");
    assert!(harness.drain().await);
}

#[test]
fn a_waiting_worker_lets_its_thread_sleep() {
    let (parks, mut parked) = watch::channel(());
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(move || {
            parks.send_replace(());
        })
        .build();
    runtime.unwrap().block_on(async {
        let mut sleeps = async || {
            for _ in 0..10 {
                timeout(PATIENCE, parked.changed()).await.unwrap().unwrap();
            }
        };
        let gate = Arc::new(Semaphore::new(0));
        let harness = Harness::new(vec![gated(gate.clone())]).await;
        harness.store.fail_claim(1);
        for _ in 0..20 {
            harness.store.push(None, "{}").await;
        }
        // It has all that it may have, and a pause after an error is over.
        harness
            .store
            .until(|rows| rows.iter().filter(|row| row.is_claimed()).count() == 12)
            .await;
        sleeps().await;
        // It has nothing else to do than to record what has ended.
        let slow = harness.store.results.lock().await;
        gate.add_permits(20);
        sleeps().await;
        drop(slow);
        let is_done = |row: &recorder::Row| row.is(&Verdict::Done);
        harness.store.until(|rows| rows.iter().all(is_done)).await;
        sleeps().await;
        assert!(harness.drain().await);
    });
}
