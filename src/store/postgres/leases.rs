//! The claims of this replica, with what their settlements need and when they expire.
//!
//! **Invariant:** a lease that is not renewed in time expires. The database decides when; this
//! replica assumes an earlier time.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::{Timestamp, civil::Date};
use uuid::Uuid;

use super::{error::PgError, pool::PgConnection, registry::HandlerId};
use crate::{
    event::{KeyHash, Notification},
    store::{Claim, Lease},
};

/// Renews claims, except those that another replica has taken over.
pub(super) const RENEW: &str =
    "UPDATE claims c SET until = clock_timestamp() + $2::bigint * interval '1 ms'
    FROM unnest($3::bigint[], $4::uuid[]) AS t (first, token)
    WHERE handler = $1 AND c.first = ANY($3) AND c.first = t.first AND c.token = t.token
    RETURNING c.first, c.token";

/// Releases claims as if they had not been made.
const RELEASE: &str = "WITH freed AS (DELETE FROM claims c
        USING unnest($1::integer[], $2::bigint[], $3::uuid[]) AS t (handler, first, token)
        WHERE c.handler = t.handler AND c.first = t.first AND c.token = t.token
        RETURNING c.handler, c.position)
    UPDATE deliveries d SET state = 0, behind = NULL FROM freed f
    WHERE d.handler = f.handler AND d.position = f.position AND d.state > 0";

/// Ends expired claims in the middle of a run: the current delivery of such a run is ready again. A
/// claim that expires at the first delivery of its run is taken over as it is. (`state > 0` keeps
/// the planner from the index of queued deliveries, which does not lead to a position.)
pub(super) const GIVE_UP: &str = "WITH lapsed AS (DELETE FROM claims
        WHERE handler = ANY($1) AND position <> first AND until <= clock_timestamp()
        RETURNING handler, position)
    UPDATE deliveries d SET state = 0, behind = NULL FROM lapsed l
    WHERE d.handler = l.handler AND d.position = l.position AND d.state > 0";

/// A claimed delivery, as its settlement needs it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClaimedDelivery {
    pub(super) handler: HandlerId,
    /// The position of the run's first delivery, which identifies the claim.
    pub(super) first: i64,
    pub(super) token: Uuid,
    pub(super) day: Date,
    pub(super) position: i64,
    /// The scope and first key, if the handler is ordered.
    pub(super) group: Option<(KeyHash, KeyHash)>,
    /// The number of replays when the delivery was handed out.
    pub(super) replays: i32,
    /// A local time before which the lease was not renewed last.
    pub(super) since: Instant,
}

/// A delivery that is ready to be handed out.
#[derive(Debug)]
pub(super) struct PreparedClaim {
    pub(super) delivery: ClaimedDelivery,
    pub(super) due_at: Timestamp,
    pub(super) notification: Arc<Notification>,
    pub(super) attempt: u32,
    pub(super) since: Timestamp,
    pub(super) replay: Option<String>,
    pub(super) superseded: bool,
}

/// Deliveries of one key that were claimed together, oldest first.
pub(super) type Run = VecDeque<PreparedClaim>;

/// A claim: the current delivery of a run, and the deliveries after it.
struct LeasedRun {
    delivery: ClaimedDelivery,
    rest: Run,
}

/// The claims of this replica.
pub(super) struct Leases {
    term: Duration,
    holds: Mutex<HashMap<Lease, LeasedRun>>,
    last: AtomicU64,
}

impl Leases {
    /// No claims yet. Each lease lasts for `term` unless it is renewed.
    pub(super) fn new(term: Duration) -> Self {
        Self {
            term,
            holds: Mutex::default(),
            last: AtomicU64::new(0),
        }
    }

    /// The term of a lease, in milliseconds.
    pub(super) fn millis(&self) -> i64 {
        i64::try_from(self.term.as_millis()).unwrap_or(i64::MAX)
    }

    /// The interval of renewals.
    pub(super) fn period(&self) -> Duration {
        self.term / 3
    }

    /// Hands out the first delivery of `run`. The others follow when it is settled.
    pub(super) fn hand_out(&self, mut run: Run) -> Option<Claim> {
        let prepared = run.pop_front()?;
        let lease = Lease(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        let (delivery, rest) = (prepared.delivery, run);
        self.lock().insert(lease, LeasedRun { delivery, rest });
        Some(Claim {
            notification: prepared.notification,
            lease,
            attempt: prepared.attempt,
            since: prepared.since,
            replay: prepared.replay,
            replays: delivery.replays.cast_unsigned(),
            superseded: prepared.superseded,
        })
    }

    /// The current delivery of a claim, and the position of the next one of its run.
    pub(super) fn get(&self, lease: Lease) -> Option<(ClaimedDelivery, Option<i64>)> {
        let holds = self.lock();
        let leased = holds.get(&lease)?;
        Some((
            leased.delivery,
            leased.rest.front().map(|next| next.delivery.position),
        ))
    }

    /// Hands out the next delivery of a run after a settlement, under a lease that began with this
    /// one.
    pub(super) fn next_claim(&self, lease: Lease) -> Option<Claim> {
        let mut leased = self.lock().remove(&lease)?;
        if let Some(next) = leased.rest.front_mut() {
            next.delivery.since = leased.delivery.since;
        }
        self.hand_out(leased.rest)
    }

    /// Forgets a settled claim.
    pub(super) fn remove(&self, lease: Lease) {
        self.lock().remove(&lease);
    }

    /// Whether this replica still has the claim, as far as it knows.
    pub(super) fn holds(&self, lease: Lease) -> bool {
        let holds = self.lock();
        let leased = holds.get(&lease);
        leased.is_some_and(|leased| leased.delivery.since.elapsed() < self.term)
    }

    /// Renews the leases that are older than the interval.
    pub(super) async fn renew(&self, connection: &mut PgConnection) -> Result<(), PgError> {
        let mut old: HashMap<HandlerId, Vec<(Lease, ClaimedDelivery)>> = HashMap::new();
        for (lease, LeasedRun { delivery, .. }) in self.lock().iter() {
            if delivery.since.elapsed() >= self.period() {
                old.entry(delivery.handler)
                    .or_default()
                    .push((*lease, *delivery));
            }
        }
        if old.is_empty() {
            return Ok(());
        }
        let statement = connection.prepare(RENEW).await?;
        for (handler, leases) in old {
            let since = Instant::now();
            let (firsts, tokens): (Vec<_>, Vec<_>) = leases
                .iter()
                .map(|(_, delivery)| (delivery.first, delivery.token))
                .unzip();
            let renewed = connection
                .client
                .query(&statement, &[&handler, &self.millis(), &firsts, &tokens])
                .await?;
            let mut ours = Vec::with_capacity(renewed.len());
            for row in renewed {
                ours.push((row.try_get::<_, i64>(0)?, row.try_get::<_, Uuid>(1)?));
            }
            let mut holds = self.lock();
            for (lease, old) in leases {
                if let Some(leased) = holds.get_mut(&lease)
                    && ours.contains(&(old.first, old.token))
                {
                    leased.delivery.since = since;
                }
            }
        }
        Ok(())
    }

    /// Releases all claims, when the store closes.
    pub(super) async fn release(&self, connection: &mut PgConnection) -> Result<(), PgError> {
        let all: Vec<ClaimedDelivery> =
            self.lock().values().map(|leased| leased.delivery).collect();
        if all.is_empty() {
            return Ok(());
        }
        let statement = connection.prepare(RELEASE).await?;
        let handlers: Vec<_> = all.iter().map(|delivery| delivery.handler).collect();
        let firsts: Vec<_> = all.iter().map(|delivery| delivery.first).collect();
        let tokens: Vec<_> = all.iter().map(|delivery| delivery.token).collect();
        connection
            .client
            .execute(&statement, &[&handlers, &firsts, &tokens])
            .await?;
        self.lock().clear();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Lease, LeasedRun>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
