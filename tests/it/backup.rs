//! `hookswitch backup`: a copy of a store in use that a service starts on.

#[cfg(feature = "postgres")]
use std::process::Command;
use std::{
    fs,
    sync::{Arc, atomic::AtomicU64},
};

#[cfg(feature = "postgres")]
use crate::{
    copied::{NEW, deliveries_of, post},
    harness::{ARCHIVE, ENDPOINTS, Engine},
    support,
};
use crate::{
    copied::{by_id, home, in_journal, starts_and_delivers},
    crash::{Load, archived_serials},
    harness::{Home, eventually},
};

#[test]
fn a_backup_under_load_has_everything_that_was_acknowledged_and_delivers_nothing_twice() {
    let origin = home();
    let service = origin.start();
    let load = Load::start(&service, &Arc::new(AtomicU64::new(0)));
    let mut backups = Vec::new();
    for _ in 0..6 {
        let enough = load.acknowledged().len() + 300;
        eventually("the load goes on", || load.acknowledged().len() >= enough);
        let acknowledged = load.acknowledged();
        let target = home();
        let to = target.path().join("data");
        let output = origin.run(&["backup", "--to", to.to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
        backups.push((target, acknowledged, archived_serials(&origin)));
    }
    let acknowledged = load.stop();
    eventually("the origin has delivered everything", || {
        archived_serials(&origin).is_superset(&acknowledged)
    });
    drop(service);
    let known = by_id(&origin);
    for (target, acknowledged, before) in &backups {
        let stored = in_journal(target, &[]);
        assert!(stored.is_superset(acknowledged));
        let log = starts_and_delivers("backup", target, &known, before);
        assert!(!log.contains("ERROR"), "{log}");
    }
}

#[test]
fn a_backup_replaces_only_the_remains_of_an_interrupted_one() {
    let home = home();
    drop(home.start());
    let to = home.path().join("backups/monday");
    let backup = || home.run(&["backup", "--to", to.to_str().unwrap()]);
    let partial = to.with_file_name("monday.partial");
    fs::create_dir_all(partial.join("journal")).unwrap();
    fs::write(partial.join("journal/0000000009.segment"), "half").unwrap();
    let output = backup();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains(" of ledger backed up to "), "{said}");
    assert!(!partial.exists());
    assert!(!to.join("journal/0000000009.segment").exists());
    let output = backup();
    assert_eq!(output.status.code(), Some(69));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("monday exists already"), "{said}");
}

#[test]
fn a_store_that_is_not_there_is_not_created() {
    let home = home();
    let said = refused(&home);
    assert!(said.contains("there is no store at"), "{said}");
    assert!(!home.path().join("data").exists());
}

#[cfg(feature = "postgres")]
#[test]
fn postgresql_has_tools_of_its_own() {
    let url = "url = \"postgres://nobody@localhost/none\"";
    let store = format!("[store]\nkind = \"postgres\"\n{url}\n");
    let said = refused(&Home::new(&[&store]));
    assert!(said.contains("pg_dump"), "{said}");
}

#[cfg(feature = "postgres")]
#[test]
fn a_dump_of_a_database_in_use_is_a_backup() {
    let (origin, target) = (postgres(), postgres());
    let service = origin.start();
    let load = Load::start(&service, &Arc::new(AtomicU64::new(0)));
    eventually("there is some load", || load.acknowledged().len() >= 300);
    let acknowledged = load.acknowledged();
    let dump = target.path().join("dump.sql");
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(support::postgres::program(program))
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let file = dump.to_str().unwrap();
    let from = origin.database_url();
    run(
        "pg_dump",
        &["--schema=hookswitch", "--file", file, "--dbname", &from],
    );
    let delivered = archived_serials(&origin);
    load.stop();
    drop(service);
    run(
        "psql",
        &[
            "--quiet",
            "--file",
            file,
            "--dbname",
            &target.database_url(),
        ],
    );
    let restored = target.start();
    eventually("the undelivered events are delivered", || {
        let all = &delivered | &archived_serials(&target);
        all.is_superset(&acknowledged)
    });
    // Duplicates are recognized.
    let known = *acknowledged.first().unwrap();
    let before = deliveries_of(&target, known);
    post(&restored, known);
    post(&restored, NEW + known % 7);
    eventually("a new event is delivered", || {
        archived_serials(&target).contains(&(NEW + known % 7))
    });
    assert_eq!(deliveries_of(&target, known), before);
}

#[cfg(feature = "postgres")]
fn postgres() -> Home {
    Engine::Postgres.home(&[ENDPOINTS, ARCHIVE])
}

/// Asks for a backup, and returns the error.
fn refused(home: &Home) -> String {
    let to = home.path().join("backup");
    let output = home.run(&["backup", "--to", to.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    assert!(!to.exists());
    String::from_utf8(output.stderr).unwrap()
}
