//! The statement in SQLite, and the settings of both. PostgreSQL is in `tests/`.

use std::{path::Path, time::Duration};

use rusqlite::Connection;
use serde::Deserialize;

use super::*;
use crate::{
    event::Notification,
    handler::sample,
    secret::{Sources, with},
};

fn settings(text: &str) -> Result<Settings, String> {
    let sources = Sources {
        env: |_| None,
        inline: true,
    };
    let table = toml::Deserializer::parse(text).unwrap();
    with(sources, || Settings::deserialize(table)).map_err(|error| error.message().to_owned())
}

fn build(text: &str) -> Result<Sql, BuildError> {
    let timeout = Duration::from_millis(200);
    let mut context = BuildContext::new("warehouse".into(), 8, timeout);
    settings(text).unwrap().build(&mut context)
}

/// A handler that runs `statement` in a database with `schema`.
fn handler(folder: &Path, schema: &str, statement: &str) -> (Sql, Connection) {
    let path = folder.join("events.db");
    let database = Connection::open(&path).unwrap();
    database.execute_batch(schema).unwrap();
    let text = format!(
        "url = 'sqlite:{}'\nstatement = '''{statement}'''",
        path.display()
    );
    (build(&text).unwrap(), database)
}

async fn deliver(handler: &Sql, notification: &Notification) -> Outcome {
    let context = sample::context();
    let delivery = Delivery {
        event: AnyEvent,
        notification,
        context: &context,
    };
    handler.handle(delivery).await
}

fn retried(outcome: Outcome) -> String {
    match outcome {
        Outcome::Retry { after: None, why } => why.to_string(),
        other => panic!("{other:?}"),
    }
}

fn parked(outcome: Outcome) -> String {
    match outcome {
        Outcome::Park { why } => why.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_field_gets_into_its_column_and_a_second_copy_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (handler, database) = handler(
        folder.path(),
        "CREATE TABLE e (id TEXT PRIMARY KEY, time TEXT, attempt INTEGER, superseded INTEGER,
             replay TEXT, data TEXT, body BLOB) STRICT",
        "INSERT INTO e VALUES (:id, :time, :attempt, :superseded, :replayreason, :data, :body)
             ON CONFLICT (id) DO NOTHING RETURNING :event",
    );
    let notification = sample::notification("{\"a\":\n1}");
    for _ in 0..2 {
        let outcome = deliver(&handler, &notification).await;
        assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    }
    let row: (String, String, u32, bool, Option<String>, String, Vec<u8>) = database
        .query_row("SELECT * FROM e", [], |row| {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
                row.get(5)?,
                row.get(6)?,
            ))
        })
        .unwrap();
    let expected = (
        "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5".to_owned(),
        "2026-03-04T05:06:07Z".to_owned(),
        3,
        true,
        None,
        "{\"a\":\n1}".to_owned(),
        b"{\"a\":\n1}".to_vec(),
    );
    assert_eq!(row, expected);
}

#[tokio::test]
async fn permanent_failures_are_parked_without_content_of_the_event() {
    for (statement, why) in [
        (
            "INSERT INTO e VALUES (:subject, 1)",
            "UNIQUE constraint failed: e.a",
        ),
        (
            "INSERT INTO e VALUES (:id, :key)",
            "cannot store TEXT value in INTEGER column e.b",
        ),
        ("INSERT INTO e VALUES (:id, 13)", "constraint"),
        ("INSERT INTO nowhere VALUES (:id)", "no such table: nowhere"),
        (
            "INSERT INTO e VALUES (:id, ?)",
            "parameters of SQLite's own",
        ),
        ("SELECT json(:key)", "SQL logic error"),
        ("SELEKT :id", "syntax error"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (handler, _database) = handler(
            folder.path(),
            "CREATE TABLE e (a TEXT UNIQUE, b INTEGER) STRICT;
             INSERT INTO e VALUES ('+12025550143', 0);
             CREATE TRIGGER t BEFORE INSERT ON e WHEN new.b = 13
             BEGIN SELECT RAISE(ABORT, '+12025550143'); END",
            statement,
        );
        let reason = parked(deliver(&handler, &sample::notification("{}")).await);
        assert!(reason.contains(why), "{statement}: {reason}");
        for said in ["12025550143", "acme"] {
            assert!(!reason.contains(said), "{statement}: {reason}");
        }
    }
}

#[tokio::test]
async fn a_database_that_is_locked_or_away_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let schema = "CREATE TABLE e (id TEXT PRIMARY KEY)";
    let (handler, database) = handler(folder.path(), schema, "INSERT INTO e VALUES (:id)");
    let notification = sample::notification("{}");
    database.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let reason = retried(deliver(&handler, &notification).await);
    assert!(reason.contains("locked"), "{reason}");
    database.execute_batch("ROLLBACK").unwrap();
    let outcome = deliver(&handler, &notification).await;
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    drop(database);

    let [path, aside] = ["events.db", "aside.db"].map(|name| folder.path().join(name));
    std::fs::rename(&path, aside).unwrap();
    let reason = retried(deliver(&handler, &notification).await);
    assert!(reason.contains("the database must exist"), "{reason}");
    let database = Connection::open(&path).unwrap();
    database.execute_batch(schema).unwrap();
    let outcome = deliver(&handler, &notification).await;
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    let count: u32 = database
        .query_row("SELECT count(*) FROM e", [], |row| row.get(0))
        .unwrap();
    assert_eq!(count, 1, "the new file is the one that is written");
}

#[test]
fn settings_that_cannot_work_are_refused_while_they_are_read() {
    let url = "url = 'postgres://u:hush@db/x'";
    let statement = "statement = 'SELECT :id'";
    assert!(settings(&format!("{url}\n{statement}")).is_ok());
    for (url, statement, why) in [
        (
            "url = 'mysql://u:hush@db/x'",
            statement,
            "neither \"postgres\" nor \"sqlite\"",
        ),
        ("url = 'hush'", statement, "a URL looks like"),
        ("url = 'sqlite:'", statement, "names no file"),
        ("url = 'sqlite::memory:'", statement, "names no file"),
        ("url = 'sqlite:x?mode=ro'", statement, "names no file"),
        (
            "url = 'postgres://db/x?hush'",
            statement,
            "invalid connection string",
        ),
        (url, "statement = 'SELECT :name'", ":id, :source, :type"),
        (url, "statement = ''", "is empty"),
        (url, "", "statement"),
        (
            url,
            "statement = 'SELECT :id'\ntls.ca = '/nowhere'",
            "/nowhere",
        ),
    ] {
        let refused = settings(&format!("{url}\n{statement}")).unwrap_err();
        assert!(refused.contains(why), "{url} {statement}: {refused}");
        assert!(!refused.contains("hush"), "{refused}");
    }
}

#[test]
fn settings_that_cannot_work_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let statement = "statement = 'SELECT 1'";
    for (more, why) in [
        (
            format!("url = 'sqlite:x.db'\ntls.ca = {ca:?}"),
            "`tls.ca` is given, but there is no TLS; SQLite has no use for it",
        ),
        (
            format!("url = 'postgres://u@db/x?sslmode=disable'\ntls.ca = {ca:?}"),
            "`tls.ca` is given, but there is no TLS; write \"sslmode=verify-full\"",
        ),
        (
            "url = 'sqlite:x.db'\npassword = 'hush'".to_owned(),
            "`password` is for PostgreSQL",
        ),
        (
            "url = 'postgres://u:hush@db/x'\npassword = 'hush'".to_owned(),
            "keep one of them",
        ),
    ] {
        let refused = build(&format!("{more}\n{statement}")).unwrap_err().0;
        assert!(refused.contains(why), "{more}: {refused}");
        assert!(!refused.contains("hush"), "{refused}");
    }
}
