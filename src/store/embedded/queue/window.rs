//! The open deliveries of one handler, as far as they are in memory. Pure: no I/O, the clock passed in.
//!
//! **Invariant:** every open delivery before [`Window::next`] is here or was passed over, and so is every
//! one at all while the window is live.
//!
//! **Invariant:** what is ready is here, is not being attempted, and is free by its ordering keys.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use foldhash::HashMap;
use jiff::Timestamp;

use super::{
    deferred::Deferred, open_delivery::OpenDelivery, ordering::OrderingIndex,
    topic_cache::TopicCache,
};
use crate::{
    event::{HandlerName, Notification, OrderingKeys},
    store::{Claim, DeliverySnapshot, Lease, Settlement, embedded::segment::Position},
};

/// How many deliveries are in a window: some 3 MB. Beyond them only those come in that wait for no other.
pub(super) const ROOM: usize = 16 << 10;

/// How many times as many come in at all: those that wait for their next attempts, then, and nothing behind
/// them.
pub(super) const MOST: usize = 4;

/// How many bytes of events are in a window, besides the last one.
const BYTES: usize = 4 << 20;

/// How many deliveries that can be attempted are enough for now.
const ENOUGH: usize = 1024;

/// Of how many deliveries the events are read at once.
const AHEAD: usize = 4096;

/// How many events in a window make it likely that the ledger has more.
const MANY: usize = 256;

/// What part of the room they are where they are enough though it is full.
const FEW: usize = 128;

/// One handler's window.
#[derive(Debug)]
pub(super) struct Window {
    handler: HandlerName,
    /// For how many deliveries there is room.
    room: usize,
    is_ordered: bool,
    /// Whether anything is handed out.
    pub(super) is_active: bool,
    /// Whether it gets events as they come. Otherwise it is filled from the ledger.
    pub(super) is_live: bool,
    /// From where on the ledger is to be read.
    next: Position,
    entries: BTreeMap<Position, Entry>,
    ordering: OrderingIndex,
    /// When each is due that may be attempted.
    ready: BTreeSet<(Timestamp, Position)>,
    deferred: Deferred,
    /// Whether something that was passed over may be free by now.
    is_unblocked: bool,
    leases: HashMap<Lease, Position>,
    /// What is being attempted, as it was when it was handed out.
    in_flight: HashMap<Position, OpenDelivery>,
    /// How many of these are not among the entries, since the window was emptied.
    absent: usize,
    /// How many events are here, and how many bytes of them.
    loaded: usize,
    bytes: usize,
    /// With how many events left more are read ahead; 0 when none are.
    refill_below: usize,
}

#[derive(Debug)]
struct Entry {
    open: OpenDelivery,
    event: Option<Arc<Notification>>,
}

impl Window {
    pub(super) fn new(handler: HandlerName, room: usize) -> Self {
        Self {
            handler,
            room,
            is_ordered: false,
            is_active: false,
            is_live: false,
            next: Position::default(),
            entries: BTreeMap::new(),
            ordering: OrderingIndex::default(),
            ready: BTreeSet::new(),
            deferred: Deferred::default(),
            is_unblocked: false,
            leases: HashMap::default(),
            in_flight: HashMap::default(),
            absent: 0,
            loaded: 0,
            bytes: 0,
            refill_below: 0,
        }
    }

    /// Empties it, but for what is being attempted: it is filled from the ledger again.
    pub(super) fn reset(&mut self) {
        let empty = Self::new(self.handler.clone(), self.room);
        let before = mem::replace(self, empty);
        (self.is_ordered, self.is_active) = (before.is_ordered, before.is_active);
        (self.leases, self.in_flight) = (before.leases, before.in_flight);
        self.absent = self.in_flight.len();
    }

    /// Has it handed out from now on, in order or not.
    pub(super) fn activate(&mut self, is_ordered: bool) {
        if !self.is_active || self.is_ordered != is_ordered {
            self.reset();
        }
        (self.is_active, self.is_ordered) = (true, is_ordered);
    }

    /// Takes in an event that has just come, while the window is live. `is_reported` says whether all is known
    /// that it takes to hand the event out.
    pub(super) fn push(
        &mut self,
        position: Position,
        keys: Option<&OrderingKeys>,
        event: &Arc<Notification>,
        is_reported: bool,
    ) {
        if self.is_full() {
            (self.is_live, self.next) = (false, position);
            return;
        }
        self.offer(
            position,
            OpenDelivery::new(keys.cloned(), event.received_at),
        );
        // What waits for others would take the room of what does not.
        let is_next = self.ready.contains(&(event.received_at, position));
        if is_reported && is_next && self.bytes < BYTES {
            self.load(position, event.clone());
        }
    }

    /// Takes in an open delivery at or behind [`next`](Self::next), or passes it over for want of room.
    pub(super) fn offer(&mut self, position: Position, mut open: OpenDelivery) {
        self.pass(position);
        if self.entries.contains_key(&position) {
            return;
        }
        open.keys = open.keys.filter(|_| self.is_ordered);
        match &open.keys {
            Some(keys)
                if self.deferred.takes(keys) || self.is_full() && self.ordering.has(keys) =>
            {
                self.deferred.add(position, keys);
            }
            _ => self.insert(position, open),
        }
    }

    /// Goes on behind `position`.
    pub(super) fn pass(&mut self, position: Position) {
        self.next = self.next.max(position.next());
    }

    /// From where on there is nothing here yet.
    pub(super) const fn next(&self) -> Position {
        self.next
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= self.room
    }

    /// Takes in a delivery that a command has made again, as it stands since.
    pub(super) fn replay(&mut self, position: Position, open: OpenDelivery) {
        match self.entries.get_mut(&position) {
            Some(entry) => {
                self.ready.remove(&(entry.open.due_at, position));
                // It keeps its place.
                let keys = entry.open.keys.take();
                entry.open = OpenDelivery { keys, ..open };
                self.look_again(position);
            }
            // It comes with the others.
            None if !self.is_live && position >= self.next => {}
            // Something before it may have been passed over, and something behind it not.
            None if self.deferred.first().is_some_and(|first| first < position) => self.reset(),
            None => {
                let keys = open.keys.filter(|_| self.is_ordered);
                self.insert(position, OpenDelivery { keys, ..open });
            }
        }
    }

    fn insert(&mut self, position: Position, open: OpenDelivery) {
        let keys = open.keys.clone();
        self.entries.insert(position, Entry { open, event: None });
        if let Some(keys) = &keys {
            self.ordering.add(position, keys);
        }
        if self.in_flight.contains_key(&position) {
            self.absent -= 1;
            keys.iter().for_each(|keys| self.ordering.hold(keys, true));
        }
        keys.iter().for_each(|keys| self.look_at_neighbours(keys));
        self.look_again(position);
    }

    /// Notes whether a delivery is ready.
    fn look_again(&mut self, position: Position) {
        let Some(Entry { open, .. }) = self.entries.get(&position) else {
            return;
        };
        let is_free = |keys| self.ordering.is_free(position, keys) && !self.waits_for_absent(keys);
        let place = (open.due_at, position);
        if !self.in_flight.contains_key(&position) && open.keys.as_ref().is_none_or(is_free) {
            self.ready.insert(place);
        } else {
            self.ready.remove(&place);
        }
    }

    /// Whether something that shares a key with these is being attempted and is not among the entries.
    fn waits_for_absent(&self, keys: &OrderingKeys) -> bool {
        let mut in_flight =
            self.in_flight
                .iter()
                .take(if self.absent > 0 { usize::MAX } else { 0 });
        in_flight.any(|(position, open)| {
            let shares = open
                .keys
                .as_ref()
                .is_some_and(|other| other.share_a_key_with(keys));
            shares && !self.entries.contains_key(position)
        })
    }

    fn look_at_neighbours(&mut self, keys: &OrderingKeys) {
        for position in self.ordering.neighbours(keys) {
            self.look_again(position);
        }
    }

    /// Removes a delivery that is open no longer and not being attempted.
    fn remove(&mut self, position: Position) {
        let Some(Entry { open, event }) = self.entries.remove(&position) else {
            return;
        };
        self.ready.remove(&(open.due_at, position));
        if let Some(event) = event {
            (self.bytes, self.loaded) = (self.bytes - size(&event), self.loaded - 1);
        }
        if let Some(keys) = &open.keys {
            self.ordering.remove(position, keys);
            self.look_at_neighbours(keys);
            self.is_unblocked |= self.deferred.is_unblocked(keys, &self.ordering);
        }
    }

    /// From where on the ledger has to be read for more; `None` when there is enough that is due at `now`, or
    /// no more.
    pub(super) fn wants(&mut self, now: Timestamp) -> Option<Position> {
        if let Some(first) = self.deferred.first()
            && (self.is_unblocked || self.entries.is_empty())
        {
            (self.deferred, self.is_unblocked) = (Deferred::default(), false);
            (self.is_live, self.next) = (false, first);
        }
        let (count, ready) = (self.entries.len(), self.due(now).take(ENOUGH).count());
        let few = (self.room / FEW).max(1);
        // A full window passes over what it reads, and has to read that again: it is filled by halves.
        let is_half_full = 2 * count >= self.room;
        let is_enough =
            ready >= ENOUGH || is_half_full && ready >= few || count >= MOST * self.room;
        (self.is_active && !self.is_live && !is_enough).then_some(self.next)
    }

    /// Whether it cannot hand out so many at `now` without the ledger, which may have more.
    pub(super) fn is_short_of(&self, count: usize, now: Timestamp) -> bool {
        let mut due = self.due(now).take(count);
        let load = due
            .by_ref()
            .take_while(|position| self.is_loaded(*position))
            .count();
        let is_behind = || {
            !self.is_live
                || self.is_unblocked
                || self.entries.is_empty() && self.deferred.first().is_some()
        };
        self.is_active && load < count && (self.due(now).nth(load).is_some() || is_behind())
    }

    fn due(&self, now: Timestamp) -> impl Iterator<Item = Position> {
        let ready = self.ready.iter();
        ready
            .take_while(move |(due_at, _)| *due_at <= now)
            .map(|(_, position)| *position)
    }

    fn is_loaded(&self, position: Position) -> bool {
        let entry = self.entries.get(&position);
        entry.is_some_and(|entry| entry.event.is_some())
    }

    /// Those that are attempted next and whose events are not here: what is due at `now`, and behind it the
    /// oldest of those that wait for what moves.
    pub(super) fn unloaded(&self, now: Timestamp) -> Vec<Position> {
        let moves = |entry: &Entry| {
            let mut heads = entry
                .open
                .keys
                .iter()
                .flat_map(|keys| self.ordering.heads(keys));
            heads.all(|head| {
                self.entries
                    .get(&head)
                    .is_some_and(|head| head.open.due_at <= now)
            })
        };
        let lacks = |position: &Position, entry: &Entry| {
            entry.event.is_none() && !self.in_flight.contains_key(position)
        };
        let due = self.due(now).take(ENOUGH).filter(|position| {
            let entry = self.entries.get(position);
            entry.is_some_and(|entry| lacks(position, entry))
        });
        let mut due: Vec<_> = due.collect();
        due.sort_unstable();
        let oldest = self.entries.iter().take(AHEAD);
        let oldest = oldest.filter(|(position, entry)| {
            lacks(position, entry) && due.binary_search(position).is_err() && moves(entry)
        });
        let oldest: Vec<_> = oldest.map(|(position, _)| *position).collect();
        [due, oldest].concat()
    }

    /// Makes room for the events of those that are attempted next, where what waits for them has taken it.
    pub(super) fn make_room(&mut self, now: Timestamp) {
        let is_short = self
            .due(now)
            .next()
            .is_some_and(|position| !self.is_loaded(position));
        if is_short && self.bytes >= BYTES {
            self.unload_all();
        }
    }

    /// Whether it is time to read more events ahead, though enough are here for the moment.
    pub(super) fn wants_prefetch(&mut self) -> bool {
        let is_time = self.loaded < self.refill_below;
        if is_time {
            self.refill_below = 0;
        }
        is_time
    }

    /// Notes that events were read. Where many were, there may be more: these are read while the first half
    /// of them is handed out, so that handlers do not wait for the ledger.
    pub(super) fn filled(&mut self) {
        let are_many = self.loaded >= MANY;
        self.refill_below = if are_many { self.loaded / 2 } else { 0 };
    }

    /// Takes in the event of a delivery. Whether there is room for more.
    pub(super) fn load(&mut self, position: Position, event: Arc<Notification>) -> bool {
        if let Some(entry) = self.entries.get_mut(&position)
            && entry.event.is_none()
        {
            self.bytes += size(&event);
            self.loaded += 1;
            entry.event = Some(event);
        }
        self.bytes < BYTES
    }

    /// Whether the event of any delivery is here.
    pub(super) const fn has_loaded(&self) -> bool {
        self.loaded > 0
    }

    /// Lets go of all events.
    pub(super) fn unload_all(&mut self) {
        (self.bytes, self.loaded) = (0, 0);
        self.entries
            .values_mut()
            .for_each(|entry| entry.event = None);
    }

    /// Hands out up to `at_most` deliveries that are due at `now`, oldest first.
    pub(super) fn claim(
        &mut self,
        at_most: usize,
        now: Timestamp,
        last_lease: &mut u64,
        topic_cache: &TopicCache,
    ) -> Vec<Claim> {
        let due = self.due(now).take(at_most);
        let due: Vec<_> = due
            .take_while(|position| self.is_loaded(*position))
            .collect();
        let mut claims = Vec::with_capacity(due.len());
        for position in due {
            let Some(entry) = self.entries.get_mut(&position) else {
                continue;
            };
            let Some(notification) = entry.event.take() else {
                continue;
            };
            (self.bytes, self.loaded) = (self.bytes - size(&notification), self.loaded - 1);
            self.ready.remove(&(entry.open.due_at, position));
            let open = entry.open.clone();
            if let Some(keys) = &open.keys {
                self.ordering.hold(keys, true);
            }
            *last_lease += 1;
            let lease = Lease(*last_lease);
            claims.push(Claim {
                superseded: topic_cache.supersede(&notification),
                notification,
                lease,
                attempt: open.attempts + 1,
                since: open.since.unwrap_or(now),
                replay: open.replay.clone(),
                replays: open.replays,
            });
            self.leases.insert(lease, position);
            self.in_flight.insert(position, open);
        }
        claims
    }

    /// When the next one is due that is not due at `now`.
    pub(super) fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        let mut later = self.ready.range((now, Position::LAST)..);
        later.next().map(|(due_at, _)| *due_at)
    }

    /// Takes in how an attempt went, and says how the delivery stands since, if that has changed.
    pub(super) fn settle(
        &mut self,
        settlement: &Settlement,
    ) -> Option<(Position, DeliverySnapshot)> {
        let position = self.leases.remove(&settlement.lease)?;
        let in_flight = self.in_flight.remove(&position)?;
        let keys = match self.entries.get(&position) {
            Some(entry) => entry.open.keys.clone(),
            None => in_flight.keys.clone(),
        };
        let snapshot = match self.entries.contains_key(&position) {
            true => self.settle_entry(position, in_flight, settlement),
            false => {
                self.absent -= 1;
                in_flight
                    .judge(settlement, self.is_active)
                    .map(|(_, snapshot)| snapshot)
            }
        };
        keys.iter().for_each(|keys| self.look_at_neighbours(keys));
        snapshot.map(|snapshot| (position, snapshot))
    }

    fn settle_entry(
        &mut self,
        position: Position,
        in_flight: OpenDelivery,
        settlement: &Settlement,
    ) -> Option<DeliverySnapshot> {
        let entry = self.entries.get_mut(&position)?;
        if let Some(keys) = &entry.open.keys {
            self.ordering.hold(keys, false);
        }
        // A replay that was asked for during the attempt is owed whatever came of the attempt.
        let is_owed = entry.open.replays != in_flight.replays;
        let judged = if is_owed {
            None
        } else {
            in_flight.judge(settlement, self.is_active)
        };
        let snapshot = judged.map(|(open, snapshot)| {
            if let Some(entry) = self.entries.get_mut(&position) {
                let keys = entry.open.keys.take();
                entry.open = OpenDelivery { keys, ..open };
            }
            snapshot
        });
        match &snapshot {
            Some(snapshot) if snapshot.is_over() => self.remove(position),
            _ => self.look_again(position),
        }
        snapshot
    }

    /// Parks a delivery that cannot be attempted, because `why`, and says how it stands since.
    pub(super) fn park(
        &mut self,
        position: Position,
        why: &str,
        now: Timestamp,
    ) -> Option<(Position, DeliverySnapshot)> {
        let entry = self.entries.get(&position)?;
        let snapshot = entry.open.park(&self.handler, why, now);
        self.remove(position);
        Some((position, snapshot))
    }
}

/// About how many bytes an event takes in memory.
fn size(event: &Notification) -> usize {
    512 + event.body.len()
}
