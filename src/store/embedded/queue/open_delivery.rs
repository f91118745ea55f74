//! An open delivery, and what becomes of it. Pure.

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
    /// When its first attempt began.
    pub(in super::super) since: Option<Timestamp>,
    /// Why it is a replay.
    pub(in super::super) replay: Option<String>,
}

impl OpenDelivery {
    /// One that nothing has become of.
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

    /// One as it stands after what is `snapshot` of it; `None` when it is open no longer.
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

    /// What the ledger and the journal are told when it has come into `state` at `at`.
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

    /// What there is to be told when it is parked without an attempt, because `why`.
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

    /// What `settlement` makes of it, and what there is to be told of that; nothing where it was released.
    /// `is_retried` says whether anybody would try again.
    pub(super) fn judge(
        mut self,
        settlement: &Settlement,
        is_retried: bool,
    ) -> Option<(Self, DeliverySnapshot)> {
        let ended = settlement.finished_at;
        // Why it is so since, and what failed.
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

/// The attempt that `settlement` is about, which went wrong because `why`.
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
