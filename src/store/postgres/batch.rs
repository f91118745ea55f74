//! The rows that one append transaction adds. Pure: computed from a batch of notifications and the
//! known dedupe keys. The database assigns positions; until then other rows refer to an event by
//! its place in the batch, from 1.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
};

use jiff::{Timestamp, civil::Date};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    escape, ordering,
    registry::{ActiveHandler, HandlerId},
    rows, topics,
};
use crate::{
    event::{DedupeKey, KeyHash, Notification, OrderingKeys},
    store::terms::{MOST_TERMS, TermHasher},
};

/// A row of `tally` that changes nothing, so that each transaction writes something.
const NOTHING: (HandlerId, i64) = (0, 0);

/// The rows by column, as the statement's parameters.
#[derive(Debug, Default)]
pub(super) struct InsertBatch<'a> {
    pub(super) events: Events<'a>,
    pub(super) dedupe_keys: DedupeKeys,
    pub(super) topics: Topics,
    /// The events whose topics are stored later (see [`super::topics`]).
    pub(super) deferred_topics: Deferred,
    pub(super) terms: Terms,
    /// The events whose terms are added later (see [`super::terms`]).
    pub(super) unindexed: Deferred,
    pub(super) deliveries: Deliveries,
    pub(super) tally: Tally,
    /// The number of duplicates, of events in this batch or in the database.
    pub(super) duplicates: u64,
}

#[derive(Debug, Default)]
pub(super) struct Events<'a> {
    pub(super) day: Vec<Date>,
    pub(super) id: Vec<Uuid>,
    pub(super) name: Vec<Cow<'a, str>>,
    pub(super) endpoint: Vec<Cow<'a, str>>,
    pub(super) key: Vec<Option<Cow<'a, str>>>,
    pub(super) subject: Vec<Option<Cow<'a, str>>>,
    pub(super) further_subjects: Vec<Cow<'static, str>>,
    pub(super) occurred_at: Vec<Option<Timestamp>>,
    pub(super) received_at: Vec<Timestamp>,
    pub(super) topics: Vec<Option<String>>,
    pub(super) topic_keys: Lists,
    pub(super) dedupe: Lists,
    pub(super) body: Vec<&'a [u8]>,
}

/// Concatenated lists of ids, with the numbers of the first and the last id of each list, from 1.
/// PostgreSQL cannot take an array of arrays of different lengths as a parameter.
#[derive(Debug, Default)]
pub(super) struct Lists {
    ids: Vec<Uuid>,
    first: Vec<i32>,
    last: Vec<i32>,
}

impl Lists {
    /// Appends a list, and returns it.
    fn push(&mut self, ids: impl Iterator<Item = Uuid>) -> &[Uuid] {
        let count = |ids: &Vec<Uuid>| i32::try_from(ids.len()).unwrap_or(i32::MAX);
        let before = self.ids.len();
        self.first.push(count(&self.ids).saturating_add(1));
        self.ids.extend(ids);
        self.last.push(count(&self.ids));
        self.ids.split_at(before).1
    }
}

/// In ascending order, so that concurrent transactions lock the same keys in the same order.
#[derive(Debug, Default)]
pub(super) struct DedupeKeys {
    pub(super) dedupe: Vec<Uuid>,
    pub(super) place: Vec<i32>,
}

/// In ascending order, without repetition.
#[derive(Debug, Default)]
pub(super) struct Topics {
    pub(super) topic: Vec<Uuid>,
    pub(super) latest: Vec<Timestamp>,
}

/// Some of the events.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    pub(super) place: Vec<i32>,
    pub(super) day: Vec<Date>,
}

/// What the events are looked up by.
#[derive(Debug, Default)]
pub(super) struct Terms {
    pub(super) day: Vec<Date>,
    pub(super) term: Vec<i64>,
    pub(super) place: Vec<i32>,
}

/// The number of new deliveries, by handler.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) handler: Vec<HandlerId>,
    pub(super) open: Vec<i64>,
}

#[derive(Debug, Default)]
pub(super) struct Deliveries {
    pub(super) handler: Vec<HandlerId>,
    pub(super) place: Vec<i32>,
    pub(super) day: Vec<Date>,
    pub(super) keys: ordering::Columns,
    /// The place of the delivery that this one is queued behind, if that is in the same batch.
    pub(super) behind: Vec<Option<i32>>,
    pub(super) due_at: Vec<Timestamp>,
}

impl<'a> InsertBatch<'a> {
    /// Computes the rows for notifications with their ordering keys. `known` are the dedupe keys
    /// that the database is known to have.
    pub(super) fn new(
        notifications: impl Iterator<Item = (&'a Notification, Option<&'a OrderingKeys>)>,
        mut known: HashSet<DedupeKey>,
        active: &[ActiveHandler],
        hasher: &TermHasher,
    ) -> Self {
        let mut batch = Self::default();
        let mut dedupe_keys = BTreeMap::new();
        let mut reported = BTreeMap::new();
        let mut last = Last::default();
        let mut tally = BTreeMap::from([NOTHING]);
        for (notification, keys) in notifications {
            // The other keys of a duplicate are not stored: the provider may not have signed them.
            if notification.dedupe.iter().any(|key| known.contains(key)) {
                batch.duplicates += 1;
                continue;
            }
            known.extend(&notification.dedupe);
            let (place, topics) = batch.events.add(notification);
            match notification.occurred_at {
                Some(_) if topics.len() > topics::MOST_TOPICS => {
                    batch.deferred_topics.place.push(place);
                    batch
                        .deferred_topics
                        .day
                        .push(rows::day(notification.received_at));
                }
                Some(occurred_at) => {
                    for topic in topics {
                        let latest = reported.entry(*topic).or_insert(occurred_at);
                        *latest = occurred_at.max(*latest);
                    }
                }
                None => {}
            }
            batch.index(notification, place, hasher);
            let dedupe = notification.dedupe.iter().map(rows::dedupe_key);
            dedupe_keys.extend(dedupe.map(|key| (key, place)));
            let takes = |handler: &&ActiveHandler| handler.subscription.takes(&notification.name);
            for handler in active.iter().filter(takes) {
                batch.deliver(handler, notification, place, keys, &mut last);
                *tally.entry(handler.id).or_default() += 1;
            }
        }
        (batch.dedupe_keys.dedupe, batch.dedupe_keys.place) = dedupe_keys.into_iter().unzip();
        (batch.topics.topic, batch.topics.latest) = reported.into_iter().unzip();
        (batch.tally.handler, batch.tally.open) = tally.into_iter().unzip();
        batch
    }

    /// The parameters, in the order of the statement.
    pub(super) fn columns(&self) -> [&(dyn ToSql + Sync); 38] {
        let Self {
            events,
            dedupe_keys,
            topics,
            deferred_topics,
            terms,
            unindexed,
            deliveries,
            tally,
            duplicates: _,
        } = self;
        [
            &dedupe_keys.dedupe,
            &dedupe_keys.place,
            &topics.topic,
            &topics.latest,
            &deferred_topics.place,
            &deferred_topics.day,
            &deliveries.handler,
            &deliveries.place,
            &deliveries.day,
            &deliveries.keys.scope,
            &deliveries.keys.key,
            &deliveries.keys.keys,
            &deliveries.behind,
            &deliveries.due_at,
            &tally.handler,
            &tally.open,
            &events.topic_keys.ids,
            &events.dedupe.ids,
            &events.day,
            &events.id,
            &events.name,
            &events.endpoint,
            &events.key,
            &events.subject,
            &events.occurred_at,
            &events.received_at,
            &events.topics,
            &events.topic_keys.first,
            &events.topic_keys.last,
            &events.dedupe.first,
            &events.dedupe.last,
            &events.body,
            &events.further_subjects,
            &terms.day,
            &terms.term,
            &terms.place,
            &unindexed.day,
            &unindexed.place,
        ]
    }

    /// Adds the terms of an event, or defers them if there are very many.
    fn index(&mut self, notification: &Notification, place: i32, hasher: &TermHasher) {
        let day = rows::day(notification.received_at);
        if notification.subjects.len() >= MOST_TERMS {
            self.unindexed.place.push(place);
            self.unindexed.day.push(day);
            return;
        }
        for term in hasher.terms(notification) {
            self.terms.day.push(day);
            self.terms.term.push(term);
            self.terms.place.push(place);
        }
    }

    /// Adds a delivery.
    fn deliver(
        &mut self,
        handler: &ActiveHandler,
        notification: &Notification,
        place: i32,
        keys: Option<&OrderingKeys>,
        last: &mut Last,
    ) {
        let ordered = keys.filter(|_| handler.subscription.ordered);
        let to = &mut self.deliveries;
        to.handler.push(handler.id);
        to.place.push(place);
        to.day.push(rows::day(notification.received_at));
        to.keys.push(keys);
        to.behind
            .push(ordered.and_then(|keys| last.follow(handler.id, keys, place)));
        to.due_at.push(notification.received_at);
    }
}

/// The places of the latest deliveries in the batch, by handler and ordering group.
#[derive(Default)]
struct Last(HashMap<(HandlerId, KeyHash, OrderingGroup), i32>);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum OrderingGroup {
    /// Deliveries with this key.
    Key(KeyHash),
    /// Deliveries with all keys of the scope.
    Whole,
    /// Deliveries with any key of the scope.
    Any,
}

impl Last {
    /// Returns the place of the latest delivery that conflicts with a delivery with `keys`, and
    /// records `place` as the latest.
    fn follow(&mut self, handler: HandlerId, keys: &OrderingKeys, place: i32) -> Option<i32> {
        let at = |group| (handler, keys.scope(), group);
        let own: Vec<_> = match keys.is_whole() {
            true => vec![OrderingGroup::Whole],
            false => keys
                .keys()
                .iter()
                .copied()
                .map(OrderingGroup::Key)
                .collect(),
        };
        let others = if keys.is_whole() {
            OrderingGroup::Any
        } else {
            OrderingGroup::Whole
        };
        let before = own
            .iter()
            .chain([&others])
            .filter_map(|group| self.0.get(&at(*group)));
        let before = before.max().copied();
        for group in own.into_iter().chain([OrderingGroup::Any]) {
            self.0.insert(at(group), place);
        }
        before
    }
}

impl<'a> Events<'a> {
    /// Adds an event. Returns its place, and the hashes of its topics.
    fn add(&mut self, notification: &'a Notification) -> (i32, &[Uuid]) {
        let dedupe = notification.dedupe.iter().map(rows::dedupe_key);
        let topic_keys = notification.topics.iter().map(rows::topic_key);
        self.day.push(rows::day(notification.received_at));
        self.id.push(rows::uuid(notification.id));
        self.name.push(escape::to_sql(notification.name.as_str()));
        self.endpoint
            .push(escape::to_sql(notification.endpoint.as_str()));
        let key = notification.key.as_ref();
        self.key.push(key.map(|key| escape::to_sql(key.as_str())));
        self.subject
            .push(notification.subject().map(escape::to_sql));
        self.further_subjects
            .push(rows::further_subjects(notification));
        self.occurred_at.push(notification.occurred_at);
        self.received_at.push(notification.received_at);
        self.topics.push(rows::topics(notification));
        self.dedupe.push(dedupe);
        self.body.push(&notification.body);
        let place = i32::try_from(self.body.len()).unwrap_or(i32::MAX);
        (place, self.topic_keys.push(topic_keys))
    }
}
