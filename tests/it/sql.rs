//! The handler kind `sql`, through the real service and a real PostgreSQL.

use std::{
    fs,
    io::Write,
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::{
    harness::{ENDPOINTS, Home, Identity, Service, certificate, cnam, eventually},
    support::postgres::{Database, PASSWORD, Postgres},
};

const TABLE: &str = "CREATE TABLE events (seq bigserial, id uuid PRIMARY KEY, data jsonb)";
const INSERT: &str = "INSERT INTO events (id, data) VALUES (:id, :data) ON CONFLICT DO NOTHING";

/// A handler that runs `statement` at `url`, with quick retries.
fn warehouse(url: &str, statement: &str, extra: &str) -> String {
    format!(
        r#"
[handlers.warehouse]
kind = "sql"
events = ["zoom.number-management.*"]
url = "{url}"
statement = '''{statement}'''
retry = {{ attempts = 100000, first = "20ms", ceiling = "50ms" }}
{extra}
"#
    )
}

/// Waits until a delivery is parked, and returns its reason.
fn parked(home: &Home) -> String {
    let mut why = None;
    eventually("the delivery is parked", || {
        let parked = home.json(&["parked", "list"]);
        why = parked[0]["why"].as_str().map(ToOwned::to_owned);
        why.is_some()
    });
    why.unwrap()
}

fn says(service: &Service, text: &str) {
    eventually(text, || service.log().contains(text));
    assert!(!service.log().contains(PASSWORD), "{}", service.log());
}

/// A process that runs `statement` and keeps the transaction open until it is killed.
fn hold(database: &Database, statement: &str) -> Child {
    let holder = Command::new("psql")
        .args(["-X", "-q", &database.url()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = holder.stdin.as_ref().unwrap();
    writeln!(input, "BEGIN; {statement};").unwrap();
    let held = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'idle in transaction'";
    eventually("the transaction is open", || database.sql(held) == "1");
    holder
}

/// The serial numbers of carrier 1's events in the order in which they were inserted.
const SERIALS: &str =
    "SELECT string_agg(substr(data->'payload'->'object'->>'cnam', 8), ' ' ORDER BY seq)
    FROM events WHERE data->'payload'->'object'->>'carrier_code' = '1'";

#[test]
fn fields_of_every_type_are_inserted_into_their_columns() {
    let database = Database::new();
    database.sql(
        "CREATE DOMAIN document AS jsonb;
         CREATE TYPE what AS ENUM ('zoom.number-management.peering-number-cnam-updated', 'other');
         CREATE TABLE events (id uuid PRIMARY KEY, source text, type what, subject varchar(20),
             time timestamptz, received timestamptz, key text, attempt int, attempts bigint,
             superseded bool, replay text, content text, data document, body bytea, event json,
             note text)",
    );
    let statement = "INSERT INTO events VALUES (:id, :source, :type, :subject, :time,
            :receivedtime, :key, :attempt, :attempt, :superseded, :replayreason, :datacontenttype,
            :data, :body, :event, :time || ' :id ' || :superseded) -- it's :nothing
        ON CONFLICT (id) DO UPDATE SET replay = excluded.replay";
    let home = Home::new(&[ENDPOINTS, &warehouse(&database.url(), statement, "")]);
    let service = home.start();
    let body = cnam(7, 1);
    assert_eq!(service.zoom(&body).status, 200);
    let count = || database.sql("SELECT count(*) FROM events");
    eventually("the event has arrived", || count() == "1");
    let row = database.sql("SELECT row_to_json(events) FROM events");
    let row: Value = serde_json::from_str(&row).unwrap();
    let event = &row["event"];
    for (column, attribute) in [
        ("id", "id"),
        ("source", "source"),
        ("type", "type"),
        ("subject", "subject"),
        ("key", "partitionkey"),
        ("attempt", "attempt"),
        ("attempts", "attempt"),
        ("superseded", "superseded"),
        ("content", "datacontenttype"),
        ("data", "data"),
    ] {
        assert!(!event[attribute].is_null(), "{attribute}: {event}");
        assert_eq!(row[column], event[attribute], "{column}");
    }
    assert_eq!(
        row["type"],
        "zoom.number-management.peering-number-cnam-updated"
    );
    assert_eq!(row["replay"], Value::Null);
    let time = event["time"].as_str().unwrap();
    assert_eq!(row["note"], format!("{time} :id false"));
    // PostgreSQL keeps microseconds, and rounds a text to them.
    let far = database.sql(
        "SELECT count(*) FROM events WHERE time <> (event->>'time')::timestamptz
             OR abs(extract(epoch FROM received - (event->>'receivedtime')::timestamptz)) > 0.000001",
    );
    assert_eq!(far, "0");
    let stored = database.sql("SELECT convert_from(body, 'UTF8') FROM events");
    assert_eq!(stored, body);

    let id = row["id"].as_str().unwrap();
    home.json(&["replay", id, "--reason", "once more"]);
    let replay = || database.sql("SELECT replay FROM events");
    eventually("the replay arrives with its reason", || {
        replay() == "once more"
    });
    assert_eq!(count(), "1");
}

#[test]
fn a_server_gets_everything_in_order_after_an_outage() {
    let mut postgres = Postgres::start(&[]);
    let database = postgres.create_database();
    postgres.sql(&database, TABLE);
    let url = postgres.url(&database);
    postgres.server().kill();

    let home = Home::new(&[ENDPOINTS, &warehouse(&url, INSERT, "")]);
    let service = home.start();
    let post = |serials: std::ops::Range<u64>| {
        for serial in serials {
            assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
            assert_eq!(service.zoom(&cnam(2, serial)).status, 200);
        }
    };
    post(0..20);
    says(&service, "cannot connect: error connecting to server");
    postgres.restart(&[]);
    let has = |postgres: &Postgres, count: u32| {
        let there = postgres.sql(&database, "SELECT count(*) FROM events");
        there.parse::<u32>().unwrap() >= count
    };
    eventually("the earlier events have arrived", || has(&postgres, 40));
    post(20..40);
    eventually("some later events have arrived", || has(&postgres, 41));
    postgres.server().kill();
    post(40..60);
    postgres.restart(&[]);
    eventually("all events have arrived", || has(&postgres, 120));
    let expected: Vec<_> = (0..60).map(|serial: u32| serial.to_string()).collect();
    assert_eq!(postgres.sql(&database, SERIALS), expected.join(" "));
}

#[test]
fn permanent_failures_are_parked_without_content_of_the_event() {
    for (schema, statement, why) in [
        (
            "CREATE TABLE events (number text UNIQUE);
             INSERT INTO events VALUES ('+12025550001')",
            "INSERT INTO events VALUES (:subject)",
            "a value that must be unique is there already (SQLSTATE 23505, constraint \
             \"events_number_key\", table \"events\")",
        ),
        (
            "CREATE TABLE events (number text CHECK (number = ''))",
            "INSERT INTO events VALUES (:subject)",
            "a constraint does not hold (SQLSTATE 23514, constraint \"events_number_check\"",
        ),
        (
            "CREATE TABLE events (number varchar(3))",
            "INSERT INTO events VALUES (:subject)",
            "the event does not fit (SQLSTATE 22001)",
        ),
        (
            "CREATE TABLE events (number int)",
            "INSERT INTO events VALUES (('x' || :subject::text)::int)",
            "the event does not fit (SQLSTATE 22P02)",
        ),
        (
            "CREATE TABLE events (number text);
             CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE NOTICE '%', new; RAISE EXCEPTION '%', new; END $$;
             CREATE TRIGGER tell BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION tell()",
            "INSERT INTO events VALUES (:subject)",
            "see its own log (SQLSTATE P0001",
        ),
        (
            "",
            "INSERT INTO nowhere VALUES (:subject)",
            "the statement cannot be prepared: relation \"nowhere\" does not exist (SQLSTATE 42P01)",
        ),
        (
            "",
            "SELEKT :subject",
            "the statement cannot be prepared: syntax error at or near \"SELEKT\"",
        ),
        (
            "CREATE TABLE events (at timestamp)",
            "INSERT INTO events VALUES (:time)",
            "the field :time cannot be had as timestamp; cast it, as in :time::timestamptz",
        ),
        (
            "CREATE TABLE events (number text);
             CREATE FUNCTION add(text) RETURNS void LANGUAGE sql SECURITY DEFINER AS
                 $$ INSERT INTO events VALUES ($1) $$;
             CREATE ROLE nobody_{database}; ALTER FUNCTION add OWNER TO nobody_{database}",
            "SELECT add(:subject)",
            "permission denied (SQLSTATE 42501)",
        ),
    ] {
        let database = Database::new();
        if !schema.is_empty() {
            let name = database.sql("SELECT current_database()");
            database.sql(&schema.replace("{database}", &name));
        }
        let log = "[log]\nfilter = \"trace\"\n";
        let home = Home::new(&[log, ENDPOINTS, &warehouse(&database.url(), statement, "")]);
        let service = home.start();
        assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
        let reason = parked(&home);
        assert!(reason.contains(why), "{statement}: {reason}");
        let log = service.log();
        for said in ["2025550001", "serial 1", PASSWORD] {
            assert!(!reason.contains(said), "{statement}: {reason}");
            assert!(!log.contains(said), "{statement}");
        }
    }
}

#[test]
fn wrong_credentials_and_a_missing_database_are_reported_and_retried() {
    let database = Database::new();
    database.sql(TABLE);
    let url = database.url();
    let wrong = url.replace(PASSWORD, "hush");
    let home = Home::new(&[ENDPOINTS, &warehouse(&wrong, INSERT, "")]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    says(&service, "cannot connect: password authentication failed");
    assert!(!service.log().contains("hush"), "{}", service.log());

    let (server, _) = url.rsplit_once('/').unwrap();
    home.configure(&[
        ENDPOINTS,
        &warehouse(&format!("{server}/nowhere"), INSERT, ""),
    ]);
    service.signal("HUP");
    says(
        &service,
        "cannot connect: database \"nowhere\" does not exist",
    );

    let without = url.replace(&format!(":{PASSWORD}"), "");
    let beside = format!("password = \"{PASSWORD}\"");
    home.configure(&[ENDPOINTS, &warehouse(&without, INSERT, &beside)]);
    service.signal("HUP");
    let count = || database.sql("SELECT count(*) FROM events");
    eventually("the event has arrived", || count() == "1");
}

#[test]
fn a_statement_that_waits_for_a_lock_blocks_nothing_else_and_is_retried() {
    let database = Database::new();
    database.sql(
        "CREATE TABLE events (seq bigserial, id uuid PRIMARY KEY, data jsonb);
         CREATE TABLE gate (carrier text PRIMARY KEY); INSERT INTO gate VALUES ('1'), ('2')",
    );
    // Each event waits for the transaction that has locked its carrier's row.
    let statement = "INSERT INTO events (id, data) SELECT :id::uuid, :data::jsonb FROM gate
        WHERE carrier = :data::jsonb->'payload'->'object'->>'carrier_code' FOR UPDATE OF gate";
    let url = database.url();
    let home = Home::new(&[
        ENDPOINTS,
        &warehouse(&url, statement, "timeout = \"300ms\""),
    ]);
    let service = home.start();
    let mut holder = hold(&database, "SELECT FROM gate WHERE carrier = '1' FOR UPDATE");
    for serial in 0..4 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
        assert_eq!(service.zoom(&cnam(2, serial)).status, 200);
    }
    let count = || database.sql("SELECT count(*) FROM events");
    eventually("the other key's events are delivered", || count() == "4");
    eventually("the attempt is given up", || {
        service.log().contains("failed, and is retried")
    });
    assert_eq!(count(), "4");
    holder.kill().unwrap();
    holder.wait().unwrap();
    eventually("the key's next events are delivered", || count() == "8");
    assert_eq!(database.sql(SERIALS), "0 1 2 3");
}

#[test]
fn a_schema_change_and_a_read_only_server_lose_nothing() {
    let database = Database::new();
    database.sql("CREATE TABLE events (id uuid PRIMARY KEY, data text)");
    let home = Home::new(&[ENDPOINTS, &warehouse(&database.url(), INSERT, "")]);
    let service = home.start();
    let count = |expected: &str| {
        let count = || database.sql("SELECT count(*) FROM events");
        eventually("the event has arrived", || count() == expected);
    };
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    count("1");
    // The prepared statement would insert text, which a jsonb column refuses.
    database.sql("ALTER TABLE events ALTER data TYPE jsonb USING data::jsonb");
    assert_eq!(service.zoom(&cnam(1, 2)).status, 200);
    count("2");

    let role = "ALTER ROLE hookswitch IN DATABASE";
    let name = database.sql("SELECT current_database()");
    database.sql(&format!(
        "{role} {name} SET default_transaction_read_only = on"
    ));
    database.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    );
    assert_eq!(service.zoom(&cnam(1, 3)).status, 200);
    says(&service, "cannot connect: ");
    database.sql(&format!(
        "BEGIN READ WRITE; {role} {name} RESET default_transaction_read_only; COMMIT"
    ));
    count("3");
    assert_eq!(home.json(&["parked", "list"]), serde_json::json!([]));
}

#[test]
fn over_tls_both_sides_are_verified_by_the_ca() {
    let client = Identity::new();
    let (authority, key) = certificate();
    let postgres = Postgres::start_with_tls((&authority, &key), &client.authority, |_| {});
    let database = postgres.create_database();
    let table = "CREATE TABLE events (id uuid PRIMARY KEY, client text)";
    postgres.sql(&database, table);
    let statement =
        "INSERT INTO events SELECT :id, client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let url = postgres.url(&database).replace("127.0.0.1", "localhost");
    let url = url.replace("sslmode=disable", "sslmode=verify-full");
    let home = Home::new(&[ENDPOINTS, &warehouse(&url, statement, "")]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    says(&service, "invalid peer certificate");

    fs::write(home.path().join("ca.pem"), authority).unwrap();
    let shown = client.settings(home.path());
    home.configure(&[
        ENDPOINTS,
        &warehouse(
            &url,
            statement,
            &format!("tls.ca = \"{{dir}}/ca.pem\"\n{shown}"),
        ),
    ]);
    service.signal("HUP");
    let shown = || postgres.sql(&database, "SELECT client FROM events");
    eventually("the event has arrived", || shown() == "/CN=hookswitch");
}

#[test]
fn sqlite_gets_its_events_in_order() {
    let home = Home::new(&[]);
    let path = home.path().join("warehouse.db");
    let open = || rusqlite::Connection::open(&path).unwrap();
    let handler = warehouse("sqlite:{dir}/warehouse.db", INSERT, "");
    home.configure(&[ENDPOINTS, &handler]);
    let service = home.start();
    for serial in 0..20 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    says(&service, "the database must exist");
    // The database is created under another name and renamed, so that it has its table from the
    // beginning.
    let made = home.path().join("made.db");
    let database = rusqlite::Connection::open(&made).unwrap();
    let table = "CREATE TABLE events (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, data TEXT)";
    database.execute_batch(table).unwrap();
    drop(database);
    fs::rename(made, &path).unwrap();
    let serials = || -> String {
        open()
            .query_row(
                "SELECT coalesce(group_concat(substr(data->>'$.payload.object.cnam', 8), ' '), '')
                 FROM (SELECT data FROM events ORDER BY seq)",
                [],
                |row| row.get(0),
            )
            .unwrap()
    };
    let expected: Vec<_> = (0..20).map(|serial: u32| serial.to_string()).collect();
    eventually("all events have arrived in order", || {
        serials() == expected.join(" ")
    });
}
