//! The subscriptions that are configured, and those that the journal has recorded.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Result, params};

use super::{
    LedgerDatabase,
    delivery::{self, HandlerId},
    micros,
};
use crate::{
    event::{HandlerName, OrderingKeys},
    store::{
        DeliveryState, NO_HANDLER, Subscription,
        embedded::{record, segment::Position},
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
        self.ingested.updates.extend(updates);
        self.db.execute("UPDATE handlers SET configured = 0", [])?;
        let mut active = Vec::with_capacity(subscriptions.len());
        for subscription in subscriptions {
            let id = self.configure(&subscription)?;
            active.push(ActiveHandler { id, subscription });
        }
        let subscribed: Vec<_> = active
            .iter()
            .map(|active| active.subscription.clone())
            .collect();
        self.subscriptions = active;
        self.park_abandoned((self.core.context.clock)(), &subscribed)?;
        self.queue.subscribe(subscribed);
        Ok(())
    }

    /// The handlers that get events at the watermark.
    pub(super) fn handlers_at_watermark(&self) -> Result<Vec<ActiveHandler>> {
        let Some(recorded) = self.recorded_subscriptions()? else {
            return Ok(self.subscriptions.clone());
        };
        let handlers = recorded.into_iter().map(|mut subscription| {
            let mut configured = self.subscriptions.iter();
            let configured =
                configured.find(|active| active.subscription.handler == subscription.handler);
            // A handler without a configuration needs no order: its deliveries are parked.
            subscription.ordered = configured.is_some_and(|active| active.subscription.ordered);
            let id = id(&self.db, &subscription.handler)?;
            Ok(ActiveHandler { id, subscription })
        });
        handlers.collect()
    }

    /// The subscriptions at the watermark that the journal has recorded.
    pub(super) fn recorded_subscriptions(&self) -> Result<Option<Vec<Subscription>>> {
        let recorded: Option<Vec<u8>> = self
            .db
            .prepare_cached("SELECT subscriptions FROM progress")?
            .query_row([], |row| row.get(0))?;
        Ok(recorded.and_then(|bytes| record::take_subscriptions(&mut bytes.as_slice())))
    }

    /// Records the subscriptions that apply from `since` on.
    pub(super) fn record_subscriptions(
        &mut self,
        since: Timestamp,
        subscriptions: &[Subscription],
    ) -> Result<()> {
        let mut bytes = Vec::new();
        record::put_subscriptions(&mut bytes, subscriptions);
        self.db
            .prepare_cached("UPDATE progress SET subscriptions = ?1")?
            .execute([bytes])?;
        for Subscription { handler, .. } in subscriptions {
            id(&self.db, handler)?;
        }
        self.park_abandoned(since, subscriptions)
    }

    /// Configures the row of a handler, and returns its id.
    fn configure(&mut self, subscription: &Subscription) -> Result<HandlerId> {
        let id = id(&self.db, &subscription.handler)?;
        let ordered: bool = self
            .db
            .prepare_cached("SELECT ordered FROM handlers WHERE id = ?1")?
            .query_row([id], |row| row.get(0))?;
        self.db.execute(
            "UPDATE handlers SET configured = 1, ordered = ?2 WHERE id = ?1",
            (id, subscription.ordered),
        )?;
        if ordered != subscription.ordered {
            self.set_order(id, subscription.ordered)?;
        }
        Ok(id)
    }

    /// Sets or removes the ordering keys of a handler's open deliveries, after its order has
    /// changed.
    fn set_order(&mut self, handler: HandlerId, ordered: bool) -> Result<()> {
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
                delivery::set_keys(&self.db, (handler, position), keys.as_ref())?;
            }
        }
    }

    /// The ordering keys of an event. An unreadable event has none: it is parked when its delivery
    /// is next.
    pub(super) fn ordering_keys(&mut self, position: Position) -> Option<OrderingKeys> {
        self.event_reader.read(position).ok()?.keys
    }

    /// Parks the open deliveries of handlers without a subscription.
    fn park_abandoned(&mut self, since: Timestamp, subscriptions: &[Subscription]) -> Result<()> {
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
                "UPDATE handlers SET parked = parked + ?2, open = open - ?2 WHERE id = ?1",
                params![handler, parked.cast_signed()],
            )?;
            if parked > 0 {
                tracing::warn!(
                    handler = name,
                    parked,
                    "deliveries are parked, since their handler is no longer configured"
                );
            }
        }
        Ok(())
    }

    /// The subscription of the configured handler with this id.
    pub(super) fn subscription(&self, id: HandlerId) -> Option<&Subscription> {
        let mut active = self.subscriptions.iter();
        let found = active.find(|active| active.id == id);
        found.map(|active| &active.subscription)
    }

    /// The id of the configured handler called `name`.
    pub(super) fn handler(&self, name: &HandlerName) -> Option<HandlerId> {
        let mut active = self.subscriptions.iter();
        let found = active.find(|active| active.subscription.handler == *name);
        found.map(|active| active.id)
    }

    /// The id of any handler called `name`. A missing row is created.
    pub(super) fn handler_or_new(&self, name: &HandlerName) -> Result<HandlerId> {
        self.handler(name).map_or_else(|| id(&self.db, name), Ok)
    }
}

/// Parks the open deliveries of a handler that is no longer configured since the time `?2`. A ledger that lags
/// reads of such times late: what a command has replayed after that time stays open.
pub(super) const ABANDON: &str = "UPDATE deliveries INDEXED BY unfinished
    SET state = ?1, due_at = ?2, why = ?3
    WHERE handler = ?4 AND state = 0 AND state < 3
        AND NOT (replays > 0 AND attempts = 0 AND due_at > ?2)";

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
