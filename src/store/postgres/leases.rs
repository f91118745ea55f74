//! The claims of this replica: what their settlements have to show, and until when they hold.
//!
//! **Invariant:** a lease that is not renewed in time is nobody's. The database says when that is,
//! and we say so earlier.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::civil::Date;
use uuid::Uuid;

use super::{fault::Fault, pool::Session, roster::HandlerId};
use crate::store::Lease;

/// Keeps claims for another while. Those that somebody else has taken meanwhile stay theirs.
pub(super) const RENEW: &str =
    "UPDATE held SET until = clock_timestamp() + $2::bigint * interval '1 ms'
    FROM unnest($3::bigint[], $4::uuid[]) AS t (slot, token)
    WHERE handler = $1 AND held.slot = ANY($3) AND held.slot = t.slot AND held.token = t.token
    RETURNING held.slot, held.token";

/// Gives claims up as if they had not been made.
const RELEASE: &str = "DELETE FROM held USING unnest($1::integer[], $2::bigint[], $3::uuid[])
    AS t (handler, slot, token)
    WHERE held.handler = t.handler AND held.slot = t.slot AND held.token = t.token";

/// A delivery that is being attempted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) handler: HandlerId,
    pub(super) slot: i64,
    pub(super) token: Uuid,
    pub(super) day: Date,
    pub(super) position: i64,
    /// How often the delivery had been replayed when it was handed out.
    pub(super) replays: i32,
    /// When the lease began, by our clock, at the latest.
    pub(super) since: Instant,
}

/// All of them.
pub(super) struct Leases {
    term: Duration,
    held: Mutex<HashMap<Lease, Held>>,
    last: AtomicU64,
}

impl Leases {
    /// None so far. Each holds for `term`, unless it is renewed.
    pub(super) fn new(term: Duration) -> Self {
        Self {
            term,
            held: Mutex::default(),
            last: AtomicU64::new(0),
        }
    }

    /// How long a lease holds, in milliseconds.
    pub(super) fn millis(&self) -> i64 {
        i64::try_from(self.term.as_millis()).unwrap_or(i64::MAX)
    }

    /// How often they are renewed.
    pub(super) fn period(&self) -> Duration {
        self.term / 3
    }

    /// Notes a claim.
    pub(super) fn add(&self, held: Held) -> Lease {
        let lease = Lease(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        self.lock().insert(lease, held);
        lease
    }

    pub(super) fn get(&self, lease: Lease) -> Option<Held> {
        self.lock().get(&lease).copied()
    }

    /// Forgets a claim that has been settled.
    pub(super) fn remove(&self, lease: Lease) {
        self.lock().remove(&lease);
    }

    /// Whether a claim is still ours, as far as can be told without asking.
    pub(super) fn holds(&self, lease: Lease) -> bool {
        let held = self.get(lease);
        held.is_some_and(|held| held.since.elapsed() < self.term)
    }

    /// Renews what has been held for a while.
    pub(super) async fn renew(&self, session: &mut Session) -> Result<(), Fault> {
        let mut old: HashMap<HandlerId, Vec<(Lease, Held)>> = HashMap::new();
        for (lease, held) in self.lock().iter() {
            if held.since.elapsed() >= self.period() {
                old.entry(held.handler).or_default().push((*lease, *held));
            }
        }
        if old.is_empty() {
            return Ok(());
        }
        let statement = session.prepare(RENEW).await?;
        for (handler, leases) in old {
            let since = Instant::now();
            let (slots, tokens): (Vec<_>, Vec<_>) = leases
                .iter()
                .map(|(_, held)| (held.slot, held.token))
                .unzip();
            let renewed = session
                .client
                .query(&statement, &[&handler, &self.millis(), &slots, &tokens])
                .await?;
            let mut ours = Vec::with_capacity(renewed.len());
            for row in renewed {
                ours.push((row.try_get::<_, i64>(0)?, row.try_get::<_, Uuid>(1)?));
            }
            let mut held = self.lock();
            for (lease, old) in leases {
                if let Some(held) = held.get_mut(&lease)
                    && ours.contains(&(old.slot, old.token))
                {
                    held.since = since;
                }
            }
        }
        Ok(())
    }

    /// Gives every claim up, at the end.
    pub(super) async fn release(&self, session: &mut Session) -> Result<(), Fault> {
        let all: Vec<Held> = self.lock().values().copied().collect();
        if all.is_empty() {
            return Ok(());
        }
        let statement = session.prepare(RELEASE).await?;
        let handlers: Vec<_> = all.iter().map(|held| held.handler).collect();
        let slots: Vec<_> = all.iter().map(|held| held.slot).collect();
        let tokens: Vec<_> = all.iter().map(|held| held.token).collect();
        session
            .client
            .execute(&statement, &[&handlers, &slots, &tokens])
            .await?;
        self.lock().clear();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Lease, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
