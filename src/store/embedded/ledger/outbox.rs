//! Applies the states of deliveries to the ledger, and writes the changes of commands to the
//! journal.
//!
//! States come from the [queue](crate::store::embedded::queue) and, during a rebuild, from the
//! journal. Both contain [states](crate::store::embedded::record) and not changes, so that they can
//! be applied repeatedly and in any order.
//!
//! Commands change the ledger themselves, with or without a running service, and list the changed
//! deliveries in the outbox. The next transaction of a service writes these to the journal. They
//! stay in the outbox until the journal is synced.

use rusqlite::Result;

use super::{
    LedgerDatabase,
    delivery::{self, HandlerId},
    export,
};
use crate::{
    event::OrderingKeys,
    store::{
        DeliverySnapshot,
        embedded::{record::Record, segment::Position},
    },
};

/// The most deliveries in one record.
const AT_ONCE: usize = 1024;

impl LedgerDatabase {
    /// Writes the changes of commands to the journal.
    pub(super) fn flush_outbox(&mut self) -> Result<()> {
        loop {
            let listed = self.outbox()?;
            if listed.is_empty() {
                return Ok(());
            }
            for record in self.snapshot(&listed)? {
                // If the journal accepts no records, the outbox stays as it is.
                if !matches!(self.journal.put_durably(record).blocking_recv(), Ok(Ok(()))) {
                    return Ok(());
                }
            }
            for (handler, position) in listed {
                self.db
                    .prepare_cached("DELETE FROM outbox WHERE handler = ?1 AND position = ?2")?
                    .execute((handler, position.to_sql()))?;
                let open = self.open_from(handler, position, 1)?.pop();
                if let Some((_, open)) = open.filter(|(place, _)| *place == position)
                    && let Some(subscription) = self.subscription(handler)
                {
                    let name = subscription.handler.clone();
                    self.ingested.replayed.push((name, position, open));
                }
            }
        }
    }

    fn outbox(&self) -> Result<Vec<(HandlerId, Position)>> {
        let mut list = self
            .db
            .prepare_cached("SELECT handler, position FROM outbox ORDER BY 1, 2 LIMIT ?1")?;
        let rows = list.query_map([AT_ONCE as i64], |row| {
            Ok((row.get(0)?, Position::from_sql(row.get(1)?)))
        })?;
        rows.collect()
    }

    fn snapshot(&self, changed: &[(HandlerId, Position)]) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for of_handler in changed.chunk_by(|a, b| a.0 == b.0) {
            let mut deliveries = Vec::with_capacity(of_handler.len());
            for &(handler, position) in of_handler {
                let mut found =
                    export::of_handler(&self.db, handler, (position, position.next()), 1)?;
                for (_, delivery) in &mut found {
                    // Earlier failures are in the journal already.
                    let before = delivery.failures.len().saturating_sub(1);
                    delivery.failures.drain(..before);
                }
                deliveries.append(&mut found);
            }
            records.append(&mut Record::of_deliveries(&deliveries));
        }
        Ok(records)
    }

    /// An inventory of the events between two positions, and the state of each of their deliveries.
    pub(in super::super) fn inventory(
        &self,
        from: Position,
        to: Position,
        mut each: impl FnMut(Record),
    ) -> Result<()> {
        each(Record::inventory(from, to));
        let handlers = self
            .db
            .prepare("SELECT id FROM handlers ORDER BY id")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<Vec<HandlerId>>>()?;
        for handler in handlers {
            let mut next = from;
            loop {
                let some = export::of_handler(&self.db, handler, (next, to), AT_ONCE)?;
                let Some((last, _)) = some.last() else { break };
                next = last.next();
                Record::of_deliveries(&some).into_iter().for_each(&mut each);
            }
        }
        Ok(())
    }

    /// Deletes the deliveries of the events between two positions that have never been attempted or
    /// replayed.
    pub(super) fn delete_untouched(&mut self, from: Position, to: Position) -> Result<()> {
        for (handler, delivery) in self.untouched(from, to)? {
            if let Some(row) = delivery::find(&self.db, handler, delivery)? {
                delivery::delete(&self.db, &mut self.tally, &row)?;
            }
        }
        Ok(())
    }

    fn untouched(&self, from: Position, to: Position) -> Result<Vec<(HandlerId, Position)>> {
        let mut list = self.db.prepare_cached(
            "SELECT handler, position FROM handlers CROSS JOIN deliveries INDEXED BY unfinished
             ON handler = id AND state IN (0, 2) AND state < 3 AND position >= ?1 AND position < ?2
             WHERE attempts = 0 AND replays = 0",
        )?;
        let rows = list.query_map((from.to_sql(), to.to_sql()), |row| {
            Ok((row.get(0)?, Position::from_sql(row.get(1)?)))
        })?;
        rows.collect()
    }

    /// Applies the state of a delivery, unless the ledger has a newer one or the event is gone.
    pub(super) fn apply_snapshot(
        &mut self,
        position: Position,
        snapshot: &DeliverySnapshot,
    ) -> Result<()> {
        let place = (self.handler_or_new(&snapshot.handler)?, position);
        let (db, tally) = (&self.db, &mut self.tally);
        if !delivery::advance(db, tally, place, snapshot)? {
            let has_keys = match delivery::find(db, place.0, position)? {
                Some(row) if row.is_behind(snapshot) => {
                    delivery::change(db, tally, &row, snapshot)?;
                    row.state.is_open()
                }
                Some(_) => true,
                None if !self.has_event(position)? => return Ok(()),
                None => {
                    delivery::add_snapshot(&self.db, &mut self.tally, place, snapshot)?;
                    false
                }
            };
            if !has_keys && !snapshot.is_over() {
                let keys = self.keys_for(place);
                delivery::set_keys(&self.db, place, keys.as_ref())?;
            }
        }
        for failure in &snapshot.failures {
            delivery::add_failure(&self.db, place, failure)?;
        }
        Ok(())
    }

    fn has_event(&self, position: Position) -> Result<bool> {
        self.db
            .prepare_cached("SELECT 1 FROM events WHERE position = ?1")?
            .exists([position.to_sql()])
    }

    /// The ordering keys of a delivery.
    fn keys_for(&mut self, (handler, position): (HandlerId, Position)) -> Option<OrderingKeys> {
        let subscription = self.subscription(handler)?;
        match subscription.ordered {
            true => self.ordering_keys(position),
            false => None,
        }
    }
}
