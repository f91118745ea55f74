//! The statistics of handlers.

use rusqlite::{Connection, OptionalExtension, Result};

use super::{LedgerDatabase, delivery::HandlerId, time};
use crate::{event::HandlerName, store::HandlerSummary};

/// When the event of a handler's oldest open delivery was received.
pub(super) const OLDEST: &str = "SELECT received_at FROM events WHERE position =
    (SELECT position FROM deliveries INDEXED BY unfinished
     WHERE handler = ?1 AND state = 0 AND state < 3 ORDER BY position LIMIT 1)";

impl LedgerDatabase {
    /// The statistics of all handlers.
    pub(in super::super) fn statistics(&self) -> Result<Vec<HandlerSummary>> {
        handlers(&self.db)
    }
}

/// All handlers with the counts of their deliveries, by name.
pub(super) fn handlers(db: &Connection) -> Result<Vec<HandlerSummary>> {
    let mut handlers =
        db.prepare_cached("SELECT id, name, configured, open, parked FROM handlers ORDER BY name")?;
    let mut oldest = db.prepare_cached(OLDEST)?;
    let rows = handlers.query_map([], |row| {
        let id: HandlerId = row.get(0)?;
        let oldest = oldest.query_row([id], |row| row.get(0)).optional()?;
        let count = |column| row.get(column).map(i64::cast_unsigned);
        Ok(HandlerSummary {
            handler: HandlerName::new(row.get::<_, String>(1)?),
            configured: row.get(2)?,
            open: count(3)?,
            parked: count(4)?,
            oldest_open: oldest.map(time),
        })
    })?;
    rows.collect()
}
