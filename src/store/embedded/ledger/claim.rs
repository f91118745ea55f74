//! Handing deliveries out, and taking in how they went.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Result};

use super::{
    Books,
    delivery::{self, DONE, HandlerId, PARKED, SKIPPED},
    micros, order, time,
};
use crate::{
    event::{HandlerName, OrderingKeys},
    store::{Attempt, Claim, Claims, Lease, Settlement, Verdict, embedded::segment::Position},
};

/// A delivery that is being attempted.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) handler: HandlerId,
    pub(super) position: Position,
    /// Nothing that shares one of these is handed out meanwhile.
    pub(super) keys: Option<OrderingKeys>,
    /// How often the delivery had been replayed when it was handed out.
    pub(super) replays: u32,
}

/// A delivery that can be handed out.
struct Candidate {
    held: Held,
    attempts: u32,
    since: Option<i64>,
    replay: Option<String>,
}

/// What can be claimed, oldest first. Those that are held stay in this index, and are skipped: they
/// are few.
pub(super) const DUE: &str = "SELECT position, attempts, since, replay, replays, scope, key, keys
    FROM deliveries INDEXED BY ready
    WHERE handler = ?1 AND state = 0 AND due_at <= ?2 ORDER BY due_at, position";

/// When the next one is due that is not due yet.
pub(super) const NEXT_DUE: &str = "SELECT due_at FROM deliveries INDEXED BY ready
    WHERE handler = ?1 AND state = 0 AND due_at > ?2 ORDER BY due_at LIMIT 1";

impl Books {
    /// Hands out up to `at_most` deliveries of `handler` that are due at `now`.
    pub(in super::super) fn claim(
        &mut self,
        handler: &HandlerName,
        at_most: usize,
        now: Timestamp,
    ) -> Result<Claims> {
        let Some(id) = self.handler(handler)?.filter(|_| self.awaited.is_none()) else {
            return Ok(Claims::default());
        };
        let mut claims = Vec::new();
        for candidate in self.candidates(id, at_most, now)? {
            claims.extend(self.hand_out(candidate, now)?);
        }
        let next_due: Option<i64> = self
            .db
            .prepare_cached(NEXT_DUE)?
            .query_row((id, micros(now)), |row| row.get(0))
            .optional()?;
        Ok(Claims {
            claims,
            next_due: next_due.map(time),
        })
    }

    fn candidates(
        &self,
        handler: HandlerId,
        at_most: usize,
        now: Timestamp,
    ) -> Result<Vec<Candidate>> {
        let mut taken: Vec<Candidate> = Vec::new();
        let mut due = self.db.prepare_cached(DUE)?;
        let mut rows = due.query((handler, micros(now)))?;
        while taken.len() < at_most
            && let Some(row) = rows.next()?
        {
            let held = Held {
                handler,
                position: Position::from_sql(row.get(0)?),
                keys: order::read(row, 5)?,
                replays: row.get(4)?,
            };
            if self.held.values().any(|other| other.excludes(&held)) {
                continue;
            }
            taken.push(Candidate {
                held,
                attempts: row.get(1)?,
                since: row.get(2)?,
                replay: row.get(3)?,
            });
        }
        Ok(taken)
    }

    /// `None` when the event cannot be read: the delivery is parked then.
    fn hand_out(&mut self, candidate: Candidate, now: Timestamp) -> Result<Option<Claim>> {
        let Held {
            handler, position, ..
        } = candidate.held;
        let notification = match self.bodies.read(position) {
            Ok(event) => event.notification,
            Err(unread) => {
                tracing::error!(
                    segment = position.segment(),
                    offset = position.offset(),
                    "a delivery is parked: {unread}"
                );
                if let Some(row) = delivery::find(&self.db, handler, position)? {
                    let why = unread.to_string();
                    let (db, tally) = (&self.db, &mut self.tally);
                    delivery::end(db, tally, &row, PARKED, micros(now), Some(&why))?;
                    self.note(handler, position);
                }
                self.stirred = true;
                return Ok(None);
            }
        };
        let superseded = self.is_superseded(&notification)?;
        self.last_lease += 1;
        let lease = Lease(self.last_lease);
        let replays = candidate.held.replays;
        self.held.insert(lease, candidate.held);
        self.claimed.push(lease);
        Ok(Some(Claim {
            notification: Arc::new(notification),
            lease,
            attempt: candidate.attempts + 1,
            since: candidate.since.map_or(now, time),
            replay: candidate.replay,
            replays,
            superseded,
        }))
    }

    /// Takes in how claimed deliveries went.
    pub(in super::super) fn settle(&mut self, settlements: &[Settlement]) -> Result<()> {
        for settlement in settlements {
            if let Some(held) = self.held.remove(&settlement.lease) {
                self.stirred = true;
                self.settle_one(&held, settlement)?;
            }
        }
        Ok(())
    }

    fn settle_one(&mut self, held: &Held, settlement: &Settlement) -> Result<()> {
        let Some(row) = delivery::find(&self.db, held.handler, held.position)? else {
            return Ok(());
        };
        // A replay that was asked for during the attempt is owed whatever came of the attempt.
        if settlement.verdict == Verdict::Released || row.replays != held.replays {
            return Ok(());
        }
        self.count_attempt(held, settlement)?;
        let place = (held.handler, held.position);
        self.note(held.handler, held.position);
        let at = micros(settlement.finished_at);
        let (db, tally) = (&self.db, &mut self.tally);
        match &settlement.verdict {
            Verdict::Done => delivery::end(db, tally, &row, DONE, at, None),
            Verdict::Skipped { why } => delivery::end(db, tally, &row, SKIPPED, at, Some(why)),
            Verdict::Parked { why } => {
                delivery::end(db, tally, &row, PARKED, at, Some(why))?;
                delivery::add_failure(db, place, &failure(settlement, why))
            }
            Verdict::Retry { due_at, why } => {
                // It may have been parked meanwhile, with its handler gone.
                if row.is_open() {
                    delivery::postpone(db, &row, micros(*due_at))?;
                }
                delivery::add_failure(db, place, &failure(settlement, why))
            }
            Verdict::Released => Ok(()),
        }
    }

    fn count_attempt(&self, held: &Held, settlement: &Settlement) -> Result<()> {
        self.db
            .prepare_cached(
                "UPDATE deliveries SET attempts = attempts + 1, since = coalesce(since, ?3)
                 WHERE handler = ?1 AND position = ?2",
            )?
            .execute((
                held.handler,
                held.position.to_sql(),
                micros(settlement.started_at),
            ))?;
        Ok(())
    }
}

/// The attempt that `settlement` is about, which went wrong because `why`.
fn failure(settlement: &Settlement, why: &str) -> Attempt {
    let took = settlement
        .finished_at
        .duration_since(settlement.started_at)
        .as_millis();
    Attempt {
        started_at: settlement.started_at,
        took_ms: u64::try_from(took).unwrap_or(0),
        why: why.to_owned(),
    }
}

impl Held {
    /// Whether `other` must wait until this one is settled.
    fn excludes(&self, other: &Self) -> bool {
        let share = |(a, b): (&OrderingKeys, &OrderingKeys)| a.share_a_key_with(b);
        self.handler == other.handler
            && (self.position == other.position
                || self
                    .keys
                    .as_ref()
                    .zip(other.keys.as_ref())
                    .is_some_and(share))
    }
}
