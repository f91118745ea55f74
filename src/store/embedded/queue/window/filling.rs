//! When a window is filled, with how many deliveries, and whose events are loaded.

use std::sync::Arc;

use jiff::Timestamp;

use super::{LIMIT_FACTOR, Window};
use crate::{
    event::Notification,
    store::embedded::{
        queue::{deferred::Deferred, open_delivery::OpenDelivery},
        segment::Position,
    },
};

/// The number of ready deliveries at which no more are read.
const ENOUGH_READY: usize = 1024;

/// The number of deliveries whose events are loaded in advance.
const PREFETCHED: usize = 4096;

/// The fraction of the capacity, as its divisor, at which ready deliveries are enough in a full
/// window.
const READY_FRACTION: usize = 128;

impl Window {
    /// The position from which on the ledger must be read for more deliveries; `None` if enough are
    /// due at `now`, or there are no more.
    pub(in super::super) fn refill_from(&mut self, now: Timestamp) -> Option<Position> {
        if let Some(first) = self.deferred.first()
            && (self.is_unblocked || self.entries.is_empty())
        {
            (self.deferred, self.is_unblocked) = (Deferred::default(), false);
            (self.is_live, self.next) = (false, first);
        }
        let (count, ready) = (self.entries.len(), self.due(now).take(ENOUGH_READY).count());
        let few = (self.capacity / READY_FRACTION).max(1);
        // A full window defers what it reads, and must read that again. So a half-full one is
        // enough.
        let is_half_full = 2 * count >= self.capacity;
        let is_enough = ready >= ENOUGH_READY
            || is_half_full && ready >= few
            || count >= LIMIT_FACTOR * self.capacity;
        (self.is_active && !self.is_live && !is_enough).then_some(self.next)
    }

    /// Whether a claim of `count` deliveries at `now` needs the ledger, which may have more.
    pub(in super::super) fn needs_fill(&self, count: usize, now: Timestamp) -> bool {
        let mut due = self.due(now).take(count);
        let loaded = due
            .by_ref()
            .take_while(|position| self.events.contains(*position))
            .count();
        let is_behind = || {
            !self.is_live
                || self.is_unblocked
                || self.entries.is_empty() && self.deferred.first().is_some()
        };
        self.is_active && loaded < count && (self.due(now).nth(loaded).is_some() || is_behind())
    }

    /// The next deliveries whose events are not loaded: those that are due at `now`, and the oldest
    /// of those that wait for due ones.
    pub(in super::super) fn unloaded(&self, now: Timestamp) -> Vec<Position> {
        let moves = |open: &OpenDelivery| {
            let mut first_of_each_key = open
                .keys
                .iter()
                .flat_map(|keys| self.ordering.first_of_each_key(keys));
            first_of_each_key.all(|head| {
                self.entries
                    .get(&head)
                    .is_some_and(|head| head.due_at <= now)
            })
        };
        let lacks = |position: Position| {
            !self.events.contains(position) && !self.in_flight.contains_key(&position)
        };
        let due = self.due(now).take(ENOUGH_READY);
        let mut due: Vec<_> = due.filter(|position| lacks(*position)).collect();
        due.sort_unstable();
        let oldest = self.entries.iter().take(PREFETCHED);
        let oldest = oldest.filter(|(position, open)| {
            lacks(**position) && due.binary_search(position).is_err() && moves(open)
        });
        let oldest: Vec<_> = oldest.map(|(position, _)| *position).collect();
        [due, oldest].concat()
    }

    /// Unloads all events if those of waiting deliveries have taken the room of the next ones.
    pub(in super::super) fn make_room(&mut self, now: Timestamp) {
        let is_short = self
            .due(now)
            .next()
            .is_some_and(|position| !self.events.contains(position));
        if is_short && !self.events.has_room() {
            self.events.clear();
        }
    }

    /// Loads the event of a delivery. Returns whether there is room for more.
    pub(in super::super) fn load(&mut self, position: Position, event: Arc<Notification>) -> bool {
        if self.entries.contains_key(&position) {
            self.events.insert(position, event);
        }
        self.events.has_room()
    }
}
