//! Who owes whom: whether a connection waits for its peer or its peer waits for us.
//!
//! A connection *waits* while its peer owes it bytes: the first one, a TLS handshake, the rest of a
//! head or of a body, the next request. It is *at work* while we owe the peer an answer. Only one
//! that waits can be let go, by its own deadline or because others need the place.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::limiter::{Limiter, Ticket};

/// Whether a connection waits or is at work; handed to the route with each request.
#[derive(Clone)]
pub(super) struct Presence(Arc<Inner>);

struct Inner {
    draining: CancellationToken,
    /// In the wait list of connections; paused while at work.
    ticket: Ticket,
    state: Mutex<State>,
}

struct State {
    /// Whether a whole request head has ever arrived.
    spoken: bool,
    /// Requests whose head has arrived and that are not answered.
    requests: usize,
    /// When there last was one; at first, when the connection began.
    seen: Instant,
    /// How many of those have arrived whole.
    at_work: usize,
}

impl Presence {
    /// A new connection in the wait list of `limiter`, which evicts it with `eviction`.
    pub(super) fn new(
        limiter: &Limiter,
        eviction: &CancellationToken,
        draining: CancellationToken,
    ) -> Self {
        let state = State {
            spoken: false,
            requests: 0,
            seen: Instant::now(),
            at_work: 0,
        };
        Self(Arc::new(Inner {
            draining,
            ticket: limiter.wait(eviction),
            state: Mutex::new(state),
        }))
    }

    /// Whether no more requests are taken.
    pub(super) fn is_draining(&self) -> bool {
        self.0.draining.is_cancelled()
    }

    /// The request has arrived whole, and from now on it is we who are waited for. Until the guard
    /// is dropped, the connection cannot be let go.
    pub(super) fn work(&self) -> Work {
        let mut state = self.state();
        state.at_work += 1;
        self.0.ticket.pause();
        drop(state);
        Work(self.clone())
    }

    /// A whole request head has arrived. Until the guard is dropped, the request is in flight.
    pub(super) fn begin(&self) -> Visit {
        let mut state = self.state();
        state.spoken = true;
        state.requests += 1;
        drop(state);
        Visit(self.clone())
    }

    /// Whether a whole request head has ever arrived.
    pub(super) fn has_spoken(&self) -> bool {
        self.state().spoken
    }

    /// Ready when no request has been in flight for `patience`. Its one timer is set anew when it
    /// has run out and not before: a request that comes and goes in time touches none.
    pub(super) async fn overstays(&self, patience: Duration) {
        let mut since = Instant::now();
        loop {
            sleep(patience.saturating_sub(since.elapsed())).await;
            let seen = self.seen();
            if seen <= since {
                return;
            }
            since = seen;
        }
    }

    /// When a request was last in flight.
    fn seen(&self) -> Instant {
        let state = self.state();
        match state.requests {
            0 => state.seen,
            _ => Instant::now(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change, so a poisoned state is still in order.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request, from its head to its answer.
pub(super) struct Visit(Presence);

impl Drop for Visit {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.requests -= 1;
        state.seen = Instant::now();
    }
}

/// One request that has arrived whole, until its answer.
pub(super) struct Work(Presence);

impl Drop for Work {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.at_work -= 1;
        if state.at_work == 0 {
            // At the end of the wait list, since its peer has just sent a whole request.
            self.0.0.ticket.resume();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn only_who_has_no_request_in_flight_can_overstay() {
        const PATIENCE: Duration = Duration::from_millis(1);
        const HANG: Duration = Duration::from_secs(20);
        let token = CancellationToken::new();
        let presence = Presence::new(&Limiter::new(1), &token, token.clone());
        let mut overstays = pin!(presence.overstays(PATIENCE));
        let (visit, other) = (presence.begin(), presence.begin());
        assert!(timeout(20 * PATIENCE, overstays.as_mut()).await.is_err());
        drop(visit);
        assert!(timeout(20 * PATIENCE, overstays.as_mut()).await.is_err());
        drop(other);
        assert!(timeout(HANG, overstays).await.is_ok());
    }
}
