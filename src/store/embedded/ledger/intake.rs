//! Ingests the journal and the updates of deliveries into the ledger.

use std::{collections::HashMap, path::Path};

use rusqlite::{Connection, Result, params};

use super::{Intake, LedgerDatabase, delivery, fill, micros, sqlite, subscriptions::ActiveHandler};
use crate::{
    event::{HandlerName, Notification, Topic},
    store::{
        DeliverySnapshot, StoreError,
        embedded::{
            queue::{DeliveryUpdate, TopicTime},
            record::{Content, Event},
            segment::Position,
        },
    },
};

/// Consecutive records of the journal.
#[derive(Debug, Default)]
pub(in super::super) struct JournalBatch {
    /// The position of the first record.
    pub(in super::super) from: Position,
    /// The position behind the last record.
    pub(in super::super) through: Position,
    /// The number of records in the journal up to there.
    pub(in super::super) records: u64,
    /// The contents, without duplicates.
    pub(in super::super) contents: Vec<(Position, Content)>,
    /// The number of duplicates.
    pub(in super::super) duplicates: u64,
}

impl JournalBatch {
    /// An empty batch that begins at `from`.
    pub(in super::super) fn behind(from: Position) -> Self {
        Self {
            from,
            through: from,
            ..Self::default()
        }
    }

    /// Appends the batch that follows.
    pub(in super::super) fn append(&mut self, mut next: Self) {
        (self.through, self.records) = (next.through, next.records);
        self.contents.append(&mut next.contents);
        self.duplicates += next.duplicates;
    }

    /// The events.
    pub(in super::super) fn events(&self) -> impl Iterator<Item = &Notification> {
        let contents = self.contents.iter();
        contents.filter_map(|(_, content)| match content {
            Content::Event(event) => Some(&*event.notification),
            _ => None,
        })
    }

    /// The memory that the contents take, in bytes: events' bodies and deliveries' states.
    pub(in super::super) fn bytes(&self) -> usize {
        let bytes = |(_, content): &(Position, Content)| match content {
            Content::Event(event) => event.notification.body.len(),
            Content::Deliveries(updates) => updates.len() * size_of::<DeliveryUpdate>(),
            Content::Subscriptions(..) | Content::Inventory(..) | Content::Other => 0,
        };
        self.contents.iter().map(bytes).sum()
    }
}

/// The states of deliveries whose events the ledger does not have yet.
type Updates<'a> = HashMap<(&'a HandlerName, Position), &'a DeliverySnapshot>;

/// How far the journal has been read.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Watermark {
    /// The position up to which the journal has been read.
    pub(in super::super) through: Position,
    /// The number of records up to there.
    pub(in super::super) records: u64,
}

impl LedgerDatabase {
    /// The ledger's watermark.
    pub(in super::super) fn watermark(&self) -> Result<Watermark> {
        self.db
            .prepare_cached("SELECT through, records FROM progress")?
            .query_row([], |row| {
                let records: i64 = row.get(1)?;
                Ok(Watermark {
                    through: Position::from_sql(row.get(0)?),
                    records: records.cast_unsigned(),
                })
            })
    }

    /// The position of the watermark, before the ledger's thread runs.
    pub(in super::super) fn through(&self) -> std::result::Result<Position, StoreError> {
        let watermark = self.watermark();
        let watermark = watermark.map_err(StoreError::database("reading the ledger"))?;
        Ok(watermark.through)
    }

    /// Keeps the queue from handing out deliveries until the journal has been indexed up to `end`:
    /// a record there may say that one of them is done.
    pub(in super::super) fn wait_for(&mut self, end: Position) -> Result<Watermark> {
        let (watermark, said) = (self.watermark()?, self.said()?);
        self.awaited = (watermark.through < end).then_some(end);
        self.queue.begin(watermark, said);
        Ok(watermark)
    }

    /// Whether the journal has the states of all deliveries.
    pub(in super::super) fn is_journaled(&self) -> std::result::Result<bool, StoreError> {
        let query = "SELECT journaled FROM progress";
        let is_journaled = self.db.query_row(query, [], |row| row.get(0));
        is_journaled.map_err(StoreError::database("reading the ledger"))
    }

    /// Records that it has.
    pub(in super::super) fn set_journaled(&self) -> std::result::Result<(), StoreError> {
        let noted = self.db.execute("UPDATE progress SET journaled = 1", []);
        noted.map_err(StoreError::database("writing the ledger"))?;
        Ok(())
    }

    /// Ingests what the queue has for the ledger: a batch of the journal, and updates of
    /// deliveries.
    pub(super) fn ingest(&mut self) -> Result<()> {
        let batch = self.queue.next();
        let through = match &batch {
            Some(batch) => batch.through,
            None => self.watermark()?.through,
        };
        let updates = self.queue.updates(through);
        let taken = self.add_all(batch.as_ref(), &updates);
        (self.intake.batch, self.intake.updates) = (batch, updates);
        taken
    }

    fn add_all<'a>(
        &mut self,
        batch: Option<&JournalBatch>,
        updates: &'a [DeliveryUpdate],
    ) -> Result<()> {
        let from = batch.map_or(Position::LAST, |batch| batch.from);
        let (new, known): (Vec<_>, Vec<_>) =
            updates.iter().partition(|(position, _)| *position >= from);
        for (position, snapshot) in known {
            self.apply_snapshot(*position, snapshot)?;
        }
        if let Some(batch) = batch {
            // Of several updates of one delivery the last one is valid.
            let place = |(position, snapshot): &&'a DeliveryUpdate| (&snapshot.handler, *position);
            let last = new
                .iter()
                .map(|snapshot| (place(snapshot), &snapshot.1))
                .collect();
            self.index(batch, &last)?;
        }
        // Earlier failures are recorded too.
        for (position, snapshot) in new
            .into_iter()
            .filter(|(_, snapshot)| !snapshot.failures.is_empty())
        {
            self.apply_snapshot(*position, snapshot)?;
        }
        Ok(())
    }

    /// Completes the intake after the commit.
    pub(super) fn finish_ingest(&mut self, taken: Intake) {
        for (handler, position, open) in taken.replayed {
            self.queue.replay(&handler, position, open);
        }
        for note in self.queue.unwritten() {
            self.journal.put(note);
        }
        if let Some(batch) = taken.batch {
            self.journal_progress.indexed(batch.records);
            self.awaited = self.awaited.filter(|awaited| *awaited > batch.through);
        }
        if !taken.has_filled {
            self.queue.trim_topic_cache();
        }
        if self.awaited.is_none() {
            self.queue.open();
        }
    }

    /// Adds `batch` if it begins at the watermark.
    fn index(&mut self, batch: &JournalBatch, updates: &Updates<'_>) -> Result<()> {
        if self.watermark()?.through != batch.from {
            return Ok(());
        }
        self.duplicates += batch.duplicates;
        let mut given = self.given()?;
        for (position, content) in &batch.contents {
            match content {
                Content::Event(event) => {
                    if !self.add(*position, event, &given, updates)? {
                        self.duplicates += 1;
                    }
                }
                Content::Deliveries(snapshot) => {
                    for (position, delivery) in snapshot {
                        self.apply_snapshot(*position, delivery)?;
                    }
                }
                Content::Subscriptions(since, subscriptions) => {
                    self.give(*since, subscriptions)?;
                    given = self.given()?;
                }
                Content::Inventory(from, to) => self.forget_untouched(*from, *to)?,
                Content::Other => {}
            }
        }
        self.db
            .prepare_cached("UPDATE progress SET through = ?1, records = ?2")?
            .execute((batch.through.to_sql(), batch.records.cast_signed()))?;
        Ok(())
    }

    /// Adds an event with its deliveries to the handlers in `given`. Returns `false` if the id is
    /// known.
    fn add(
        &mut self,
        position: Position,
        event: &Event,
        given: &[ActiveHandler],
        updates: &Updates<'_>,
    ) -> Result<bool> {
        let Event {
            notification, keys, ..
        } = event;
        let added = self
            .db
            .prepare_cached(
                "INSERT OR IGNORE INTO events
                     (position, id, name, endpoint, key, occurred_at, received_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                position.to_sql(),
                notification.id.as_bytes(),
                notification.name.as_str(),
                notification.endpoint.as_str(),
                notification.key.as_ref().map(|key| key.as_str()),
                notification.occurred_at.map(micros),
                micros(notification.received_at),
            ])?;
        if added == 0 {
            return Ok(false);
        }
        self.add_topics(notification)?;
        for active in given {
            if active.subscription.takes(&notification.name) {
                let place = (active.id, position);
                let (db, tally) = (&self.db, &mut self.tally);
                match updates.get(&(&active.subscription.handler, position)) {
                    Some(snapshot) if snapshot.is_over() => {
                        delivery::add_snapshot(db, tally, place, snapshot)?
                    }
                    _ => {
                        let keys = keys.as_ref().filter(|_| active.subscription.ordered);
                        delivery::add(db, tally, place, keys, micros(notification.received_at))?;
                    }
                }
            }
        }
        Ok(true)
    }

    fn add_topics(&self, notification: &Notification) -> Result<()> {
        let Some(occurred_at) = notification.occurred_at else {
            return Ok(());
        };
        let mut apply_snapshot = self.db.prepare_cached(
            "INSERT INTO topics (topic, latest) VALUES (?1, ?2)
             ON CONFLICT (topic) DO UPDATE SET latest = excluded.latest
             WHERE excluded.latest > latest",
        )?;
        for topic in &notification.topics {
            apply_snapshot.execute((topic.as_str(), micros(occurred_at)))?;
        }
        Ok(())
    }
}

/// Reads the ledger's topics on a connection of its own, for events that handlers get before the
/// ledger has them.
pub(in super::super) struct TopicReader(Connection);

impl TopicReader {
    /// A reader of the ledger at `path`.
    pub(in super::super) fn open(path: &Path) -> std::result::Result<Self, StoreError> {
        let db = sqlite::open(path, false)?;
        let small = db.pragma_update(None, "cache_size", -1024); // KiB
        small.map_err(StoreError::database("opening the ledger"))?;
        Ok(Self(db))
    }

    /// The latest report of each of `topics`.
    pub(in super::super) fn topic_times(
        &self,
        topics: Vec<Topic>,
    ) -> std::result::Result<Vec<TopicTime>, StoreError> {
        fill::topic_times(&self.0, topics).map_err(StoreError::database("reading topics"))
    }
}
