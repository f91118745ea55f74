//! The deliveries of one handler by ordering key: which of them wait for which. Pure.
//!
//! **Invariant:** a delivery is free if no older delivery here shares a key with it, and none in
//! flight does.

use std::collections::{BTreeSet, VecDeque};

use foldhash::HashMap;

use crate::{
    event::{KeyHash, OrderingKeys},
    store::embedded::segment::Position,
};

/// The deliveries with ordering keys.
#[derive(Debug, Default)]
pub(super) struct OrderingIndex(HashMap<KeyHash, Scope>);

/// The deliveries of one scope.
#[derive(Debug, Default)]
struct Scope {
    /// The deliveries with all keys of the scope.
    whole: Chain,
    keys: HashMap<KeyHash, Chain>,
    /// The deliveries with some keys of the scope.
    some: BTreeSet<Position>,
    /// The number of these in flight.
    in_flight: usize,
}

/// The deliveries of one key, oldest first.
#[derive(Debug, Default)]
struct Chain {
    positions: VecDeque<Position>,
    /// The number of these in flight.
    in_flight: usize,
}

impl Chain {
    fn add(&mut self, position: Position) {
        // Almost always at the end.
        let at = self.positions.partition_point(|other| *other < position);
        if self.positions.get(at) != Some(&position) {
            self.positions.insert(at, position);
        }
    }

    fn remove(&mut self, position: Position) {
        if let Ok(at) = self.positions.binary_search(&position) {
            self.positions.remove(at);
        }
    }

    fn first(&self) -> Option<Position> {
        self.positions.front().copied()
    }

    fn is_free_for(&self, position: Position) -> bool {
        self.in_flight == 0 && self.first().is_none_or(|first| first >= position)
    }
}

impl OrderingIndex {
    /// Adds a delivery.
    pub(super) fn add(&mut self, position: Position, keys: &OrderingKeys) {
        let scope = self.0.entry(keys.scope()).or_default();
        if keys.is_whole() {
            return scope.whole.add(position);
        }
        scope.some.insert(position);
        for key in keys.keys() {
            scope.keys.entry(*key).or_default().add(position);
        }
    }

    /// Removes a delivery that is not in flight.
    pub(super) fn remove(&mut self, position: Position, keys: &OrderingKeys) {
        let Some(scope) = self.0.get_mut(&keys.scope()) else {
            return;
        };
        if keys.is_whole() {
            scope.whole.remove(position);
        } else {
            scope.some.remove(&position);
        }
        for key in keys.keys() {
            if let Some(chain) = scope.keys.get_mut(key) {
                chain.remove(position);
                if chain.positions.is_empty() {
                    scope.keys.remove(key);
                }
            }
        }
        if scope.some.is_empty() && scope.whole.positions.is_empty() {
            self.0.remove(&keys.scope());
        }
    }

    /// Counts a delivery with these keys as in flight, or as ended.
    pub(super) fn set_in_flight(&mut self, keys: &OrderingKeys, started: bool) {
        let count = |in_flight: &mut usize| match started {
            true => *in_flight += 1,
            false => *in_flight = in_flight.saturating_sub(1),
        };
        let Some(scope) = self.0.get_mut(&keys.scope()) else {
            return;
        };
        match keys.is_whole() {
            true => count(&mut scope.whole.in_flight),
            false => count(&mut scope.in_flight),
        }
        for key in keys.keys() {
            if let Some(chain) = scope.keys.get_mut(key) {
                count(&mut chain.in_flight);
            }
        }
    }

    /// Whether a delivery that is not in flight may be attempted.
    pub(super) fn is_free(&self, position: Position, keys: &OrderingKeys) -> bool {
        let Some(scope) = self.0.get(&keys.scope()) else {
            return true;
        };
        if !scope.whole.is_free_for(position) {
            return false;
        }
        if keys.is_whole() {
            return scope.in_flight == 0
                && scope.some.first().is_none_or(|first| *first > position);
        }
        let mut chains = keys.keys().iter().filter_map(|key| scope.keys.get(key));
        chains.all(|chain| chain.is_free_for(position))
    }

    /// The deliveries whose freedom may have changed with a delivery of these keys.
    pub(super) fn neighbours(&self, keys: &OrderingKeys) -> Vec<Position> {
        let Some(scope) = self.0.get(&keys.scope()) else {
            return Vec::new();
        };
        let mut found: Vec<_> = scope.whole.positions.iter().take(2).copied().collect();
        let mut add = |chain: &Chain| found.extend(chain.positions.iter().take(2));
        match keys.is_whole() {
            true => scope.keys.values().for_each(add),
            false => keys
                .keys()
                .iter()
                .filter_map(|key| scope.keys.get(key))
                .for_each(&mut add),
        }
        found
    }

    /// The oldest delivery of each of these keys.
    pub(super) fn first_of_each_key(&self, keys: &OrderingKeys) -> impl Iterator<Item = Position> {
        let scope = self.0.get(&keys.scope()).into_iter();
        scope.flat_map(|scope| {
            let chains = keys.keys().iter().filter_map(|key| scope.keys.get(key));
            chains.chain([&scope.whole]).filter_map(Chain::first)
        })
    }

    /// Whether a delivery here shares one of these keys.
    pub(super) fn shares_a_key(&self, keys: &OrderingKeys) -> bool {
        let Some(scope) = self.0.get(&keys.scope()) else {
            return false;
        };
        keys.is_whole()
            || !scope.whole.positions.is_empty()
            || keys.keys().iter().any(|key| scope.keys.contains_key(key))
    }
}
