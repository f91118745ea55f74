//! The worker of one handler: claims, attempts and settles deliveries.
//!
//! Claims and settlements are made concurrently with attempts, so that neither waits for the other.
//! One claim and one settlement are in flight at a time. What comes up meanwhile goes into the next
//! one.

use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    hash::{BuildHasher, RandomState},
    mem,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::watch,
    task::{self, JoinError, JoinSet},
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    ConfiguredHandler, WorkerContext,
    health::HandlerHealth,
    verdict::{self, Reporter},
};
use crate::{
    event::Notification,
    handler::{DeliveryContext, Outcome, Panicked},
    store::{BoxFuture, Claim, Claims, Follower, Settlement, StoreError, Verdict},
};

/// The interval of claims without a wake-up, and the pause after an error of the store.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The least pause after a claim without deliveries, in case a store gives a due time in the past.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The worker of one handler. Everything that it knows is in the store too, except its claims.
pub(super) struct Worker {
    handler: Arc<ConfiguredHandler>,
    context: WorkerContext,
    reporter: Reporter,
    health: Arc<HandlerHealth>,
    stop: CancellationToken,
    abandon: CancellationToken,
    /// Claims that have not been attempted, oldest first, so that no attempt waits for the store.
    waiting: VecDeque<Claim>,
    /// The attempts in flight. Each one is a task, so that an attempt that blocks its thread delays
    /// neither this worker nor others.
    attempts: JoinSet<Ended>,
    /// The claim of each attempt.
    begun: HashMap<task::Id, Begun>,
    /// Settlements that have not been sent to the store.
    unsettled: Vec<Settlement>,
    /// Settlements that were sent, and are not confirmed.
    settling: Arc<[Settlement]>,
    settle_call: PendingCall<Result<Vec<Claim>, StoreError>>,
    /// The claim in flight, with the number of requested deliveries.
    claim_call: PendingCall<(usize, Result<Claims, StoreError>)>,
    /// Whether an operator has paused the handler.
    is_paused: bool,
    /// Whether the last settlement failed.
    has_settle_failed: bool,
    /// When to claim without a wake-up.
    next_poll: Instant,
    /// Reports whether claims and settlements make progress.
    claims: Follower,
    settlements: Follower,
    /// The end of the pause after an error of the store.
    backoff_until: Option<Instant>,
    /// The source of random numbers. They need not be unpredictable.
    jitter_source: RandomState,
}

/// A claim whose attempt is in flight.
struct Begun {
    claim: Claim,
    at: Timestamp,
}

/// The end of an attempt.
struct Ended {
    /// `None` if the attempt took too long.
    outcome: Option<Outcome>,
    at: Timestamp,
    took: Duration,
}

/// A call of the store that may be in flight.
struct PendingCall<T>(Option<BoxFuture<'static, T>>);

impl<T> PendingCall<T> {
    const fn is_pending(&self) -> bool {
        self.0.is_some()
    }

    fn start(&mut self, question: impl Future<Output = T> + Send + 'static) {
        self.0 = Some(Box::pin(question));
    }

    /// The result of the call, if there is one. The future can be dropped and created again.
    async fn result(&mut self) -> T {
        let Some(question) = &mut self.0 else {
            return pending().await;
        };
        let result = question.await;
        self.0 = None;
        result
    }
}

impl Worker {
    pub(super) fn new(
        handler: ConfiguredHandler,
        health: Arc<HandlerHealth>,
        context: WorkerContext,
        stop: CancellationToken,
        abandon: CancellationToken,
    ) -> Self {
        let followers = &context.followers;
        let claims = format!("claiming deliveries for the handler {}", handler.name);
        let settlements = format!(
            "recording how deliveries went for the handler {}",
            handler.name
        );
        Self {
            claims: followers.critical("claims", claims),
            settlements: followers.critical("settlements", settlements),
            reporter: Reporter::new(&handler.name, &context.metrics),
            handler: Arc::new(handler),
            health,
            context,
            stop,
            abandon,
            waiting: VecDeque::new(),
            attempts: JoinSet::new(),
            begun: HashMap::new(),
            unsettled: Vec::new(),
            settling: Arc::default(),
            settle_call: PendingCall(None),
            claim_call: PendingCall(None),
            is_paused: false,
            has_settle_failed: false,
            next_poll: Instant::now(),
            backoff_until: None,
            jitter_source: RandomState::new(),
        }
    }

    /// Works until it is stopped, and then until all claims are settled.
    pub(super) async fn run(mut self) {
        let mut work = self.context.store.work();
        let mut paused = self.context.paused.clone();
        while !self.stop.is_cancelled() {
            self.is_paused = paused.borrow_and_update().contains(&self.handler.name);
            if self.is_paused {
                self.release_waiting();
            }
            self.start_settle();
            self.start_claim(&mut work);
            self.start_attempts();
            let (has_room, pause_ends) = (self.has_room(), self.pause_ends());
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {}
                Some(joined) = self.attempts.join_next_with_id() => self.end_all(joined),
                settling = self.settle_call.result() => self.finish_settle(settling),
                claimed = self.claim_call.result() => self.finish_claim(claimed),
                Ok(()) = work.changed(), if has_room => self.next_poll = Instant::now(),
                Ok(()) = paused.changed() => self.next_poll = Instant::now(),
                () = sleep_until(pause_ends) => {}
            }
        }
        self.finish().await;
    }

    /// Releases claims that have not been attempted, and waits for attempts in flight.
    async fn finish(mut self) {
        loop {
            self.release_waiting();
            self.start_settle();
            let is_settled = self.settling.is_empty() && self.unsettled.is_empty();
            if self.attempts.is_empty() && is_settled && !self.claim_call.is_pending() {
                return;
            }
            let pause_ends = self.pause_ends();
            tokio::select! {
                biased;
                Some(joined) = self.attempts.join_next_with_id() => self.end_all(joined),
                settling = self.settle_call.result() => self.finish_settle(settling),
                claimed = self.claim_call.result() => self.finish_claim(claimed),
                () = self.abandon.cancelled() => {
                    self.attempts.shutdown().await;
                    return;
                }
                () = sleep_until(pause_ends) => {}
            }
        }
    }

    fn release_waiting(&mut self) {
        for claim in mem::take(&mut self.waiting) {
            self.release(&claim);
        }
    }

    /// Releases a claim that has not been attempted.
    fn release(&mut self, claim: &Claim) {
        let now = (self.context.clock)();
        let released = self.settlement(claim, Verdict::Released, now, now);
        self.unsettled.push(released);
    }

    fn concurrency(&self) -> usize {
        self.handler.settings.concurrency.get()
    }

    /// The most claims that wait for their attempt.
    fn ahead(&self) -> usize {
        self.concurrency().div_ceil(2)
    }

    /// How many more deliveries to claim: enough for the concurrency, and some in advance. Ended
    /// deliveries count until their settlements are confirmed, since they are made again if this
    /// process dies.
    fn room(&self) -> usize {
        let ended = self.settling.len() + self.unsettled.len();
        let claimed = self.waiting.len() + self.attempts.len() + ended;
        (self.concurrency() + self.ahead()).saturating_sub(claimed)
    }

    /// Whether to claim more: unless paused, when half of the advance claims have been attempted, and not while
    /// settlements fail.
    fn has_room(&self) -> bool {
        !self.is_paused
            && !self.is_backing_off()
            && !self.has_settle_failed
            && !self.claim_call.is_pending()
            && self.room() > 0
            && self.waiting.len() <= self.ahead() / 2
    }

    fn is_backing_off(&self) -> bool {
        self.backoff_until
            .is_some_and(|until| Instant::now() < until)
    }

    /// Pauses after an error of the store, and logs it if `is_first`.
    fn back_off(&mut self, what: &str, error: &StoreError, is_first: bool) {
        if is_first {
            tracing::error!(
                handler = %self.handler.name,
                %error,
                "{what} for the handler {} failed, and is retried: {error}",
                self.handler.name,
            );
        }
        self.backoff_until = Some(Instant::now() + POLL_INTERVAL);
    }

    /// Sends the settlements that have come up to the store, in one batch.
    fn start_settle(&mut self) {
        if self.settle_call.is_pending() || self.is_backing_off() {
            return;
        }
        if self.settling.is_empty() {
            self.settling = mem::take(&mut self.unsettled).into();
        }
        if self.settling.is_empty() {
            return;
        }
        self.settlements.started();
        let (store, settlements) = (self.context.store.clone(), self.settling.clone());
        self.settle_call
            .start(async move { store.settle(settlements).await });
    }

    fn finish_settle(&mut self, result: Result<Vec<Claim>, StoreError>) {
        match result {
            Ok(next) => {
                self.settlements.progressed();
                self.settling = Arc::default();
                self.has_settle_failed = false;
                // Deliveries that continue a run come before others.
                for claim in next.into_iter().rev() {
                    self.waiting.push_front(claim);
                }
            }
            Err(error) => {
                self.has_settle_failed = true;
                let is_first = self.settlements.failed(&error);
                self.back_off("recording how deliveries went", &error, is_first);
            }
        }
    }

    /// Claims as many deliveries as there is room for, if there may be some. If the worker is idle,
    /// it first waits for the settlements in flight: the next deliveries may depend on them.
    fn start_claim(&mut self, work: &mut watch::Receiver<u64>) {
        let is_idle = self.waiting.is_empty() && self.attempts.is_empty();
        if !self.has_room()
            || self.next_poll > Instant::now()
            || is_idle && self.settle_call.is_pending()
        {
            return;
        }
        self.claims.started();
        // Events that arrive during the claim must wake the worker again.
        work.borrow_and_update();
        let (store, handler) = (self.context.store.clone(), self.handler.name.clone());
        let (room, now) = (self.room(), (self.context.clock)());
        self.claim_call
            .start(async move { (room, store.claim(&handler, room, now).await) });
    }

    fn finish_claim(&mut self, (asked, claimed): (usize, Result<Claims, StoreError>)) {
        match claimed {
            Ok(Claims { claims, next_due }) => {
                self.claims.progressed();
                let pause = match (claims.len(), next_due) {
                    (all, _) if all >= asked => Duration::ZERO,
                    (0, Some(due)) => self.until(due).max(MIN_POLL_INTERVAL),
                    (_, Some(due)) => self.until(due),
                    (_, None) => POLL_INTERVAL,
                };
                self.next_poll = Instant::now() + pause.min(POLL_INTERVAL);
                self.waiting.extend(claims);
            }
            Err(error) => {
                let is_first = self.claims.failed(&error);
                self.back_off("claiming deliveries", &error, is_first);
            }
        }
    }

    fn until(&self, due: Timestamp) -> Duration {
        let pause = due.duration_since((self.context.clock)());
        Duration::try_from(pause).unwrap_or_default()
    }

    /// When to wake up if nothing happens.
    fn pause_ends(&self) -> Instant {
        let now = Instant::now();
        match self.backoff_until {
            Some(until) if until > now => until,
            _ if self.has_room() && self.next_poll > now => self.next_poll,
            _ => now + POLL_INTERVAL,
        }
    }

    /// Begins attempts, up to the concurrency.
    fn start_attempts(&mut self) {
        while self.attempts.len() < self.concurrency() {
            let Some(claim) = self.waiting.pop_front() else {
                return;
            };
            // If this process was suspended for long, the lease may have expired.
            if !self.context.store.holds(claim.lease) {
                self.release(&claim);
                continue;
            }
            let at = (self.context.clock)();
            let context = DeliveryContext {
                handler: self.handler.name.clone(),
                attempt: claim.attempt,
                deadline: Instant::now() + self.handler.settings.timeout,
                started_at: at,
                replay: claim.replay.clone(),
                replays: claim.replays,
                superseded: claim.superseded,
            };
            let task = self.attempts.spawn(attempt(
                self.handler.clone(),
                claim.notification.clone(),
                context,
                self.context.clock,
            ));
            self.begun.insert(task.id(), Begun { claim, at });
        }
    }

    /// Handles an ended attempt and all others that have ended, in one batch.
    fn end_all(&mut self, joined: Result<(task::Id, Ended), JoinError>) {
        self.end(joined);
        while let Some(joined) = self.attempts.try_join_next_with_id() {
            self.end(joined);
        }
    }

    fn end(&mut self, joined: Result<(task::Id, Ended), JoinError>) {
        let (id, ended) = match joined {
            Ok((id, ended)) => (id, ended),
            // A panic of the handler is caught elsewhere. This one occurred while its future was
            // dropped.
            Err(error) => (error.id(), Ended::in_a_panic((self.context.clock)())),
        };
        let Some(Begun { claim, at }) = self.begun.remove(&id) else {
            return;
        };
        let settings = &self.handler.settings;
        let jitter = self.jitter(&claim);
        let (verdict, end) = verdict::judge(settings, &claim, ended.outcome, ended.at, jitter);
        self.reporter.report(&claim, &verdict, end, ended.took);
        self.health.record(&verdict, ended.at);
        let settlement = self.settlement(&claim, verdict, at, ended.at);
        self.unsettled.push(settlement);
    }

    /// A random number from 0 to 1.
    fn jitter(&self, claim: &Claim) -> f64 {
        let hash = self.jitter_source.hash_one((claim.lease, claim.attempt));
        // A `u32` has enough bits for a jitter.
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
            handler: self.handler.name.clone(),
            lease: claim.lease,
            verdict,
            started_at,
            finished_at,
        }
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

/// Makes one attempt. At the deadline its future is dropped, before the end is timed.
async fn attempt(
    handler: Arc<ConfiguredHandler>,
    notification: Arc<Notification>,
    context: DeliveryContext,
    clock: fn() -> Timestamp,
) -> Ended {
    let began = Instant::now();
    let handled = handler.implementation.handle(&notification, &context);
    let outcome = timeout_at(context.deadline, handled).await.ok();
    Ended {
        outcome,
        at: clock(),
        took: began.elapsed(),
    }
}
