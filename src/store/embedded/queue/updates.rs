//! The new states of deliveries that the ledger does not have yet.

use std::time::{Duration, Instant};

use super::DeliveryUpdate;
use crate::store::embedded::segment::Position;

/// The most updates that may wait for the ledger.
pub(super) const MOST: usize = 32 << 10;

/// The number of updates that the ledger ingests at once.
const MANY: usize = 8 << 10;

/// How long the first update waits for the ledger if no event comes. A transaction of many updates
/// writes fewer pages for each.
const DELAY: Duration = Duration::from_millis(200);

/// The updates that wait for the ledger, oldest first.
#[derive(Default)]
pub(super) struct Updates {
    waiting: Vec<DeliveryUpdate>,
    /// When the first of them was added.
    since: Option<Instant>,
}

impl Updates {
    pub(super) fn add(&mut self, mut updates: Vec<DeliveryUpdate>) {
        if !updates.is_empty() {
            self.since.get_or_insert_with(Instant::now);
        }
        self.waiting.append(&mut updates);
    }

    /// Takes the updates of deliveries of events before `through`, in the order of the events.
    pub(super) fn take_before(&mut self, through: Position) -> Vec<DeliveryUpdate> {
        let before = self
            .waiting
            .extract_if(.., |(position, _)| *position < through);
        let mut before: Vec<_> = before.collect();
        self.since = (!self.waiting.is_empty()).then(Instant::now);
        // In this order the pages of the database are changed one after the other, and each once.
        before.sort_by_key(|(position, _)| *position);
        before
    }

    /// Takes back updates that are older than all others.
    pub(super) fn give_back(&mut self, mut updates: Vec<DeliveryUpdate>) {
        updates.append(&mut self.waiting);
        self.since = (!updates.is_empty()).then(Instant::now);
        self.waiting = updates;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &DeliveryUpdate> {
        self.waiting.iter()
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MOST
    }

    /// When the ledger is to ingest the updates; `None` if there are none.
    pub(super) fn is_due_at(&self) -> Option<Instant> {
        let are_many = self.waiting.len() >= MANY;
        let delay = if are_many { Duration::ZERO } else { DELAY };
        self.since.map(|since| since + delay)
    }
}
