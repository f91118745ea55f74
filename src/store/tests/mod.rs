//! The promises of every engine, tested through [`Store`] and [`Operator`] alone.
//!
//! A case is a function of a [`Place`]; [`on_every_engine`] makes a test of the case for each
//! engine, named after the engine. A case that is not listed there is dead code, which the compiler
//! reports.
//!
//! An engine provides one function: `tests::place`, which returns a new, empty place. The tests of
//! what only one engine promises are beside that engine.

mod duplicates;
mod listing;
mod load;
mod model;
pub(super) mod operator;
mod order;
mod reopening;
mod settlement;
mod subscription;
mod work;

use std::{
    any::Any,
    collections::HashMap,
    slice::from_ref,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use super::{
    AppendError, Claim, Context, Engine, Operator, Settlement, Store, StoreError, Subscription,
    Verdict,
};
use crate::{
    event::{DedupeKey, EventId, HandlerName, Key, Notification, Pattern, Topic},
    provider::Verified,
    telemetry::Metrics,
};

/// Makes a test of each case for each engine.
macro_rules! on_every_engine {
    ($($case:ident,)+) => {
        on_every_engine!(embedded: $($case,)+);
        #[cfg(feature = "postgres")]
        on_every_engine!(postgres: $($case,)+);
    };
    ($engine:ident: $($case:ident,)+) => {
        mod $engine {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$case(crate::store::$engine::tests::place()).await;
                }
            )+
        }
    };
}
use on_every_engine;
pub(super) use work::long_run;

/// The time of the tests, in seconds since 1970.
pub(super) const NOON: i64 = 1_760_000_000;

/// A timeout for any condition, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// `seconds` after [`NOON`].
pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOON + seconds).unwrap()
}

/// A clock that stands still at [`NOON`].
pub(super) fn clock() -> Timestamp {
    at(0)
}

/// Event number `n`, with its own partition key and dedupe key, received `n` milliseconds after
/// noon.
pub(super) fn event(n: u64) -> Notification {
    let received_at = at(0) + SignedDuration::from_millis(n as i64);
    Notification {
        id: EventId::new(received_at),
        endpoint: "desk".into(),
        name: "ringcentral.phone-number.created".into(),
        key: Some(Key::new(format!("ringcentral.phone-number/{n}"))),
        subjects: vec!["+15550100".to_owned()],
        occurred_at: Some(received_at),
        received_at,
        topics: vec![Topic::new(format!("topic {n}"))],
        dedupe: vec![DedupeKey::new("ringcentral", "uuid", &n.to_le_bytes())],
        body: Bytes::from(format!("{{\"event\":\"{n}\",\"padding\":\"{n:0>300}\"}}")),
    }
}

/// Event number `n` with the partition key `key`.
pub(super) fn keyed(n: u64, key: &str) -> Notification {
    Notification {
        key: Some(Key::from(key)),
        ..event(n)
    }
}

/// Event number `n` about `numbers` of `account`. Without numbers the event is about the whole
/// account.
pub(super) fn numbered(n: u64, account: &str, numbers: &[&str]) -> Notification {
    let body = serde_json::json!({
        "event": "number_management.peering_number_cnam_updated",
        "event_ts": n,
        "payload": {
            "account_id": account,
            "object": { "carrier_code": 4410, "phone_numbers": numbers, "cnam": "Invented Ltd" },
        },
    });
    Notification {
        name: "zoom.number-management.peering-number-cnam-updated".into(),
        key: Some(Key::of(&["zoom.number-management/", account, "/4410"])),
        subjects: numbers.iter().map(|number| (*number).to_owned()).collect(),
        body: Bytes::from(body.to_string()),
        ..event(n)
    }
}

/// Event number `n`, without a partition key.
pub(super) fn loose(n: u64) -> Notification {
    Notification {
        key: None,
        ..event(n)
    }
}

/// A subscription of `handler` to all events, in order.
pub(super) fn everything(handler: &str) -> Subscription {
    Subscription {
        handler: handler.into(),
        patterns: vec![Pattern::new("*").unwrap()],
        ordered: true,
    }
}

pub(super) fn retry(seconds: i64) -> Verdict {
    Verdict::Retry {
        due_at: at(seconds),
        why: "it is busy".to_owned(),
    }
}

pub(super) fn parked() -> Verdict {
    Verdict::Parked {
        why: "it will never do".to_owned(),
    }
}

/// The ids of the claimed events.
pub(super) fn ids(claims: &[Claim]) -> Vec<EventId> {
    claims.iter().map(|claim| claim.notification.id).collect()
}

/// Calls `ask` until it returns a value.
pub(super) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await; // Between two questions.
    }
}

/// The place of one store of any engine. The store can be opened repeatedly.
pub(super) struct Place {
    engine: Box<dyn Engine>,
    pub(super) metrics: Arc<Metrics>,
    /// How many services can have the store open at the same time.
    services: usize,
    /// The folder or the database of the store, removed with the place.
    _ground: Box<dyn Any + Send + Sync>,
}

impl Place {
    /// The place at which `engine` opens a store. `ground` is dropped with the place.
    pub(super) fn new(engine: impl Engine + 'static, ground: impl Any + Send + Sync) -> Self {
        Self {
            engine: Box::new(engine),
            metrics: Arc::default(),
            services: 1,
            _ground: Box::new(ground),
        }
    }

    /// The same place, for any number of services at the same time.
    #[cfg(feature = "postgres")]
    pub(super) fn shared(self) -> Self {
        Self {
            services: usize::MAX,
            ..self
        }
    }

    async fn try_open(&self) -> Result<Opened, StoreError> {
        let context = Context {
            metrics: self.metrics.clone(),
            clock,
            rebuild: Arc::new(|_, _| {}),
        };
        let store = tokio::task::block_in_place(|| self.engine.open(context))?;
        Ok(Opened::new(store, self.metrics.clone()))
    }

    pub(super) async fn open(&self) -> Opened {
        self.try_open().await.unwrap()
    }

    /// Opens the store, with one handler that gets all events in order.
    pub(super) async fn subscribed(&self) -> Opened {
        let store = self.open().await;
        store.subscribe(&["crm"]).await;
        store
    }

    pub(super) fn try_records(&self) -> Result<Box<dyn Operator>, StoreError> {
        tokio::task::block_in_place(|| self.engine.operator(clock))
    }

    /// Runs `act` as an operator, while a service may be running.
    pub(super) fn operator<T>(&self, act: impl FnOnce(&mut dyn Operator) -> T) -> T {
        tokio::task::block_in_place(|| act(&mut *self.engine.operator(clock).unwrap()))
    }
}

/// An open store, with the verbs that tests use.
pub(super) struct Opened<S: ?Sized = dyn Store> {
    pub(super) store: Arc<S>,
    metrics: Arc<Metrics>,
}

impl<S: Store + ?Sized> Opened<S> {
    pub(super) fn new(store: Arc<S>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }

    pub(super) async fn append(&self, notification: &Notification) -> Result<(), AppendError> {
        let event = Verified::unproven(notification.clone());
        self.store.append(event).await
    }

    /// Appends the events one after the other.
    pub(super) async fn append_all(&self, notifications: impl IntoIterator<Item = Notification>) {
        for notification in notifications {
            self.append(&notification).await.unwrap();
        }
    }

    pub(super) async fn subscribe(&self, handlers: &[&str]) {
        let subscriptions = handlers.iter().map(|name| everything(name)).collect();
        self.store.subscribe(subscriptions).await.unwrap();
    }

    /// Waits until all appended events can be claimed, and claims deliveries.
    pub(super) async fn claim(&self, handler: &str, now: Timestamp) -> Vec<Claim> {
        self.settle_down().await;
        self.claim_once(handler, 10_000, now).await
    }

    pub(super) async fn claim_once(
        &self,
        handler: &str,
        at_most: usize,
        now: Timestamp,
    ) -> Vec<Claim> {
        let handler = HandlerName::from(handler);
        let claims = self.store.claim(&handler, at_most, now).await.unwrap();
        claims.claims
    }

    /// Returns when every event that was appended can be claimed.
    pub(super) async fn settle_down(&self) {
        eventually("nothing lags behind what was appended", async || {
            self.store.measure(clock()).await.unwrap();
            (self.metrics.ledger_lag.get() == 0).then_some(())
        })
        .await;
    }

    /// Settles a claim. A delivery that the store returns already claimed is released.
    pub(super) async fn settle(&self, handler: &str, claim: &Claim, verdict: Verdict) {
        for next in self.settle_all(handler, from_ref(claim), verdict).await {
            let none = self
                .settle_all(handler, from_ref(&next), Verdict::Released)
                .await;
            assert!(
                none.is_empty(),
                "{none:?} comes after what was not attempted"
            );
        }
    }

    /// Settles claims, and waits until operators see the result. Returns the deliveries that the
    /// store has claimed for the caller.
    pub(super) async fn settle_all(
        &self,
        handler: &str,
        claims: &[Claim],
        verdict: Verdict,
    ) -> Vec<Claim> {
        let settlement = |claim: &Claim| Settlement {
            handler: handler.into(),
            lease: claim.lease,
            verdict: verdict.clone(),
            started_at: at(100),
            finished_at: at(101),
        };
        let settlements = claims.iter().map(settlement).collect();
        let next = self.store.settle(settlements).await.unwrap();
        self.store.measure(clock()).await.unwrap();
        next
    }

    /// Claims and finishes deliveries until none is left. Returns their events in the order of the
    /// claims.
    pub(super) async fn drain(&self, handler: &str) -> Vec<EventId> {
        let mut got = Vec::new();
        loop {
            let mut claims = self.claim(handler, at(1_000_000)).await;
            if claims.is_empty() {
                return got;
            }
            while !claims.is_empty() {
                got.extend(ids(&claims));
                claims = self.settle_all(handler, &claims, Verdict::Done).await;
            }
        }
    }

    pub(super) async fn close(self) {
        self.store.close().await.unwrap();
    }
}

/// The ids of `events` by partition key, in the given order.
fn by_key<'a>(events: impl IntoIterator<Item = &'a Notification>) -> HashMap<Key, Vec<EventId>> {
    let mut keys: HashMap<_, Vec<_>> = HashMap::new();
    for event in events {
        let key = event.key.clone().unwrap();
        keys.entry(key).or_default().push(event.id);
    }
    keys
}
