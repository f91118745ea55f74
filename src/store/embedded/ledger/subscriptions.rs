//! Subscriptions, retention and statistics.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Result, params};

use super::{
    LedgerDatabase,
    delivery::{self, HandlerId},
    micros, time,
};
use crate::{
    event::{HandlerName, Notification, OrderingKeys},
    store::{
        DeliveryState, NO_HANDLER, Subscription,
        embedded::{record, segment::Position},
        statistics::HandlerStatistics,
    },
};

/// The number of deliveries in one step of a change of ordering.
const SLICE: usize = 1000;

/// A handler with a subscription.
#[derive(Clone, Debug)]
pub(super) struct ActiveHandler {
    pub(super) id: HandlerId,
    pub(super) subscription: Subscription,
}

impl LedgerDatabase {
    /// Replaces the subscriptions.
    pub(in super::super) fn subscribe(&mut self, subscriptions: Vec<Subscription>) -> Result<()> {
        self.queue.retain(&subscriptions);
        // Updates of removed handlers are applied while their rows are active.
        let updates = self.queue.updates(self.watermark()?.through);
        for (position, snapshot) in &updates {
            self.apply_snapshot(*position, snapshot)?;
        }
        self.intake.updates.extend(updates);
        self.db.execute("UPDATE handlers SET configured = 0", [])?;
        let mut active = Vec::with_capacity(subscriptions.len());
        for asked in subscriptions {
            let id = self.configure(&asked)?;
            active.push(ActiveHandler {
                id,
                subscription: asked,
            });
        }
        let subscribed: Vec<_> = active
            .iter()
            .map(|active| active.subscription.clone())
            .collect();
        self.subscriptions = active;
        self.park_the_abandoned((self.clock)(), &subscribed)?;
        self.queue.subscribe(subscribed);
        Ok(())
    }

    /// The subscriptions at the watermark.
    pub(super) fn given(&self) -> Result<Vec<ActiveHandler>> {
        let Some(said) = self.said()? else {
            return Ok(self.subscriptions.clone());
        };
        let given = said.into_iter().map(|mut asked| {
            let mut configured = self.subscriptions.iter();
            let configured = configured.find(|active| active.subscription.handler == asked.handler);
            // A handler without a configuration needs no order: its deliveries are parked.
            asked.ordered = configured.is_some_and(|active| active.subscription.ordered);
            let id = id(&self.db, &asked.handler)?;
            Ok(ActiveHandler {
                id,
                subscription: asked,
            })
        });
        given.collect()
    }

    /// The subscriptions at the watermark that the journal has recorded.
    pub(super) fn said(&self) -> Result<Option<Vec<Subscription>>> {
        let said: Option<Vec<u8>> = self
            .db
            .prepare_cached("SELECT subscriptions FROM progress")?
            .query_row([], |row| row.get(0))?;
        Ok(said.and_then(|bytes| record::take_subscriptions(&mut bytes.as_slice())))
    }

    /// Records the subscriptions that are in force from `since` on.
    pub(super) fn give(&mut self, since: Timestamp, subscriptions: &[Subscription]) -> Result<()> {
        let mut said = Vec::new();
        record::put_subscriptions(&mut said, subscriptions);
        self.db
            .prepare_cached("UPDATE progress SET subscriptions = ?1")?
            .execute([said])?;
        for Subscription { handler, .. } in subscriptions {
            id(&self.db, handler)?;
        }
        self.park_the_abandoned(since, subscriptions)
    }

    /// Configures the row of a handler, and returns its id.
    fn configure(&mut self, asked: &Subscription) -> Result<HandlerId> {
        let id = id(&self.db, &asked.handler)?;
        let ordered: bool = self
            .db
            .prepare_cached("SELECT ordered FROM handlers WHERE id = ?1")?
            .query_row([id], |row| row.get(0))?;
        self.db.execute(
            "UPDATE handlers SET configured = 1, ordered = ?2 WHERE id = ?1",
            (id, asked.ordered),
        )?;
        if ordered != asked.ordered {
            self.arrange(id, asked.ordered)?;
        }
        Ok(id)
    }

    /// Sets or removes the ordering keys of a handler's open deliveries, after its order has
    /// changed.
    fn arrange(&mut self, handler: HandlerId, ordered: bool) -> Result<()> {
        let mut next = Position::default();
        loop {
            let page = self.open_from(handler, next, SLICE)?;
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            next = last.next();
            for (position, _) in page {
                let keys = match ordered {
                    true => self.ordering_keys(position),
                    false => None,
                };
                delivery::place(&self.db, (handler, position), keys.as_ref())?;
            }
        }
    }

    /// The ordering keys of an event. An unreadable event has none: it is parked when its delivery
    /// is next.
    pub(super) fn ordering_keys(&mut self, position: Position) -> Option<OrderingKeys> {
        self.event_reader.read(position).ok()?.keys
    }

    /// Parks the open deliveries of handlers without a subscription.
    fn park_the_abandoned(
        &mut self,
        since: Timestamp,
        subscriptions: &[Subscription],
    ) -> Result<()> {
        let is_gone = |name: &str| !subscriptions.iter().any(|one| one.handler.as_str() == name);
        // The counts of the present transaction so far.
        self.tally.write(&self.db)?;
        let mut with_open = self
            .db
            .prepare_cached("SELECT id, name FROM handlers WHERE open > 0")?;
        let rows = with_open.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let with_open = rows.collect::<Result<Vec<(HandlerId, String)>>>()?;
        for (handler, name) in with_open.into_iter().filter(|(_, name)| is_gone(name)) {
            let reason = params![DeliveryState::Parked, micros(since), NO_HANDLER, handler];
            let parked = self.db.execute(ABANDON, reason)?;
            self.db.execute(
                "UPDATE handlers SET parked = parked + open, open = 0 WHERE id = ?1",
                [handler],
            )?;
            tracing::warn!(
                handler = name,
                parked,
                "deliveries are parked, since their handler is no longer configured"
            );
        }
        Ok(())
    }

    /// The id of the configured handler called `name`.
    pub(super) fn handler(&self, name: &HandlerName) -> Option<HandlerId> {
        let mut active = self.subscriptions.iter();
        let found = active.find(|active| active.subscription.handler == *name);
        found.map(|active| active.id)
    }

    /// The id of any handler called `name`. A missing row is created.
    pub(super) fn any_handler(&self, name: &HandlerName) -> Result<HandlerId> {
        self.handler(name).map_or_else(|| id(&self.db, name), Ok)
    }

    /// Whether a delivery in the range is unfinished, or may be, since the ledger is being rebuilt.
    pub(in super::super) fn is_needed(&self, from: Position, to: Position) -> Result<bool> {
        if self.watermark()?.through < to {
            return Ok(true);
        }
        let mut look = self.db.prepare_cached(UNFINISHED)?;
        look.exists((from.to_sql(), to.to_sql()))
    }

    /// Deletes a range of positions, whose events are `notifications`. Returns `false`, and deletes
    /// nothing, if a delivery is unfinished after all.
    pub(in super::super) fn forget(
        &mut self,
        (from, to): (Position, Position),
        notifications: &[Notification],
    ) -> Result<bool> {
        if self.is_needed(from, to)? {
            return Ok(false);
        }
        for notification in notifications {
            self.forget_topics(notification)?;
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

    fn forget_topics(&self, notification: &Notification) -> Result<()> {
        if let Some(occurred_at) = notification.occurred_at {
            let mut unlearn = self
                .db
                .prepare_cached("DELETE FROM topics WHERE topic = ?1 AND latest <= ?2")?;
            for topic in &notification.topics {
                unlearn.execute((topic.as_str(), micros(occurred_at)))?;
            }
        }
        Ok(())
    }

    /// Closes the file of segment `number`, which has been deleted.
    pub(in super::super) fn forget_segment(&mut self, number: u32) {
        self.event_reader.forget(number);
    }

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

/// Whether a delivery in a range of positions is unfinished.
pub(super) const UNFINISHED: &str = "SELECT 1
    FROM handlers CROSS JOIN deliveries INDEXED BY unfinished
    ON handler = id AND state IN (0, 2) AND state < 3 AND position >= ?1 AND position < ?2
    LIMIT 1";

/// When the event of a handler's oldest open delivery was received.
pub(super) const OLDEST: &str = "SELECT received_at FROM events WHERE position =
    (SELECT position FROM deliveries INDEXED BY unfinished
     WHERE handler = ?1 AND state = 0 AND state < 3 ORDER BY position LIMIT 1)";

/// Parks the open deliveries of a handler that is no longer configured.
pub(super) const ABANDON: &str = "UPDATE deliveries INDEXED BY unfinished
    SET state = ?1, due_at = ?2, why = ?3
    WHERE handler = ?4 AND state = 0 AND state < 3";

/// The id of the handler called `name`. A missing row is created.
pub(super) fn id(db: &Connection, name: &HandlerName) -> Result<HandlerId> {
    let known = db
        .prepare_cached("SELECT id FROM handlers WHERE name = ?1")?
        .query_row([name.as_str()], |row| row.get(0))
        .optional()?;
    if let Some(id) = known {
        return Ok(id);
    }
    db.execute(
        "INSERT INTO handlers (name, configured, ordered) VALUES (?1, 0, 0)",
        [name.as_str()],
    )?;
    Ok(db.last_insert_rowid())
}
