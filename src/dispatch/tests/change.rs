//! Handlers that are replaced, and the end of all deliveries.

use super::*;

#[tokio::test]
async fn replacing_a_handler_finishes_what_it_began_and_releases_the_rest() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let received_by_old = Arc::new(StdMutex::new(Vec::new()));
    let old_took = received_by_old.clone();
    let mut old = handler("crm", move |body, _| {
        received_by_old.lock().unwrap().push(body);
        let gate = gate.clone();
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            Outcome::Done
        })
    });
    old.settings.concurrency = NonZeroUsize::MIN;
    let harness = Harness::new(vec![old]).await;
    for body in ["1", "2", "3"] {
        harness.store.push(Some(body), body).await;
    }
    // One is under way, one more is claimed ahead.
    harness
        .store
        .until(|rows| rows[0].is_claimed() && rows[1].is_claimed())
        .await;

    harness
        .dispatcher
        .replace(vec![handler("crm", |_, _| done())])
        .await
        .unwrap();
    harness
        .store
        .until(|rows| rows[1].is(&Verdict::Done) && rows[2].is(&Verdict::Done))
        .await;
    assert_eq!(*old_took.lock().unwrap(), ["1"]);
    assert!(harness.store.rows(|rows| rows[0].is_claimed()));
    opened.add_permits(1);
    harness.store.until(|rows| rows[0].is(&Verdict::Done)).await;
    assert_eq!(harness.store.rows(|rows| rows[1].attempts), 1);
    assert!(harness.drain().await);
}

#[tokio::test]
async fn a_store_that_refuses_new_handlers_leaves_the_old_ones_working() {
    let harness = Harness::new(vec![handler("crm", |_, _| done())]).await;
    harness.store.fail_subscribe(1);
    let other = handler("other", |_, _| done());
    assert!(harness.dispatcher.replace(vec![other]).await.is_err());
    harness.store.push(None, "{}").await;
    harness.store.until(|rows| rows[0].is(&Verdict::Done)).await;
    assert!(harness.drain().await);
    assert_eq!(harness.count("crm", "done"), 1);
}

#[tokio::test]
async fn draining_waits_for_what_is_under_way_and_begins_nothing() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let mut crm = handler("crm", move |_, _| {
        let gate = gate.clone();
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            Outcome::Done
        })
    });
    crm.settings.concurrency = NonZeroUsize::MIN;
    let harness = Harness::new(vec![crm]).await;
    harness.store.push(None, "1").await;
    harness.store.push(None, "2").await;
    harness
        .store
        .until(|rows| rows.iter().all(recorder::Row::is_claimed))
        .await;
    let drained = async {
        // Released once the drain has begun; the gate opens only then.
        harness
            .store
            .until(|rows| matches!(rows[1].state, State::Ready))
            .await;
        opened.add_permits(1);
    };
    let (in_time, ()) = tokio::join!(harness.drain(), drained);
    assert!(in_time);
    assert!(harness.store.rows(|rows| rows[0].is(&Verdict::Done)));
    assert!(
        harness
            .store
            .rows(|rows| matches!(rows[1].state, State::Ready))
    );

    harness
        .dispatcher
        .replace(vec![handler("late", |_, _| done())])
        .await
        .unwrap();
    harness.store.push(None, "3").await;
    assert!(harness.drain().await);
    assert_eq!(harness.count("late", "done"), 0);
}

#[tokio::test]
async fn draining_waits_for_the_attempts_of_a_replaced_handler() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let (sender, mut begun) = mpsc::unbounded_channel();
    let old = handler("crm", move |_, _| {
        sender.send(()).unwrap();
        let gate = gate.clone();
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            Outcome::Done
        })
    });
    let harness = Harness::new(vec![old]).await;
    harness.store.push(None, "{}").await;
    next(&mut begun).await;

    let new = handler("crm", |_, _| done());
    harness.dispatcher.replace(vec![new]).await.unwrap();
    // The gate opens once the drain has begun.
    let open = async { opened.add_permits(1) };
    let (in_time, ()) = tokio::join!(harness.drain(), open);
    assert!(in_time);
    assert!(harness.store.rows(|rows| rows[0].is(&Verdict::Done)));
}

#[tokio::test]
async fn what_is_under_way_at_the_deadline_is_dropped_and_stays_claimed() {
    let dropped = Arc::new(Semaphore::new(0));
    let seen = dropped.clone();
    let (sender, mut begun) = mpsc::unbounded_channel();
    let harness = Harness::new(vec![handler("crm", move |_, _| {
        sender.send(()).unwrap();
        let guard = OnDrop(dropped.clone());
        Box::pin(async move {
            let _guard = guard;
            pending().await
        })
    })])
    .await;
    harness.store.push(None, "{}").await;
    next(&mut begun).await;
    assert!(!harness.dispatcher.drain(Instant::now()).await);
    assert_eq!(seen.available_permits(), 1);
    assert!(harness.store.rows(|rows| rows[0].is_claimed()));
}

#[tokio::test]
async fn what_the_last_settlement_brings_is_released() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let (sender, mut received) = mpsc::unbounded_channel();
    let harness = Harness::new(vec![handler("crm", move |body, _| {
        sender.send(body).unwrap();
        let gate = gate.clone();
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            Outcome::Done
        })
    })])
    .await;
    harness.store.push(Some("a"), "1").await;
    harness.store.push(Some("a"), "2").await;
    assert_eq!(next(&mut received).await, "1");
    let drained = harness.drain();
    tokio::pin!(drained);
    tokio::select! {
        biased;
        _ = &mut drained => panic!("it did not wait"),
        () = std::future::ready(()) => {}
    }
    opened.add_permits(1);
    assert!(drained.await);
    assert!(harness.store.rows(|rows| rows[0].is(&Verdict::Done)));
    assert!(
        harness
            .store
            .rows(|rows| matches!(rows[1].state, State::Ready))
    );
    assert!(received.try_recv().is_err());
}
