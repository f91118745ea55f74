//! The deliveries that a full window has deferred: they wait for others anyway. Pure.
//!
//! **Invariant:** a delivery that shares a key with a deferred one is deferred too.

use std::collections::{HashMap, HashSet};

use super::ordering::OrderingIndex;
use crate::{
    event::{KeyHash, OrderingKeys},
    store::embedded::segment::Position,
};

/// The keys of deferred deliveries.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    scopes: HashMap<KeyHash, Keys>,
    /// The position of the oldest deferred delivery.
    first: Option<Position>,
}

#[derive(Debug, Default)]
struct Keys {
    some: HashSet<KeyHash>,
    /// Whether a deferred delivery has all keys of the scope.
    is_whole: bool,
}

impl Deferred {
    /// Defers a delivery.
    pub(super) fn add(&mut self, position: Position, keys: &OrderingKeys) {
        self.first = Some(self.first.map_or(position, |first| first.min(position)));
        let scope = self.scopes.entry(keys.scope()).or_default();
        scope.is_whole |= keys.is_whole();
        scope.some.extend(keys.keys());
    }

    /// The position of the oldest deferred delivery.
    pub(super) const fn first(&self) -> Option<Position> {
        self.first
    }

    /// Whether a delivery with these keys must be deferred.
    pub(super) fn takes(&self, keys: &OrderingKeys) -> bool {
        let meets = |scope: &Keys| {
            scope.is_whole
                || keys.is_whole()
                || keys.keys().iter().any(|key| scope.some.contains(key))
        };
        self.scopes.get(&keys.scope()).is_some_and(meets)
    }

    /// Whether a deferred delivery may have become free, since a delivery with these keys is
    /// finished.
    pub(super) fn is_unblocked(&self, keys: &OrderingKeys, ordering: &OrderingIndex) -> bool {
        let Some(scope) = self.scopes.get(&keys.scope()) else {
            return false;
        };
        let is_alone = |key: &KeyHash| {
            scope.some.contains(key)
                && !ordering.shares_a_key(&OrderingKeys::from_hashes(keys.scope(), vec![*key]))
        };
        let whole = OrderingKeys::from_hashes(keys.scope(), Vec::new());
        match keys.is_whole() {
            true => scope.some.iter().any(is_alone) || !ordering.shares_a_key(&whole),
            false => {
                keys.keys().iter().any(is_alone) || scope.is_whole && !ordering.shares_a_key(&whole)
            }
        }
    }
}
