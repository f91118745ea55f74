//! The queue that dispatch works from, in memory. It is a view of the journal, as the ledger is.
//!
//! # The path of an event
//!
//! ```text
//! journal ──► indexer ──► tail ───────────────► ledger
//!   writer      │          (not in the ledger)    │  fills windows that are not live
//!               └────────► windows ◄──────────────┘
//!                          claim │ ▲ settle
//!                                ▼ │
//!                              workers ──► updates ──► journal and ledger
//! ```
//!
//! The [indexer](super::indexer) puts each event into the [tail](tail::Tail), from which the ledger ingests it
//! later in large transactions, and into the window of each handler that gets it. So the event reaches its
//! handlers without SQL and without being read back. Mostly its deliveries are done when the ledger ingests it, and
//! then the ledger writes one row that never changes.
//!
//! A [window](window::Window) has the open deliveries of one handler, ordered by position and by
//! [ordering key](ordering::OrderingIndex). A window is *live* while it has all open deliveries. When there
//! are more than it has room for, it is no longer live: new deliveries are in the ledger only, and a cursor
//! marks the position up to which the window has them. When few of its deliveries can be attempted, the
//! ledger's thread fills the window from the cursor on, in large steps, together with the events of the next
//! deliveries. At the end of the ledger and of the tail the window is live again. A fill only reads. So it
//! precedes waiting transactions, and begins when half of the events that were read before are handed out.
//!
//! One failing number does not delay others: a full window accepts only deliveries that wait for none, and
//! [defers](deferred::Deferred) the others by their keys. When the window has no more deliveries of a
//! deferred key, the cursor returns to the first deferred delivery. A handler with [`window::LIMIT_FACTOR`]
//! times as many deliveries in retry gets no others until some of these are finished.
//!
//! A settlement changes the window at once. The new state of the delivery is queued for the journal's
//! writer, and added to the *updates*, which the next transaction of the ledger ingests. An update is a state
//! and not a change, so that it can be applied repeatedly and in any order. Commands change the ledger and
//! its outbox, and the ledger's thread passes the changes to the windows.
//!
//! # Costs and limits
//!
//! | | a delivery or event | limit |
//! |---|---|---|
//! | window, for each handler | about 200 bytes | [`window::CAPACITY`] deliveries, and more in retry; 4 MiB of events |
//! | tail | its record | twice [`tail::RECORDS`] or [`tail::BYTES`]: then the indexer waits for the ledger |
//! | updates | about 200 bytes | no claims are made while [`updates::MOST`] wait |
//! | [topic cache](topic_cache::TopicCache), for `superseded` | 40 bytes a topic | [`topic_cache::MOST`] topics |
//!
//! # Recovery
//!
//! Each transaction of the ledger ingests a piece of the tail, all updates of events up to there, and the
//! new watermark. An update is added before its record is queued for the journal, and updates are taken
//! after the piece of the tail was read. So the ledger has every record before its watermark, and those
//! behind it are read again when the store is opened. The queue hands out nothing before the journal has
//! been indexed up to its end. The end of the process loses the records that were queued and not written. A
//! loss of power also loses the records of the last second that were not synced.
//!
//! **Invariant:** no delivery is handed out twice without a settlement in between.
//!
//! **Invariant:** no operation of the queue waits for a disk or for the ledger.

mod deferred;
mod loaded_events;
mod open_delivery;
mod ordering;
mod tail;
#[cfg(test)]
mod tests;
mod topic_cache;
mod updates;
mod window;

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use jiff::Timestamp;
use tokio::sync::watch;

use self::{tail::Tail, topic_cache::TopicCache, updates::Updates, window::Window};
use super::{
    journal::{Journal, JournalBatch},
    record::{Content, Event, Record},
    segment::{Position, Watermark},
};
use crate::{
    event::{EventName, HandlerName, Notification, Topic},
    store::{Claims, DeliverySnapshot, Settlement, Subscription},
};

pub(super) use open_delivery::OpenDelivery;

/// The latest report of a topic in the ledger; `None` if the ledger has none.
pub(super) type TopicTime = (Topic, Option<Timestamp>);

/// The new state of a delivery of the event at a position.
pub(super) type DeliveryUpdate = (Position, DeliverySnapshot);

/// The queue, shared by the indexer, the ledger's thread and the store's callers.
pub(super) struct Queue {
    state: Mutex<State>,
    work: watch::Sender<u64>,
    journal: Journal,
}

#[derive(Default)]
struct State {
    windows: HashMap<HandlerName, Window>,
    /// Whether deliveries are handed out: the journal has been indexed up to its end.
    is_open: bool,
    /// The position up to which the journal has been indexed, and the number of records.
    watermark: Watermark,
    /// The subscriptions there that the journal has recorded. The configured ones count if it has
    /// none.
    recorded: Option<Vec<Subscription>>,
    configured: Vec<Subscription>,
    tail: Tail,
    updates: Updates,
    /// Records for which the writer's queue had no room.
    unwritten: Vec<Record>,
    topic_cache: TopicCache,
    last_lease: u64,
}

impl Queue {
    /// An empty queue that sends its records to `journal`.
    pub(super) fn new(journal: Journal) -> Self {
        Self {
            state: Mutex::default(),
            work: watch::Sender::new(0),
            journal,
        }
    }

    /// Changes when there may be a new delivery to claim.
    pub(super) fn work(&self) -> watch::Receiver<u64> {
        self.work.subscribe()
    }

    fn wake(&self) {
        self.work.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Used by workers.

    /// Whether the ledger must first [fill](Self::fill) the window of `handler` for this claim.
    pub(super) fn needs_fill(&self, handler: &HandlerName, at_most: usize, now: Timestamp) -> bool {
        let state = self.lock();
        let window = state.windows.get(handler);
        state.hands_out() && window.is_some_and(|window| window.needs_fill(at_most, now))
    }

    /// Claims up to `at_most` deliveries of `handler` that are due at `now`.
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

    /// Whether to [fill](Self::fill) the window of `handler` in advance.
    pub(super) fn needs_prefetch(&self, handler: &HandlerName) -> bool {
        let mut state = self.lock();
        let window = state.windows.get_mut(handler);
        window.is_some_and(|window| window.events.need_more())
    }

    /// Settles claimed deliveries.
    pub(super) fn settle(&self, settlements: &[Settlement]) {
        let mut state = self.lock();
        for of_handler in settlements.chunk_by(|a, b| a.handler == b.handler) {
            state.settle(of_handler, &self.journal);
        }
        drop(state);
        self.wake();
    }

    // Used by the indexer.

    /// The position up to which the journal has been indexed.
    pub(super) fn watermark(&self) -> Watermark {
        self.lock().watermark
    }

    /// Whether the window of any handler is live.
    pub(super) fn is_live(&self) -> bool {
        let state = self.lock();
        state.windows.values().any(|window| window.is_live)
    }

    /// The topics of `events` that the cache does not have.
    pub(super) fn missing_topics<'a>(
        &self,
        events: impl IntoIterator<Item = &'a Notification>,
    ) -> Vec<Topic> {
        let topic_cache = &self.lock().topic_cache;
        let events = events.into_iter();
        events
            .flat_map(|event| topic_cache.missing(event).cloned())
            .collect()
    }

    /// Adds a batch of the journal, if it is the next one, with the ledger's times of topics that
    /// the cache does not have.
    pub(super) fn ingest(&self, batch: JournalBatch, topic_times: &[TopicTime]) {
        let mut state = self.lock();
        if state.watermark.through != batch.from {
            return;
        }
        state.topic_cache.insert(topic_times);
        batch
            .events()
            .for_each(|event| state.topic_cache.update(event));
        for (position, content) in &batch.contents {
            match content {
                Content::Event(event) => state.push(*position, event),
                Content::Subscriptions(_, recorded) => state.recorded = Some(recorded.clone()),
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

    /// When the ledger is to ingest the tail and the updates; `None` if there are none.
    pub(super) fn is_due_at(&self) -> Option<Instant> {
        let state = self.lock();
        let due_at = [state.tail.is_due_at(), state.updates.is_due_at()];
        due_at.into_iter().flatten().min()
    }

    // Used by the ledger.

    /// Starts at the ledger's watermark, where the journal has `recorded` these subscriptions.
    pub(super) fn begin(&self, watermark: Watermark, recorded: Option<Vec<Subscription>>) {
        let mut state = self.lock();
        state.watermark = watermark;
        state.recorded = recorded;
        state.tail = Tail::default();
        state.is_open = false;
        for window in state.windows.values_mut() {
            window.reset();
        }
    }

    /// Begins to hand out deliveries.
    pub(super) fn open(&self) {
        if !mem::replace(&mut self.lock().is_open, true) {
            self.wake();
        }
    }

    /// The next piece of the tail.
    pub(super) fn next(&self) -> Option<JournalBatch> {
        self.lock().tail.pop()
    }

    /// Takes back what the ledger could not ingest.
    pub(super) fn give_back(&self, batch: Option<JournalBatch>, updates: Vec<DeliveryUpdate>) {
        let mut state = self.lock();
        let next = state.tail.begin().unwrap_or(state.watermark.through);
        // Unless the ledger has been reset meanwhile.
        if let Some(batch) = batch.filter(|batch| batch.through == next) {
            state.tail.give_back(batch);
        }
        state.updates.give_back(updates);
    }

    /// Empties the topic cache if it is large. Not to be called between a fill and its claim.
    pub(super) fn trim_topic_cache(&self) {
        let mut state = self.lock();
        let mut windows = state.windows.values();
        let is_needed = windows.any(|window| !window.events.is_empty());
        if state.topic_cache.is_large(is_needed) && state.tail.is_empty() {
            state.topic_cache.clear();
            for window in state.windows.values_mut() {
                window.events.clear();
            }
        }
    }

    /// Takes the updates of deliveries of events before `through`, in the order of the events.
    pub(super) fn updates(&self, through: Position) -> Vec<DeliveryUpdate> {
        self.lock().updates.take_before(through)
    }

    /// Takes the records for which the writer's queue had no room.
    pub(super) fn unwritten(&self) -> Vec<Record> {
        mem::take(&mut self.lock().unwritten)
    }

    /// Deactivates the windows of handlers that are not among `subscriptions`.
    pub(super) fn retain(&self, subscriptions: &[Subscription]) {
        let mut state = self.lock();
        for (handler, window) in &mut state.windows {
            if !subscriptions.iter().any(|one| one.handler == *handler) {
                window.is_active = false;
                window.reset();
            }
        }
    }

    /// Activates the windows of these subscriptions.
    pub(super) fn subscribe(&self, subscriptions: Vec<Subscription>) {
        let mut state = self.lock();
        for Subscription {
            handler, ordered, ..
        } in &subscriptions
        {
            let made = || Window::new(handler.clone(), window::CAPACITY);
            let window = state.windows.entry(handler.clone()).or_insert_with(made);
            window.activate(*ordered);
        }
        state.configured = subscriptions;
        drop(state);
        self.wake();
    }

    /// The position from which on the ledger must be read to fill the window of `handler`; `None`
    /// if it is full or live.
    pub(super) fn refill_from(&self, handler: &HandlerName, now: Timestamp) -> Option<Position> {
        let mut state = self.lock();
        let hands_out = state.is_open;
        let window = state.windows.get_mut(handler)?;
        window.refill_from(now).filter(|_| hands_out)
    }

    /// Fills the window of `handler` with open deliveries, which were read after the ledger had
    /// ingested all [updates](Self::updates) up to there. `last` marks the last ones, and has the
    /// subscriptions of the tail. The window is then filled from the tail, and is live.
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
        // Later updates of these deliveries.
        let mut later: HashMap<Position, Vec<&DeliverySnapshot>> = HashMap::new();
        let first = open.first().map_or(window.next(), |(first, _)| *first);
        let known = updates.iter().filter(|(position, _)| *position >= first);
        for (position, snapshot) in known.filter(|(_, snapshot)| snapshot.handler == *handler) {
            later.entry(*position).or_default().push(snapshot);
        }
        let offer = |window: &mut Window, position, open: OpenDelivery| {
            let later = later.get(&position).into_iter().flatten();
            match later.copied().try_fold(open, OpenDelivery::after) {
                Some(open) => window.offer(position, open),
                None => window.advance_past(position),
            }
        };
        for (position, open) in open {
            offer(window, position, open);
        }
        let Some(subscriptions) = last else { return };
        for (position, open) in tail.deliveries(handler, window.next(), subscriptions) {
            offer(window, position, open);
        }
        window.is_live = true;
    }

    /// The next deliveries of `handler` whose events are not loaded.
    pub(super) fn unloaded(&self, handler: &HandlerName, now: Timestamp) -> Vec<Position> {
        let mut state = self.lock();
        let window = state.windows.get_mut(handler);
        window.map_or_else(Vec::new, |window| {
            window.make_room(now);
            window.unloaded(now)
        })
    }

    /// Reports that their events were loaded.
    pub(super) fn filled(&self, handler: &HandlerName) {
        if let Some(window) = self.lock().windows.get_mut(handler) {
            window.events.filled();
        }
    }

    /// Loads the events of deliveries, with the ledger's times of their topics. Returns whether
    /// there is room for more.
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

    /// Parks a delivery whose event cannot be read.
    pub(super) fn park(
        &self,
        handler: &HandlerName,
        position: Position,
        why: &str,
        now: Timestamp,
    ) {
        let mut state = self.lock();
        let window = state.windows.get_mut(handler);
        if let Some(update) = window.and_then(|window| window.park(position, why, now)) {
            state.add_updates(vec![update], &self.journal);
        }
    }

    /// Applies the state of a delivery that a command has changed.
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
        self.is_open && !self.updates.is_full()
    }

    /// Adds a new event to the windows of its handlers.
    fn push(&mut self, position: Position, event: &Event) {
        let Event {
            notification, keys, ..
        } = event;
        let is_reported = self.topic_cache.contains_all(notification);
        let subscriptions = self.recorded.as_ref().unwrap_or(&self.configured);
        for (handler, window) in &mut self.windows {
            if window.is_live && is_subscribed(handler, subscriptions, &notification.name) {
                window.push(position, keys.as_ref(), notification, is_reported);
            }
        }
    }

    /// Settles deliveries of one handler.
    fn settle(&mut self, settlements: &[Settlement], journal: &Journal) {
        let handler = settlements.first().map(|settlement| &settlement.handler);
        let Some(window) = handler.and_then(|handler| self.windows.get_mut(handler)) else {
            return;
        };
        let updates = settlements
            .iter()
            .filter_map(|settlement| window.settle(settlement));
        let updates = updates.collect();
        self.add_updates(updates, journal);
    }

    /// Adds updates of one handler, and queues records of them for the journal.
    fn add_updates(&mut self, updates: Vec<DeliveryUpdate>, journal: &Journal) {
        for record in Record::of_deliveries(&updates) {
            self.unwritten.extend(journal.try_put(record));
        }
        self.updates.add(updates);
    }
}

/// Whether `handler` has a subscription that takes an event called `name`.
fn is_subscribed(handler: &HandlerName, subscriptions: &[Subscription], name: &EventName) -> bool {
    let mut of_handler = subscriptions.iter().filter(|one| one.handler == *handler);
    of_handler.any(|one| one.takes(name))
}
