//! What the ledger has written into the journal, and what it learns from there when it is made anew.
//!
//! The journal has, for each delivery of which something has become, [how it
//! stands](crate::store::embedded::record) since. The ledger hands that over behind its transaction, and
//! nobody waits for it: what is lost of it with the power, or with the process, the ledger still has. Only
//! where both are lost is something made again, and that is what happened in the last moments.
//!
//! Commands change the ledger themselves, beside a running service or without one. They leave a list of
//! what they have changed, the outbox, from which the next transaction of a service takes it into the
//! journal, and it stays on the list until it is on stable storage there.

use rusqlite::{OptionalExtension, Result, params};

use super::{
    Books,
    delivery::{self, HandlerId, PARKED},
    export, micros, upkeep,
};
use crate::store::{
    DeliveryState, StoredDelivery,
    embedded::{
        record::{Record, TooLarge},
        segment::Position,
    },
};

/// The most deliveries in one record.
const AT_ONCE: usize = 1024;

impl Books {
    /// Has the journal told how a delivery stands after the transaction under way.
    pub(super) fn note(&mut self, handler: HandlerId, position: Position) {
        self.changed.push((handler, position));
    }

    /// What the transaction under way has to tell the journal.
    pub(super) fn notes(&mut self) -> Result<Vec<Record>> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        self.records_of(&changed)
    }

    /// Takes what commands have changed into the journal.
    pub(super) fn empty_outbox(&mut self) -> Result<()> {
        loop {
            let listed = self.outbox()?;
            if listed.is_empty() {
                return Ok(());
            }
            for record in self.records_of(&listed)? {
                // Where the journal takes nothing any more the list stays.
                if !matches!(self.journal.put_durably(record).blocking_recv(), Ok(Ok(()))) {
                    return Ok(());
                }
            }
            for (handler, position) in listed {
                self.db
                    .prepare_cached("DELETE FROM outbox WHERE handler = ?1 AND position = ?2")?
                    .execute((handler, position.to_sql()))?;
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

    fn records_of(&self, changed: &[(HandlerId, Position)]) -> Result<Vec<Record>> {
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
                records.append(&mut records_with(&deliveries));
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
                records_with(&some).into_iter().for_each(&mut each);
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
             ON handler = id AND state IN (0, 1, 2) AND state < 3 AND position >= ?1 AND position < ?2
             WHERE attempts = 0 AND replays = 0",
        )?;
        let rows = list.query_map((from.to_sql(), to.to_sql()), |row| {
            Ok((row.get(0)?, Position::from_sql(row.get(1)?)))
        })?;
        rows.collect()
    }

    /// Takes in what the journal says of a delivery, unless it is known, or of an event that is gone.
    pub(super) fn learn(&mut self, position: Position, told: &StoredDelivery) -> Result<()> {
        let event = self
            .db
            .prepare_cached("SELECT 1 FROM events WHERE position = ?1")?
            .exists([position.to_sql()])?;
        if !event {
            return Ok(());
        }
        let handler = upkeep::id(&self.db, &told.handler)?;
        for failure in &told.failures {
            delivery::add_failure(&self.db, (handler, position), failure)?;
        }
        let known = self
            .db
            .prepare_cached(
                "SELECT replays, attempts, state FROM deliveries
                 WHERE handler = ?1 AND position = ?2",
            )?
            .query_row((handler, position.to_sql()), |row| {
                Ok((row.get(0)?, row.get(1)?, rank(delivery::state(row.get(2)?))))
            })
            .optional()?;
        match known {
            Some(known) if known >= (told.replays, told.attempts, rank(told.state)) => Ok(()),
            known => self.take_in(handler, position, told, known.is_none()),
        }
    }

    fn take_in(
        &mut self,
        handler: HandlerId,
        position: Position,
        told: &StoredDelivery,
        is_new: bool,
    ) -> Result<()> {
        if is_new {
            delivery::insert_done(&self.db, (handler, position), micros(told.at))?;
        }
        let Some(row) = delivery::find(&self.db, handler, position)? else {
            return Ok(());
        };
        let (db, tally) = (&self.db, &mut self.tally);
        let state = delivery::number(told.state);
        match (row.is_open(), state < PARKED) {
            (_, false) => {
                delivery::end(db, tally, &row, state, micros(told.at), told.why.as_deref())?;
            }
            (true, true) => {}
            (false, true) => {
                let active = self
                    .subscriptions
                    .iter()
                    .find(|active| active.id == handler);
                let ordered = active.is_some_and(|active| active.asked.ordered);
                let event = self.bodies.read(position).ok();
                let keys = event.and_then(|event| event.keys).filter(|_| ordered);
                delivery::reopen(db, tally, &row, keys.as_ref())?;
            }
        }
        self.db
            .prepare_cached(
                "UPDATE deliveries SET attempts = ?3, replays = ?4, due_at = ?5, since = ?6,
                     replay = ?7, why = ?8
                 WHERE handler = ?1 AND position = ?2",
            )?
            .execute(params![
                handler,
                position.to_sql(),
                told.attempts,
                told.replays,
                micros(told.at),
                told.since.map(micros),
                told.replay,
                told.why,
            ])?;
        Ok(())
    }
}

/// Records with all of `deliveries`, which are to one handler.
fn records_with(deliveries: &[(Position, StoredDelivery)]) -> Vec<Record> {
    let Some((_, first)) = deliveries.first() else {
        return Vec::new();
    };
    match Record::deliveries(&first.handler, deliveries) {
        Ok(record) => vec![record],
        // Reasons are short: one alone always fits.
        Err(TooLarge(_)) => {
            let (some, others) = deliveries.split_at(deliveries.len() / 2);
            let mut records = records_with(some);
            records.append(&mut records_with(others));
            records
        }
    }
}

/// How far on a delivery is, of two with as many replays and attempts.
const fn rank(state: DeliveryState) -> u8 {
    match state {
        DeliveryState::Ready | DeliveryState::Queued => 0,
        DeliveryState::Parked => 1,
        DeliveryState::Done | DeliveryState::Skipped => 2,
    }
}
