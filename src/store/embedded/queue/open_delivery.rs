//! An open delivery, and how it changes. Pure.

use jiff::Timestamp;

use crate::{
    event::{HandlerName, OrderingKeys},
    store::{Attempt, DeliverySnapshot, DeliveryState, NO_HANDLER, Settlement, Verdict, shorten},
};

/// An open delivery.
#[derive(Clone, Debug)]
pub(in super::super) struct OpenDelivery {
    pub(in super::super) keys: Option<OrderingKeys>,
    pub(in super::super) attempts: u32,
    pub(in super::super) replays: u32,
    pub(in super::super) due_at: Timestamp,
    /// When the first attempt began.
    pub(in super::super) since: Option<Timestamp>,
    /// The reason of the replay, if the delivery is one.
    pub(in super::super) replay: Option<String>,
}

impl OpenDelivery {
    /// A new delivery.
    pub(super) const fn new(keys: Option<OrderingKeys>, due_at: Timestamp) -> Self {
        Self {
            keys,
            attempts: 0,
            replays: 0,
            due_at,
            since: None,
            replay: None,
        }
    }

    /// The delivery after `snapshot`; `None` if it is finished.
    pub(super) fn after(self, snapshot: &DeliverySnapshot) -> Option<Self> {
        if (snapshot.replays, snapshot.attempts) < (self.replays, self.attempts) {
            return Some(self);
        }
        (!snapshot.is_over()).then(|| Self {
            keys: self.keys,
            attempts: snapshot.attempts,
            replays: snapshot.replays,
            due_at: snapshot.at,
            since: snapshot.since,
            replay: snapshot.replay.clone(),
        })
    }

    /// The delivery's state: `state` since `at`.
    fn snapshot(
        &self,
        handler: &HandlerName,
        state: DeliveryState,
        at: Timestamp,
    ) -> DeliverySnapshot {
        DeliverySnapshot {
            handler: handler.clone(),
            ordered: false,
            state,
            attempts: self.attempts,
            replays: self.replays,
            at,
            since: self.since,
            replay: self.replay.clone(),
            why: None,
            failures: Vec::new(),
        }
    }

    /// The state after parking the delivery without an attempt.
    pub(super) fn park(
        &self,
        handler: &HandlerName,
        why: &str,
        now: Timestamp,
    ) -> DeliverySnapshot {
        DeliverySnapshot {
            why: Some(shorten(why).to_owned()),
            ..self.snapshot(handler, DeliveryState::Parked, now)
        }
    }

    /// The delivery after `settlement`, and its state; `None` if it was released. `is_retried` says
    /// whether its handler is still configured.
    pub(super) fn judge(
        mut self,
        settlement: &Settlement,
        is_retried: bool,
    ) -> Option<(Self, DeliverySnapshot)> {
        let ended = settlement.finished_at;
        // The state, its time and reason, and the error.
        let (state, at, why, failed) = match &settlement.verdict {
            Verdict::Released => return None,
            Verdict::Done => (DeliveryState::Done, ended, None, None),
            Verdict::Skipped { why } => (DeliveryState::Skipped, ended, Some(why.as_str()), None),
            Verdict::Parked { why } => {
                (DeliveryState::Parked, ended, Some(why.as_str()), Some(why))
            }
            Verdict::Retry { due_at, why } if is_retried => {
                (DeliveryState::Ready, *due_at, None, Some(why))
            }
            Verdict::Retry { why, .. } => {
                (DeliveryState::Parked, ended, Some(NO_HANDLER), Some(why))
            }
        };
        self.attempts += 1;
        self.since = self.since.or(Some(settlement.started_at));
        self.due_at = at;
        let mut snapshot = self.snapshot(&settlement.handler, state, at);
        snapshot.why = why.map(|why| shorten(why).to_owned());
        snapshot
            .failures
            .extend(failed.map(|why| failure(settlement, why)));
        Some((self, snapshot))
    }
}

/// The failed attempt of `settlement`.
fn failure(settlement: &Settlement, why: &str) -> Attempt {
    let took = settlement
        .finished_at
        .duration_since(settlement.started_at)
        .as_millis();
    Attempt {
        started_at: settlement.started_at,
        took_ms: u64::try_from(took).unwrap_or(0),
        why: shorten(why).to_owned(),
    }
}
