//! `sql`: runs a statement of your own for each event, in PostgreSQL or SQLite.
//!
//! The statement names fields of the event. Each field becomes a parameter of the prepared statement, so
//! no value of an event becomes part of the statement. The statement runs in a transaction of its own.
//!
//! | field | value | PostgreSQL: types besides text | SQLite: type |
//! |---|---|---|---|
//! | `:id` | the event's id, the same in every attempt and replay | `uuid` | text |
//! | `:source` | `/hookswitch/` and the endpoint | | text |
//! | `:type` | the event name | | text |
//! | `:subject` | what the event is about, or null | | text |
//! | `:time` | when it happened | `timestamptz` | text, in UTC |
//! | `:receivedtime` | when it was received | `timestamptz` | text, in UTC |
//! | `:key` | the partition key, or null | | text |
//! | `:attempt` | the number of the attempt, from 1 | `int4`, `int8` | integer |
//! | `:superseded` | whether a later report has been received | `bool` | 0 or 1 |
//! | `:replayreason` | the reason of a replay, or null | | text |
//! | `:datacontenttype` | the content type of the body | | text |
//! | `:data` | the body as it arrived; null if it is not JSON | `json`, `jsonb` | text |
//! | `:body` | the body, byte for byte | `bytea`, and never text | blob |
//! | `:event` | the whole CloudEvent | `json`, `jsonb` | text |
//!
//! The database chooses the type of a field by its place in the statement. A cast makes the type explicit:
//! `:time::timestamptz`. A domain counts as its base type. `timestamptz` keeps a time to the microsecond.
//!
//! Delivery is at least once, so the statement must be idempotent. `ON CONFLICT (id) DO NOTHING`, with
//! `:id` in a unique column, is enough. Order holds as for every handler: the statement for an event is
//! committed before the one for the next event that shares an ordering key begins.
//!
//! | answer | outcome |
//! |---|---|
//! | committed | done, whatever the statement returned and however many rows it changed |
//! | no connection, wrong credentials, no such database | retried: the database has not seen the event |
//! | connection lost, conflict with another transaction, deadlock, locked, too slow, read-only, full, shutting down | retried |
//! | a violated constraint, data that does not fit, permission denied | parked |
//! | a statement that cannot be prepared: no such table, wrong syntax, a field of another type | parked |
//!
//! **Invariant:** a reason never contains what the database says of an event's values. Before a statement
//! is prepared, the database has no values, and a reason quotes its message. After that, a reason contains
//! only the kind of the failure and the names of constraint, table and column.

mod field;
mod postgres;
mod sqlite;
mod statement;
mod url;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

use super::{
    AnyEvent, BuildContext, BuildError, Delivery, Handler, HandlerKind, Outcome,
    text_or_secret::TextOrSecret,
};
use crate::{client_tls::ClientTls, secret::Secret};
use field::Row;
use postgres::Postgres;
use sqlite::Sqlite;
use statement::SqlStatement;
use url::DatabaseUrl;

/// Runs a statement of yours for each event in PostgreSQL or SQLite.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// The URL of the database: `postgres://user@host/database`, or `sqlite:path` for a file that
    /// exists. A URL with a password in it is a secret. With PostgreSQL on another machine, TLS is used
    /// and the certificate verified, unless the URL ends in `?sslmode=disable`.
    #[schemars(with = "TextOrSecret")]
    url: Database,
    /// The password of PostgreSQL, if it is not in the URL.
    password: Option<Secret>,
    /// The CA bundle and the client certificate, for PostgreSQL.
    #[serde(default)]
    tls: ClientTls,
    /// One statement, which can be run twice for one event. Fields of the event are its parameters:
    /// `:id`, `:source`, `:type`, `:subject`, `:time`, `:receivedtime`, `:key`, `:attempt`,
    /// `:superseded`, `:replayreason`, `:datacontenttype`, `:data`, `:body`, `:event`.
    #[schemars(with = "String")]
    statement: SqlStatement,
}

/// A database, by the scheme of its URL.
#[derive(Debug)]
enum Database {
    Postgres(Box<postgres::Config>),
    Sqlite(sqlite::Config),
}

impl<'de> Deserialize<'de> for Database {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let url = DatabaseUrl::deserialize(deserializer)?;
        let url = url.expose();
        match url.split_once(':').map(|(scheme, _)| scheme) {
            Some("postgres" | "postgresql") => {
                postgres::Config::parse(url).map(|config| Self::Postgres(Box::new(config)))
            }
            Some("sqlite") => sqlite::Config::parse(url).map(Self::Sqlite),
            _ => Err(
                "the URL's scheme is neither \"postgres\" nor \"sqlite\"; a URL looks like \
                 \"postgres://user@db.example.com/warehouse\" or \"sqlite:data/events.db\""
                    .to_owned(),
            ),
        }
        .map_err(de::Error::custom)
    }
}

impl HandlerKind for Settings {
    const KIND: &'static str = "sql";
    const EXAMPLE: &'static str = r#"
[handlers.warehouse]
kind = "sql"
events = ["*"]
url = "postgres://hookswitch@db.example.com/warehouse"
password = { env = "WAREHOUSE_PASSWORD" }
# tls = { ca = "/etc/hookswitch/ca.pem", certificate = "/etc/hookswitch/warehouse.pem", key = "/etc/hookswitch/warehouse-key.pem" }
statement = """
INSERT INTO events (id, type, subject, time, data)
VALUES (:id, :type, :subject, :time, :data)
ON CONFLICT (id) DO NOTHING
"""
"#;
    type Handler = Sql;

    fn build(self, context: &mut BuildContext) -> Result<Sql, BuildError> {
        Ok(match self.url {
            Database::Postgres(mut config) => {
                context.warn(config.cleartext_warning(self.password.as_ref()));
                for (host, port) in config.servers() {
                    context.connects_to(host, port);
                }
                if let Some(password) = &self.password {
                    config.set_password(password)?;
                }
                let postgres = Postgres::new(*config, &self.statement, &self.tls, context)?;
                Sql::Postgres(Box::new(postgres))
            }
            Database::Sqlite(_) if self.password.is_some() => {
                return Err(BuildError(
                    "`password` is for PostgreSQL, and SQLite has no use for it; leave it out"
                        .to_owned(),
                ));
            }
            Database::Sqlite(config) => {
                let cure = "SQLite has no use for it; leave it out";
                self.tls.require_unset(cure).map_err(BuildError)?;
                Sql::Sqlite(Sqlite::new(config, &self.statement, context))
            }
        })
    }
}

/// The handler.
#[derive(Debug)]
pub(super) enum Sql {
    Postgres(Box<Postgres>),
    Sqlite(Sqlite),
}

impl Handler for Sql {
    type Event = AnyEvent;

    async fn handle(&self, delivery: Delivery<'_, AnyEvent>) -> Outcome {
        let row = Row::new(&delivery);
        let ran = match self {
            Self::Postgres(postgres) => postgres.run(&row).await,
            Self::Sqlite(sqlite) => sqlite.run(&row).await,
        };
        match ran {
            Ok(()) => Outcome::Done,
            Err(Failure::Passing(why)) => Outcome::retry(why),
            Err(Failure::Lasting(why)) => Outcome::park(why),
        }
    }
}

/// Why the statement was not committed.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// A retry may succeed.
    Passing(String),
    /// No retry succeeds before somebody changes something.
    Lasting(String),
}

#[cfg(test)]
mod tests;
