//! Which deliveries a replay selects, for every engine.

use super::{DeliveryState, ReplaySelection, ReplaySummary, StoreError};
use crate::event::HandlerName;

/// A [`ReplaySelection`] resolved to handlers, with the deliveries counted so far. `H` is the
/// engine's identifier of a handler.
pub(super) struct ReplayPlan<'a, H> {
    selection: &'a ReplaySelection,
    /// The selected handlers, each with the number of its deliveries.
    handlers: Vec<(H, HandlerName, u64)>,
}

impl<'a, H: PartialEq> ReplayPlan<'a, H> {
    /// Resolves `selection` among the `configured` handlers.
    ///
    /// # Errors
    ///
    /// When `selection` names a handler that is not configured.
    pub(super) fn new(
        selection: &'a ReplaySelection,
        configured: Vec<(H, HandlerName)>,
    ) -> Result<Self, StoreError> {
        let named = &selection.handlers;
        let is_known = |asked: &HandlerName| configured.iter().any(|(_, name)| name == asked);
        if let Some(unknown) = named.iter().find(|asked| !is_known(asked)) {
            return Err(StoreError::UnknownHandler(unknown.clone()));
        }
        let meant = configured.into_iter();
        let meant = meant.filter(|(_, name)| named.is_empty() || named.contains(name));
        Ok(Self {
            selection,
            handlers: meant.map(|(handler, name)| (handler, name, 0)).collect(),
        })
    }

    /// The selected handlers.
    pub(super) fn handlers(&self) -> impl Iterator<Item = &H> {
        self.handlers.iter().map(|(handler, ..)| handler)
    }

    /// Whether the selection includes a delivery in `state` to one of the handlers; `None` stands
    /// for an event without a delivery to the handler.
    pub(super) fn means(&self, state: Option<DeliveryState>) -> bool {
        let is_named = !self.selection.handlers.is_empty();
        let is_parked = state == Some(DeliveryState::Parked);
        is_parked || !self.selection.parked_only && (state.is_some() || is_named)
    }

    /// Counts a delivery to `handler`.
    pub(super) fn count(&mut self, handler: &H) {
        let mut handlers = self.handlers.iter_mut();
        if let Some((.., count)) = handlers.find(|(other, ..)| other == handler) {
            *count += 1;
        }
    }

    /// The number of counted deliveries.
    pub(super) fn total(&self) -> u64 {
        self.handlers.iter().map(|(.., count)| count).sum()
    }

    /// The counts by handler.
    pub(super) fn summary(self) -> ReplaySummary {
        let counted = self.handlers.into_iter().filter(|(.., count)| *count > 0);
        let mut deliveries: Vec<_> = counted.map(|(_, name, count)| (name, count)).collect();
        deliveries.sort_by(|a, b| a.0.cmp(&b.0));
        ReplaySummary { deliveries }
    }
}
