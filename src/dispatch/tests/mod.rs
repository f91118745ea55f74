//! What the store and the handlers see of a dispatcher.

mod change;
mod pace;
mod recorder;
mod settings;

use std::{
    future::pending,
    pin::Pin,
    sync::{
        Mutex as StdMutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    sync::{Barrier, Semaphore, mpsc},
    time::timeout,
};

use super::*;
use crate::{
    event::Notification,
    handler::{AnyEvent, Delivery, DeliveryContext, Handler, Outcome},
    store::Verdict,
    telemetry::ByOutcome,
};
use recorder::{Recorder, State};

/// Nothing here takes a fraction of this, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

#[expect(
    clippy::disallowed_methods,
    reason = "these tests run on the real clock"
)]
fn clock() -> Timestamp {
    Timestamp::now()
}

type Attempt = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// A handler made of a closure, which is told the event's body and the attempt's context.
struct Closure<F>(F);

impl<F: Fn(String, DeliveryContext) -> Attempt + Send + Sync + 'static> Handler for Closure<F> {
    type Event = AnyEvent;

    async fn handle(&self, delivery: Delivery<'_, AnyEvent>) -> Outcome {
        let body = String::from_utf8_lossy(&delivery.notification.body).into_owned();
        (self.0)(body, delivery.context.clone()).await
    }
}

/// A consumer of everything that retries after a millisecond.
fn handler(
    name: &str,
    handle: impl Fn(String, DeliveryContext) -> Attempt + Send + Sync + 'static,
) -> ConfiguredHandler {
    let settings = r#"{ events = ["*"], retry = { first = "1ms", attempts = 100 } }"#;
    ConfiguredHandler {
        name: name.into(),
        kind: "closure",
        settings: Settings::deserialize(toml::de::ValueDeserializer::parse(settings).unwrap())
            .unwrap(),
        implementation: AnyHandler::new(Closure(handle)),
        servers: Vec::new(),
    }
}

fn done() -> Attempt {
    Box::pin(async { Outcome::Done })
}

/// A dispatcher on the embedded store.
struct Harness {
    store: Arc<Recorder>,
    metrics: Arc<Metrics>,
    dispatcher: Dispatcher,
}

impl Harness {
    async fn new(handlers: Vec<ConfiguredHandler>) -> Self {
        let store = Arc::new(Recorder::new());
        let metrics = Arc::new(Metrics::default());
        let dispatcher = Dispatcher::new(
            store.clone(),
            Followers::default(),
            metrics.clone(),
            clock,
            TaskTracker::new(),
        );
        dispatcher.replace(handlers).await.unwrap();
        Self {
            store,
            metrics,
            dispatcher,
        }
    }

    fn count(&self, handler: &str, outcome: &'static str) -> u64 {
        let handler = handler.to_owned();
        let label = ByOutcome { handler, outcome };
        self.metrics.deliveries.get_or_create(&label).get()
    }

    async fn drain(&self) -> bool {
        self.dispatcher.drain(Instant::now() + PATIENCE).await
    }
}

/// The next thing that a handler sent.
async fn next<T>(receiver: &mut mpsc::UnboundedReceiver<T>) -> T {
    timeout(PATIENCE, receiver.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_failing_delivery_holds_up_its_key_in_order_and_no_other_key() {
    let (sender, mut received) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let harness = Harness::new(vec![handler("crm", move |body, context| {
        // The second one of its key fails until the gate is open.
        let failing = body == "a2" && gate.available_permits() == 0;
        if !failing {
            sender.send((body, context.attempt)).unwrap();
        }
        Box::pin(async move {
            if failing {
                Outcome::retry("not yet")
            } else {
                Outcome::Done
            }
        })
    })])
    .await;
    for (key, body) in [
        ("a", "a1"),
        ("a", "a2"),
        ("a", "a3"),
        ("b", "b1"),
        ("b", "b2"),
    ] {
        harness.store.push(Some(key), body).await;
    }

    let mut first = Vec::new();
    for _ in 0..3 {
        first.push(next(&mut received).await.0);
    }
    first.sort();
    assert_eq!(first, ["a1", "b1", "b2"]);
    harness.store.until(|rows| rows[1].attempts >= 3).await;
    opened.add_permits(1);
    let (body, attempt) = next(&mut received).await;
    assert_eq!(body, "a2");
    assert!(attempt > 3, "{attempt}");
    assert_eq!(next(&mut received).await, ("a3".to_owned(), 1));
    assert!(harness.drain().await);
    assert_eq!(harness.count("crm", "done"), 5);
    assert_eq!(harness.count("crm", "retry"), u64::from(attempt) - 1);
}

#[tokio::test]
async fn a_handler_that_hangs_holds_up_no_other() {
    let (sender, mut begun) = mpsc::unbounded_channel();
    let stuck = move |_, _| -> Attempt {
        sender.send(()).unwrap();
        Box::pin(pending())
    };
    let harness = Harness::new(vec![
        handler("stuck", stuck),
        handler("quick", |_, _| done()),
    ])
    .await;
    for number in 0..50 {
        harness
            .store
            .push(Some(&format!("key {number}")), "{}")
            .await;
    }
    let quick_are_done = |rows: &[recorder::Row]| {
        let mut quick = rows.iter().filter(|row| row.handler == "quick".into());
        quick.all(|row| row.is(&Verdict::Done))
    };
    harness.store.until(quick_are_done).await;
    next(&mut begun).await;
    assert!(!harness.dispatcher.drain(Instant::now()).await);
}

#[tokio::test]
async fn a_panic_is_a_retry() {
    let harness = Harness::new(vec![handler("crm", |_, context| {
        assert!(context.attempt > 1, "first try");
        done()
    })])
    .await;
    harness.store.push(None, "{}").await;
    harness.store.until(|rows| rows[0].is(&Verdict::Done)).await;
    assert_eq!(
        harness.store.reasons(0),
        ["the handler panicked: first try"]
    );
    assert!(harness.drain().await);
    assert_eq!(harness.count("crm", "panic"), 1);
    assert_eq!(harness.count("crm", "done"), 1);
}

/// Panics when it is dropped: the one panic that the handler floor cannot catch.
struct Tripwire;

impl Drop for Tripwire {
    fn drop(&mut self) {
        panic!("stepped on");
    }
}

#[tokio::test]
async fn a_panic_of_a_dropped_attempt_is_a_retry() {
    let mut crm = handler("crm", |_, context| {
        Box::pin(async move {
            if context.attempt == 1 {
                let _tripwire = Tripwire;
                pending::<()>().await;
            }
            Outcome::Done
        })
    });
    crm.settings.timeout = Duration::from_millis(5);
    let harness = Harness::new(vec![crm]).await;
    harness.store.push(None, "{}").await;
    harness.store.until(|rows| rows[0].is(&Verdict::Done)).await;
    assert!(harness.drain().await);
    assert_eq!(harness.count("crm", "panic"), 1);
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_dropped_and_retried() {
    let dropped = Arc::new(Semaphore::new(0));
    let seen = dropped.clone();
    let mut crm = handler("crm", move |_, context| {
        if context.attempt > 1 {
            return done();
        }
        let guard = OnDrop(dropped.clone());
        Box::pin(async move {
            let _guard = guard;
            pending().await
        })
    });
    crm.settings.timeout = Duration::from_millis(5);
    let harness = Harness::new(vec![crm]).await;
    harness.store.push(None, "{}").await;
    harness.store.until(|rows| rows[0].is(&Verdict::Done)).await;
    assert_eq!(harness.store.reasons(0), ["took longer than 5ms"]);
    assert_eq!(seen.available_permits(), 1);
    assert!(harness.drain().await);
    assert_eq!(harness.count("crm", "timeout"), 1);
}

/// Adds a permit when it is dropped.
struct OnDrop(Arc<Semaphore>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

#[tokio::test]
async fn a_parked_delivery_frees_its_key_and_keeps_its_reason() {
    let harness = Harness::new(vec![handler("crm", |body, _| {
        Box::pin(async move {
            if body == "bad" {
                Outcome::park("no such customer")
            } else {
                Outcome::Done
            }
        })
    })])
    .await;
    harness.store.push(Some("a"), "bad").await;
    harness.store.push(Some("a"), "good").await;
    harness.store.until(|rows| rows[1].is(&Verdict::Done)).await;
    let why = "no such customer".to_owned();
    harness
        .store
        .until(|rows| rows[0].is(&Verdict::Parked { why: why.clone() }))
        .await;
    assert!(harness.drain().await);
    assert_eq!(harness.count("crm", "parked"), 1);
}

#[tokio::test]
async fn what_fails_too_often_is_parked_with_the_last_reason() {
    let mut crm = handler("crm", |_, context| {
        Box::pin(async move { Outcome::retry(format!("failure {}", context.attempt)) })
    });
    crm.settings.retry.attempts = std::num::NonZeroU32::new(3).unwrap();
    let harness = Harness::new(vec![crm]).await;
    harness.store.push(None, "{}").await;
    let why = "gave up after 3 attempts; the last one: failure 3".to_owned();
    harness
        .store
        .until(|rows| rows[0].is(&Verdict::Parked { why: why.clone() }))
        .await;
    assert!(harness.drain().await);
    assert_eq!(harness.count("crm", "retry"), 2);
    assert_eq!(harness.count("crm", "parked"), 1);
}

#[tokio::test]
async fn reasons_are_bounded() {
    let harness = Harness::new(vec![handler("crm", |_, _| {
        Box::pin(async { Outcome::park("é".repeat(5000)) })
    })])
    .await;
    harness.store.push(None, "{}").await;
    let why = "é".repeat(1000);
    harness
        .store
        .until(|rows| rows[0].is(&Verdict::Parked { why: why.clone() }))
        .await;
    assert!(harness.drain().await);
}

#[tokio::test]
async fn a_handler_may_skip_and_is_told_what_the_store_knows() {
    let (sender, mut contexts) = mpsc::unbounded_channel();
    let harness = Harness::new(vec![handler("crm", move |_, context| {
        sender.send(context).unwrap();
        Box::pin(async {
            Outcome::Skip {
                why: "superseded".to_owned(),
            }
        })
    })])
    .await;
    harness.store.push(None, "{}").await;
    let why = "superseded".to_owned();
    harness
        .store
        .until(|rows| rows[0].is(&Verdict::Skipped { why: why.clone() }))
        .await;
    let context = next(&mut contexts).await;
    assert_eq!(context.handler, "crm".into());
    assert_eq!(context.attempt, 1);
    assert_eq!(context.replay.as_deref(), Some(recorder::REPLAY));
    assert_eq!(context.replays, 1);
    assert!(context.superseded);
    assert!(harness.drain().await);
    assert_eq!(harness.count("crm", "skipped"), 1);
}

#[tokio::test]
async fn as_many_attempts_as_allowed_run_at_once_and_no_more() {
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let seen = most.clone();
    // Three have to meet: fewer at once would wait for ever.
    let meeting = Arc::new(Barrier::new(3));
    let mut crm = handler("crm", move |_, _| {
        let (running, most, meeting) = (running.clone(), most.clone(), meeting.clone());
        Box::pin(async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            meeting.wait().await;
            running.fetch_sub(1, Ordering::SeqCst);
            Outcome::Done
        })
    });
    crm.settings.concurrency = NonZeroUsize::new(3).unwrap();
    let harness = Harness::new(vec![crm]).await;
    for _ in 0..12 {
        harness.store.push(None, "{}").await;
    }
    harness
        .store
        .until(|rows| rows.iter().all(|row| row.is(&Verdict::Done)))
        .await;
    assert_eq!(seen.load(Ordering::SeqCst), 3);
    assert!(harness.drain().await);
}

#[tokio::test]
async fn a_store_that_fails_for_a_while_costs_no_delivery_and_no_second_attempt() {
    let (sender, mut received) = mpsc::unbounded_channel();
    let harness = Harness::new(vec![handler("crm", move |body, _| {
        sender.send(body).unwrap();
        done()
    })])
    .await;
    let begun = Instant::now();
    harness.store.fail_settle(1);
    harness.store.push(Some("a"), "1").await;
    harness.store.push(Some("a"), "2").await;
    assert_eq!(next(&mut received).await, "1");
    harness.store.fail_claim(1);
    assert_eq!(next(&mut received).await, "2");
    assert!(begun.elapsed() >= Duration::from_secs(1), "no pause");
    harness
        .store
        .until(|rows| rows.iter().all(|row| row.is(&Verdict::Done)))
        .await;
    assert!(harness.drain().await);
    assert!(received.try_recv().is_err());
}

/// A handler whose attempts are done one by one, as `gate` gets permits.
fn gated(gate: Arc<Semaphore>) -> ConfiguredHandler {
    handler("crm", move |_, _| {
        let gate = gate.clone();
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            Outcome::Done
        })
    })
}

#[tokio::test]
async fn what_a_settlement_brings_is_attempted_next_and_in_order() {
    let (sender, mut received) = mpsc::unbounded_channel();
    let harness = Harness::new(vec![handler("crm", move |body, context| {
        let failing = body == "2" && context.attempt == 1;
        sender.send(body).unwrap();
        Box::pin(async move {
            if failing {
                Outcome::retry("not yet")
            } else {
                Outcome::Done
            }
        })
    })])
    .await;
    for body in ["1", "2", "3", "4"] {
        harness.store.push(Some("a"), body).await;
    }
    harness
        .store
        .until(|rows| rows.iter().all(|row| row.is(&Verdict::Done)))
        .await;
    let mut got = Vec::new();
    for _ in 0..5 {
        got.push(next(&mut received).await);
    }
    assert_eq!(got, ["1", "2", "2", "3", "4"]);
    assert!(harness.drain().await);
    assert!(received.try_recv().is_err());
}

#[tokio::test]
async fn what_is_not_on_record_yet_is_in_hand_and_bounded() {
    let (sender, mut received) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let harness = Harness::new(vec![handler("crm", move |body, _| {
        sender.send(body).unwrap();
        let gate = gate.clone();
        Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            Outcome::Done
        })
    })])
    .await;
    let store_is_slow = harness.store.gate.lock().await;
    for _ in 0..50 {
        harness.store.push(None, "{}").await;
    }
    let count = |rows: &[recorder::Row]| rows.iter().filter(|row| row.is_claimed()).count();
    // Of 8 at once and half as many ahead.
    harness.store.until(|rows| count(rows) == 12).await;
    opened.add_permits(100);
    for _ in 0..12 {
        next(&mut received).await;
    }
    harness.store.push(None, "{}").await;
    drop(store_is_slow);
    harness
        .store
        .until(|rows| rows.iter().all(|row| row.is(&Verdict::Done)))
        .await;
    assert!(harness.drain().await);
    assert_eq!(harness.store.most_claimed(), 12);
}
