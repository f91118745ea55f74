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
    Consumer, Parts,
    verdict::{self, Reporter},
};
use crate::{
    event::Notification,
    handler::{DeliveryContext, Outcome, Panicked},
    store::{BoxFuture, Claim, Claims, Follower, Settlement, StoreError, Verdict},
};

/// How often the store is asked for deliveries though nothing says that there are any, and how long
/// it is left alone after it has failed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The shortest pause between two questions that come to nothing, should a store name a time in the
/// past for something that it does not hand out.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(10);

/// One handler's worker. All that it knows is in the store as well, but for what it has claimed.
pub(super) struct Worker {
    consumer: Arc<Consumer>,
    parts: Parts,
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
    told: Arc<[Settlement]>,
    settling: Question<Result<Vec<Claim>, StoreError>>,
    /// How many deliveries the store is being asked for.
    claiming: Question<(usize, Result<Claims, StoreError>)>,
    /// The store did not take what it was told the last time.
    is_behind: bool,
    /// When the store is asked again though nothing says that there is anything.
    look_at: Instant,
    /// Who sees whether the store answers what it is asked, and takes what it is told.
    claims: Follower,
    settlements: Follower,
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

/// Something that the store may be working on.
struct Question<T>(Option<BoxFuture<'static, T>>);

impl<T> Question<T> {
    const fn is_open(&self) -> bool {
        self.0.is_some()
    }

    fn put(&mut self, question: impl Future<Output = T> + Send + 'static) {
        self.0 = Some(Box::pin(question));
    }

    /// The answer, if there is a question. It may be waited for anew after this was dropped.
    async fn answer(&mut self) -> T {
        let Some(question) = &mut self.0 else {
            return pending().await;
        };
        let answer = question.await;
        self.0 = None;
        answer
    }
}

impl Worker {
    pub(super) fn new(
        consumer: Consumer,
        parts: Parts,
        stop: CancellationToken,
        abandon: CancellationToken,
    ) -> Self {
        let followers = &parts.followers;
        let claims = format!("claiming deliveries for the handler {}", consumer.name);
        let settlements = format!(
            "recording how deliveries went for the handler {}",
            consumer.name
        );
        Self {
            claims: followers.vital("claims", claims),
            settlements: followers.vital("settlements", settlements),
            reporter: Reporter::new(&consumer.name, &parts.metrics),
            consumer: Arc::new(consumer),
            parts,
            stop,
            abandon,
            waiting: VecDeque::new(),
            attempts: JoinSet::new(),
            begun: HashMap::new(),
            unsettled: Vec::new(),
            told: Arc::default(),
            settling: Question(None),
            claiming: Question(None),
            is_behind: false,
            look_at: Instant::now(),
            troubled_until: None,
            chance: RandomState::new(),
        }
    }

    /// Works until it is told to stop, and then until everything that it claimed is settled.
    pub(super) async fn run(mut self) {
        let mut work = self.parts.store.work();
        while !self.stop.is_cancelled() {
            self.tell();
            self.ask(&mut work);
            self.begin();
            let (has_room, pause_ends) = (self.has_room(), self.pause_ends());
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {}
                Some(joined) = self.attempts.join_next_with_id() => self.end_all(joined),
                told = self.settling.answer() => self.take_told(told),
                claimed = self.claiming.answer() => self.take_claimed(claimed),
                Ok(()) = work.changed(), if has_room => self.look_at = Instant::now(),
                () = sleep_until(pause_ends) => {}
            }
        }
        self.finish().await;
    }

    /// Releases what was not begun, and waits for what was.
    async fn finish(mut self) {
        loop {
            self.release_waiting();
            self.tell();
            let is_told = self.told.is_empty() && self.unsettled.is_empty();
            if self.attempts.is_empty() && is_told && !self.claiming.is_open() {
                return;
            }
            let pause_ends = self.pause_ends();
            tokio::select! {
                biased;
                Some(joined) = self.attempts.join_next_with_id() => self.end_all(joined),
                told = self.settling.answer() => self.take_told(told),
                claimed = self.claiming.answer() => self.take_claimed(claimed),
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
        let now = (self.parts.clock)();
        let released = self.settlement(claim, Verdict::Released, now, now);
        self.unsettled.push(released);
    }

    fn concurrency(&self) -> usize {
        self.consumer.settings.concurrency.get()
    }

    /// How many deliveries may wait to be begun.
    fn ahead(&self) -> usize {
        self.concurrency().div_ceil(2)
    }

    /// How many more deliveries may be in hand: those under way, and a few more to go on with. What
    /// has ended is in hand as well until that is on record: it comes again if this process dies.
    fn room(&self) -> usize {
        let ended = self.told.len() + self.unsettled.len();
        let held = self.waiting.len() + self.attempts.len() + ended;
        (self.concurrency() + self.ahead()).saturating_sub(held)
    }

    /// Whether it is worth asking for more: not for each one that ends, but once half of what was
    /// claimed ahead has been begun; and not while the store takes none back.
    fn has_room(&self) -> bool {
        !self.is_troubled()
            && !self.is_behind
            && !self.claiming.is_open()
            && self.room() > 0
            && self.waiting.len() <= self.ahead() / 2
    }

    fn is_troubled(&self) -> bool {
        self.troubled_until
            .is_some_and(|until| Instant::now() < until)
    }

    /// Notes that the store failed, and leaves it alone for a while. `is_first` says whether that is new.
    fn trouble(&mut self, what: &str, error: &StoreError, is_first: bool) {
        if is_first {
            tracing::error!(
                handler = %self.consumer.name,
                %error,
                "{what} for the handler {} failed, and will be tried again: {error}",
                self.consumer.name,
            );
        }
        self.troubled_until = Some(Instant::now() + LOOK_EVERY);
    }

    /// Begins to tell the store what has ended since the last time, in one batch, if anything has.
    fn tell(&mut self) {
        if self.settling.is_open() || self.is_troubled() {
            return;
        }
        if self.told.is_empty() {
            self.told = mem::take(&mut self.unsettled).into();
        }
        if self.told.is_empty() {
            return;
        }
        self.settlements.begins();
        let (store, settlements) = (self.parts.store.clone(), self.told.clone());
        self.settling
            .put(async move { store.settle(settlements).await });
    }

    fn take_told(&mut self, answer: Result<Vec<Claim>, StoreError>) {
        match answer {
            Ok(next) => {
                self.settlements.gets_on();
                self.told = Arc::default();
                self.is_behind = false;
                // What goes on comes before what would begin.
                for claim in next.into_iter().rev() {
                    self.waiting.push_front(claim);
                }
            }
            Err(error) => {
                self.is_behind = true;
                let is_first = self.settlements.fails(&error);
                self.trouble("recording how deliveries went", &error, is_first);
            }
        }
    }

    /// Begins to ask the store for as much as there is room for, if there is any, and if there may be
    /// something. Where nothing is in hand, what has ended is told first: what comes next may be
    /// waiting for it.
    fn ask(&mut self, work: &mut watch::Receiver<u64>) {
        let is_idle = self.waiting.is_empty() && self.attempts.is_empty();
        if !self.has_room() || self.look_at > Instant::now() || is_idle && self.settling.is_open() {
            return;
        }
        self.claims.begins();
        // Before the claim: what arrives during it must wake us again.
        work.borrow_and_update();
        let (store, handler) = (self.parts.store.clone(), self.consumer.name.clone());
        let (room, now) = (self.room(), (self.parts.clock)());
        self.claiming
            .put(async move { (room, store.claim(&handler, room, now).await) });
    }

    fn take_claimed(&mut self, (asked, claimed): (usize, Result<Claims, StoreError>)) {
        match claimed {
            Ok(Claims { claims, next_due }) => {
                self.claims.gets_on();
                let pause = match (claims.len(), next_due) {
                    (all, _) if all >= asked => Duration::ZERO,
                    (0, Some(due)) => self.until(due).max(LOOK_AT_MOST_EVERY),
                    (_, Some(due)) => self.until(due),
                    (_, None) => LOOK_EVERY,
                };
                self.look_at = Instant::now() + pause.min(LOOK_EVERY);
                self.waiting.extend(claims);
            }
            Err(error) => {
                let is_first = self.claims.fails(&error);
                self.trouble("claiming deliveries", &error, is_first);
            }
        }
    }

    fn until(&self, due: Timestamp) -> Duration {
        let pause = due.duration_since((self.parts.clock)());
        Duration::try_from(pause).unwrap_or_default()
    }

    /// Until when to wait where nothing happens.
    fn pause_ends(&self) -> Instant {
        let now = Instant::now();
        match self.troubled_until {
            Some(until) if until > now => until,
            _ if self.has_room() && self.look_at > now => self.look_at,
            _ => now + LOOK_EVERY,
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
                self.release(&claim);
                continue;
            }
            let at = (self.parts.clock)();
            let context = DeliveryContext {
                handler: self.consumer.name.clone(),
                attempt: claim.attempt,
                deadline: Instant::now() + self.consumer.settings.timeout,
                started_at: at,
                replay: claim.replay.clone(),
                replays: claim.replays,
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
        let settings = &self.consumer.settings;
        let jitter = self.jitter(&claim);
        let (verdict, end) = verdict::judge(settings, &claim, ended.outcome, ended.at, jitter);
        self.reporter.report(&claim, &verdict, end, ended.took);
        let settlement = self.settlement(&claim, verdict, at, ended.at);
        self.unsettled.push(settlement);
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
