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

use super::fault::Fault;

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
    pub(super) async fn connect(&self, durability: Durability) -> Result<Session, Fault> {
        let mut why = Fault::Away("the URL names no host".to_owned());
        for host in &self.hosts {
            // One that hangs must not keep us from the others.
            let deadline = Instant::now() + CONNECT_PATIENCE;
            match within(deadline, Box::pin(self.connect_to(host, durability))).await {
                Err(fault) => why = why.graver(fault),
                connected => return connected,
            }
        }
        Err(why)
    }

    async fn connect_to(&self, host: &Config, durability: Durability) -> Result<Session, Fault> {
        let (client, connection) = host
            .connect(self.tls.clone())
            .await
            .map_err(|error| Fault::connecting(&error))?;
        self.tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection to the database ended: {}", Fault::from(error));
            }
        });
        self.set_up(&client, durability).await?;
        Ok(Session {
            client,
            statements: HashMap::new(),
        })
    }

    /// Asserts and sets what our promises rest on.
    pub(super) async fn set_up(
        &self,
        client: &Client,
        durability: Durability,
    ) -> Result<(), Fault> {
        client.simple_query(SETTINGS).await?;
        let row = client.query_one(ASK, &[]).await?;
        let commit: String = row.try_get(0)?;
        let encoding: String = row.try_get(1)?;
        if encoding != "UTF8" {
            return Err(Fault::Hopeless(format!(
                "the database's encoding is {encoding}, which cannot hold every text; make one \
                 with ENCODING 'UTF8'"
            )));
        }
        if row.try_get(2)? {
            let why = "the server is a standby, which takes no writes";
            return Err(Fault::Away(why.to_owned()));
        }
        let millis = self.statement_timeout.as_millis();
        match durability {
            // `remote_write` and `remote_apply` say what is asked of standbys besides.
            Durability::Full if matches!(commit.as_str(), "off" | "local") => {
                return Err(Fault::Hopeless(format!(
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
pub(super) struct Session {
    pub(super) client: Client,
    statements: HashMap<&'static str, Statement>,
}

impl Session {
    /// `sql`, made ready once for this connection.
    pub(super) async fn prepare(&mut self, sql: &'static str) -> Result<Statement, Fault> {
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
    idle: Arc<Mutex<Vec<Session>>>,
    slots: Arc<Semaphore>,
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
            slots: Arc::new(Semaphore::new(size)),
            patience,
        }
    }

    /// Does `work` on a connection, which it gives back, and does it again for a while when it
    /// collides with what others do.
    pub(super) async fn with<T, W>(&self, mut work: impl FnMut(Taken) -> W) -> Result<T, Fault>
    where
        W: Future<Output = (Taken, Result<T, Fault>)>,
    {
        let began = Instant::now();
        loop {
            let taken = self.take().await?;
            let deadline = taken.deadline;
            // What is dropped at the deadline has the connection in it, which must not be used again.
            let done = match timeout_at(deadline, work(taken)).await {
                Ok((taken, done)) => taken.give_back(done),
                Err(_) => Err(Fault::late()),
            };
            match done {
                Err(fault) if fault.is_worth_another_try(began) => {}
                done => return done,
            }
        }
    }

    /// A connection that is idle, or a new one.
    pub(super) async fn take(&self) -> Result<Taken, Fault> {
        let deadline = Instant::now() + self.patience;
        let slot = timeout_at(deadline, self.slots.clone().acquire_owned()).await;
        let slot = slot
            .map_err(|_| Fault::Away("no connection to the database was free in time".to_owned()))?
            .map_err(|_| Fault::Away("the store is closed".to_owned()))?;
        let session = match self.idle() {
            Some(session) => session,
            None => within(deadline, self.connector.connect(self.durability)).await?,
        };
        Ok(Taken {
            session,
            idle: self.idle.clone(),
            deadline: Instant::now() + self.patience,
            _slot: slot,
        })
    }

    fn idle(&self) -> Option<Session> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(session) = idle.pop() {
            if !session.client.is_closed() {
                return Some(session);
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
        self.slots.close();
        self.forget();
    }
}

/// Does `$work` with [`Pool::with`], on a connection that is `$session` meanwhile. A macro, since nothing that
/// lends the connection to a closure is known to be `Send`.
macro_rules! on {
    ($pool:expr, $session:ident => $work:expr) => {
        $pool
            .with(async |mut $session| {
                let done = $work.await;
                ($session, done)
            })
            .await
    };
}
pub(super) use on;

/// A connection in use. Closed when it is dropped, unless it was given back.
pub(super) struct Taken {
    session: Session,
    idle: Arc<Mutex<Vec<Session>>>,
    deadline: Instant,
    _slot: tokio::sync::OwnedSemaphorePermit,
}

impl Taken {
    /// Gives it back after `result`, if that leaves it in order.
    pub(super) fn give_back<T>(self, result: Result<T, Fault>) -> Result<T, Fault> {
        let sound = match &result {
            Ok(_) => true,
            Err(fault) => fault.spares_the_connection(),
        };
        if sound && !self.session.client.is_closed() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push(self.session);
        }
        result
    }
}

impl Deref for Taken {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Taken {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

/// Waits for `work` until `deadline`. What it was done on must not be used again after that.
pub(super) async fn within<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    timeout_at(deadline, work)
        .await
        .unwrap_or_else(|_| Err(Fault::late()))
}
