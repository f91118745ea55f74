//! The queue that dispatch works from, in memory. A view of the journal, like the ledger behind it.
//!
//! # The way of an event
//!
//! ```text
//! journal ──► indexer ──► tail ───────────────► ledger
//!   writer      │          (not in the ledger)    │  fills what is not live
//!               └────────► windows ◄──────────────┘
//!                          claim │ ▲ settle
//!                                ▼ │
//!                              workers ──► outcomes ──► journal, and the ledger
//! ```
//!
//! The [indexer](super::indexer) takes in what was written: the writer hands it over, and what was not
//! handed over is read from the disk. Each event goes to the end of the *tail*, which the ledger takes in
//! behind, in large transactions, and into the *window* of each handler that gets it. So it reaches its
//! handlers without SQL and without being read back, and is mostly done when the ledger hears of it: the
//! ledger then writes one row that never changes.
//!
//! A [window](window::Window) has the open deliveries of one handler in order of their positions, and by
//! their [ordering keys](ordering::OrderingIndex) what waits for what. It is *live* while it has all of them. With more
//! than it has room for it is so no longer: what comes is in the ledger only, and a cursor says up to where
//! the window has it. When little is left that can be attempted, the ledger's thread fills the window from
//! there on, thousands at once, in the order of the journal, with the events of those that come next; at
//! the end of the ledger and of the tail the window is live again. A fill reads and changes nothing: it comes
//! before the transactions that wait, and begins while half of what was read before has yet to be handed out.
//!
//! One bad number holds up no other: with a full window only those come in that wait for no other, and the
//! rest is [passed over](deferred::Deferred), by its keys. When nothing of such a key is left in the window, the
//! cursor goes back to the first that was passed over. A handler of which [`window::MOST`] times as many
//! wait for their next attempts gets no others until some of these are over.
//!
//! What becomes of a delivery changes the window at once, is handed to the journal's writer as a note, and
//! waits among the *outcomes* for the next transaction of the ledger. It tells how the delivery stands since
//! and not what happened, so that it can be told twice, and in any order. Commands change the ledger and
//! leave word in its outbox; from there the windows learn of it.
//!
//! # What each costs, and its bound
//!
//! | | a delivery or event | at most |
//! |---|---|---|
//! | window, for each handler | some 200 bytes | [`window::ROOM`] deliveries, more only of those that failed; 4 MiB of events |
//! | tail | its record | twice [`TAIL_RECORDS`] or [`TAIL_BYTES`]: the indexer waits for the ledger then |
//! | outcomes | some 200 bytes | what is claimed is none while [`MOST_OUTCOMES`] wait |
//! | [reports](topic_cache::TopicCache), for `superseded` | 40 bytes a topic | [`topic_cache::MOST`] topics |
//!
//! # Checkpoint and recovery
//!
//! The ledger is the checkpoint. Each of its transactions takes in a piece of the tail, all outcomes of
//! events up to there, and the place. An outcome is among the outcomes before its note is handed to the
//! writer, and the outcomes are taken after the piece of the tail was read from the journal: so a note
//! before the ledger's place is in the ledger, and those behind the place are read again from the journal
//! when the store is opened. Nothing is handed out before the journal has been read to where it ended
//! then. With the process is lost what was handed to the writer and not written; with the power, also what
//! was written and not synced, of the last second.
//!
//! **Invariant:** no delivery is handed out twice without having been settled in between.
//!
//! **Invariant:** nothing here waits for a disk or for the ledger.

mod deferred;
mod open_delivery;
mod ordering;
#[cfg(test)]
mod tests;
mod topic_cache;
mod window;

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::watch;

use self::{topic_cache::TopicCache, window::Window};
use super::{
    journal::JournalSender,
    ledger::{JournalBatch, Watermark},
    record::{Content, Event, Record},
    segment::Position,
};
use crate::{
    event::{HandlerName, Notification, Topic},
    store::{Claims, DeliverySnapshot, Settlement, Subscription},
};

pub(super) use open_delivery::OpenDelivery;

/// How many contents of records are so many that the ledger takes them in without waiting.
const TAIL_RECORDS: usize = 4096;

/// How many bytes of bodies are.
const TAIL_BYTES: usize = 4 << 20;

/// How many outcomes may wait for the ledger.
const MOST_OUTCOMES: usize = 32 << 10;

/// How many updates are so many that the ledger takes them in without waiting.
const MANY_UPDATES: usize = 8 << 10;

/// How long the first update waits for the ledger where no event comes: the more are taken in together, the
/// fewer pages of the database are written for each.
const UPDATES_REST: Duration = Duration::from_millis(200);

/// How long the first event of the tail waits for the ledger: so long that its deliveries are mostly done by
/// then, and so short that operators see it at once.
const REST: Duration = Duration::from_millis(40);

/// When a topic was reported last, as the ledger has it; `None` where it knows nothing of it.
pub(super) type TopicTime = (Topic, Option<Timestamp>);

/// How a delivery of the event at a position stands.
pub(super) type DeliveryUpdate = (Position, DeliverySnapshot);

/// The queue. Shared by the indexer, the ledger's thread and the callers of the store.
pub(super) struct Queue {
    state: Mutex<State>,
    work: watch::Sender<u64>,
    journal_sender: JournalSender,
}

#[derive(Default)]
struct State {
    windows: HashMap<HandlerName, Window>,
    /// Whether anything is handed out: the journal has been read to where it ended.
    is_open: bool,
    /// Up to where the journal has been taken in, and how many records that is.
    watermark: Watermark,
    /// Who gets the events there, as the journal says; whoever is configured, if it has not said.
    given: Option<Vec<Subscription>>,
    configured: Vec<Subscription>,
    tail: Tail,
    updates: Vec<DeliveryUpdate>,
    /// When the first of them came.
    updated_since: Option<Instant>,
    /// Notes for which the writer had no room.
    unwritten: Vec<Record>,
    topic_cache: TopicCache,
    last_lease: u64,
}

/// What the ledger does not have yet.
#[derive(Default)]
struct Tail {
    batches: VecDeque<JournalBatch>,
    contents: usize,
    bytes: usize,
    /// When the first of it came.
    since: Option<Instant>,
}

impl Tail {
    fn push(&mut self, batch: JournalBatch) {
        self.contents += batch.contents.len();
        self.bytes += batch.bytes();
        self.since.get_or_insert_with(Instant::now);
        match self.batches.back_mut() {
            Some(last) if last.contents.len() + batch.contents.len() <= TAIL_RECORDS => {
                last.append(batch)
            }
            _ => self.batches.push_back(batch),
        }
    }

    fn pop(&mut self) -> Option<JournalBatch> {
        let batch = self.batches.pop_front()?;
        self.contents -= batch.contents.len();
        self.bytes -= batch.bytes();
        self.since = (!self.batches.is_empty()).then(Instant::now);
        Some(batch)
    }

    fn give_back(&mut self, batch: JournalBatch) {
        self.contents += batch.contents.len();
        self.bytes += batch.bytes();
        self.since = Some(Instant::now());
        self.batches.push_front(batch);
    }
}

impl Queue {
    /// An empty one, whose outcomes go to the journal as `journal_sender`.
    pub(super) fn new(journal_sender: JournalSender) -> Self {
        Self {
            state: Mutex::default(),
            work: watch::Sender::new(0),
            journal_sender,
        }
    }

    /// Changes when there may be something new to claim.
    pub(super) fn work(&self) -> watch::Receiver<u64> {
        self.work.subscribe()
    }

    fn wake(&self) {
        self.work.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // For workers.

    /// Whether the ledger has to [fill](Self::fill) the window of `handler` first for it to hand out so many.
    pub(super) fn is_short_of(
        &self,
        handler: &HandlerName,
        at_most: usize,
        now: Timestamp,
    ) -> bool {
        let state = self.lock();
        let window = state.windows.get(handler);
        state.hands_out() && window.is_some_and(|window| window.is_short_of(at_most, now))
    }

    /// Hands out up to `at_most` deliveries of `handler` that are due at `now`.
    pub(super) fn claim(&self, handler: &HandlerName, at_most: usize, now: Timestamp) -> Claims {
        let mut state = self.lock();
        let hands_out = state.hands_out();
        let State {
            windows,
            topic_cache,
            last_lease,
            ..
        } = &mut *state;
        match windows.get_mut(handler) {
            Some(window) if window.is_active && hands_out => Claims {
                claims: window.claim(at_most, now, last_lease, topic_cache),
                next_due: window.next_due(now),
            },
            _ => Claims::default(),
        }
    }

    /// Whether it is time to [fill](Self::fill) the window of `handler`, though nobody waits for it.
    pub(super) fn wants_prefetch(&self, handler: &HandlerName) -> bool {
        let mut state = self.lock();
        let window = state.windows.get_mut(handler);
        window.is_some_and(|window| window.wants_prefetch())
    }

    /// Takes in how claimed deliveries went.
    pub(super) fn settle(&self, settlements: &[Settlement]) {
        let mut state = self.lock();
        for of_handler in settlements.chunk_by(|a, b| a.handler == b.handler) {
            state.settle(of_handler, &self.journal_sender);
        }
        drop(state);
        self.wake();
    }

    // For the indexer.

    /// Up to where the journal has been taken in.
    pub(super) fn watermark(&self) -> Watermark {
        self.lock().watermark
    }

    /// Whether any handler gets events as they come.
    pub(super) fn is_live(&self) -> bool {
        let state = self.lock();
        state.windows.values().any(|window| window.is_live)
    }

    /// Those topics of `events` of which nothing is known here.
    pub(super) fn unreported<'a>(
        &self,
        events: impl IntoIterator<Item = &'a Notification>,
    ) -> Vec<Topic> {
        let topic_cache = &self.lock().topic_cache;
        let events = events.into_iter();
        events
            .flat_map(|event| topic_cache.unknown(event).cloned())
            .collect()
    }

    /// Takes in what was read of the journal, if it is what comes next, with what the ledger knows of topics
    /// of which nothing was known here.
    pub(super) fn ingest(&self, batch: JournalBatch, topic_times: &[TopicTime]) {
        let mut state = self.lock();
        if state.watermark.through != batch.from {
            return;
        }
        state.topic_cache.insert(topic_times);
        batch
            .events()
            .for_each(|event| state.topic_cache.raise(event));
        for (position, content) in &batch.contents {
            match content {
                Content::Event(event) => state.push(*position, event),
                Content::Subscriptions(_, given) => state.given = Some(given.clone()),
                Content::Deliveries(_) | Content::Inventory(..) | Content::Other => {}
            }
        }
        state.watermark = Watermark {
            through: batch.through,
            records: batch.records,
        };
        state.tail.push(batch);
        drop(state);
        self.wake();
    }

    /// When the ledger is to take in the tail and the updates; `None` when there are none.
    pub(super) fn is_due_at(&self) -> Option<Instant> {
        let state = self.lock();
        let is_full = state.tail.contents >= TAIL_RECORDS || state.tail.bytes >= TAIL_BYTES;
        let are_many = state.updates.len() >= MANY_UPDATES;
        let tail = (state.tail.since, is_full, REST);
        let updates = (state.updated_since, are_many, UPDATES_REST);
        let due_at = |(since, at_once, rest): (Option<Instant>, bool, Duration)| {
            since.map(|since| if at_once { since } else { since + rest })
        };
        [tail, updates].into_iter().filter_map(due_at).min()
    }

    // For the ledger.

    /// Begins where the ledger has read the journal to, and where `given` get the events.
    pub(super) fn begin(&self, watermark: Watermark, given: Option<Vec<Subscription>>) {
        let mut state = self.lock();
        state.watermark = watermark;
        state.given = given;
        state.tail = Tail::default();
        state.is_open = false;
        for window in state.windows.values_mut() {
            window.reset();
        }
    }

    /// Hands out what there is from now on.
    pub(super) fn open(&self) {
        if !mem::replace(&mut self.lock().is_open, true) {
            self.wake();
        }
    }

    /// The next piece of the tail.
    pub(super) fn next(&self) -> Option<JournalBatch> {
        self.lock().tail.pop()
    }

    /// Takes back what the ledger could not take in.
    pub(super) fn give_back(&self, batch: Option<JournalBatch>, mut updates: Vec<DeliveryUpdate>) {
        let mut state = self.lock();
        let next = state
            .tail
            .batches
            .front()
            .map_or(state.watermark.through, |next| next.from);
        // Unless the journal is read from the beginning by now.
        if let Some(batch) = batch.filter(|batch| batch.through == next) {
            state.tail.give_back(batch);
        }
        updates.append(&mut state.updates);
        state.updated_since = (!updates.is_empty()).then(Instant::now);
        state.updates = updates;
    }

    /// Forgets what the ledger knows as well, if that is much. Not to be done between a fill and its claim.
    pub(super) fn forget_reports(&self) {
        let mut state = self.lock();
        let mut windows = state.windows.values();
        let is_needed = windows.any(|window| window.has_loaded());
        if state.topic_cache.are_many(is_needed) && state.tail.batches.is_empty() {
            state.topic_cache.clear();
            state
                .windows
                .values_mut()
                .for_each(|window| window.unload_all());
        }
    }

    /// The updates of deliveries of events before `through`, in the order of the events.
    pub(super) fn updates(&self, through: Position) -> Vec<DeliveryUpdate> {
        let mut state = self.lock();
        let updates = &mut state.updates;
        let mut taken: Vec<_> = updates
            .extract_if(.., |(position, _)| *position < through)
            .collect();
        state.updated_since = (!state.updates.is_empty()).then(Instant::now);
        drop(state);
        // One page of the database after the other is changed, and each once.
        taken.sort_by_key(|(position, _)| *position);
        taken
    }

    /// What the journal is still to be told.
    pub(super) fn unwritten(&self) -> Vec<Record> {
        mem::take(&mut self.lock().unwritten)
    }

    /// Hands out nothing any more to handlers that are not among `subscriptions`.
    pub(super) fn retain(&self, subscriptions: &[Subscription]) {
        let mut state = self.lock();
        for (handler, window) in &mut state.windows {
            if !subscriptions.iter().any(|one| one.handler == *handler) {
                window.is_active = false;
                window.reset();
            }
        }
    }

    /// Hands out to these from now on.
    pub(super) fn subscribe(&self, subscriptions: Vec<Subscription>) {
        let mut state = self.lock();
        for Subscription {
            handler, ordered, ..
        } in &subscriptions
        {
            let made = || Window::new(handler.clone(), window::ROOM);
            let window = state.windows.entry(handler.clone()).or_insert_with(made);
            window.activate(*ordered);
        }
        state.configured = subscriptions;
        drop(state);
        self.wake();
    }

    /// From where on the ledger has to be read to fill the window of `handler`; `None` when it is full, or
    /// live.
    pub(super) fn wants(&self, handler: &HandlerName, now: Timestamp) -> Option<Position> {
        let mut state = self.lock();
        let hands_out = state.is_open;
        let window = state.windows.get_mut(handler)?;
        window.wants(now).filter(|_| hands_out)
    }

    /// Fills the window of `handler` with open deliveries, which were read from the ledger after all
    /// [outcomes](Self::updates) up to there were taken in. With `last` there are no more: that says who gets
    /// the events of the tail, with which the window goes on, and then it is live.
    pub(super) fn fill(
        &self,
        handler: &HandlerName,
        open: Vec<(Position, OpenDelivery)>,
        last: Option<&[Subscription]>,
    ) {
        let mut state = self.lock();
        let State {
            windows,
            tail,
            updates,
            ..
        } = &mut *state;
        let Some(window) = windows.get_mut(handler) else {
            return;
        };
        // What has become of them meanwhile.
        let mut told: HashMap<Position, Vec<&DeliverySnapshot>> = HashMap::new();
        let first = open.first().map_or(window.next(), |(first, _)| *first);
        let known = updates.iter().filter(|(position, _)| *position >= first);
        for (position, outcome) in known.filter(|(_, told)| told.handler == *handler) {
            told.entry(*position).or_default().push(outcome);
        }
        let offer = |window: &mut Window, position, open: OpenDelivery| {
            let told = told.get(&position).into_iter().flatten();
            match told.copied().try_fold(open, OpenDelivery::after) {
                Some(open) => window.offer(position, open),
                None => window.pass(position),
            }
        };
        for (position, open) in open {
            offer(window, position, open);
        }
        let Some(mut given) = last else { return };
        let from = window.next();
        for (position, content) in tail.batches.iter().flat_map(|batch| &batch.contents) {
            match content {
                Content::Event(event) if *position >= from => {
                    let name = &event.notification.name;
                    if given
                        .iter()
                        .any(|one| one.handler == *handler && one.takes(name))
                    {
                        let due_at = event.notification.received_at;
                        offer(
                            window,
                            *position,
                            OpenDelivery::new(event.keys.clone(), due_at),
                        );
                    }
                }
                Content::Subscriptions(_, said) => given = said,
                _ => {}
            }
        }
        window.is_live = true;
    }

    /// Those deliveries of `handler` that are attempted next and whose events are not here.
    pub(super) fn unloaded(&self, handler: &HandlerName, now: Timestamp) -> Vec<Position> {
        let mut state = self.lock();
        let window = state.windows.get_mut(handler);
        window.map_or_else(Vec::new, |window| {
            window.make_room(now);
            window.unloaded(now)
        })
    }

    /// Notes that their events were read.
    pub(super) fn filled(&self, handler: &HandlerName) {
        if let Some(window) = self.lock().windows.get_mut(handler) {
            window.filled();
        }
    }

    /// Takes in the events of deliveries, with what the ledger knows of their topics. Whether there is room for
    /// more.
    pub(super) fn load(
        &self,
        handler: &HandlerName,
        events: Vec<(Position, Arc<Notification>)>,
        topic_times: &[TopicTime],
    ) -> bool {
        let mut state = self.lock();
        state.topic_cache.insert(topic_times);
        let Some(window) = state.windows.get_mut(handler) else {
            return false;
        };
        let mut events = events.into_iter();
        events.all(|(position, event)| window.load(position, event))
    }

    /// Parks a delivery whose event cannot be read, because `why`.
    pub(super) fn park(
        &self,
        handler: &HandlerName,
        position: Position,
        why: &str,
        now: Timestamp,
    ) {
        let mut state = self.lock();
        let window = state.windows.get_mut(handler);
        if let Some(told) = window.and_then(|window| window.park(position, why, now)) {
            state.tell(vec![told], &self.journal_sender);
        }
    }

    /// Takes in how a delivery stands that a command has changed: open again, or not.
    pub(super) fn replay(&self, handler: &HandlerName, position: Position, open: OpenDelivery) {
        let mut state = self.lock();
        if let Some(window) = state.windows.get_mut(handler) {
            window.replay(position, open);
        }
        drop(state);
        self.wake();
    }
}

impl State {
    fn hands_out(&self) -> bool {
        self.is_open && self.updates.len() < MOST_OUTCOMES
    }

    /// Gives an event that has just come to the windows that get it.
    fn push(&mut self, position: Position, event: &Event) {
        let Event {
            notification, keys, ..
        } = event;
        let is_reported = self.topic_cache.know(notification);
        let given = self.given.as_ref().unwrap_or(&self.configured);
        let is_given = |handler: &HandlerName| {
            let mut of_handler = given.iter().filter(|one| one.handler == *handler);
            of_handler.any(|one| one.takes(&notification.name))
        };
        for (handler, window) in &mut self.windows {
            if window.is_live && is_given(handler) {
                window.push(position, keys.as_ref(), notification, is_reported);
            }
        }
    }

    /// Takes in settlements of one handler.
    fn settle(&mut self, settlements: &[Settlement], journal_sender: &JournalSender) {
        let handler = settlements.first().map(|settlement| &settlement.handler);
        let Some(window) = handler.and_then(|handler| self.windows.get_mut(handler)) else {
            return;
        };
        let told = settlements
            .iter()
            .filter_map(|settlement| window.settle(settlement));
        let told = told.collect();
        self.tell(told, journal_sender);
    }

    /// Has the journal and the ledger told how deliveries of one handler stand.
    fn tell(&mut self, mut told: Vec<DeliveryUpdate>, journal_sender: &JournalSender) {
        for record in Record::of_deliveries(&told) {
            self.unwritten.extend(journal_sender.try_put(record));
        }
        if !told.is_empty() {
            self.updated_since.get_or_insert_with(Instant::now);
        }
        self.updates.append(&mut told);
    }
}
