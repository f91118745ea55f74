//! A service that stores events and delivers none reports that it is not ready, and why, and
//! recovers by itself.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::{
    crash::archived_serials,
    harness::{ARCHIVE, ENDPOINTS, Home, Service, cnam, eventually},
};

/// The time within which the service must report a stall.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);

fn is_ready(service: &Service) -> bool {
    service.ready() == (200, "ready".to_owned())
}

fn stalled(service: &Service, follower: &str) -> f64 {
    service.metric(&format!(
        "hookswitch_follower_stalled{{follower=\"{follower}\"}}"
    ))
}

/// The number of log lines that contain both words.
fn lines(service: &Service, one: &str, other: &str) -> usize {
    let log = service.log();
    log.lines()
        .filter(|line| line.contains(one) && line.contains(other))
        .count()
}

/// Delivers one event, and then has `block` block deliveries until its result is dropped. Checks
/// that the service reports a stall of `follower` for the reason `why`, and recovers.
fn stalls_and_recovers<H>(home: &Home, follower: &str, why: &str, block: impl FnOnce() -> H) {
    let service = home.start();
    let archived =
        |serials: &[u64]| archived_serials(home) == BTreeSet::from_iter(serials.to_vec());
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("the first is delivered", || archived(&[1]));
    assert!(is_ready(&service));

    let hindrance = block();
    let since = Instant::now();
    assert_eq!(service.zoom(&cnam(1, 2)).status, 200);
    eventually("the service is not ready", || {
        service.ready() == (503, "unavailable".to_owned())
    });
    let took = since.elapsed();
    eprintln!("{follower}: not ready after {took:?}");
    assert!(took < NOTICED_WITHIN, "{took:?}");
    assert!(took > Duration::from_secs(3), "{took:?}");
    eventually("the follower is shown as stalled", || {
        stalled(&service, follower) >= 1.0
    });
    eventually("the log gives the reason", || {
        lines(&service, "makes no progress", why) > 0
    });
    // Events are stored during the stall.
    assert_eq!(service.zoom(&cnam(1, 3)).status, 200);
    // Events that were in memory may have been delivered.
    assert!(!archived_serials(home).contains(&3));

    drop(hindrance);
    eventually("the service is ready again", || is_ready(&service));
    eventually("all events are delivered", || archived(&[1, 2, 3]));
    eventually("no follower is stalled", || {
        stalled(&service, follower) == 0.0
    });
    for line in ["makes no progress", "makes progress again"] {
        assert_eq!(lines(&service, line, follower), 1, "{line}");
    }
}

#[test]
fn a_ledger_that_another_program_has_locked() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE]);
    stalls_and_recovers(&home, "indexer", "database is locked", || {
        let ledger = home.path().join("data/ledger.db");
        let db = rusqlite::Connection::open(ledger).unwrap();
        db.busy_timeout(Duration::from_secs(60)).unwrap();
        db.execute_batch("BEGIN EXCLUSIVE").unwrap();
        db
    });
}

#[cfg(feature = "postgres")]
mod postgres {
    use std::{process::Command, thread};

    use super::{eventually, stalls_and_recovers};
    use crate::support::postgres::Database;

    /// A table that every claim writes to.
    const CLAIMS_TABLE: &str = "hookswitch.claims";

    /// A lock on a table. Dropping it releases the lock.
    struct Lock<'a> {
        database: &'a Database,
        holder: Option<thread::JoinHandle<()>>,
    }

    impl<'a> Lock<'a> {
        fn take(database: &'a Database, table: &str) -> Self {
            let url = database.url();
            let statements = format!("BEGIN; LOCK TABLE {table}; SELECT pg_sleep(600)");
            let holder = thread::spawn(move || {
                // The command fails when its backend is terminated.
                let psql = Command::new("psql")
                    .args(["-c", &statements, &url])
                    .output();
                assert!(!psql.unwrap().status.success());
            });
            eventually("the table is locked", || {
                database.sql(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()",
                ) == "1"
            });
            Self {
                database,
                holder: Some(holder),
            }
        }
    }

    impl Drop for Lock<'_> {
        fn drop(&mut self) {
            self.database.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()",
            );
            self.holder.take().unwrap().join().unwrap();
        }
    }

    #[test]
    fn a_database_in_which_nothing_can_be_claimed() {
        let database = Database::new();
        let home = crate::postgres::home_with(&database.url(), "");
        stalls_and_recovers(&home, "claims", "claiming deliveries", || {
            Lock::take(&database, CLAIMS_TABLE)
        });
    }
}
