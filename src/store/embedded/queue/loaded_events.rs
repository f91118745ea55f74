//! The events of a window that are in memory, ready to be handed out.

use std::sync::Arc;

use foldhash::HashMap;

use crate::{event::Notification, store::embedded::segment::Position};

/// The bytes of loaded events in a window, besides the last one.
const BYTES: usize = 4 << 20;

/// The number of loaded events from which on the ledger is likely to have more.
const LIKELY_MORE: usize = 256;

/// Events by their positions.
#[derive(Debug, Default)]
pub(super) struct LoadedEvents {
    events: HashMap<Position, Arc<Notification>>,
    bytes: usize,
    /// The number of loaded events below which more are loaded in advance; 0 for none.
    refill_below: usize,
}

impl LoadedEvents {
    pub(super) fn has_room(&self) -> bool {
        self.bytes < BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(super) fn contains(&self, position: Position) -> bool {
        self.events.contains_key(&position)
    }

    pub(super) fn insert(&mut self, position: Position, event: Arc<Notification>) {
        self.take(position);
        self.bytes += size(&event);
        self.events.insert(position, event);
    }

    pub(super) fn take(&mut self, position: Position) -> Option<Arc<Notification>> {
        let event = self.events.remove(&position)?;
        self.bytes -= size(&event);
        Some(event)
    }

    pub(super) fn clear(&mut self) {
        self.events.clear();
        self.bytes = 0;
    }

    /// Reports that events were loaded. If there were many, there may be more: they are loaded
    /// while the first half is handed out, so that handlers do not wait for the ledger.
    pub(super) fn filled(&mut self) {
        let count = self.events.len();
        self.refill_below = if count >= LIKELY_MORE { count / 2 } else { 0 };
    }

    /// Whether to load more events in advance. Says so once.
    pub(super) fn need_more(&mut self) -> bool {
        let is_time = self.events.len() < self.refill_below;
        if is_time {
            self.refill_below = 0;
        }
        is_time
    }
}

/// The approximate size of an event in memory, in bytes.
fn size(event: &Notification) -> usize {
    512 + event.body.len()
}
