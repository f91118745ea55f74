//! The index of events by number and by key: see [`crate::store::terms`].
//!
//! The rows of one segment of the journal are neighbours. So an event changes pages that the events
//! before it have changed, and retention deletes a segment's rows from one place. A look-up visits
//! each segment, newest first.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Result};

use super::{LedgerDatabase, time};
use crate::{
    event::Notification,
    store::{embedded::segment::Position, terms::TermHasher},
};

const ADD: &str = "INSERT OR IGNORE INTO terms (segment, term, offset) VALUES (?1, ?2, ?3)";

/// Adds a term of a stored event. A duplicate of it has a record in the journal, and no row.
const ADD_LATE: &str = "INSERT OR IGNORE INTO terms (segment, term, offset)
    SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM events WHERE position = ?4)";

/// The latest segment up to a number that has terms.
pub(super) const SEGMENT: &str = "SELECT max(segment) FROM terms WHERE segment <= ?1";

/// The events of a segment with a term, latest first.
pub(super) const EVENTS: &str = "SELECT offset FROM terms
    WHERE segment = ?1 AND term = ?2 AND offset < ?3 ORDER BY offset DESC LIMIT ?4";

/// Deletes the first terms of a segment.
pub(super) const DELETE: &str = "DELETE FROM terms WHERE segment = ?1 AND term <= coalesce(
    (SELECT term FROM terms WHERE segment = ?1 ORDER BY term LIMIT 1 OFFSET ?2), 9223372036854775807)";

/// The most terms that one transaction deletes.
const SLICE: i64 = 500;

/// The hasher of the ledger's terms.
pub(super) fn hasher(db: &Connection) -> Result<TermHasher> {
    let mut look = db.prepare_cached("SELECT term_key FROM progress")?;
    look.query_row([], |row| Ok(TermHasher::new(&row.get(0)?)))
}

/// The time before which events may be missing in the index; `None` if it is complete.
pub(super) fn incomplete_before(db: &Connection) -> Result<Option<Timestamp>> {
    let latest = db
        .prepare_cached(
            "SELECT received_at FROM events
             WHERE position < (SELECT unindexed FROM progress) ORDER BY position DESC LIMIT 1",
        )?
        .query_row([], |row| row.get::<_, i64>(0))
        .optional()?;
    Ok(latest.map(|latest| time(latest + 1)))
}

/// The segment of a position and the offset in it, as the table has them.
fn place(position: Position) -> (i64, i64) {
    (position.segment().into(), position.offset().cast_signed())
}

impl LedgerDatabase {
    /// Adds the terms of a new event.
    pub(super) fn add_terms(&self, position: Position, event: &Notification) -> Result<()> {
        let (segment, offset) = place(position);
        let mut add = self.db.prepare_cached(ADD)?;
        for term in self.hasher.terms(event) {
            add.execute((segment, term, offset))?;
        }
        Ok(())
    }

    /// Adds the terms of events that were stored without them.
    pub(in super::super) fn add_late_terms(
        &self,
        events: &[(Position, Notification)],
    ) -> Result<()> {
        let mut add = self.db.prepare_cached(ADD_LATE)?;
        for (position, event) in events {
            let (segment, offset) = place(*position);
            for term in self.hasher.terms(event) {
                add.execute((segment, term, offset, position.to_sql()))?;
            }
        }
        Ok(())
    }

    /// The position up to which events may lack their terms.
    pub(in super::super) fn unindexed(&self) -> Result<Position> {
        let mut look = self.db.prepare_cached("SELECT unindexed FROM progress")?;
        look.query_row([], |row| row.get(0).map(Position::from_sql))
    }

    /// Records that all events from `position` on have their terms.
    pub(in super::super) fn indexed_from(&self, position: Position) -> Result<()> {
        self.db
            .prepare_cached("UPDATE progress SET unindexed = ?1 WHERE unindexed > ?1")?
            .execute([position.to_sql()])?;
        Ok(())
    }

    /// Deletes some terms of a segment whose events have been deleted. Returns whether there may be
    /// more.
    pub(in super::super) fn delete_terms(&self, segment: u32) -> Result<bool> {
        let deleted = self
            .db
            .prepare_cached(DELETE)?
            .execute((i64::from(segment), SLICE))?;
        Ok(deleted > 0)
    }
}
