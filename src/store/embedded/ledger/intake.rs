//! From the journal into the ledger.

use rusqlite::{OptionalExtension, Result, params};

use super::{Books, delivery, micros, upkeep::Active};
use crate::{
    event::Notification,
    store::{
        StoreError,
        embedded::{
            record::{Content, Event},
            segment::Position,
        },
    },
};

/// What was read of the journal at one go.
#[derive(Debug, Default)]
pub(in super::super) struct Batch {
    /// Where it begins.
    pub(in super::super) from: Position,
    /// Where it ends.
    pub(in super::super) through: Position,
    /// Records of the journal up to there.
    pub(in super::super) records: u64,
    /// What is in it, without copies.
    pub(in super::super) contents: Vec<(Position, Content)>,
    /// How many copies there were.
    pub(in super::super) copies: u64,
}

/// How far the journal has been read.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Reached {
    /// Up to where the ledger knows it.
    pub(in super::super) through: Position,
    /// How many records that is.
    pub(in super::super) records: u64,
}

impl Books {
    /// How far the journal has been read.
    pub(in super::super) fn reached(&self) -> Result<Reached> {
        self.db
            .prepare_cached("SELECT through, records FROM progress")?
            .query_row([], |row| {
                let records: i64 = row.get(1)?;
                Ok(Reached {
                    through: Position::from_sql(row.get(0)?),
                    records: records.cast_unsigned(),
                })
            })
    }

    /// Up to where the ledger knows the journal, while no thread works on it yet.
    pub(in super::super) fn through(&self) -> std::result::Result<Position, StoreError> {
        let reached = self.reached();
        let reached = reached.map_err(StoreError::database("reading the ledger"))?;
        Ok(reached.through)
    }

    /// Has nothing handed out before the journal has been read up to `end`: it may say of something that
    /// it is done.
    pub(in super::super) fn wait_for(
        &mut self,
        end: Position,
    ) -> std::result::Result<Reached, StoreError> {
        let reached = self.reached();
        let reached = reached.map_err(StoreError::database("reading the ledger"))?;
        self.awaited = (reached.through < end).then_some(end);
        Ok(reached)
    }

    /// Whether the journal has what became of deliveries.
    pub(in super::super) fn is_journaled(&self) -> std::result::Result<bool, StoreError> {
        let told = "SELECT journaled FROM progress";
        let told = self.db.query_row(told, [], |row| row.get(0));
        told.map_err(StoreError::database("reading the ledger"))
    }

    /// Notes that it has.
    pub(in super::super) fn set_journaled(&self) -> std::result::Result<(), StoreError> {
        let noted = self.db.execute("UPDATE progress SET journaled = 1", []);
        noted.map_err(StoreError::database("writing the ledger"))?;
        Ok(())
    }

    /// Adds `batch`, if it begins where the journal has been read to, and says how far it has been
    /// read then. A ledger that was made anew starts from the beginning in this way.
    pub(in super::super) fn index(&mut self, batch: &Batch) -> Result<(Position, u64)> {
        let Reached { through, records } = self.reached()?;
        if through != batch.from {
            return Ok((through, records));
        }
        self.copies += batch.copies;
        let mut given = self.given()?;
        for (position, content) in &batch.contents {
            match content {
                Content::Event(event) => {
                    if !self.add(*position, event, &given)? {
                        self.copies += 1;
                    }
                }
                Content::Deliveries(told) => {
                    for (position, delivery) in told {
                        self.learn(*position, delivery)?;
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
        self.awaited = self.awaited.filter(|awaited| *awaited > batch.through);
        self.stirred |= self.awaited.is_none();
        Ok((batch.through, batch.records))
    }

    /// Adds an event with its deliveries to those it is `given` to; `false` when its id is known.
    fn add(&mut self, position: Position, event: &Event, given: &[Active]) -> Result<bool> {
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
            if active.asked.takes(&notification.name) {
                delivery::add(
                    &self.db,
                    &mut self.tally,
                    (active.id, position),
                    keys.as_ref().filter(|_| active.asked.ordered),
                    micros(notification.received_at),
                )?;
                self.stirred = true;
            }
        }
        Ok(true)
    }

    fn add_topics(&self, notification: &Notification) -> Result<()> {
        let Some(occurred_at) = notification.occurred_at else {
            return Ok(());
        };
        let mut learn = self.db.prepare_cached(
            "INSERT INTO topics (topic, latest) VALUES (?1, ?2)
             ON CONFLICT (topic) DO UPDATE SET latest = excluded.latest
             WHERE excluded.latest > latest",
        )?;
        for topic in &notification.topics {
            learn.execute((topic.as_str(), micros(occurred_at)))?;
        }
        Ok(())
    }

    /// Whether each topic has been reported again, with a later provider time.
    pub(super) fn is_superseded(&self, notification: &Notification) -> Result<bool> {
        let (Some(occurred_at), false) = (notification.occurred_at, notification.topics.is_empty())
        else {
            return Ok(false);
        };
        let mut look = self
            .db
            .prepare_cached("SELECT latest FROM topics WHERE topic = ?1")?;
        for topic in &notification.topics {
            let latest: Option<i64> = look
                .query_row([topic.as_str()], |row| row.get(0))
                .optional()?;
            if latest.is_none_or(|latest| latest <= micros(occurred_at)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
