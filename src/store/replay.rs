//! Which deliveries a replay makes again, whatever the engine.

use super::{DeliveryState, ReplaySelection, ReplaySummary, StoreError};
use crate::event::HandlerName;

/// What a [`ReplaySelection`] means, and how much of that has been found. `H` is what the engine knows a
/// handler by.
pub(super) struct ReplayPlan<'a, H> {
    selection: &'a ReplaySelection,
    /// The handlers that are meant, each with the number of its deliveries.
    handlers: Vec<(H, HandlerName, u64)>,
}

impl<'a, H: PartialEq> ReplayPlan<'a, H> {
    /// `configured` are all handlers that are.
    ///
    /// # Errors
    ///
    /// When `selection` names another one.
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

    /// The handlers that are meant.
    pub(super) fn handlers(&self) -> impl Iterator<Item = &H> {
        self.handlers.iter().map(|(handler, ..)| handler)
    }

    /// Whether the delivery of an event to one of the handlers is meant. `state` is that of the delivery;
    /// `None` where there is no such delivery.
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

    /// How many deliveries were counted.
    pub(super) fn total(&self) -> u64 {
        self.handlers.iter().map(|(.., count)| count).sum()
    }

    /// What was counted, by the names of the handlers.
    pub(super) fn summary(self) -> ReplaySummary {
        let counted = self.handlers.into_iter().filter(|(.., count)| *count > 0);
        let mut deliveries: Vec<_> = counted.map(|(_, name, count)| (name, count)).collect();
        deliveries.sort_by(|a, b| a.0.cmp(&b.0));
        ReplaySummary { deliveries }
    }
}
