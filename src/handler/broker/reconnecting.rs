//! A client that connects when its connection is first needed, and reconnects when the connection
//! has broken.

use std::{
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Mutex, time::timeout};

/// How long a failure to connect is the result of every attempt, so that many deliveries to a broker
/// that is down do not each try to connect.
const PAUSE: Duration = Duration::from_secs(1);

/// A connection of a [`ReconnectingClient`].
pub(in crate::handler) trait Connection {
    /// Whether the connection is open, as far as this side knows.
    fn is_open(&self) -> bool;
}

/// The one connection of a handler, which all attempts share. One attempt at a time connects; the
/// others wait for its result.
pub(in crate::handler) struct ReconnectingClient<C> {
    connect_timeout: Duration,
    state: Mutex<State<C>>,
}

struct State<C> {
    connection: Option<Arc<C>>,
    failure: Option<(Instant, Arc<str>)>,
}

/// The reason why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot connect to the broker: {0}")]
pub(in crate::handler) struct Unconnected(Arc<str>);

impl<C: Connection> ReconnectingClient<C> {
    /// A client that gives up a new connection after `connect_timeout`.
    pub(in crate::handler) fn new(connect_timeout: Duration) -> Self {
        let state = State {
            connection: None,
            failure: None,
        };
        Self {
            connect_timeout,
            state: Mutex::new(state),
        }
    }

    /// The connection, or a new one that `connect` makes.
    ///
    /// # Errors
    ///
    /// When no connection can be made, or none could be made a moment ago.
    pub(in crate::handler) async fn connection(
        &self,
        connect: impl Future<Output = Result<C, String>>,
    ) -> Result<Arc<C>, Unconnected> {
        let mut state = self.state.lock().await;
        if let Some(connection) = state.connection.take_if(|connection| !connection.is_open()) {
            drop(connection);
        }
        if let Some(connection) = &state.connection {
            return Ok(connection.clone());
        }
        if let Some((at, why)) = &state.failure
            && at.elapsed() < PAUSE
        {
            return Err(Unconnected(why.clone()));
        }
        let limit = self.connect_timeout;
        let made = timeout(limit, connect).await;
        match made.unwrap_or_else(|_| Err(format!("it did not answer within {limit:?}"))) {
            Ok(connection) => Ok(state.connection.insert(Arc::new(connection)).clone()),
            Err(why) => {
                let why = Arc::<str>::from(why);
                state.failure = Some((Instant::now(), why.clone()));
                Err(Unconnected(why))
            }
        }
    }
}

impl<C> fmt::Debug for ReconnectingClient<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReconnectingClient(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    struct Switch(AtomicBool);

    impl Connection for Switch {
        fn is_open(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }

    fn open() -> Result<Switch, String> {
        Ok(Switch(AtomicBool::new(true)))
    }

    #[tokio::test]
    async fn a_connection_is_shared_while_it_is_open_and_then_made_again() {
        let client = ReconnectingClient::new(Duration::from_secs(20));
        let first = client.connection(async { open() }).await.unwrap();
        let second = client.connection(async { open() }).await.unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        first.0.store(false, Ordering::SeqCst);
        let third = client.connection(async { open() }).await.unwrap();
        assert!(!Arc::ptr_eq(&first, &third));
    }

    #[tokio::test]
    async fn attempts_that_wait_together_for_a_broker_that_is_gone_connect_once() {
        let client = ReconnectingClient::<Switch>::new(Duration::from_secs(20));
        let tries = AtomicUsize::new(0);
        let fail = || async {
            tries.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Err("nobody is there".to_owned())
        };
        let (one, other) = tokio::join!(client.connection(fail()), client.connection(fail()));
        for answer in [one, other] {
            let why = answer.err().unwrap().to_string();
            assert_eq!(why, "cannot connect to the broker: nobody is there");
        }
        assert_eq!(tries.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_silent_broker_is_given_up_after_the_connect_timeout() {
        let client = ReconnectingClient::<Switch>::new(Duration::from_millis(5));
        let why = client
            .connection(std::future::pending())
            .await
            .err()
            .unwrap();
        let why = why.to_string();
        assert!(why.ends_with("did not answer within 5ms"), "{why}");
    }

    #[tokio::test]
    async fn a_dropped_attempt_holds_up_no_other() {
        let client = ReconnectingClient::new(Duration::from_secs(20));
        let dropped = timeout(
            Duration::from_millis(1),
            client.connection(std::future::pending()),
        );
        assert!(dropped.await.is_err());
        assert!(client.connection(async { open() }).await.is_ok());
    }
}
