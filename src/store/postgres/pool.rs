//! Connections: made, checked, kept for reuse, or discarded.
//!
//! **Invariant:** a connection from the pool talks to a server that accepts writes, and has the
//! settings of [`SETTINGS`].
//!
//! **Invariant:** a connection in an unknown state, after work that was cancelled or failed other
//! than by a refusal of the server, is never reused.

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

/// The schema of all tables.
pub(super) const SCHEMA: &str = "hookswitch";

/// The settings of every connection, as far as the server knows them. Each frequent statement has
/// one good plan, which follows indexes and does not depend on the number of rows. A planner that
/// goes by the statistics of an empty table would not choose that plan.
const SETTINGS: &str = "SELECT set_config(name, wanted, false) FROM (VALUES
    ('search_path', 'hookswitch'), ('plan_cache_mode', 'force_generic_plan'),
    ('enable_seqscan', 'off'), ('enable_hashjoin', 'off'), ('enable_mergejoin', 'off'),
    ('enable_bitmapscan', 'off'), ('enable_memoize', 'off'), ('jit', 'off'),
    ('TimeZone', 'UTC')
    ) AS ours (name, wanted) WHERE current_setting(name, true) IS NOT NULL";

/// The query of [`Connector::set_up`].
const ASK: &str = "SELECT current_setting('synchronous_commit'),
    current_setting('server_encoding'), pg_is_in_recovery()";

/// The limit for a connection to one host to become usable.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// What the commits of a connection wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// Stable storage, here and on every synchronous standby.
    Full,
    /// Nothing: what a crash of the database loses is done again.
    Lazy,
}

/// How connections are made.
#[derive(Clone)]
pub(super) struct Connector {
    /// The configurations, one for each host.
    pub(super) hosts: Vec<Config>,
    pub(super) tls: MakeRustlsConnect,
    pub(super) statement_timeout: Duration,
    /// Runs the task of each connection.
    pub(super) tasks: TaskTracker,
}

impl Connector {
    /// Connects to the host that accepts writes.
    pub(super) async fn connect(&self, durability: Durability) -> Result<PgConnection, PgError> {
        let mut why = PgError::Unavailable("the URL names no host".to_owned());
        for host in &self.hosts {
            // A host that hangs must not prevent attempts on the others.
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

    /// Checks and sets what durability depends on.
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
            // `remote_write` and `remote_apply` are further demands on standbys.
            Durability::Full if matches!(commit.as_str(), "off" | "local") => {
                return Err(PgError::Fatal(format!(
                    "synchronous_commit is {commit} for this database or role, so that an \
                     acknowledged event could be lost; set it to on, remote_write or remote_apply"
                )));
            }
            // Migrations and operators' queries may take any time, and so may a COMMIT that waits
            // for a standby: a cancelled one would be committed here alone, and be reported as
            // failed. A replica that vanishes within a transaction keeps its locks for this long at
            // most.
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

/// A connection with its prepared statements.
pub(super) struct PgConnection {
    pub(super) client: Client,
    statements: HashMap<&'static str, Statement>,
}

impl PgConnection {
    /// Prepares `sql`, once for this connection.
    pub(super) async fn prepare(&mut self, sql: &'static str) -> Result<Statement, PgError> {
        if let Some(known) = self.statements.get(sql) {
            return Ok(known.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.insert(sql, statement.clone());
        Ok(statement)
    }
}

/// A pool of connections.
#[derive(Clone)]
pub(super) struct Pool {
    connector: Connector,
    durability: Durability,
    idle: Arc<Mutex<Vec<PgConnection>>>,
    permits: Arc<Semaphore>,
    /// The limit of waiting for a connection, and of the work on it.
    patience: Duration,
}

impl Pool {
    /// A pool of up to `size` connections.
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

    /// Does `work` on a connection, and repeats it for a while after conflicts.
    pub(super) async fn with<T, W>(
        &self,
        mut work: impl FnMut(PooledConnection) -> W,
    ) -> Result<T, PgError>
    where
        W: Future<Output = (PooledConnection, Result<T, PgError>)>,
    {
        let began = Instant::now();
        loop {
            let connection = self.take().await?;
            let deadline = connection.deadline;
            // At the deadline the future is dropped together with the connection, which must not be
            // reused.
            let done = match timeout_at(deadline, work(connection)).await {
                Ok((connection, done)) => connection.give_back(done),
                Err(_) => Err(PgError::timed_out()),
            };
            match done {
                Err(error) if error.is_retryable(began) => {}
                done => return done,
            }
        }
    }

    /// An idle connection, or a new one.
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

    /// Closes all idle connections, since one of them was found broken.
    pub(super) fn forget(&self) {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Closes the pool.
    pub(super) fn close(&self) {
        self.permits.close();
        self.forget();
    }
}

/// Does `$work` by [`Pool::with`], with `$connection` bound to the connection. A macro, since the
/// compiler cannot prove that a closure which borrows the connection is `Send`.
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

/// A connection in use. Dropping it closes it; [`give_back`](Self::give_back) returns it to the
/// pool.
pub(super) struct PooledConnection {
    connection: PgConnection,
    idle: Arc<Mutex<Vec<PgConnection>>>,
    deadline: Instant,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl PooledConnection {
    /// Returns the connection to the pool after `result`, if it is still usable.
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

/// Limits `work` by `deadline`. The connection of cancelled work must not be reused.
pub(super) async fn within<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, PgError>>,
) -> Result<T, PgError> {
    timeout_at(deadline, work)
        .await
        .unwrap_or_else(|_| Err(PgError::timed_out()))
}
