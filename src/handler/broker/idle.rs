//! Idle connections of a client that gives each attempt a connection of its own.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The idle connections of one handler. There are never more than deliveries at once, since each
/// delivery takes an idle connection before it makes a new one.
///
/// An attempt may be dropped at any moment. Its connection is dropped with it, so that a late reply
/// never reaches the next attempt.
pub(in crate::handler) struct IdleConnections<C>(Mutex<Vec<C>>);

impl<C> IdleConnections<C> {
    /// Takes the connection that was used last and `is_open`. Drops those that are not.
    pub(in crate::handler) fn take(&self, is_open: impl Fn(&C) -> bool) -> Option<C> {
        let mut idle = self.lock();
        idle.retain(is_open);
        idle.pop()
    }

    /// Keeps `connection` for the next attempt.
    pub(in crate::handler) fn put(&self, connection: C) {
        self.lock().push(connection);
    }

    /// Drops all connections.
    pub(in crate::handler) fn clear(&self) {
        self.lock().clear();
    }

    /// A panic cannot leave the list half-changed.
    fn lock(&self) -> MutexGuard<'_, Vec<C>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> Default for IdleConnections<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<C> fmt::Debug for IdleConnections<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdleConnections(..)")
    }
}
