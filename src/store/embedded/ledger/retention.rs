//! Deletes what the ledger has of old segments.

use rusqlite::Result;

use super::LedgerDatabase;
use crate::{event::Notification, store::embedded::segment::Position};

/// Whether a delivery in a range of positions is unfinished.
pub(super) const UNFINISHED: &str = "SELECT 1
    FROM handlers CROSS JOIN deliveries INDEXED BY unfinished
    ON handler = id AND state IN (0, 2) AND state < 3 AND position >= ?1 AND position < ?2
    LIMIT 1";

impl LedgerDatabase {
    /// Whether a delivery in the range is unfinished, or may be, since the ledger is being rebuilt.
    pub(in super::super) fn is_needed(&self, from: Position, to: Position) -> Result<bool> {
        if self.watermark()?.through < to {
            return Ok(true);
        }
        let mut look = self.db.prepare_cached(UNFINISHED)?;
        look.exists((from.to_sql(), to.to_sql()))
    }

    /// Deletes the events in a range of positions, which are `notifications`, with their deliveries. Returns `false`, and deletes
    /// nothing, if a delivery is unfinished after all.
    pub(in super::super) fn delete_events(
        &mut self,
        (from, to): (Position, Position),
        notifications: &[Notification],
    ) -> Result<bool> {
        if self.is_needed(from, to)? {
            return Ok(false);
        }
        for notification in notifications {
            self.delete_topics(notification)?;
        }
        let (from, to) = (from.to_sql(), to.to_sql());
        for table in ["deliveries", "attempts"] {
            self.db
                .prepare_cached(&format!(
                    "DELETE FROM {table} WHERE handler IN (SELECT id FROM handlers)
                     AND position >= ?1 AND position < ?2"
                ))?
                .execute((from, to))?;
        }
        self.db
            .prepare_cached("DELETE FROM events WHERE position >= ?1 AND position < ?2")?
            .execute((from, to))?;
        Ok(true)
    }

    /// Closes the file of segment `number`, which has been deleted.
    pub(in super::super) fn close_segment(&mut self, number: u32) {
        self.event_reader.close(number);
    }
}
