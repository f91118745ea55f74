//! A bounded resource that those who keep us waiting cannot use up.
//!
//! A limit alone can be turned against honest senders: whoever fills it with silence shuts the
//! door. So each holder that waits for its peer stands in a line, and when room runs short the one
//! that has stood there longest is let go. An honest peer is through in milliseconds and is
//! therefore never near the front.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How long room is waited for in all. Short, because the peer's own clock is running.
const PATIENCE: Duration = Duration::from_millis(200);

/// How long one holder that was let go is given to make room before the next one is. Leaving takes
/// microseconds; this is for a busy machine.
const STEP: Duration = Duration::from_millis(5);

/// So many units of something, and the line of holders that could do without.
#[derive(Clone, Debug)]
pub(super) struct Room {
    space: Arc<Semaphore>,
    line: Arc<Line>,
}

/// What was taken of a [`Room`]; gives it back when dropped.
pub(super) type Permit = OwnedSemaphorePermit;

impl Room {
    pub(super) fn new(units: usize) -> Self {
        // A room for nobody would be a door that is never opened.
        let units = units.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            space: Arc::new(Semaphore::new(units)),
            line: Arc::default(),
        }
    }

    /// Takes `units`, at the cost of those that wait longest where need be. `None` when nobody
    /// who could be let go has made room in time.
    pub(super) async fn take(&self, units: u32) -> Option<Permit> {
        if let Ok(permit) = Arc::clone(&self.space).try_acquire_many_owned(units) {
            return Some(permit);
        }
        let mut taking = pin!(Arc::clone(&self.space).acquire_many_owned(units));
        let made = async {
            loop {
                self.dismiss_longest();
                if let Ok(permit) = timeout(STEP, &mut taking).await {
                    return permit.ok();
                }
            }
        };
        timeout(PATIENCE, made).await.ok().flatten()
    }

    /// Puts a holder at the end of the line; it is let go by way of `dismissal`.
    pub(super) fn wait(&self, dismissal: &CancellationToken) -> Place {
        Place {
            holder: self.line.join(dismissal.clone()),
            line: Arc::clone(&self.line),
        }
    }

    /// Lets go the holder that has waited longest, if any waits.
    pub(super) fn dismiss_longest(&self) {
        if let Some(dismissal) = self.line.pop() {
            dismissal.cancel();
        }
    }
}

/// A place in a room's line, given up when dropped.
#[derive(Debug)]
pub(super) struct Place {
    line: Arc<Line>,
    holder: Arc<Holder>,
}

impl Place {
    /// The holder does not wait, and is not let go, until [`resume`](Self::resume).
    pub(super) fn pause(&self) {
        self.holder.since.store(PAUSED, Ordering::Relaxed);
    }

    /// The holder waits again, at the end of the line.
    pub(super) fn resume(&self) {
        self.holder.since.store(self.line.next(), Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.line.leave(&self.holder);
    }
}

/// Those that wait for their peers, by the order in which they began to.
///
/// A connection stops waiting with each request, and waits again with each answer, while hardly ever
/// one is let go. So a holder that does either only notes it, and the order is put right when the
/// first in line is looked for.
#[derive(Debug, Default)]
struct Line {
    /// How many numbers have been given out. Who begins to wait later has a greater one.
    numbers: AtomicU64,
    /// Each holder by its [`place`](Holder::place).
    holders: Mutex<BTreeMap<u64, Arc<Holder>>>,
}

#[derive(Debug)]
struct Holder {
    dismissal: CancellationToken,
    /// The number with which it began to wait; [`PAUSED`] while it does not.
    since: AtomicU64,
    /// The number that `since` was when it was last looked at, and therefore no greater than `since`.
    /// Changes with the line locked.
    place: AtomicU64,
}

const PAUSED: u64 = u64::MAX;

impl Line {
    fn join(&self, dismissal: CancellationToken) -> Arc<Holder> {
        let number = self.next();
        let holder = Arc::new(Holder {
            dismissal,
            since: AtomicU64::new(number),
            place: AtomicU64::new(number),
        });
        self.lock().insert(number, Arc::clone(&holder));
        holder
    }

    fn leave(&self, holder: &Holder) {
        let mut holders = self.lock();
        holders.remove(&holder.place.load(Ordering::Relaxed));
    }

    fn pop(&self) -> Option<CancellationToken> {
        let mut holders = self.lock();
        // Whoever waits now has a smaller number.
        let end = self.next();
        while let Some(first) = holders.first_entry()
            && *first.key() < end
        {
            let (place, holder) = first.remove_entry();
            let place = match holder.since.load(Ordering::Relaxed) {
                since if since == place => return Some(holder.dismissal.clone()),
                PAUSED => self.next(),
                since => since,
            };
            holder.place.store(place, Ordering::Relaxed);
            holders.insert(place, holder);
        }
        None
    }

    fn next(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Holder>>> {
        // Nothing in here panics half-way, so a poisoned line is still in order.
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_one_that_has_waited_longest_makes_room() {
        let room = Room::new(2);
        let holder = |permit| {
            let (room, dismissal) = (room.clone(), CancellationToken::new());
            let place = room.wait(&dismissal);
            let seen = dismissal.clone();
            let task = async move {
                dismissal.cancelled().await;
                drop((permit, place));
            };
            (seen, tokio::spawn(task))
        };
        let (first, first_task) = holder(room.take(1).await.unwrap());
        let (second, _second_task) = holder(room.take(1).await.unwrap());
        assert!(room.take(1).await.is_some());
        first_task.await.unwrap();
        assert!(first.is_cancelled());
        assert!(!second.is_cancelled());
    }

    #[tokio::test]
    async fn nobody_who_is_at_work_is_let_go() {
        let room = Room::new(1);
        let dismissal = CancellationToken::new();
        let permit = room.take(1).await.unwrap();
        let place = room.wait(&dismissal);
        drop(place);
        assert!(room.take(1).await.is_none());
        assert!(!dismissal.is_cancelled());
        drop(permit);
        assert!(room.take(1).await.is_some());
    }

    #[test]
    fn whoever_stops_waiting_goes_to_the_end_of_the_line() {
        let room = Room::new(1);
        let [first, second, third] = [(); 3].map(|()| CancellationToken::new());
        let places = [&first, &second, &third].map(|dismissal| room.wait(dismissal));
        let let_go = || [&first, &second, &third].map(CancellationToken::is_cancelled);
        places[0].pause();
        places[1].pause();
        places[1].resume();
        room.dismiss_longest();
        assert_eq!(let_go(), [false, false, true]);
        room.dismiss_longest();
        assert_eq!(let_go(), [false, true, true]);
        room.dismiss_longest();
        assert!(!first.is_cancelled(), "it does not wait");
        places[0].resume();
        room.dismiss_longest();
        assert!(first.is_cancelled());
    }

    #[tokio::test]
    async fn as_many_are_let_go_as_it_takes() {
        let room = Room::new(3);
        let mut dismissals = Vec::new();
        for _ in 0..3 {
            let permit = room.take(1).await.unwrap();
            let dismissal = CancellationToken::new();
            let place = room.wait(&dismissal);
            dismissals.push(dismissal.clone());
            tokio::spawn(async move {
                dismissal.cancelled().await;
                drop((permit, place));
            });
        }
        assert!(room.take(3).await.is_some());
        assert!(dismissals.iter().all(CancellationToken::is_cancelled));
    }
}
