//! The latest report of each topic, by which an older event is superseded.

use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension, Result};

use super::{LedgerDatabase, micros, sqlite, time};
use crate::{
    event::{Notification, Topic},
    store::{StoreError, embedded::queue::TopicTime},
};

impl LedgerDatabase {
    /// Adds the topics of an event.
    pub(super) fn add_topics(&self, notification: &Notification) -> Result<()> {
        let Some(occurred_at) = notification.occurred_at else {
            return Ok(());
        };
        let mut update = self.db.prepare_cached(
            "INSERT INTO topics (topic, latest) VALUES (?1, ?2)
             ON CONFLICT (topic) DO UPDATE SET latest = excluded.latest
             WHERE excluded.latest > latest",
        )?;
        for topic in &notification.topics {
            update.execute((topic.as_str(), micros(occurred_at)))?;
        }
        Ok(())
    }

    /// Deletes the topics of an event, except those of which a later event reports.
    pub(super) fn delete_topics(&self, notification: &Notification) -> Result<()> {
        if let Some(occurred_at) = notification.occurred_at {
            let mut delete = self
                .db
                .prepare_cached("DELETE FROM topics WHERE topic = ?1 AND latest <= ?2")?;
            for topic in &notification.topics {
                delete.execute((topic.as_str(), micros(occurred_at)))?;
            }
        }
        Ok(())
    }
}

/// Reads the ledger's topics on a connection of its own, for events that handlers get before the
/// ledger has them.
pub(in super::super) struct TopicReader {
    path: PathBuf,
    /// The connection, while the ledger can be read.
    db: Option<Connection>,
}

impl TopicReader {
    /// A reader of the ledger at `path`.
    pub(in super::super) const fn new(path: PathBuf) -> Self {
        Self { path, db: None }
    }

    /// The latest report of each of `topics`.
    pub(in super::super) fn read(
        &mut self,
        topics: Vec<Topic>,
    ) -> std::result::Result<Vec<TopicTime>, StoreError> {
        let failed = StoreError::database("reading topics");
        let db = match self.db.take() {
            Some(db) => db,
            None => {
                let db = sqlite::open(&self.path, false)?;
                let small = db.pragma_update(None, "cache_size", -1024); // KiB
                small.map_err(StoreError::database("opening the ledger"))?;
                db
            }
        };
        let topic_times = topic_times(&db, topics).map_err(failed)?;
        self.db = Some(db);
        Ok(topic_times)
    }

    /// Closes the connection, since the ledger is another one now.
    pub(in super::super) fn close(&mut self) {
        self.db = None;
    }
}

/// The latest report of each of `topics`.
pub(super) fn topic_times(db: &Connection, topics: Vec<Topic>) -> Result<Vec<TopicTime>> {
    let mut look = db.prepare_cached("SELECT latest FROM topics WHERE topic = ?1")?;
    let latest = |topic: Topic| {
        let latest = look.query_row([topic.as_str()], |row| row.get(0));
        Ok((topic, latest.optional()?.map(time)))
    };
    topics.into_iter().map(latest).collect()
}
