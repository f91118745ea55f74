//! A database that a move can be stopped in.

use crate::{harness::eventually, support::postgres::Postgres};

/// A database that lets events in up to a number: whoever adds more waits, with a transaction open,
/// until the gate is set higher.
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

    /// Puts up the gate in a store that is there. What a sequence says is seen at once, by
    /// transactions that began before as well.
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

    /// Returns when somebody waits and at least so many events have been moved.
    pub(super) fn until_somebody_waits(&self, events: u64) {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        eventually("somebody waits at the gate", || {
            self.events() >= events && self.sql(waits) == "1"
        });
    }

    /// Returns when there are so many connections to the database.
    pub(super) fn until_connected(&self, count: u64) {
        let others = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()";
        eventually("there are connections", || {
            self.sql(others) == count.to_string()
        });
    }

    /// Events that have been moved.
    pub(super) fn events(&self) -> u64 {
        self.sql("SELECT count(*) FROM hookswitch.events")
            .parse()
            .unwrap()
    }
}
