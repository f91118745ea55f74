//! A store in memory, which fails when it is told to.

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32},
    },
};

use bytes::Bytes;
use tokio::sync::{Mutex as Gate, watch};

use super::*;
use crate::{
    event::{EventId, EventName, Key},
    store::{BoxFuture, Claim, Claims, Deliveries, Lease, Settlement},
};

/// The reason that every claim gives for being a replay.
pub(super) const REPLAY: &str = "a trial";

#[derive(Default)]
pub(super) struct Memory {
    rows: Mutex<Vec<Row>>,
    subscriptions: Mutex<Vec<Subscription>>,
    leases: AtomicU32,
    work: watch::Sender<u64>,
    failing: Failing,
    goes_on: AtomicBool,
    /// Settlements wait while somebody else holds it.
    pub(super) gate: Gate<()>,
}

/// How often each method is still to fail.
#[derive(Default)]
struct Failing {
    subscribe: AtomicU32,
    claim: AtomicU32,
    settle: AtomicU32,
}

pub(super) struct Row {
    pub(super) handler: HandlerName,
    pub(super) state: State,
    pub(super) attempts: u32,
    notification: Arc<Notification>,
    ordered: bool,
    since: Timestamp,
    reasons: Vec<String>,
}

pub(super) enum State {
    Ready(Timestamp),
    Claimed(Lease),
    Settled(Verdict),
}

impl Row {
    pub(super) fn is(&self, verdict: &Verdict) -> bool {
        matches!(&self.state, State::Settled(settled) if settled == verdict)
    }
}

impl Memory {
    /// Stores an event for every subscribed handler.
    pub(super) fn push(&self, key: Option<&str>, body: &str) {
        let now = clock();
        let notification = Arc::new(Notification {
            id: EventId::new(now),
            endpoint: "door".into(),
            name: EventName::new("zoom.unrecognized"),
            key: key.map(Key::new),
            subject: None,
            occurred_at: None,
            received_at: now,
            topics: Vec::new(),
            dedupe: Vec::new(),
            body: Bytes::copy_from_slice(body.as_bytes()),
        });
        for subscription in self.subscriptions.lock().unwrap().iter() {
            self.rows.lock().unwrap().push(Row {
                handler: subscription.handler.clone(),
                state: State::Ready(now),
                attempts: 0,
                notification: notification.clone(),
                ordered: subscription.ordered,
                since: now,
                reasons: Vec::new(),
            });
        }
        self.bump();
    }

    pub(super) fn rows<T>(&self, look: impl FnOnce(&[Row]) -> T) -> T {
        look(&self.rows.lock().unwrap())
    }

    /// The reasons of the retries of a row.
    pub(super) fn reasons(&self, row: usize) -> Vec<String> {
        self.rows(|rows| rows[row].reasons.clone())
    }

    /// Waits until `holds` does.
    pub(super) async fn until(&self, holds: impl Fn(&[Row]) -> bool) {
        let mut work = self.work.subscribe();
        let held = async {
            while !self.rows(&holds) {
                work.changed().await.unwrap();
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

    /// From now on each delivery that ends brings the next of its key.
    pub(super) fn go_on(&self) {
        self.goes_on.store(true, Ordering::SeqCst);
    }

    fn bump(&self) {
        self.work.send_modify(|version| *version += 1);
    }

    fn take_up(&self, handler: &HandlerName, at_most: usize, now: Timestamp) -> Claims {
        let mut claims = Claims::default();
        let mut behind = HashSet::new();
        for row in self.rows.lock().unwrap().iter_mut() {
            if row.handler != *handler || matches!(row.state, State::Settled(_)) {
                continue;
            }
            let key = row.notification.key.clone().filter(|_| row.ordered);
            let is_first = key.is_none_or(|key| behind.insert(key));
            let State::Ready(due) = row.state else {
                continue;
            };
            if !is_first || claims.claims.len() == at_most {
                continue;
            }
            if due > now {
                claims.next_due = Some(claims.next_due.map_or(due, |next| next.min(due)));
                continue;
            }
            claims.claims.push(self.hand_out(row));
        }
        claims
    }

    fn hand_out(&self, row: &mut Row) -> Claim {
        let lease = Lease(self.leases.fetch_add(1, Ordering::SeqCst).into());
        row.state = State::Claimed(lease);
        Claim {
            notification: row.notification.clone(),
            lease,
            attempt: row.attempts + 1,
            since: row.since,
            replay: Some(REPLAY.to_owned()),
            replays: 1,
            superseded: true,
        }
    }

    /// Gives back the next of the key, if it is to go on.
    fn put_down(&self, settlement: &Settlement) -> Option<Claim> {
        let mut rows = self.rows.lock().unwrap();
        let is_meant = |row: &&mut Row| {
            row.handler == settlement.handler
                && matches!(row.state, State::Claimed(lease) if lease == settlement.lease)
        };
        let row = rows.iter_mut().find(is_meant).unwrap();
        if settlement.verdict != Verdict::Released {
            row.attempts += 1;
        }
        row.state = match settlement.verdict.clone() {
            Verdict::Released => State::Ready(row.since),
            Verdict::Retry { due_at, why } => {
                row.reasons.push(why);
                State::Ready(due_at)
            }
            verdict => State::Settled(verdict),
        };
        let key = row.notification.key.clone()?;
        let is_over = matches!(row.state, State::Settled(_));
        let is_next = |row: &&mut Row| {
            row.handler == settlement.handler
                && row.notification.key.as_ref() == Some(&key)
                && matches!(row.state, State::Ready(_))
        };
        let next = rows.iter_mut().find(is_next)?;
        let goes_on = is_over && self.goes_on.load(Ordering::SeqCst);
        goes_on.then(|| self.hand_out(next))
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

impl Deliveries for Memory {
    fn subscribe(&self, subscriptions: Vec<Subscription>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async {
            fail(&self.failing.subscribe)?;
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
            fail(&self.failing.claim)?;
            let claims = self.take_up(&handler, at_most, now);
            if !claims.claims.is_empty() {
                self.bump();
            }
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
            let put_down = |settlement| self.put_down(settlement);
            let next = settlements.iter().filter_map(put_down).collect();
            self.bump();
            Ok(next)
        })
    }

    fn work(&self) -> watch::Receiver<u64> {
        self.work.subscribe()
    }
}
