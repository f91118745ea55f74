//! Ingests the journal and the updates of deliveries into the ledger.

use std::collections::HashMap;

use rusqlite::{Result, params};

use super::{LedgerDatabase, delivery, micros, subscriptions::ActiveHandler};
use crate::{
    event::HandlerName,
    store::{
        DeliverySnapshot,
        embedded::{
            journal::JournalBatch,
            queue::{DeliveryUpdate, OpenDelivery},
            record::{Content, Event},
            segment::Position,
        },
    },
};

/// What one transaction has ingested.
#[derive(Default)]
pub(super) struct Ingested {
    pub(super) batch: Option<JournalBatch>,
    pub(super) updates: Vec<DeliveryUpdate>,
    /// The deliveries that commands have replayed.
    pub(super) replayed: Vec<(HandlerName, Position, OpenDelivery)>,
    /// The number of duplicates.
    duplicates: u64,
    /// Whether a window has been filled.
    pub(super) has_filled: bool,
}

/// The states of deliveries whose events the ledger does not have yet.
type Updates<'a> = HashMap<(&'a HandlerName, Position), &'a DeliverySnapshot>;

impl LedgerDatabase {
    /// Ingests what the queue has for the ledger: a batch of the journal, and updates of
    /// deliveries.
    pub(super) fn ingest(&mut self) -> Result<()> {
        let batch = self.queue.next();
        let through = match &batch {
            Some(batch) => batch.through,
            None => self.watermark()?.through,
        };
        let updates = self.queue.updates(through);
        let added = self.add_all(batch.as_ref(), &updates);
        (self.ingested.batch, self.ingested.updates) = (batch, updates);
        added
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

    /// Reports after the commit what the transaction has ingested.
    pub(super) fn finish_ingest(&mut self, ingested: Ingested) {
        self.metrics.duplicates.inc_by(ingested.duplicates);
        for (handler, position, open) in ingested.replayed {
            self.queue.replay(&handler, position, open);
        }
        for record in self.queue.unwritten() {
            self.journal.put(record);
        }
        if let Some(batch) = ingested.batch {
            self.journal_progress.indexed(batch.records);
            self.awaited = self.awaited.filter(|awaited| *awaited > batch.through);
        }
        if !ingested.has_filled {
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
        self.ingested.duplicates += batch.duplicates;
        let mut active = self.handlers_at_watermark()?;
        for (position, content) in &batch.contents {
            match content {
                Content::Event(event) => {
                    if !self.add(*position, event, &active, updates)? {
                        self.ingested.duplicates += 1;
                    }
                }
                Content::Deliveries(snapshot) => {
                    for (position, delivery) in snapshot {
                        self.apply_snapshot(*position, delivery)?;
                    }
                }
                Content::Subscriptions(since, subscriptions) => {
                    self.record_subscriptions(*since, subscriptions)?;
                    active = self.handlers_at_watermark()?;
                }
                Content::Inventory(from, to) => self.delete_untouched(*from, *to)?,
                Content::Other => {}
            }
        }
        self.db
            .prepare_cached("UPDATE progress SET through = ?1, records = ?2")?
            .execute((batch.through.to_sql(), batch.records.cast_signed()))?;
        Ok(())
    }

    /// Adds an event with its deliveries to the `active` handlers. Returns `false` if the id is
    /// known.
    fn add(
        &mut self,
        position: Position,
        event: &Event,
        active: &[ActiveHandler],
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
        self.add_terms(position, notification)?;
        for handler in active {
            if handler.subscription.takes(&notification.name) {
                let place = (handler.id, position);
                let (db, tally) = (&self.db, &mut self.tally);
                match updates.get(&(&handler.subscription.handler, position)) {
                    Some(snapshot) if snapshot.is_over() => {
                        delivery::add_snapshot(db, tally, place, snapshot)?
                    }
                    _ => {
                        let keys = keys.as_ref().filter(|_| handler.subscription.ordered);
                        delivery::add(db, tally, place, keys, micros(notification.received_at))?;
                    }
                }
            }
        }
        Ok(true)
    }
}
