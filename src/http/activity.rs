//! Connection activity: whether a connection waits for its peer or its peer waits for us.
//!
//! A connection is *waiting* while its peer owes bytes: the first one, a TLS handshake, the rest of a
//! head or of a body, the next request. A connection is *answering* while we owe an answer. Only a
//! waiting connection can be closed, by its own timeout or by eviction.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::limiter::{Limiter, Ticket};

/// What one connection is doing.
#[derive(Clone)]
pub(super) struct Activity(Arc<Inner>);

struct Inner {
    draining: CancellationToken,
    /// In the wait list of connections; paused while answering.
    ticket: Ticket,
    state: Mutex<State>,
}

struct State {
    /// Whether a whole request head has ever arrived.
    received_head: bool,
    /// Requests whose head has arrived and that are not answered.
    requests: usize,
    /// How many of those have arrived whole.
    answering: usize,
    /// When the last request was answered; at first, when the connection began.
    idle_since: Instant,
}

impl Activity {
    /// A new connection in the wait list of `limiter`, which evicts it with `eviction`.
    pub(super) fn new(
        limiter: &Limiter,
        eviction: &CancellationToken,
        draining: CancellationToken,
    ) -> Self {
        let state = State {
            received_head: false,
            requests: 0,
            answering: 0,
            idle_since: Instant::now(),
        };
        Self(Arc::new(Inner {
            draining,
            ticket: limiter.wait(eviction),
            state: Mutex::new(state),
        }))
    }

    /// Records that a whole request head has arrived.
    pub(super) fn begin(&self) -> InFlight {
        let mut state = self.state();
        state.received_head = true;
        state.requests += 1;
        drop(state);
        InFlight {
            activity: self.clone(),
            is_whole: AtomicBool::new(false),
        }
    }

    /// Whether a whole request head has ever arrived.
    pub(super) fn has_received_head(&self) -> bool {
        self.state().received_head
    }

    /// Ready when no request has been in flight for `idle_timeout`. The timer is reset only when it
    /// fires, so that a request touches no timer.
    pub(super) async fn idle_for(&self, idle_timeout: Duration) {
        let mut since = Instant::now();
        loop {
            sleep(idle_timeout.saturating_sub(since.elapsed())).await;
            let idle_since = self.idle_since(Instant::now());
            if idle_since <= since {
                return;
            }
            since = idle_since;
        }
    }

    /// When a request was last in flight: `now` if one is.
    fn idle_since(&self, now: Instant) -> Instant {
        let state = self.state();
        match state.requests {
            0 => state.idle_since,
            _ => now,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics between two changes, so a poisoned state is consistent.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in flight, from its head to its answer; dropping ends it. The route gets it as an
/// extension of the request. An answer that goes on for longer keeps it.
pub struct InFlight {
    activity: Activity,
    is_whole: AtomicBool,
}

impl InFlight {
    /// Ready when the server takes no more requests. An answer that never ends has to end then.
    pub async fn draining(&self) {
        self.activity.0.draining.cancelled().await;
    }

    /// Whether the server takes no more requests.
    pub(super) fn is_draining(&self) -> bool {
        self.activity.0.draining.is_cancelled()
    }

    /// Records that the request has arrived whole. The connection cannot be evicted until the
    /// request is answered.
    pub(super) fn mark_received(&self) {
        if !self.is_whole.swap(true, Ordering::Relaxed) {
            let mut state = self.activity.state();
            state.answering += 1;
            self.activity.0.ticket.pause();
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.requests -= 1;
        state.idle_since = Instant::now();
        if *self.is_whole.get_mut() {
            state.answering -= 1;
            if state.answering == 0 {
                // At the end of the wait list, since its peer has just sent a whole request.
                self.activity.0.ticket.resume();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_with_a_request_in_flight_is_not_idle() {
        let token = CancellationToken::new();
        let activity = Activity::new(&Limiter::new(1), &token, token.clone());
        let (first, second) = (activity.begin(), activity.begin());
        let now = Instant::now() + Duration::from_secs(60);
        assert_eq!(activity.idle_since(now), now);
        drop(first);
        assert_eq!(activity.idle_since(now), now);
        let before = Instant::now();
        drop(second);
        let idle_since = activity.idle_since(now);
        assert!(before <= idle_since && idle_since < now);
        activity.idle_for(Duration::from_millis(1)).await;
    }
}
