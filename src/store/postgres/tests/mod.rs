//! What only the PostgreSQL store promises.

#[path = "../../../../tests/support/postgres.rs"]
mod postgres;
#[path = "../../../../tests/support/server.rs"]
mod server;

use std::time::Duration;

use self::postgres::Database;
use super::Settings;
use crate::store::tests as suite;

/// A place for the suite.
pub(in crate::store) fn place() -> suite::Place {
    let database = Database::new();
    suite::Place::new(settings(&database.url()), database)
}

fn settings(url: &str) -> Settings {
    Settings {
        url: url.parse().unwrap(),
        ca: None,
        connections: 4,
        statement_timeout: Duration::from_secs(30),
        lease: Duration::from_secs(3),
        retain: Duration::from_secs(3600),
        abandon_after: Duration::ZERO,
    }
}
