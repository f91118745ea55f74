//! The open deliveries of one handler in memory. Pure: no I/O, and time is an argument.
//!
//! **Invariant:** every open delivery before [`Window::next`] is in the window or deferred. If the
//! window is live, every open delivery is.
//!
//! **Invariant:** a ready delivery is in the window, is not in flight, and is free by its ordering
//! keys.

mod filling;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use foldhash::HashMap;
use jiff::Timestamp;

use super::{
    deferred::Deferred, loaded_events::LoadedEvents, open_delivery::OpenDelivery,
    ordering::OrderingIndex, topic_cache::TopicCache,
};
use crate::{
    event::{HandlerName, Notification, OrderingKeys},
    store::{Claim, DeliverySnapshot, Lease, Settlement, embedded::segment::Position},
};

/// The deliveries in a window: about 3 MB. Beyond them, only deliveries that wait for none are
/// accepted.
pub(super) const CAPACITY: usize = 16 << 10;

/// A window accepts at most this many times its capacity. All of these are in retry then, and
/// nothing waits behind them.
pub(super) const LIMIT_FACTOR: usize = 4;

/// The window of one handler.
#[derive(Debug)]
pub(super) struct Window {
    handler: HandlerName,
    /// The capacity in deliveries.
    capacity: usize,
    is_ordered: bool,
    /// Whether deliveries are handed out.
    pub(super) is_active: bool,
    /// Whether the window gets new events directly. Otherwise the ledger fills it.
    pub(super) is_live: bool,
    /// The position from which on the ledger is to be read.
    next: Position,
    entries: BTreeMap<Position, OpenDelivery>,
    /// The events of deliveries that are loaded.
    pub(super) events: LoadedEvents,
    ordering: OrderingIndex,
    /// The ready deliveries, by due time.
    ready: BTreeSet<(Timestamp, Position)>,
    deferred: Deferred,
    /// Whether a deferred delivery may have become free.
    is_unblocked: bool,
    leases: HashMap<Lease, Position>,
    /// The deliveries in flight, as they were handed out.
    in_flight: HashMap<Position, OpenDelivery>,
    /// The number of deliveries in flight that are not among the entries, since the window was
    /// reset.
    detached: usize,
}

impl Window {
    pub(super) fn new(handler: HandlerName, capacity: usize) -> Self {
        Self {
            handler,
            capacity,
            is_ordered: false,
            is_active: false,
            is_live: false,
            next: Position::default(),
            entries: BTreeMap::new(),
            events: LoadedEvents::default(),
            ordering: OrderingIndex::default(),
            ready: BTreeSet::new(),
            deferred: Deferred::default(),
            is_unblocked: false,
            leases: HashMap::default(),
            in_flight: HashMap::default(),
            detached: 0,
        }
    }

    /// Empties the window, except for deliveries in flight. The ledger fills it again.
    pub(super) fn reset(&mut self) {
        let empty = Self::new(self.handler.clone(), self.capacity);
        let before = mem::replace(self, empty);
        (self.is_ordered, self.is_active) = (before.is_ordered, before.is_active);
        (self.leases, self.in_flight) = (before.leases, before.in_flight);
        self.detached = self.in_flight.len();
    }

    /// Begins to hand out deliveries, in order or not.
    pub(super) fn activate(&mut self, is_ordered: bool) {
        if !self.is_active || self.is_ordered != is_ordered {
            self.reset();
        }
        (self.is_active, self.is_ordered) = (true, is_ordered);
    }

    /// Adds a new event to a live window. `is_reported` says whether the topic cache has the
    /// event's topics.
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
        // Events of waiting deliveries would take the room of ready ones.
        let is_next = self.ready.contains(&(event.received_at, position));
        if is_reported && is_next && self.events.has_room() {
            self.load(position, event.clone());
        }
    }

    /// Adds an open delivery at or behind [`next`](Self::next), or defers it.
    pub(super) fn offer(&mut self, position: Position, mut open: OpenDelivery) {
        self.advance_past(position);
        if self.entries.contains_key(&position) {
            return;
        }
        open.keys = open.keys.filter(|_| self.is_ordered);
        match &open.keys {
            Some(keys)
                if self.deferred.takes(keys)
                    || self.is_full() && self.ordering.shares_a_key(keys) =>
            {
                self.deferred.add(position, keys);
            }
            _ => self.insert(position, open),
        }
    }

    /// Moves the cursor behind `position`.
    pub(super) fn advance_past(&mut self, position: Position) {
        self.next = self.next.max(position.next());
    }

    /// The cursor: the position from which on the window has no deliveries.
    pub(super) const fn next(&self) -> Position {
        self.next
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= self.capacity
    }

    /// Applies the state of a replayed delivery.
    pub(super) fn replay(&mut self, position: Position, open: OpenDelivery) {
        match self.entries.get_mut(&position) {
            Some(entry) => {
                self.ready.remove(&(entry.due_at, position));
                // The delivery keeps its place.
                let keys = entry.keys.take();
                *entry = OpenDelivery { keys, ..open };
                self.update_readiness(position);
            }
            // The delivery will be read with the others.
            None if !self.is_live && position >= self.next => {}
            // Deliveries before it may be deferred, and deliveries behind it may not be.
            None if self.deferred.first().is_some_and(|first| first < position) => self.reset(),
            None => {
                let keys = open.keys.filter(|_| self.is_ordered);
                self.insert(position, OpenDelivery { keys, ..open });
            }
        }
    }

    fn insert(&mut self, position: Position, open: OpenDelivery) {
        let keys = open.keys.clone();
        self.entries.insert(position, open);
        if let Some(keys) = &keys {
            self.ordering.add(position, keys);
        }
        if self.in_flight.contains_key(&position) {
            self.detached -= 1;
            keys.iter()
                .for_each(|keys| self.ordering.set_in_flight(keys, true));
        }
        keys.iter().for_each(|keys| self.update_neighbours(keys));
        self.update_readiness(position);
    }

    /// Updates whether a delivery is ready.
    fn update_readiness(&mut self, position: Position) {
        let Some(open) = self.entries.get(&position) else {
            return;
        };
        let is_free =
            |keys| self.ordering.is_free(position, keys) && !self.waits_for_detached(keys);
        let place = (open.due_at, position);
        if !self.in_flight.contains_key(&position) && open.keys.as_ref().is_none_or(is_free) {
            self.ready.insert(place);
        } else {
            self.ready.remove(&place);
        }
    }

    /// Whether a delivery in flight that is not among the entries shares one of these keys.
    fn waits_for_detached(&self, keys: &OrderingKeys) -> bool {
        let mut in_flight =
            self.in_flight
                .iter()
                .take(if self.detached > 0 { usize::MAX } else { 0 });
        in_flight.any(|(position, open)| {
            let shares = open
                .keys
                .as_ref()
                .is_some_and(|other| other.share_a_key_with(keys));
            shares && !self.entries.contains_key(position)
        })
    }

    fn update_neighbours(&mut self, keys: &OrderingKeys) {
        for position in self.ordering.neighbours(keys) {
            self.update_readiness(position);
        }
    }

    /// Removes a finished delivery.
    fn remove(&mut self, position: Position) {
        let Some(open) = self.entries.remove(&position) else {
            return;
        };
        self.ready.remove(&(open.due_at, position));
        self.events.take(position);
        if let Some(keys) = &open.keys {
            self.ordering.remove(position, keys);
            self.update_neighbours(keys);
            self.is_unblocked |= self.deferred.is_unblocked(keys, &self.ordering);
        }
    }

    /// The ready deliveries that are due at `now`.
    fn due(&self, now: Timestamp) -> impl Iterator<Item = Position> {
        let ready = self.ready.iter();
        ready
            .take_while(move |(due_at, _)| *due_at <= now)
            .map(|(_, position)| *position)
    }

    /// Claims up to `at_most` loaded deliveries that are due at `now`, oldest first.
    pub(super) fn claim(
        &mut self,
        at_most: usize,
        now: Timestamp,
        last_lease: &mut u64,
        topic_cache: &TopicCache,
    ) -> Vec<Claim> {
        let due = self.due(now).take(at_most);
        let due: Vec<_> = due
            .take_while(|position| self.events.contains(*position))
            .collect();
        let mut claims = Vec::with_capacity(due.len());
        for position in due {
            let Some(open) = self.entries.get(&position).cloned() else {
                continue;
            };
            let Some(notification) = self.events.take(position) else {
                continue;
            };
            self.ready.remove(&(open.due_at, position));
            if let Some(keys) = &open.keys {
                self.ordering.set_in_flight(keys, true);
            }
            *last_lease += 1;
            let lease = Lease(*last_lease);
            claims.push(Claim {
                superseded: topic_cache.is_superseded(&notification),
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

    /// The next due time after `now`.
    pub(super) fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        let mut later = self.ready.range((now, Position::LAST)..);
        later.next().map(|(due_at, _)| *due_at)
    }

    /// Settles a delivery. Returns its new state if it has changed.
    pub(super) fn settle(
        &mut self,
        settlement: &Settlement,
    ) -> Option<(Position, DeliverySnapshot)> {
        let position = self.leases.remove(&settlement.lease)?;
        let in_flight = self.in_flight.remove(&position)?;
        let keys = match self.entries.get(&position) {
            Some(open) => open.keys.clone(),
            None => in_flight.keys.clone(),
        };
        let snapshot = match self.entries.contains_key(&position) {
            true => self.settle_entry(position, in_flight, settlement),
            false => {
                self.detached -= 1;
                in_flight
                    .judge(settlement, self.is_active)
                    .map(|(_, snapshot)| snapshot)
            }
        };
        keys.iter().for_each(|keys| self.update_neighbours(keys));
        snapshot.map(|snapshot| (position, snapshot))
    }

    fn settle_entry(
        &mut self,
        position: Position,
        in_flight: OpenDelivery,
        settlement: &Settlement,
    ) -> Option<DeliverySnapshot> {
        let open = self.entries.get(&position)?;
        if let Some(keys) = &open.keys {
            self.ordering.set_in_flight(keys, false);
        }
        // If a replay was requested during the attempt, the delivery is due again whatever the
        // result.
        let is_owed = open.replays != in_flight.replays;
        let judged = if is_owed {
            None
        } else {
            in_flight.judge(settlement, self.is_active)
        };
        let snapshot = judged.map(|(open, snapshot)| {
            if let Some(entry) = self.entries.get_mut(&position) {
                let keys = entry.keys.take();
                *entry = OpenDelivery { keys, ..open };
            }
            snapshot
        });
        match &snapshot {
            Some(snapshot) if snapshot.is_over() => self.remove(position),
            _ => self.update_readiness(position),
        }
        snapshot
    }

    /// Parks a delivery that cannot be attempted. Returns its new state.
    pub(super) fn park(
        &mut self,
        position: Position,
        why: &str,
        now: Timestamp,
    ) -> Option<(Position, DeliverySnapshot)> {
        let open = self.entries.get(&position)?;
        let snapshot = open.park(&self.handler, why, now);
        self.remove(position);
        Some((position, snapshot))
    }
}
