//! A database in which a transfer can be stopped.

use crate::{harness::eventually, support::postgres::Postgres};

/// A database that accepts events up to a number. A transaction that adds more waits until the gate
/// is raised.
pub(super) struct Gated {
    pub(super) postgres: Postgres,
    database: String,
}

impl Gated {
    pub(super) fn new() -> Self {
        let postgres = Postgres::start(&[]);
        let database = postgres.create_database();
        Self { postgres, database }
    }

    pub(super) fn url(&self) -> String {
        self.postgres.url(&self.database)
    }

    fn sql(&self, statements: &str) -> String {
        self.postgres.sql(&self.database, statements)
    }

    /// Adds the gate to an existing store. The value of a sequence is visible at once, also to
    /// transactions that began before.
    pub(super) fn put_up(&self) {
        self.sql(
            "CREATE SEQUENCE hookswitch.gate;
             CREATE FUNCTION hookswitch.wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 WHILE (SELECT count(*) FROM hookswitch.events)
                     > (SELECT last_value FROM hookswitch.gate)
                 LOOP PERFORM pg_sleep(0.01); END LOOP;
                 RETURN NULL;
             END $$;
             CREATE TRIGGER gate AFTER INSERT ON hookswitch.events
                 FOR EACH STATEMENT EXECUTE FUNCTION hookswitch.wait()",
        );
    }

    pub(super) fn set(&self, events: u64) {
        self.sql(&format!("SELECT setval('hookswitch.gate', {events})"));
    }

    /// Waits until a transaction waits at the gate and at least `events` events have been moved.
    pub(super) fn wait_until_blocked(&self, events: u64) {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        eventually("a transaction waits at the gate", || {
            self.events() >= events && self.sql(waits) == "1"
        });
    }

    /// Waits until the database has `count` connections.
    pub(super) fn wait_until_connected(&self, count: u64) {
        let others = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()";
        eventually("there are connections", || {
            self.sql(others) == count.to_string()
        });
    }

    /// The number of moved events.
    pub(super) fn events(&self) -> u64 {
        self.sql("SELECT count(*) FROM hookswitch.events")
            .parse()
            .unwrap()
    }
}
