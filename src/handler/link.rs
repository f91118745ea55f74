//! A connection that is made when it is first needed, and made again when it has broken.

use std::{
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Mutex, time::timeout};

/// How long a failure to connect is the answer to everybody who asks, so that many deliveries that
/// wait for a broker do not each knock at it.
const PAUSE: Duration = Duration::from_secs(1);

/// What a [`Link`] links to.
pub(super) trait Open {
    /// Whether the connection still stands, as far as this side knows.
    fn is_open(&self) -> bool;
}

/// The one connection of a handler. Whoever needs it first makes it; the others wait for that.
pub(super) struct Link<C> {
    patience: Duration,
    state: Mutex<State<C>>,
}

struct State<C> {
    connection: Option<Arc<C>>,
    failure: Option<(Instant, Arc<str>)>,
}

/// There is no connection, and why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot connect to the broker: {0}")]
pub(super) struct Broken(Arc<str>);

impl<C: Open> Link<C> {
    /// A link whose connection takes at most `patience` to be made.
    pub(super) fn new(patience: Duration) -> Self {
        let state = State {
            connection: None,
            failure: None,
        };
        Self {
            patience,
            state: Mutex::new(state),
        }
    }

    /// The connection, or a new one that `connect` makes.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or could not be a moment ago.
    pub(super) async fn connection(
        &self,
        connect: impl Future<Output = Result<C, String>>,
    ) -> Result<Arc<C>, Broken> {
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
            return Err(Broken(why.clone()));
        }
        let patience = self.patience;
        let made = timeout(patience, connect).await;
        match made.unwrap_or_else(|_| Err(format!("it did not answer within {patience:?}"))) {
            Ok(connection) => Ok(state.connection.insert(Arc::new(connection)).clone()),
            Err(why) => {
                let why = Arc::<str>::from(why);
                state.failure = Some((Instant::now(), why.clone()));
                Err(Broken(why))
            }
        }
    }
}

impl<C> fmt::Debug for Link<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    struct Connection(AtomicBool);

    impl Open for Connection {
        fn is_open(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }

    fn open() -> Result<Connection, String> {
        Ok(Connection(AtomicBool::new(true)))
    }

    #[tokio::test]
    async fn a_connection_is_shared_while_it_stands_and_then_made_again() {
        let link = Link::new(Duration::from_secs(20));
        let first = link.connection(async { open() }).await.unwrap();
        let second = link.connection(async { open() }).await.unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        first.0.store(false, Ordering::SeqCst);
        let third = link.connection(async { open() }).await.unwrap();
        assert!(!Arc::ptr_eq(&first, &third));
    }

    #[tokio::test]
    async fn those_who_wait_together_for_a_broker_that_is_gone_knock_once() {
        let link = Link::<Connection>::new(Duration::from_secs(20));
        let knocks = AtomicUsize::new(0);
        let knock = || async {
            knocks.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Err("nobody is there".to_owned())
        };
        let (one, other) = tokio::join!(link.connection(knock()), link.connection(knock()));
        for answer in [one, other] {
            let why = answer.err().unwrap().to_string();
            assert_eq!(why, "cannot connect to the broker: nobody is there");
        }
        assert_eq!(knocks.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_broker_that_says_nothing_is_not_waited_for_longer_than_is_said() {
        let link = Link::<Connection>::new(Duration::from_millis(5));
        let why = link.connection(std::future::pending()).await.err().unwrap();
        let why = why.to_string();
        assert!(why.ends_with("did not answer within 5ms"), "{why}");
    }

    #[tokio::test]
    async fn an_attempt_that_is_dropped_leaves_the_way_free() {
        let link = Link::new(Duration::from_secs(20));
        let dropped = timeout(
            Duration::from_millis(1),
            link.connection(std::future::pending()),
        );
        assert!(dropped.await.is_err());
        assert!(link.connection(async { open() }).await.is_ok());
    }
}
