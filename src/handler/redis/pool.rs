//! Connections, each for one attempt at a time.
//!
//! An attempt may be dropped at any moment, and what it has asked for may hold up what others ask
//! for on the same connection (`WAIT` does). So each has a connection to itself, and only one whose
//! questions have all been answered is used again. There are never more than attempts at once.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{AsyncConnectionConfig, Client, RedisResult, aio::MultiplexedConnection};

/// See [the module](self).
pub(super) struct Pool {
    client: Client,
    config: AsyncConnectionConfig,
    idle: Mutex<Vec<MultiplexedConnection>>,
}

impl Pool {
    pub(super) fn new(client: Client, connect_timeout: Duration) -> Self {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(connect_timeout))
            // The dispatcher gives the attempt up in time.
            .set_response_timeout(None);
        Self {
            client,
            config,
            idle: Mutex::default(),
        }
    }

    /// A connection that nobody uses, the one that was used last.
    pub(super) fn take(&self) -> Option<MultiplexedConnection> {
        self.idle().pop()
    }

    /// Takes back one that can be used again.
    pub(super) fn put(&self, connection: MultiplexedConnection) {
        self.idle().push(connection);
    }

    /// Closes those that nobody uses.
    pub(super) fn clear(&self) {
        self.idle().clear();
    }

    /// A new connection.
    pub(super) async fn open(&self) -> RedisResult<MultiplexedConnection> {
        let client = &self.client;
        client
            .get_multiplexed_async_connection_with_config(&self.config)
            .await
    }

    fn idle(&self) -> MutexGuard<'_, Vec<MultiplexedConnection>> {
        // No panic leaves a list half-changed.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}
