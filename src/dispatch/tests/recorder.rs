//! The embedded store behind a recorder, which can also delay calls and let them fail.

use std::sync::{Mutex, atomic::AtomicU32};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::{Mutex as Gate, watch};

use super::*;
use crate::{
    event::{EventId, EventName, Key},
    provider::Verified,
    store::{
        BoxFuture, Claim, Claims, Context, Deliveries, Engine, Lease, Settlement, Store,
        embedded::Settings as Embedded,
    },
};

/// The reason that every claim gives for being a replay.
pub(super) const REPLAY: &str = "a trial";

pub(super) struct Recorder {
    store: Arc<dyn Store>,
    subscriptions: Mutex<Vec<Subscription>>,
    rows: Mutex<Vec<Row>>,
    /// The most deliveries of a handler that were claimed at once, with those that it asked for.
    most_claimed: AtomicUsize,
    claims: AtomicUsize,
    changes: watch::Sender<()>,
    failing: Failing,
    /// Settlements wait while somebody else holds it.
    pub(super) gate: Gate<()>,
    /// Results of claims and settlements wait while somebody else holds it.
    pub(super) results: Gate<()>,
    _dir: TempDir,
}

/// How often each method is still to fail.
#[derive(Default)]
struct Failing {
    subscribe: AtomicU32,
    claim: AtomicU32,
    settle: AtomicU32,
}

/// A delivery, as the dispatcher's calls tell of it.
pub(super) struct Row {
    pub(super) handler: HandlerName,
    pub(super) state: State,
    pub(super) attempts: u32,
    event: EventId,
    reasons: Vec<String>,
    /// When it is due again, if it is to be retried.
    pub(super) due_at: Option<Timestamp>,
}

pub(super) enum State {
    Ready,
    Claimed(Lease),
    Settled(Verdict),
}

impl Row {
    pub(super) fn is_claimed(&self) -> bool {
        matches!(self.state, State::Claimed(_))
    }

    pub(super) fn is(&self, verdict: &Verdict) -> bool {
        matches!(&self.state, State::Settled(settled) if settled == verdict)
    }

    fn settle(&mut self, verdict: Verdict) {
        if verdict != Verdict::Released {
            self.attempts += 1;
        }
        self.state = match verdict {
            Verdict::Released => State::Ready,
            Verdict::Retry { why, due_at } => {
                self.reasons.push(why);
                self.due_at = Some(due_at);
                State::Ready
            }
            verdict => State::Settled(verdict),
        };
    }
}

impl Recorder {
    /// A recorder of an empty store.
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = Embedded {
            path: dir.path().join("data"),
            retain: Duration::from_secs(3600),
            reserve: 0,
            segment: 1 << 20,
        };
        let context = Context {
            metrics: Arc::default(),
            clock,
            rebuild: Arc::new(|_, _| {}),
        };
        Self {
            store: settings.open(context).unwrap(),
            subscriptions: Mutex::default(),
            rows: Mutex::default(),
            most_claimed: AtomicUsize::default(),
            claims: AtomicUsize::default(),
            changes: watch::Sender::default(),
            failing: Failing::default(),
            gate: Gate::default(),
            results: Gate::default(),
            _dir: dir,
        }
    }

    /// Stores an event for every subscribed handler.
    pub(super) async fn push(&self, key: Option<&str>, body: &str) {
        let now = clock();
        let event = Notification {
            id: EventId::new(now),
            endpoint: "zoom".into(),
            name: EventName::new("zoom.unrecognized"),
            key: key.map(Key::new),
            subjects: Vec::new(),
            occurred_at: None,
            received_at: now,
            topics: Vec::new(),
            dedupe: Vec::new(),
            body: Bytes::copy_from_slice(body.as_bytes()),
        };
        let row = |subscription: &Subscription| Row {
            handler: subscription.handler.clone(),
            state: State::Ready,
            attempts: 0,
            event: event.id,
            reasons: Vec::new(),
            due_at: None,
        };
        let rows: Vec<_> = self.subscriptions.lock().unwrap().iter().map(row).collect();
        self.rows.lock().unwrap().extend(rows);
        self.store.append(Verified::unproven(event)).await.unwrap();
    }

    pub(super) fn rows<T>(&self, look: impl FnOnce(&[Row]) -> T) -> T {
        look(&self.rows.lock().unwrap())
    }

    /// The reasons of the retries of a row.
    pub(super) fn reasons(&self, row: usize) -> Vec<String> {
        self.rows(|rows| rows[row].reasons.clone())
    }

    pub(super) fn most_claimed(&self) -> usize {
        self.most_claimed.load(Ordering::SeqCst)
    }

    /// The number of claims.
    pub(super) fn claims(&self) -> usize {
        self.claims.load(Ordering::SeqCst)
    }

    /// Waits until there have been as many claims.
    pub(super) async fn until_claims(&self, number: usize) {
        self.until(|_| self.claims() >= number).await;
    }

    /// Waits until `holds` does.
    pub(super) async fn until(&self, holds: impl Fn(&[Row]) -> bool) {
        let mut changes = self.changes.subscribe();
        let held = async {
            while !self.rows(&holds) {
                changes.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, held).await.unwrap();
    }

    pub(super) fn fail_subscribe(&self, times: u32) {
        self.failing.subscribe.store(times, Ordering::SeqCst);
    }

    pub(super) fn fail_claim(&self, times: u32) {
        self.failing.claim.store(times, Ordering::SeqCst);
    }

    pub(super) fn fail_settle(&self, times: u32) {
        self.failing.settle.store(times, Ordering::SeqCst);
    }

    /// Changes the row that `is_meant`.
    fn change(&self, is_meant: impl Fn(&Row) -> bool, change: impl FnOnce(&mut Row)) {
        let mut rows = self.rows.lock().unwrap();
        change(rows.iter_mut().find(|row| is_meant(row)).unwrap());
        self.changes.send_replace(());
    }

    /// Records a claim of `handler`, and marks it as a replay of a superseded event.
    fn record(&self, handler: &HandlerName, claim: Claim) -> Claim {
        self.change(
            |row| row.handler == *handler && row.event == claim.notification.id,
            |row| row.state = State::Claimed(claim.lease),
        );
        Claim {
            replay: Some(REPLAY.to_owned()),
            replays: 1,
            superseded: true,
            ..claim
        }
    }

    /// Records a settlement before the store has it, since the store hands the delivery out again at once.
    fn record_settlement(&self, settlement: &Settlement) {
        self.change(
            |row| {
                row.handler == settlement.handler
                    && matches!(row.state, State::Claimed(lease) if lease == settlement.lease)
            },
            |row| row.settle(settlement.verdict.clone()),
        );
    }
}

/// Fails as often as `times` says.
fn fail(times: &AtomicU32) -> Result<(), StoreError> {
    let left = times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
        left.checked_sub(1)
    });
    match left {
        Ok(_) => Err(StoreError::Closed),
        Err(_) => Ok(()),
    }
}

impl Deliveries for Recorder {
    fn subscribe(&self, subscriptions: Vec<Subscription>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async {
            fail(&self.failing.subscribe)?;
            self.store.subscribe(subscriptions.clone()).await?;
            *self.subscriptions.lock().unwrap() = subscriptions;
            Ok(())
        })
    }

    fn claim(
        &self,
        handler: &HandlerName,
        at_most: usize,
        now: Timestamp,
    ) -> BoxFuture<'_, Result<Claims, StoreError>> {
        let handler = handler.clone();
        Box::pin(async move {
            self.claims.fetch_add(1, Ordering::SeqCst);
            self.changes.send_replace(());
            fail(&self.failing.claim)?;
            let is_claimed = |row: &&Row| row.handler == handler && row.is_claimed();
            let claimed = self.rows(|rows| rows.iter().filter(is_claimed).count());
            self.most_claimed
                .fetch_max(claimed + at_most, Ordering::SeqCst);
            let mut claims = self.store.claim(&handler, at_most, now).await?;
            let recorded = claims.claims.into_iter();
            claims.claims = recorded.map(|claim| self.record(&handler, claim)).collect();
            let _open = self.results.lock().await;
            Ok(claims)
        })
    }

    fn settle(
        &self,
        settlements: Arc<[Settlement]>,
    ) -> BoxFuture<'_, Result<Vec<Claim>, StoreError>> {
        Box::pin(async move {
            let _open = self.gate.lock().await;
            fail(&self.failing.settle)?;
            for settlement in settlements.iter() {
                self.record_settlement(settlement);
            }
            let handler = settlements.first().map(|first| first.handler.clone());
            let next = self.store.settle(settlements).await?.into_iter();
            let next = next.map(|claim| self.record(handler.as_ref().unwrap(), claim));
            let next = next.collect();
            let _open = self.results.lock().await;
            Ok(next)
        })
    }

    fn holds(&self, lease: Lease) -> bool {
        self.store.holds(lease)
    }

    fn work(&self) -> watch::Receiver<u64> {
        self.store.work()
    }
}
