//! One handler's worker: claims, attempts, settles.
//!
//! The store is asked for more, and told what has ended, while attempts are under way: neither waits
//! for the other. Of each kind one question at a time is put to it, and what comes up meanwhile goes
//! into the next one.

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
    verdict::{self, Reporter},
};
use crate::{
    event::Notification,
    handler::{DeliveryContext, Outcome, Panicked},
    store::{BoxFuture, Claim, Claims, Follower, Settlement, StoreError, Verdict},
};

/// How often the store is asked for deliveries though nothing says that there are any, and how long
/// it is left alone after it has failed.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest pause between two questions that come to nothing, should a store name a time in the
/// past for something that it does not hand out.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// One handler's worker. All that it knows is in the store as well, but for what it has claimed.
pub(super) struct Worker {
    handler: Arc<ConfiguredHandler>,
    context: WorkerContext,
    reporter: Reporter,
    stop: CancellationToken,
    abandon: CancellationToken,
    /// Claimed and not begun, oldest first: so that no attempt waits for the store.
    waiting: VecDeque<Claim>,
    /// What is under way. Each attempt is a task of its own, so that one that blocks its thread
    /// holds up neither this worker nor the others.
    attempts: JoinSet<Ended>,
    /// What each task of `attempts` is about.
    begun: HashMap<task::Id, Begun>,
    /// What has ended, and the store has not been told.
    unsettled: Vec<Settlement>,
    /// What the store has been told, and has not taken in yet.
    settling: Arc<[Settlement]>,
    settle_call: PendingCall<Result<Vec<Claim>, StoreError>>,
    /// How many deliveries the store is being asked for.
    claim_call: PendingCall<(usize, Result<Claims, StoreError>)>,
    /// The store did not take what it was told the last time.
    has_settle_failed: bool,
    /// When the store is asked again though nothing says that there is anything.
    next_poll: Instant,
    /// Who sees whether the store answers what it is asked, and takes what it is told.
    claims: Follower,
    settlements: Follower,
    /// Until when the store is left alone, after it has failed.
    backoff_until: Option<Instant>,
    /// Where chance comes from. Nobody gains anything by guessing it.
    jitter_source: RandomState,
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

/// Something that the store may be working on.
struct PendingCall<T>(Option<BoxFuture<'static, T>>);

impl<T> PendingCall<T> {
    const fn is_pending(&self) -> bool {
        self.0.is_some()
    }

    fn start(&mut self, question: impl Future<Output = T> + Send + 'static) {
        self.0 = Some(Box::pin(question));
    }

    /// The answer, if there is a question. It may be waited for anew after this was dropped.
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
            has_settle_failed: false,
            next_poll: Instant::now(),
            backoff_until: None,
            jitter_source: RandomState::new(),
        }
    }

    /// Works until it is told to stop, and then until everything that it claimed is settled.
    pub(super) async fn run(mut self) {
        let mut work = self.context.store.work();
        while !self.stop.is_cancelled() {
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
                () = sleep_until(pause_ends) => {}
            }
        }
        self.finish().await;
    }

    /// Releases what was not begun, and waits for what was.
    async fn finish(mut self) {
        loop {
            self.release_waiting();
            self.start_settle();
            let is_told = self.settling.is_empty() && self.unsettled.is_empty();
            if self.attempts.is_empty() && is_told && !self.claim_call.is_pending() {
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

    /// Has the store take a claim back that was not attempted.
    fn release(&mut self, claim: &Claim) {
        let now = (self.context.clock)();
        let released = self.settlement(claim, Verdict::Released, now, now);
        self.unsettled.push(released);
    }

    fn concurrency(&self) -> usize {
        self.handler.settings.concurrency.get()
    }

    /// How many deliveries may wait to be begun.
    fn ahead(&self) -> usize {
        self.concurrency().div_ceil(2)
    }

    /// How many more deliveries may be in hand: those under way, and a few more to go on with. What
    /// has ended is in hand as well until that is on record: it comes again if this process dies.
    fn room(&self) -> usize {
        let ended = self.settling.len() + self.unsettled.len();
        let held = self.waiting.len() + self.attempts.len() + ended;
        (self.concurrency() + self.ahead()).saturating_sub(held)
    }

    /// Whether it is worth asking for more: not for each one that ends, but once half of what was
    /// claimed ahead has been begun; and not while the store takes none back.
    fn has_room(&self) -> bool {
        !self.is_backing_off()
            && !self.has_settle_failed
            && !self.claim_call.is_pending()
            && self.room() > 0
            && self.waiting.len() <= self.ahead() / 2
    }

    fn is_backing_off(&self) -> bool {
        self.backoff_until
            .is_some_and(|until| Instant::now() < until)
    }

    /// Notes that the store failed, and leaves it alone for a while. `is_first` says whether that is new.
    fn back_off(&mut self, what: &str, error: &StoreError, is_first: bool) {
        if is_first {
            tracing::error!(
                handler = %self.handler.name,
                %error,
                "{what} for the handler {} failed, and will be tried again: {error}",
                self.handler.name,
            );
        }
        self.backoff_until = Some(Instant::now() + POLL_INTERVAL);
    }

    /// Begins to tell the store what has ended since the last time, in one batch, if anything has.
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
                // What goes on comes before what would begin.
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

    /// Begins to ask the store for as much as there is room for, if there is any, and if there may be
    /// something. Where nothing is in hand, what has ended is told first: what comes next may be
    /// waiting for it.
    fn start_claim(&mut self, work: &mut watch::Receiver<u64>) {
        let is_idle = self.waiting.is_empty() && self.attempts.is_empty();
        if !self.has_room()
            || self.next_poll > Instant::now()
            || is_idle && self.settle_call.is_pending()
        {
            return;
        }
        self.claims.started();
        // Before the claim: what arrives during it must wake us again.
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

    /// Until when to wait where nothing happens.
    fn pause_ends(&self) -> Instant {
        let now = Instant::now();
        match self.backoff_until {
            Some(until) if until > now => until,
            _ if self.has_room() && self.next_poll > now => self.next_poll,
            _ => now + POLL_INTERVAL,
        }
    }

    /// Begins as many attempts as may be under way at once.
    fn start_attempts(&mut self) {
        while self.attempts.len() < self.concurrency() {
            let Some(claim) = self.waiting.pop_front() else {
                return;
            };
            // This process may have stood still for so long that somebody else has it by now.
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
            Err(error) => (error.id(), Ended::in_a_panic((self.context.clock)())),
        };
        let Some(Begun { claim, at }) = self.begun.remove(&id) else {
            return;
        };
        let settings = &self.handler.settings;
        let jitter = self.jitter(&claim);
        let (verdict, end) = verdict::judge(settings, &claim, ended.outcome, ended.at, jitter);
        self.reporter.report(&claim, &verdict, end, ended.took);
        let settlement = self.settlement(&claim, verdict, at, ended.at);
        self.unsettled.push(settlement);
    }

    /// A random number from 0 to 1.
    fn jitter(&self, claim: &Claim) -> f64 {
        let hash = self.jitter_source.hash_one((claim.lease, claim.attempt));
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

/// One attempt. Its future is dropped at the deadline, before the time of its end is taken.
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
