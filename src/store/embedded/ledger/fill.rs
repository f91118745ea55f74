//! Fills the windows of the queue from the ledger and the journal.

use jiff::Timestamp;
use rusqlite::Result;

use super::{LedgerDatabase, delivery::HandlerId, ordering, time, topics::topic_times};
use crate::{
    event::HandlerName,
    store::embedded::{queue::OpenDelivery, segment::Position},
};

/// The number of deliveries in one query.
const SLICE: usize = 4096;

/// The number of events that are loaded at once: up to 16 MiB with bodies of 1 MiB.
const EVENTS: usize = 16;

/// Open deliveries, oldest first.
pub(super) const OPEN: &str =
    "SELECT position, scope, key, keys, attempts, replays, due_at, since, replay
    FROM deliveries INDEXED BY unfinished
    WHERE handler = ?1 AND state = 0 AND state < 3 AND position >= ?2 ORDER BY position LIMIT ?3";

impl LedgerDatabase {
    /// Fills the window of `handler` as far as it needs, and loads the events of its next
    /// deliveries.
    pub(in super::super) fn fill(&mut self, handler: &HandlerName, now: Timestamp) -> Result<()> {
        let Some(id) = self.handler(handler) else {
            return Ok(());
        };
        self.ingested.has_filled = true;
        while let Some(from) = self.queue.refill_from(handler, now) {
            let open = self.open_from(id, from, SLICE)?;
            let subscriptions = match open.len() < SLICE {
                true => Some(
                    self.handlers_at_watermark()?
                        .into_iter()
                        .map(|active| active.subscription)
                        .collect(),
                ),
                false => None::<Vec<_>>,
            };
            self.queue.fill(handler, open, subscriptions.as_deref());
        }
        for positions in self.queue.unloaded(handler, now).chunks(EVENTS) {
            if !self.load(handler, positions, now)? {
                break;
            }
        }
        self.queue.filled(handler);
        Ok(())
    }

    /// The first open deliveries of `handler` from a position on.
    pub(super) fn open_from(
        &self,
        handler: HandlerId,
        from: Position,
        at_most: usize,
    ) -> Result<Vec<(Position, OpenDelivery)>> {
        let mut open = self.db.prepare_cached(OPEN)?;
        let rows = open.query_map((handler, from.to_sql(), at_most as i64), |row| {
            let open = OpenDelivery {
                keys: ordering::read(row, 1)?,
                attempts: row.get(4)?,
                replays: row.get(5)?,
                due_at: time(row.get(6)?),
                since: row.get::<_, Option<i64>>(7)?.map(time),
                replay: row.get(8)?,
            };
            Ok((Position::from_sql(row.get(0)?), open))
        })?;
        rows.collect()
    }

    /// Loads the events of deliveries. Returns whether there is room for more.
    fn load(
        &mut self,
        handler: &HandlerName,
        positions: &[Position],
        now: Timestamp,
    ) -> Result<bool> {
        let mut events = Vec::with_capacity(positions.len());
        for &position in positions {
            match self.event_reader.read(position) {
                Ok(event) => events.push((position, event.notification)),
                Err(unread) => {
                    tracing::error!(
                        segment = position.segment(),
                        offset = position.offset(),
                        "a delivery is parked: {unread}"
                    );
                    self.queue.park(handler, position, &unread.to_string(), now);
                }
            }
        }
        let notifications = events.iter().map(|(_, event)| &**event);
        let unknown = self.queue.missing_topics(notifications);
        let topic_times = topic_times(&self.db, unknown)?;
        Ok(self.queue.load(handler, events, &topic_times))
    }
}
