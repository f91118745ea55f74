//! How far the ledger has ingested the journal.

use rusqlite::Result;

use super::LedgerDatabase;
use crate::store::{
    StoreError,
    embedded::segment::{Position, Watermark},
};

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
        let (watermark, recorded) = (self.watermark()?, self.recorded_subscriptions()?);
        self.awaited = (watermark.through < end).then_some(end);
        self.queue.begin(watermark, recorded);
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
        let set = self.db.execute("UPDATE progress SET journaled = 1", []);
        set.map_err(StoreError::database("writing the ledger"))?;
        Ok(())
    }
}
