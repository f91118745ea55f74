//! The latest reports of topics, cached for `superseded`.
//!
//! **Invariant:** of a cached topic every report is known, including those that the ledger does not
//! have yet.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
};

use jiff::Timestamp;

use super::TopicTime;
use crate::event::{Notification, Topic};

/// The number of topics above which the cache is emptied if possible, and the number above which it
/// is emptied in any case: about 12 MB.
const CAPACITY: usize = 64 << 10;
pub(super) const MOST: usize = 4 * CAPACITY;

/// The latest provider times of topics, by hashes. A collision has no useful effect for a sender.
#[derive(Debug, Default)]
pub(super) struct TopicCache {
    latest: HashMap<u64, Timestamp>,
    hasher: RandomState,
}

impl TopicCache {
    /// Whether the cache has all topics of `notification`.
    pub(super) fn contains_all(&self, notification: &Notification) -> bool {
        self.missing(notification).next().is_none()
    }

    /// The topics of `notification` that the cache lacks. An event without a provider time needs
    /// none.
    pub(super) fn missing<'a>(
        &'a self,
        notification: &'a Notification,
    ) -> impl Iterator<Item = &'a Topic> {
        let is_dated = notification.occurred_at.is_some();
        let topics = notification.topics.iter().filter(move |_| is_dated);
        topics.filter(|topic| !self.latest.contains_key(&self.hash(topic)))
    }

    /// Adds the ledger's times of missing topics.
    pub(super) fn insert(&mut self, topic_times: &[TopicTime]) {
        for (topic, at) in topic_times {
            let at = at.unwrap_or(Timestamp::MIN);
            let latest = self.latest.entry(self.hasher.hash_one(topic.as_str()));
            let latest = latest.or_insert(at);
            *latest = at.max(*latest);
        }
    }

    /// Updates cached topics with the report of `notification`.
    pub(super) fn update(&mut self, notification: &Notification) {
        let Some(at) = notification.occurred_at else {
            return;
        };
        for topic in &notification.topics {
            let hash = self.hash(topic);
            if let Some(latest) = self.latest.get_mut(&hash) {
                *latest = at.max(*latest);
            }
        }
    }

    /// Whether each topic of `notification` has a report with a later provider time.
    pub(super) fn is_superseded(&self, notification: &Notification) -> bool {
        let is_older = |occurred_at: Timestamp| {
            let latest = |topic| self.latest.get(&self.hash(topic));
            let mut topics = notification.topics.iter();
            topics.all(|topic| latest(topic).is_some_and(|latest| *latest > occurred_at))
        };
        !notification.topics.is_empty() && notification.occurred_at.is_some_and(is_older)
    }

    /// Whether to [empty](Self::clear) the cache. `is_needed` says whether loaded events need it.
    pub(super) fn is_large(&self, is_needed: bool) -> bool {
        self.latest.len() > if is_needed { MOST } else { CAPACITY }
    }

    /// Empties the cache.
    pub(super) fn clear(&mut self) {
        self.latest.clear();
    }

    fn hash(&self, topic: &Topic) -> u64 {
        self.hasher.hash_one(topic.as_str())
    }
}
