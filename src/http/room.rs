//! A bounded resource that those who keep us waiting cannot use up.
//!
//! A limit alone can be turned against honest senders: whoever fills it with silence shuts the
//! door. So each holder that waits for its peer stands in a line, and when room runs short the one
//! that has stood there longest is let go. An honest peer is through in milliseconds and is
//! therefore never near the front.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
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
            number: self.line.join(dismissal.clone()),
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
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.line.leave(self.number);
    }
}

/// Those that wait for their peers, by the order in which they began to.
#[derive(Debug, Default)]
struct Line(Mutex<Numbered>);

#[derive(Debug, Default)]
struct Numbered {
    next: u64,
    waiting: BTreeMap<u64, CancellationToken>,
}

impl Line {
    fn join(&self, dismissal: CancellationToken) -> u64 {
        self.with(|line| {
            let number = line.next;
            line.next += 1;
            line.waiting.insert(number, dismissal);
            number
        })
    }

    fn leave(&self, number: u64) {
        self.with(|line| line.waiting.remove(&number));
    }

    fn pop(&self) -> Option<CancellationToken> {
        self.with(|line| line.waiting.pop_first())
            .map(|(_, dismissal)| dismissal)
    }

    fn with<T>(&self, change: impl FnOnce(&mut Numbered) -> T) -> T {
        // Nothing in here panics half-way, so a poisoned line is still in order.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
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
