//! What a window has passed over, for want of room: deliveries that wait for others anyway. Pure.
//!
//! **Invariant:** a delivery that shares a key with one that was passed over is passed over as well.

use std::collections::{HashMap, HashSet};

use super::ordering::OrderingIndex;
use crate::{
    event::{KeyHash, OrderingKeys},
    store::embedded::segment::Position,
};

/// The keys of what was passed over.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    scopes: HashMap<KeyHash, Keys>,
    /// The oldest of what was passed over.
    first: Option<Position>,
}

#[derive(Debug, Default)]
struct Keys {
    some: HashSet<KeyHash>,
    /// Whether something that has all keys of the scope was passed over.
    is_whole: bool,
}

impl Deferred {
    /// Passes over a delivery.
    pub(super) fn add(&mut self, position: Position, keys: &OrderingKeys) {
        self.first = Some(self.first.map_or(position, |first| first.min(position)));
        let scope = self.scopes.entry(keys.scope()).or_default();
        scope.is_whole |= keys.is_whole();
        scope.some.extend(keys.keys());
    }

    /// The oldest of what was passed over.
    pub(super) const fn first(&self) -> Option<Position> {
        self.first
    }

    /// Whether a delivery of these keys has to be passed over.
    pub(super) fn takes(&self, keys: &OrderingKeys) -> bool {
        let meets = |scope: &Keys| {
            scope.is_whole
                || keys.is_whole()
                || keys.keys().iter().any(|key| scope.some.contains(key))
        };
        self.scopes.get(&keys.scope()).is_some_and(meets)
    }

    /// Whether nothing of `ordering` may be in the way any longer of something that was passed over, since a
    /// delivery of these keys is over.
    pub(super) fn is_unblocked(&self, keys: &OrderingKeys, ordering: &OrderingIndex) -> bool {
        let Some(scope) = self.scopes.get(&keys.scope()) else {
            return false;
        };
        let is_alone = |key: &KeyHash| {
            scope.some.contains(key)
                && !ordering.has(&OrderingKeys::from_hashes(keys.scope(), vec![*key]))
        };
        let whole = OrderingKeys::from_hashes(keys.scope(), Vec::new());
        match keys.is_whole() {
            true => scope.some.iter().any(is_alone) || !ordering.has(&whole),
            false => keys.keys().iter().any(is_alone) || scope.is_whole && !ordering.has(&whole),
        }
    }
}
