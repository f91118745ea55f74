//! When each topic was reported last, as far as memory knows it.
//!
//! **Invariant:** of a topic that is here, every report that was taken in is known, with those that the
//! ledger does not have yet.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
};

use jiff::Timestamp;

use super::TopicTime;
use crate::event::{Notification, Topic};

/// How many topics are here while they can be forgotten, and how many at most, besides those of one event:
/// some 12 MB.
const ROOM: usize = 64 << 10;
pub(super) const MOST: usize = 4 * ROOM;

/// The latest provider time of topics, by their hashes. Nobody gains anything by a collision.
#[derive(Debug, Default)]
pub(super) struct TopicCache {
    latest: HashMap<u64, Timestamp>,
    hasher: RandomState,
}

impl TopicCache {
    /// Whether all topics of `notification` are here.
    pub(super) fn know(&self, notification: &Notification) -> bool {
        self.unknown(notification).next().is_none()
    }

    /// Those topics of `notification` that are not here. One without a provider time needs none.
    pub(super) fn unknown<'a>(
        &'a self,
        notification: &'a Notification,
    ) -> impl Iterator<Item = &'a Topic> {
        let is_dated = notification.occurred_at.is_some();
        let topics = notification.topics.iter().filter(move |_| is_dated);
        topics.filter(|topic| !self.latest.contains_key(&self.hash(topic)))
    }

    /// Takes in what the ledger knows of topics that were not here.
    pub(super) fn insert(&mut self, topic_times: &[TopicTime]) {
        for (topic, at) in topic_times {
            let at = at.unwrap_or(Timestamp::MIN);
            let latest = self.latest.entry(self.hasher.hash_one(topic.as_str()));
            let latest = latest.or_insert(at);
            *latest = at.max(*latest);
        }
    }

    /// Takes in what `notification` reports, of topics that are here.
    pub(super) fn raise(&mut self, notification: &Notification) {
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

    /// Whether each topic of `notification` has been reported again, with a later provider time.
    pub(super) fn supersede(&self, notification: &Notification) -> bool {
        let is_older = |occurred_at: Timestamp| {
            let latest = |topic| self.latest.get(&self.hash(topic));
            let mut topics = notification.topics.iter();
            topics.all(|topic| latest(topic).is_some_and(|latest| *latest > occurred_at))
        };
        !notification.topics.is_empty() && notification.occurred_at.is_some_and(is_older)
    }

    /// Whether it is time to [forget](Self::clear) them, or would be if nobody needed them.
    pub(super) fn are_many(&self, is_needed: bool) -> bool {
        self.latest.len() > if is_needed { MOST } else { ROOM }
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.latest.clear();
    }

    fn hash(&self, topic: &Topic) -> u64 {
        self.hasher.hash_one(topic.as_str())
    }
}
