//! The claims of this replica: what their settlements have to show, and until when they hold.
//!
//! **Invariant:** a lease that is not renewed in time is nobody's. The database says when that is,
//! and we say so earlier.

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

use super::{fault::Fault, pool::Session, roster::HandlerId};
use crate::{
    event::{KeyHash, Notification},
    store::{Claim, Lease},
};

/// Keeps claims for another while. Those that somebody else has taken meanwhile stay theirs.
pub(super) const RENEW: &str =
    "UPDATE claims c SET until = clock_timestamp() + $2::bigint * interval '1 ms'
    FROM unnest($3::bigint[], $4::uuid[]) AS t (first, token)
    WHERE handler = $1 AND c.first = ANY($3) AND c.first = t.first AND c.token = t.token
    RETURNING c.first, c.token";

/// Gives claims up as if they had not been made.
const RELEASE: &str = "WITH freed AS (DELETE FROM claims c
        USING unnest($1::integer[], $2::bigint[], $3::uuid[]) AS t (handler, first, token)
        WHERE c.handler = t.handler AND c.first = t.first AND c.token = t.token
        RETURNING c.handler, c.position)
    UPDATE deliveries d SET state = 0, behind = NULL FROM freed f
    WHERE d.handler = f.handler AND d.position = f.position AND d.state > 0";

/// Gives up what has run out in the middle of a run: what was attempted then is queued behind what was
/// over before it. What has run out at its first delivery is taken over as it is. (`state > 0` keeps the
/// planner from the index of what is queued, which does not lead to a position.)
pub(super) const GIVE_UP: &str = "WITH lapsed AS (DELETE FROM claims
        WHERE handler = ANY($1) AND position <> first AND until <= clock_timestamp()
        RETURNING handler, position)
    UPDATE deliveries d SET state = 0, behind = NULL FROM lapsed l
    WHERE d.handler = l.handler AND d.position = l.position AND d.state > 0";

/// What the settlement of a delivery has to show.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) handler: HandlerId,
    /// The position of the delivery that was claimed; a run goes on from there.
    pub(super) first: i64,
    pub(super) token: Uuid,
    pub(super) day: Date,
    pub(super) position: i64,
    /// Its scope and first key, where order holds.
    pub(super) line: Option<(KeyHash, KeyHash)>,
    /// How often the delivery had been replayed when it was handed out.
    pub(super) replays: i32,
    /// When the lease began, by our clock, at the latest.
    pub(super) since: Instant,
}

/// A delivery that can be handed out.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) held: Held,
    pub(super) due_at: Timestamp,
    pub(super) notification: Arc<Notification>,
    pub(super) attempt: u32,
    pub(super) since: Timestamp,
    pub(super) replay: Option<String>,
    pub(super) superseded: bool,
}

/// Deliveries of one key that were claimed together, oldest first.
pub(super) type Run = VecDeque<Offer>;

/// A claim: the delivery that is attempted, and those that come after it.
struct Hold {
    held: Held,
    rest: Run,
}

/// All of them.
pub(super) struct Leases {
    term: Duration,
    holds: Mutex<HashMap<Lease, Hold>>,
    last: AtomicU64,
}

impl Leases {
    /// None so far. Each holds for `term`, unless it is renewed.
    pub(super) fn new(term: Duration) -> Self {
        Self {
            term,
            holds: Mutex::default(),
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

    /// Hands out the first of `run`, if there is any. The others stay behind it.
    pub(super) fn hand_out(&self, mut run: Run) -> Option<Claim> {
        let offer = run.pop_front()?;
        let lease = Lease(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        let (held, rest) = (offer.held, run);
        self.lock().insert(lease, Hold { held, rest });
        Some(Claim {
            notification: offer.notification,
            lease,
            attempt: offer.attempt,
            since: offer.since,
            replay: offer.replay,
            replays: held.replays.cast_unsigned(),
            superseded: offer.superseded,
        })
    }

    /// What is attempted under a lease, and the position of what comes after it.
    pub(super) fn get(&self, lease: Lease) -> Option<(Held, Option<i64>)> {
        let holds = self.lock();
        let hold = holds.get(&lease)?;
        Some((hold.held, hold.rest.front().map(|next| next.held.position)))
    }

    /// Hands out what comes after what has been settled, under a lease that began when this one did.
    pub(super) fn go_on(&self, lease: Lease) -> Option<Claim> {
        let mut hold = self.lock().remove(&lease)?;
        if let Some(next) = hold.rest.front_mut() {
            next.held.since = hold.held.since;
        }
        self.hand_out(hold.rest)
    }

    /// Forgets a claim that has been settled.
    pub(super) fn remove(&self, lease: Lease) {
        self.lock().remove(&lease);
    }

    /// Whether a claim is still ours, as far as can be told without asking.
    pub(super) fn holds(&self, lease: Lease) -> bool {
        let holds = self.lock();
        let hold = holds.get(&lease);
        hold.is_some_and(|hold| hold.held.since.elapsed() < self.term)
    }

    /// Renews what has been held for a while.
    pub(super) async fn renew(&self, session: &mut Session) -> Result<(), Fault> {
        let mut old: HashMap<HandlerId, Vec<(Lease, Held)>> = HashMap::new();
        for (lease, Hold { held, .. }) in self.lock().iter() {
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
            let (firsts, tokens): (Vec<_>, Vec<_>) = leases
                .iter()
                .map(|(_, held)| (held.first, held.token))
                .unzip();
            let renewed = session
                .client
                .query(&statement, &[&handler, &self.millis(), &firsts, &tokens])
                .await?;
            let mut ours = Vec::with_capacity(renewed.len());
            for row in renewed {
                ours.push((row.try_get::<_, i64>(0)?, row.try_get::<_, Uuid>(1)?));
            }
            let mut holds = self.lock();
            for (lease, old) in leases {
                if let Some(hold) = holds.get_mut(&lease)
                    && ours.contains(&(old.first, old.token))
                {
                    hold.held.since = since;
                }
            }
        }
        Ok(())
    }

    /// Gives every claim up, at the end.
    pub(super) async fn release(&self, session: &mut Session) -> Result<(), Fault> {
        let all: Vec<Held> = self.lock().values().map(|hold| hold.held).collect();
        if all.is_empty() {
            return Ok(());
        }
        let statement = session.prepare(RELEASE).await?;
        let handlers: Vec<_> = all.iter().map(|held| held.handler).collect();
        let firsts: Vec<_> = all.iter().map(|held| held.first).collect();
        let tokens: Vec<_> = all.iter().map(|held| held.token).collect();
        session
            .client
            .execute(&statement, &[&handlers, &firsts, &tokens])
            .await?;
        self.lock().clear();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Lease, Hold>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
