//! One handler's worker: claims, attempts, settles.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    mem,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::watch,
    task::{self, JoinError, JoinSet},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    Consumer, Parts,
    retry::{Failure, Next},
};
use crate::{
    event::Notification,
    handler::{DeliveryContext, Outcome, Panicked},
    store::{Claim, Claims, Settlement, StoreError, Verdict},
    telemetry::{ByHandler, ByOutcome},
};

/// How often the store is asked for deliveries though nothing says that there are any, and how long
/// it is left alone after it has failed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The shortest pause between two questions for what is due, should a store name a time in the past
/// for something that it does not hand out.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(10);

/// How much of a reason is stored, in characters: reasons are for people to read.
const LONGEST_REASON: usize = 1000;

/// One handler's worker. All that it knows is in the store as well, but for what it has claimed.
pub(super) struct Worker {
    consumer: Arc<Consumer>,
    parts: Parts,
    stop: CancellationToken,
    abandon: CancellationToken,
    /// Claimed and not begun, oldest first: so that no attempt waits for the store.
    waiting: VecDeque<Claim>,
    /// What is under way. Each attempt is a task of its own, so that one that blocks its thread
    /// holds up neither this worker nor the others.
    attempts: JoinSet<Ended>,
    /// What each task of `attempts` is about.
    begun: HashMap<task::Id, Begun>,
    /// What the store has not been told yet. Kept until it has been.
    unsettled: Vec<Settlement>,
    /// The store did not take it the last time.
    is_behind: bool,
    /// When something that waits becomes due.
    next_due: Option<Timestamp>,
    /// Until when the store is left alone, after it has failed.
    troubled_until: Option<Instant>,
    /// Where chance comes from. Nobody gains anything by guessing it.
    chance: RandomState,
}

/// A claim that is being attempted.
struct Begun {
    claim: Claim,
    at: Timestamp,
}

/// How an attempt ended.
struct Ended {
    /// `None` when it took too long.
    outcome: Option<Outcome>,
    at: Timestamp,
    took: Duration,
}

impl Worker {
    pub(super) fn new(
        consumer: Consumer,
        parts: Parts,
        stop: CancellationToken,
        abandon: CancellationToken,
    ) -> Self {
        Self {
            consumer: Arc::new(consumer),
            parts,
            stop,
            abandon,
            waiting: VecDeque::new(),
            attempts: JoinSet::new(),
            begun: HashMap::new(),
            unsettled: Vec::new(),
            is_behind: false,
            next_due: None,
            troubled_until: None,
            chance: RandomState::new(),
        }
    }

    /// Works until it is told to stop, and then until everything that it claimed is settled.
    pub(super) async fn run(mut self) {
        let mut work = self.parts.store.work();
        while !self.stop.is_cancelled() {
            self.exchange(&mut work).await;
            self.begin();
            let (has_room, pause) = (self.has_room(), self.until_next_look());
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {}
                Some(joined) = self.attempts.join_next_with_id() => self.end_all(joined),
                Ok(()) = work.changed(), if has_room => {}
                () = sleep(pause) => {}
            }
        }
        self.finish().await;
    }

    /// Releases what was not begun, and waits for what was.
    async fn finish(mut self) {
        let now = (self.parts.clock)();
        for claim in mem::take(&mut self.waiting) {
            let released = self.settlement(&claim, Verdict::Released, now, now);
            self.unsettled.push(released);
        }
        loop {
            self.settle().await;
            if self.attempts.is_empty() && self.unsettled.is_empty() {
                return;
            }
            tokio::select! {
                biased;
                Some(joined) = self.attempts.join_next_with_id() => self.end_all(joined),
                () = self.abandon.cancelled() => {
                    self.attempts.shutdown().await;
                    return;
                }
                () = sleep(LOOK_EVERY), if !self.unsettled.is_empty() => {}
            }
        }
    }

    /// How many deliveries may be in hand: those under way, and a few more to go on with.
    fn capacity(&self) -> usize {
        self.concurrency() + self.ahead()
    }

    fn ahead(&self) -> usize {
        self.concurrency().div_ceil(2)
    }

    fn concurrency(&self) -> usize {
        self.consumer.settings.concurrency.get()
    }

    /// How many deliveries are in hand.
    fn held(&self) -> usize {
        self.waiting.len() + self.attempts.len()
    }

    /// Whether it is worth asking for more: not for each one that ends, but once half of what was
    /// claimed ahead has been begun; and not while the store takes none back.
    fn has_room(&self) -> bool {
        !self.is_troubled()
            && self.held() < self.capacity()
            && self.waiting.len() <= self.ahead() / 2
            && !self.is_behind
    }

    fn is_troubled(&self) -> bool {
        self.troubled_until
            .is_some_and(|until| Instant::now() < until)
    }

    /// Notes that the store failed, and leaves it alone for a while.
    fn trouble(&mut self, what: &str, error: &StoreError) {
        tracing::error!(
            handler = %self.consumer.name,
            %error,
            "{what} for the handler {} failed, and will be tried again: {error}",
            self.consumer.name,
        );
        self.troubled_until = Some(Instant::now() + LOOK_EVERY);
    }

    /// Tells the store what has ended, and asks it for more: at the same time, or, where nothing is
    /// in hand or the store is behind, one after the other, since what comes next may be waiting for
    /// what has ended.
    async fn exchange(&mut self, work: &mut watch::Receiver<u64>) {
        if self.held() == 0 || self.is_behind {
            self.settle().await;
        }
        // Before the claim: what arrives during it must wake us again.
        work.borrow_and_update();
        let (settled, claimed) = tokio::join!(biased; self.ask_to_settle(), self.ask_for_claims());
        self.take_settled(settled);
        self.take_claims(claimed);
    }

    async fn settle(&mut self) {
        let settled = self.ask_to_settle().await;
        self.take_settled(settled);
    }

    /// Tells the store what has ended since the last time, in one batch, if anything has.
    async fn ask_to_settle(&self) -> Option<Result<(), StoreError>> {
        if self.unsettled.is_empty() || self.is_troubled() {
            return None;
        }
        Some(self.parts.store.settle(self.unsettled.clone()).await)
    }

    fn take_settled(&mut self, settled: Option<Result<(), StoreError>>) {
        match settled {
            Some(Ok(())) => {
                self.unsettled.clear();
                self.is_behind = false;
            }
            Some(Err(error)) => {
                self.is_behind = true;
                self.trouble("recording how deliveries went", &error);
            }
            None => {}
        }
    }

    /// Asks the store for as much as there is room for, if there is any.
    async fn ask_for_claims(&self) -> Option<Result<Claims, StoreError>> {
        if !self.has_room() {
            return None;
        }
        let at_most = self.capacity().saturating_sub(self.held());
        let now = (self.parts.clock)();
        let claiming = self.parts.store.claim(&self.consumer.name, at_most, now);
        Some(claiming.await)
    }

    fn take_claims(&mut self, claimed: Option<Result<Claims, StoreError>>) {
        match claimed {
            Some(Ok(claims)) => {
                self.waiting.extend(claims.claims);
                self.next_due = claims.next_due;
            }
            Some(Err(error)) => self.trouble("claiming deliveries", &error),
            None => {}
        }
    }

    /// Begins as many attempts as may be under way at once.
    fn begin(&mut self) {
        while self.attempts.len() < self.concurrency() {
            let Some(claim) = self.waiting.pop_front() else {
                return;
            };
            // This process may have stood still for so long that somebody else has it by now.
            if !self.parts.store.holds(claim.lease) {
                continue;
            }
            let at = (self.parts.clock)();
            let context = DeliveryContext {
                handler: self.consumer.name.clone(),
                attempt: claim.attempt,
                deadline: Instant::now() + self.consumer.settings.timeout,
                started_at: at,
                replay: claim.replay.clone(),
                superseded: claim.superseded,
            };
            let task = self.attempts.spawn(attempt(
                self.consumer.clone(),
                claim.notification.clone(),
                context,
                self.parts.clock,
            ));
            self.begun.insert(task.id(), Begun { claim, at });
        }
    }

    /// Takes in an attempt that has ended, and with it all others that have, for one batch.
    fn end_all(&mut self, joined: Result<(task::Id, Ended), JoinError>) {
        self.end(joined);
        while let Some(joined) = self.attempts.try_join_next_with_id() {
            self.end(joined);
        }
    }

    fn end(&mut self, joined: Result<(task::Id, Ended), JoinError>) {
        let (id, ended) = match joined {
            Ok((id, ended)) => (id, ended),
            // The handler's panics are caught below us; this is one while its future was dropped.
            Err(error) => (error.id(), Ended::in_a_panic((self.parts.clock)())),
        };
        let Some(Begun { claim, at }) = self.begun.remove(&id) else {
            return;
        };
        let (verdict, label) = self.judge(&claim, ended.outcome, ended.at);
        self.report(&claim, &verdict, label, ended.took);
        let settlement = self.settlement(&claim, verdict, at, ended.at);
        self.unsettled.push(settlement);
    }

    /// What the outcome of an attempt comes to, and the word for it in metrics. An attempt that
    /// makes its delivery parked is counted as that, whatever it failed of.
    fn judge(
        &self,
        claim: &Claim,
        outcome: Option<Outcome>,
        now: Timestamp,
    ) -> (Verdict, &'static str) {
        let (after, why, label) = match outcome {
            Some(Outcome::Done) => return (Verdict::Done, "done"),
            Some(Outcome::Skip { why }) => {
                let why = bounded(&why);
                return (Verdict::Skipped { why }, "skipped");
            }
            Some(Outcome::Park { why }) => {
                let why = bounded(&why.to_string());
                return (Verdict::Parked { why }, "parked");
            }
            Some(Outcome::Retry { after, why }) => {
                let label = if why.is::<Panicked>() {
                    "panic"
                } else {
                    "retry"
                };
                (after, why.to_string(), label)
            }
            None => {
                let timeout = humantime::format_duration(self.consumer.settings.timeout);
                (None, format!("took longer than {timeout}"), "timeout")
            }
        };
        let failure = Failure {
            attempt: claim.attempt,
            since: claim.since,
            now,
            after,
            jitter: self.jitter(claim),
        };
        match self.consumer.settings.retry.next(failure) {
            Next::At(due_at) => {
                let why = bounded(&why);
                (Verdict::Retry { due_at, why }, label)
            }
            Next::Never(limit) => {
                let why = bounded(&format!("{limit}; the last one: {why}"));
                (Verdict::Parked { why }, "parked")
            }
        }
    }

    /// A random number from 0 to 1.
    fn jitter(&self, claim: &Claim) -> f64 {
        let hash = self.chance.hash_one((claim.lease, claim.attempt));
        // Half of the bits are as many as a float of this size tells apart in good conscience.
        f64::from((hash >> 32) as u32) / f64::from(u32::MAX)
    }

    fn settlement(
        &self,
        claim: &Claim,
        verdict: Verdict,
        started_at: Timestamp,
        finished_at: Timestamp,
    ) -> Settlement {
        Settlement {
            handler: self.consumer.name.clone(),
            lease: claim.lease,
            verdict,
            started_at,
            finished_at,
        }
    }

    /// Counts an attempt, and logs it at the level of what an operator has to do about it.
    fn report(&self, claim: &Claim, verdict: &Verdict, label: &'static str, took: Duration) {
        let handler = &self.consumer.name;
        let by_outcome = ByOutcome {
            handler: handler.to_string(),
            outcome: label,
        };
        self.parts
            .metrics
            .deliveries
            .get_or_create(&by_outcome)
            .inc();
        self.parts
            .metrics
            .delivery_seconds
            .get_or_create(&ByHandler::from(handler))
            .observe(took.as_secs_f64());

        let Notification { id, name, .. } = &*claim.notification;
        let attempt = claim.attempt;
        match verdict {
            Verdict::Parked { why } => tracing::error!(
                %handler, event.id = %id, event.name = %name, attempt, reason = %why,
                "parked the delivery of {id} to {handler}: {why}",
            ),
            Verdict::Retry { due_at, why } => tracing::warn!(
                %handler, event.id = %id, event.name = %name, attempt, %due_at, reason = %why,
                "the delivery of {id} to {handler} will be tried again: {why}",
            ),
            Verdict::Done | Verdict::Skipped { .. } | Verdict::Released => tracing::debug!(
                %handler, event.id = %id, event.name = %name, attempt, outcome = label,
                "delivered {id} to {handler}: {label}",
            ),
        }
    }

    /// How long to wait where nothing happens.
    fn until_next_look(&self) -> Duration {
        let Some(due) = self.next_due.filter(|_| self.has_room()) else {
            return LOOK_EVERY;
        };
        let pause = due.duration_since((self.parts.clock)());
        let pause = Duration::try_from(pause).unwrap_or_default();
        pause.clamp(LOOK_AT_MOST_EVERY, LOOK_EVERY)
    }
}

impl Ended {
    fn in_a_panic(at: Timestamp) -> Self {
        let panicked = Panicked("while its attempt was being dropped".to_owned());
        Self {
            outcome: Some(Outcome::retry(panicked)),
            at,
            took: Duration::ZERO,
        }
    }
}

/// One attempt. Its future is dropped at the deadline, before the time of its end is taken.
async fn attempt(
    consumer: Arc<Consumer>,
    notification: Arc<Notification>,
    context: DeliveryContext,
    clock: fn() -> Timestamp,
) -> Ended {
    let began = Instant::now();
    let handled = consumer.handler.handle(&notification, &context);
    let outcome = timeout_at(context.deadline, handled).await.ok();
    Ended {
        outcome,
        at: clock(),
        took: began.elapsed(),
    }
}

fn bounded(reason: &str) -> String {
    reason.chars().take(LONGEST_REASON).collect()
}
