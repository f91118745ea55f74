//! What has become of deliveries: as the [queue](crate::store::embedded::queue) says, as the journal says
//! where the ledger is made anew, and what the ledger tells the journal.
//!
//! Both tell [how a delivery stands](crate::store::embedded::record) and not what happened, so that the
//! ledger can be told twice and in any order.
//!
//! Commands change the ledger themselves, beside a running service or without one. They leave a list of
//! what they have changed, the outbox, from which the next transaction of a service takes it into the
//! journal, and it stays on the list until it is on stable storage there.

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
    /// Takes what commands have changed into the journal.
    pub(super) fn flush_outbox(&mut self) -> Result<()> {
        loop {
            let listed = self.outbox()?;
            if listed.is_empty() {
                return Ok(());
            }
            for record in self.snapshot(&listed)? {
                // Where the journal takes nothing any more the list stays.
                if !matches!(self.journal.put_durably(record).blocking_recv(), Ok(Ok(()))) {
                    return Ok(());
                }
            }
            for (handler, position) in listed {
                self.db
                    .prepare_cached("DELETE FROM outbox WHERE handler = ?1 AND position = ?2")?
                    .execute((handler, position.to_sql()))?;
                let open = self.open_from(handler, position, 1)?.pop();
                if let Some((_, open)) = open.filter(|(place, _)| *place == position) {
                    let mut active = self.subscriptions.iter();
                    let active = active.find(|active| active.id == handler);
                    let name = active.map(|active| active.subscription.handler.clone());
                    let replayed = name.map(|name| (name, position, open));
                    self.intake.replayed.extend(replayed);
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
            for some in of_handler.chunks(AT_ONCE) {
                let mut deliveries = Vec::with_capacity(some.len());
                for &(handler, position) in some {
                    let mut found =
                        export::of_handler(&self.db, handler, (position, position.next()), 1)?;
                    for (_, delivery) in &mut found {
                        // Those before are told already.
                        let before = delivery.failures.len().saturating_sub(1);
                        delivery.failures.drain(..before);
                    }
                    deliveries.append(&mut found);
                }
                records.append(&mut Record::of_deliveries(&deliveries));
            }
        }
        Ok(records)
    }

    /// Everything of the events between two positions: an inventory, and how each delivery stands.
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

    /// Forgets what nothing has become of yet of the deliveries of the events between two positions.
    pub(super) fn forget_untouched(&mut self, from: Position, to: Position) -> Result<()> {
        for (handler, delivery) in self.untouched(from, to)? {
            if let Some(row) = delivery::find(&self.db, handler, delivery)? {
                delivery::forget(&self.db, &mut self.tally, &row)?;
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

    /// Takes in how a delivery stands, unless more is known of it, or its event is gone.
    pub(super) fn apply_snapshot(
        &mut self,
        position: Position,
        snapshot: &DeliverySnapshot,
    ) -> Result<()> {
        let place = (self.any_handler(&snapshot.handler)?, position);
        let (db, tally) = (&self.db, &mut self.tally);
        if !delivery::advance(db, tally, place, snapshot)? {
            let is_placed = match delivery::find(db, place.0, position)? {
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
            if !is_placed && !snapshot.is_over() {
                let keys = self.keys_for(place);
                delivery::place(&self.db, place, keys.as_ref())?;
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

    /// What a delivery keeps its order by.
    fn keys_for(&mut self, (handler, position): (HandlerId, Position)) -> Option<OrderingKeys> {
        let mut active = self.subscriptions.iter();
        let ordered = active.any(|active| active.id == handler && active.subscription.ordered);
        self.ordering_keys(position).filter(|_| ordered)
    }
}
