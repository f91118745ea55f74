//! Connections: made, looked at before they are used, kept for the next one, or thrown away.
//!
//! **Invariant:** a connection that is taken from here talks to a server that takes writes, and
//! has the settings of [`SETTINGS`].
//!
//! **Invariant:** a connection whose state is not known, since what was done on it was cut short or
//! failed other than by a plain refusal, is never used again.

use std::{
    collections::HashMap,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tokio_postgres::{Client, Config, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::TaskTracker;

use super::error::PgError;

/// The schema that everything of ours is in.
pub(super) const SCHEMA: &str = "hookswitch";

/// What every connection is set to, as far as the server knows it. Each statement of ours that is
/// used often has one good plan, which does not depend on how much there is: the one that follows
/// indexes. A planner that goes by what an empty table looked like would not find it.
const SETTINGS: &str = "SELECT set_config(name, wanted, false) FROM (VALUES
    ('search_path', 'hookswitch'), ('plan_cache_mode', 'force_generic_plan'),
    ('enable_seqscan', 'off'), ('enable_hashjoin', 'off'), ('enable_mergejoin', 'off'),
    ('enable_bitmapscan', 'off'), ('enable_memoize', 'off'), ('jit', 'off'),
    ('TimeZone', 'UTC')
    ) AS ours (name, wanted) WHERE current_setting(name, true) IS NOT NULL";

/// What [`Connector::set_up`] wants to know.
const ASK: &str = "SELECT current_setting('synchronous_commit'),
    current_setting('server_encoding'), pg_is_in_recovery()";

/// How long a host may take until a connection to it is ready for use.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// What the transactions of a connection are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// Stable storage, here and on every standby that the operator has made synchronous.
    Full,
    /// Nothing: what a crash of the database takes away is done again.
    Lazy,
}

/// How connections are made.
#[derive(Clone)]
pub(super) struct Connector {
    /// One for each host.
    pub(super) hosts: Vec<Config>,
    pub(super) tls: MakeRustlsConnect,
    pub(super) statement_timeout: Duration,
    /// Where each connection's own task runs.
    pub(super) tasks: TaskTracker,
}

impl Connector {
    /// Makes a connection to the host that takes writes and sets it up.
    pub(super) async fn connect(&self, durability: Durability) -> Result<PgConnection, PgError> {
        let mut why = PgError::Unavailable("the URL names no host".to_owned());
        for host in &self.hosts {
            // One that hangs must not keep us from the others.
            let deadline = Instant::now() + CONNECT_PATIENCE;
            match within(deadline, Box::pin(self.connect_to(host, durability))).await {
                Err(error) => why = why.more_severe(error),
                connected => return connected,
            }
        }
        Err(why)
    }

    async fn connect_to(
        &self,
        host: &Config,
        durability: Durability,
    ) -> Result<PgConnection, PgError> {
        let (client, connection) = host
            .connect(self.tls.clone())
            .await
            .map_err(|error| PgError::connecting(&error))?;
        self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(
                    "a connection to the database ended: {}",
                    PgError::from(error)
                );
            }
        });
        self.set_up(&client, durability).await?;
        Ok(PgConnection {
            client,
            statements: HashMap::new(),
        })
    }

    /// Asserts and sets what our promises rest on.
    pub(super) async fn set_up(
        &self,
        client: &Client,
        durability: Durability,
    ) -> Result<(), PgError> {
        client.simple_query(SETTINGS).await?;
        let row = client.query_one(ASK, &[]).await?;
        let commit: String = row.try_get(0)?;
        let encoding: String = row.try_get(1)?;
        if encoding != "UTF8" {
            return Err(PgError::Fatal(format!(
                "the database's encoding is {encoding}, which cannot hold every text; make one \
                 with ENCODING 'UTF8'"
            )));
        }
        if row.try_get(2)? {
            let why = "the server is a standby, which takes no writes";
            return Err(PgError::Unavailable(why.to_owned()));
        }
        let millis = self.statement_timeout.as_millis();
        match durability {
            // `remote_write` and `remote_apply` say what is asked of standbys besides.
            Durability::Full if matches!(commit.as_str(), "off" | "local") => {
                return Err(PgError::Fatal(format!(
                    "synchronous_commit is {commit} for this database or role, so that an \
                     acknowledged event could be lost; set it to on, remote_write or remote_apply"
                )));
            }
            // Bringing the tables up to date and reading for an operator take as long as they take.
            // A COMMIT that waits for a standby is not cut short by any limit: it would be done
            // here alone, and be answered as if it were not. Who vanishes within a transaction keeps
            // its locks for that long at most.
            Durability::Full => {
                let settings = format!(
                    "SET statement_timeout = 0; SET lock_timeout = {millis};
                     SET idle_in_transaction_session_timeout = {millis}"
                );
                client.batch_execute(&settings).await?;
            }
            Durability::Lazy => {
                let settings =
                    format!("SET statement_timeout = {millis}; SET synchronous_commit = off");
                client.batch_execute(&settings).await?;
            }
        }
        Ok(())
    }
}

/// A connection with the statements that it knows.
pub(super) struct PgConnection {
    pub(super) client: Client,
    statements: HashMap<&'static str, Statement>,
}

impl PgConnection {
    /// `sql`, made ready once for this connection.
    pub(super) async fn prepare(&mut self, sql: &'static str) -> Result<Statement, PgError> {
        if let Some(known) = self.statements.get(sql) {
            return Ok(known.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.insert(sql, statement.clone());
        Ok(statement)
    }
}

/// A few connections that are used in turn.
#[derive(Clone)]
pub(super) struct Pool {
    connector: Connector,
    durability: Durability,
    idle: Arc<Mutex<Vec<PgConnection>>>,
    permits: Arc<Semaphore>,
    /// How long is waited for a connection and for what is done on it.
    patience: Duration,
}

impl Pool {
    /// Up to `size` connections.
    pub(super) fn new(
        connector: Connector,
        durability: Durability,
        size: usize,
        patience: Duration,
    ) -> Self {
        Self {
            connector,
            durability,
            idle: Arc::default(),
            permits: Arc::new(Semaphore::new(size)),
            patience,
        }
    }

    /// Does `work` on a connection, which it gives back, and does it again for a while when it
    /// collides with what others do.
    pub(super) async fn with<T, W>(
        &self,
        mut work: impl FnMut(PooledConnection) -> W,
    ) -> Result<T, PgError>
    where
        W: Future<Output = (PooledConnection, Result<T, PgError>)>,
    {
        let began = Instant::now();
        loop {
            let taken = self.take().await?;
            let deadline = taken.deadline;
            // What is dropped at the deadline has the connection in it, which must not be used again.
            let done = match timeout_at(deadline, work(taken)).await {
                Ok((taken, done)) => taken.give_back(done),
                Err(_) => Err(PgError::timed_out()),
            };
            match done {
                Err(error) if error.is_retryable(began) => {}
                done => return done,
            }
        }
    }

    /// A connection that is idle, or a new one.
    pub(super) async fn take(&self) -> Result<PooledConnection, PgError> {
        let deadline = Instant::now() + self.patience;
        let permit = timeout_at(deadline, self.permits.clone().acquire_owned()).await;
        let permit = permit
            .map_err(|_| {
                PgError::Unavailable("no connection to the database was free in time".to_owned())
            })?
            .map_err(|_| PgError::Unavailable("the store is closed".to_owned()))?;
        let connection = match self.idle() {
            Some(connection) => connection,
            None => within(deadline, self.connector.connect(self.durability)).await?,
        };
        Ok(PooledConnection {
            connection,
            idle: self.idle.clone(),
            deadline: Instant::now() + self.patience,
            _permit: permit,
        })
    }

    fn idle(&self) -> Option<PgConnection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(connection) = idle.pop() {
            if !connection.client.is_closed() {
                return Some(connection);
            }
        }
        None
    }

    /// Lets go of every connection that is idle, since one of them was found to be bad.
    pub(super) fn forget(&self) {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Ends: no connection is given out any more.
    pub(super) fn close(&self) {
        self.permits.close();
        self.forget();
    }
}

/// Does `$work` with [`Pool::with`], on a connection that is `$connection` meanwhile. A macro, since nothing that
/// lends the connection to a closure is known to be `Send`.
macro_rules! on {
    ($pool:expr, $connection:ident => $work:expr) => {
        $pool
            .with(async |mut $connection| {
                let done = $work.await;
                ($connection, done)
            })
            .await
    };
}
pub(super) use on;

/// A connection in use. Closed when it is dropped, unless it was given back.
pub(super) struct PooledConnection {
    connection: PgConnection,
    idle: Arc<Mutex<Vec<PgConnection>>>,
    deadline: Instant,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl PooledConnection {
    /// Gives it back after `result`, if that leaves it in order.
    pub(super) fn give_back<T>(self, result: Result<T, PgError>) -> Result<T, PgError> {
        let sound = match &result {
            Ok(_) => true,
            Err(error) => error.leaves_connection_usable(),
        };
        if sound && !self.connection.client.is_closed() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push(self.connection);
        }
        result
    }
}

impl Deref for PooledConnection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

/// Waits for `work` until `deadline`. What it was done on must not be used again after that.
pub(super) async fn within<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, PgError>>,
) -> Result<T, PgError> {
    timeout_at(deadline, work)
        .await
        .unwrap_or_else(|_| Err(PgError::timed_out()))
}
