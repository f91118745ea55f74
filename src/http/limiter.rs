//! A semaphore that idle peers cannot exhaust: it evicts the holder that has waited longest.
//!
//! A plain limit can be turned against honest senders, since silent peers can fill it. So a holder
//! that waits for its peer stands in a wait list. When permits run short, the limiter evicts the
//! holder that has been in the list longest. An honest peer waits milliseconds and is never the
//! longest.

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

/// How long [`Limiter::acquire`] waits in all. Short, because the peer has a timeout of its own.
const ACQUIRE_TIMEOUT: Duration = Duration::from_millis(200);

/// How long an evicted holder may take to release its permits before the next one is evicted. A
/// release takes microseconds; this is for a busy machine.
const EVICTION_INTERVAL: Duration = Duration::from_millis(5);

/// A number of permits, and the wait list of the holders that can be evicted.
#[derive(Clone, Debug)]
pub(super) struct Limiter {
    semaphore: Arc<Semaphore>,
    waiting: Arc<WaitList>,
}

/// Permits of a [`Limiter`]; dropping returns them.
pub(super) type Permit = OwnedSemaphorePermit;

impl Limiter {
    pub(super) fn new(permits: usize) -> Self {
        // With no permits at all nothing would ever be served.
        let permits = permits.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            semaphore: Arc::new(Semaphore::new(permits)),
            waiting: Arc::default(),
        }
    }

    /// Acquires `permits`, and evicts waiting holders until there are enough. `None` when the
    /// evicted holders released too few in time.
    pub(super) async fn acquire(&self, permits: u32) -> Option<Permit> {
        if let Ok(permit) = Arc::clone(&self.semaphore).try_acquire_many_owned(permits) {
            return Some(permit);
        }
        let mut acquire = pin!(Arc::clone(&self.semaphore).acquire_many_owned(permits));
        let evict = async {
            loop {
                self.evict_longest();
                if let Ok(permit) = timeout(EVICTION_INTERVAL, &mut acquire).await {
                    return permit.ok();
                }
            }
        };
        timeout(ACQUIRE_TIMEOUT, evict).await.ok().flatten()
    }

    /// Adds a holder to the end of the wait list. Its eviction cancels `eviction`.
    pub(super) fn wait(&self, eviction: &CancellationToken) -> Ticket {
        Ticket {
            waiter: self.waiting.join(eviction.clone()),
            list: Arc::clone(&self.waiting),
        }
    }

    /// Evicts the holder that has waited longest, if one waits.
    pub(super) fn evict_longest(&self) {
        if let Some(eviction) = self.waiting.pop() {
            eviction.cancel();
        }
    }
}

/// A place in a limiter's wait list; dropping leaves the list.
#[derive(Debug)]
pub(super) struct Ticket {
    list: Arc<WaitList>,
    waiter: Arc<Waiter>,
}

impl Ticket {
    /// Protects the holder from eviction until [`resume`](Self::resume).
    pub(super) fn pause(&self) {
        self.waiter.since.store(PAUSED, Ordering::Relaxed);
    }

    /// Moves the holder to the end of the list.
    pub(super) fn resume(&self) {
        self.waiter.since.store(self.list.next(), Ordering::Relaxed);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.list.leave(&self.waiter);
    }
}

/// The holders that wait for their peers, in the order in which they began to wait.
///
/// A connection pauses with each request and resumes with each answer, while evictions are rare. So
/// `pause` and `resume` only store a number, and `pop` brings the order up to date.
#[derive(Debug, Default)]
struct WaitList {
    /// The next number. A holder that begins to wait later has a greater one.
    numbers: AtomicU64,
    /// Each waiter by its [`key`](Waiter::key).
    waiters: Mutex<BTreeMap<u64, Arc<Waiter>>>,
}

#[derive(Debug)]
struct Waiter {
    eviction: CancellationToken,
    /// The number with which it began to wait, or [`PAUSED`].
    since: AtomicU64,
    /// Its key in the list: a past value of `since`, and so no greater than `since`. Changes only
    /// with the list locked.
    key: AtomicU64,
}

const PAUSED: u64 = u64::MAX;

impl WaitList {
    fn join(&self, eviction: CancellationToken) -> Arc<Waiter> {
        let number = self.next();
        let waiter = Arc::new(Waiter {
            eviction,
            since: AtomicU64::new(number),
            key: AtomicU64::new(number),
        });
        self.lock().insert(number, Arc::clone(&waiter));
        waiter
    }

    fn leave(&self, waiter: &Waiter) {
        let mut waiters = self.lock();
        waiters.remove(&waiter.key.load(Ordering::Relaxed));
    }

    fn pop(&self) -> Option<CancellationToken> {
        let mut waiters = self.lock();
        // Every holder that waits now has a smaller number.
        let end = self.next();
        while let Some(first) = waiters.first_entry()
            && *first.key() < end
        {
            let (key, waiter) = first.remove_entry();
            let key = match waiter.since.load(Ordering::Relaxed) {
                since if since == key => return Some(waiter.eviction.clone()),
                PAUSED => self.next(),
                since => since,
            };
            waiter.key.store(key, Ordering::Relaxed);
            waiters.insert(key, waiter);
        }
        None
    }

    fn next(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Waiter>>> {
        // No code panics between two changes, so a poisoned list is consistent.
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_holder_that_has_waited_longest_is_evicted() {
        let limiter = Limiter::new(2);
        let holder = |permit| {
            let (limiter, eviction) = (limiter.clone(), CancellationToken::new());
            let ticket = limiter.wait(&eviction);
            let evicted = eviction.clone();
            let task = async move {
                eviction.cancelled().await;
                drop((permit, ticket));
            };
            (evicted, tokio::spawn(task))
        };
        let (first, first_task) = holder(limiter.acquire(1).await.unwrap());
        let (second, _second_task) = holder(limiter.acquire(1).await.unwrap());
        assert!(limiter.acquire(1).await.is_some());
        first_task.await.unwrap();
        assert!(first.is_cancelled());
        assert!(!second.is_cancelled());
    }

    #[tokio::test]
    async fn a_holder_that_does_not_wait_is_not_evicted() {
        let limiter = Limiter::new(1);
        let eviction = CancellationToken::new();
        let permit = limiter.acquire(1).await.unwrap();
        let ticket = limiter.wait(&eviction);
        drop(ticket);
        assert!(limiter.acquire(1).await.is_none());
        assert!(!eviction.is_cancelled());
        drop(permit);
        assert!(limiter.acquire(1).await.is_some());
    }

    #[test]
    fn a_paused_holder_resumes_at_the_end_of_the_list() {
        let limiter = Limiter::new(1);
        let [first, second, third] = [(); 3].map(|()| CancellationToken::new());
        let tickets = [&first, &second, &third].map(|eviction| limiter.wait(eviction));
        let evicted = || [&first, &second, &third].map(CancellationToken::is_cancelled);
        tickets[0].pause();
        tickets[1].pause();
        tickets[1].resume();
        limiter.evict_longest();
        assert_eq!(evicted(), [false, false, true]);
        limiter.evict_longest();
        assert_eq!(evicted(), [false, true, true]);
        limiter.evict_longest();
        assert!(!first.is_cancelled(), "it does not wait");
        tickets[0].resume();
        limiter.evict_longest();
        assert!(first.is_cancelled());
    }

    #[tokio::test]
    async fn as_many_holders_are_evicted_as_it_takes() {
        let limiter = Limiter::new(3);
        let mut evictions = Vec::new();
        for _ in 0..3 {
            let permit = limiter.acquire(1).await.unwrap();
            let eviction = CancellationToken::new();
            let ticket = limiter.wait(&eviction);
            evictions.push(eviction.clone());
            tokio::spawn(async move {
                eviction.cancelled().await;
                drop((permit, ticket));
            });
        }
        assert!(limiter.acquire(3).await.is_some());
        assert!(evictions.iter().all(CancellationToken::is_cancelled));
    }
}
