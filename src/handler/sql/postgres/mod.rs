//! Runs the statement in PostgreSQL, or in a server with its protocol.
//!
//! Each concurrent delivery has a connection of its own, on which the statement is prepared. A connection is not
//! reused after an error, or after its attempt was given up. So no attempt waits for another's statement, and a
//! change of the schema is noticed.
//!
//! The start-up option `statement_timeout` gives the server the time limit, so that a statement that waits for a
//! lock does not outlive its attempt by much. `PgBouncer` needs `ignore_startup_parameters = options` for it.

mod config;
mod failure;
mod parameter;

use tokio_postgres::{
    Client, NoTls, Socket, Statement,
    config::SslMode,
    tls::{MakeTlsConnect, TlsConnect},
};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::AbortOnDropHandle;

use super::{
    BuildContext, BuildError, Failure,
    field::{Field, Row},
    statement::SqlStatement,
};
use crate::{client_tls::ClientTls, handler::broker::idle::IdleConnections, postgres_url};
use failure::{describe, judge, unprepared};
use parameter::{fits, unfit};

pub(super) use config::Config;

/// The longest `statement_timeout`, in milliseconds.
const LONGEST_TIMEOUT: u128 = 2_147_483_647;

/// The handler's side of a server.
pub(in crate::handler) struct Postgres {
    config: tokio_postgres::Config,
    /// `None` without TLS.
    tls: Option<MakeRustlsConnect>,
    statement: String,
    fields: Vec<Field>,
    idle: IdleConnections<PreparedConnection>,
}

impl Postgres {
    pub(super) fn new(
        Config(mut config): Config,
        statement: &SqlStatement,
        tls: &ClientTls,
        context: &BuildContext,
    ) -> Result<Self, BuildError> {
        let limit = context.timeout.as_millis().clamp(1, LONGEST_TIMEOUT);
        let limit = format!("-c statement_timeout={limit}");
        let options = match config.get_options() {
            Some(options) => format!("{limit} {options}"),
            None => limit,
        };
        config.options(options);
        config.tcp_user_timeout(context.timeout);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(context.timeout);
        }
        let tls = match config.get_ssl_mode() {
            SslMode::Disable => {
                tls.require_unset(postgres_url::TLS).map_err(BuildError)?;
                None
            }
            _ => Some(tls.config().map_err(BuildError)?),
        };
        Ok(Self {
            tls: tls.map(MakeRustlsConnect::new),
            config,
            statement: statement.render('$'),
            fields: statement.fields().to_vec(),
            idle: IdleConnections::default(),
        })
    }

    /// Runs the statement with the fields of `row`.
    pub(super) async fn run(&self, row: &Row<'_>) -> Result<(), Failure> {
        let idle = self.idle.take(|idle| !idle.client.is_closed());
        let was_idle = idle.is_some();
        let connection = match idle {
            Some(connection) => connection,
            None => self.open().await?,
        };
        let values = row.values(&self.fields);
        let ran = connection.client.execute_raw(&connection.statement, values);
        match ran.await {
            Ok(_) => {
                self.idle.put(connection);
                Ok(())
            }
            Err(error) => Err(judge(&error, was_idle)),
        }
    }

    async fn open(&self) -> Result<PreparedConnection, Failure> {
        match &self.tls {
            Some(tls) => self.open_with(tls.clone()).await,
            None => self.open_with(NoTls).await,
        }
    }

    async fn open_with<T>(&self, tls: T) -> Result<PreparedConnection, Failure>
    where
        T: MakeTlsConnect<Socket, Stream: Send + 'static, TlsConnect: Send>,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let no_connection = |error: tokio_postgres::Error| {
            Failure::Passing(format!("cannot connect: {}", describe(&error)))
        };
        let connected = self.config.connect(tls).await;
        let (client, mut connection) = connected.map_err(no_connection)?;
        // Notices of the server are ignored: they may contain values of the event.
        let listening = tokio::spawn(async move {
            while let Some(Ok(_)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {}
        });
        let listening = AbortOnDropHandle::new(listening);
        let prepared = client.prepare(&self.statement).await;
        let statement = prepared.map_err(|error| unprepared(&error))?;
        for (field, wanted) in self.fields.iter().zip(statement.params()) {
            if !fits(*field, wanted) {
                return Err(Failure::Lasting(unfit(*field, wanted)));
            }
        }
        Ok(PreparedConnection {
            client,
            statement,
            _listening: listening,
        })
    }
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hosts = self.config.get_hosts();
        f.debug_struct("Postgres")
            .field("hosts", &hosts)
            .finish_non_exhaustive()
    }
}

/// A connection with the statement prepared on it.
struct PreparedConnection {
    client: Client,
    statement: Statement,
    /// Closes the connection when dropped, also during a statement.
    _listening: AbortOnDropHandle<()>,
}
