//! The statistics of handlers.

use rusqlite::{OptionalExtension, Result};

use super::{LedgerDatabase, delivery::HandlerId, time};
use crate::store::statistics::HandlerStatistics;

/// When the event of a handler's oldest open delivery was received.
pub(super) const OLDEST: &str = "SELECT received_at FROM events WHERE position =
    (SELECT position FROM deliveries INDEXED BY unfinished
     WHERE handler = ?1 AND state = 0 AND state < 3 ORDER BY position LIMIT 1)";

impl LedgerDatabase {
    /// The statistics of all handlers.
    pub(in super::super) fn statistics(&self) -> Result<Vec<HandlerStatistics>> {
        let mut handlers = self
            .db
            .prepare_cached("SELECT id, name, open, parked FROM handlers")?;
        let mut oldest = self.db.prepare_cached(OLDEST)?;
        let rows = handlers.query_map([], |row| {
            let id: HandlerId = row.get(0)?;
            let oldest = oldest.query_row([id], |row| row.get(0)).optional()?;
            Ok(HandlerStatistics {
                handler: row.get(1)?,
                open: row.get(2)?,
                parked: row.get(3)?,
                oldest: oldest.map(time),
            })
        })?;
        rows.collect()
    }
}
