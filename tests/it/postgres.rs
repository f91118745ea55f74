//! The service on PostgreSQL: its database comes and goes, and so do its replicas.

use std::{collections::BTreeSet, fs};

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    harness::{ARCHIVE, ENDPOINTS, Home, Receiver, Service, cnam, eventually},
    support::postgres::{Database, PASSWORD, Postgres},
};

/// A folder for a service on the database at `url`.
fn home(url: &str) -> Home {
    let (before, after) = ENDPOINTS.split_once("[store]").unwrap();
    let (_, after) = after.split_once("\n\n").unwrap();
    let store = format!("[store]\nkind = \"postgres\"\nurl = \"{url}\"\nlease = \"5s\"\n\n");
    Home::new(&[before, &store, after, ARCHIVE])
}

/// What the events say that are in the archives of `homes`.
fn archived(homes: &[&Home]) -> BTreeSet<String> {
    let events = homes.iter().flat_map(|home| home.archived());
    let said = |event: Value| event["data"]["payload"]["object"]["cnam"].to_string();
    events.map(said).collect()
}

fn said(serials: impl Iterator<Item = u64>) -> BTreeSet<String> {
    serials
        .map(|serial| format!("\"serial {serial}\""))
        .collect()
}

fn takes_events(service: &Service) -> bool {
    service.ready().0 == 200
}

#[test]
fn events_come_through_and_commands_see_them() {
    let database = Database::new();
    let home = home(&database.url());
    let service = home.start();
    let sent = home.run(&[
        "send",
        "--all",
        "--to",
        &format!("http://{}", service.address),
    ]);
    assert!(sent.status.success(), "{sent:?}");
    eventually("all are delivered", || {
        let events = home.json(&["events", "list"]);
        let events = events.as_array().unwrap();
        !events.is_empty() && events.iter().all(|event| event["open"] == 0)
    });
    let events = home.json(&["events", "list"]);
    assert_eq!(events.as_array().unwrap().len(), home.archived().len());
    let id = events[0]["id"].as_str().unwrap();
    let shown = home.json(&["events", "show", id]);
    assert_eq!(shown["deliveries"][0]["state"], "done");
    assert!(!service.log().contains(PASSWORD));
}

#[test]
fn a_service_takes_events_while_its_database_is_there() {
    let mut postgres = Postgres::start(&[]);
    let database = postgres.create_database();
    let home = home(&postgres.url(&database));
    postgres.server().stop("QUIT");
    let service = home.start();
    eventually("it has noticed", || {
        service.ready() == (503, "unavailable".to_owned())
    });
    assert_eq!(service.zoom(&cnam(1, 1)).status, 503);
    for serial in [2, 3] {
        postgres.restart(&[]);
        eventually("it is back", || takes_events(&service));
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
        postgres.server().stop("QUIT");
        eventually("its end is noticed", || {
            service.zoom(&cnam(1, 4)).status == 503
        });
        assert_eq!(service.ready(), (503, "unavailable".to_owned()));
    }
    postgres.restart(&[]);
    eventually("what was taken is delivered", || {
        archived(&[&home]).is_superset(&said([2, 3].into_iter()))
    });
    assert!(!service.log().contains(PASSWORD));
}

#[test]
fn what_a_dead_replica_took_another_one_delivers() {
    let database = Database::new();
    let homes = [home(&database.url()), home(&database.url())];
    let (mut dying, other) = (homes[0].start(), homes[1].start());
    for serial in 0..40 {
        let service = if serial % 2 == 0 { &dying } else { &other };
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    dying.kill();
    for serial in 40..50 {
        assert_eq!(other.zoom(&cnam(1, serial)).status, 200);
    }
    eventually("every event is delivered", || {
        archived(&[&homes[0], &homes[1]]) == said(0..50)
    });
    eventually("nothing is left", || {
        database.sql("SELECT count(*) FROM hookswitch.deliveries") == "0"
    });
}

#[test]
fn a_wrong_password_ends_the_start_and_is_not_shown() {
    let database = Database::new();
    let home = home(&database.url().replace(PASSWORD, "not-the-password"));
    for command in [&["serve"][..], &["events", "list"]] {
        let output = home.run(command);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(69), "{stderr}");
        assert!(
            stderr.contains("password authentication failed"),
            "{stderr}"
        );
        assert!(!stderr.contains("not-the-password"), "{stderr}");
    }
}

/// What is known of every event of a service, as far as all stores keep it: not whose turn it is,
/// and no time beyond the microsecond.
fn known(home: &Home) -> Vec<Value> {
    let events = home.json(&["events", "list", "--limit", "10000"]);
    let ids = events.as_array().unwrap().iter().map(|event| &event["id"]);
    ids.map(|id| {
        let mut event = home.json(&["events", "show", id.as_str().unwrap()]);
        let received_at: Timestamp = event["received_at"].as_str().unwrap().parse().unwrap();
        event["received_at"] = received_at.as_microsecond().into();
        for delivery in event["deliveries"].as_array_mut().unwrap() {
            if delivery["state"] == "queued" {
                delivery["state"] = "ready".into();
            }
        }
        event
    })
    .collect()
}

#[test]
fn what_an_embedded_store_holds_can_be_moved_whole_and_though_it_is_cut_short() {
    let receiver = Receiver::start();
    receiver.answer("serial 3\"", 503);
    receiver.answer("serial 7\"", 410);
    let crm = format!(
        "[handlers.crm]\nkind = \"http\"\nevents = [\"zoom.*\"]\nurl = \"http://{}/\"\n\
         retry = {{ attempts = 2, first = \"1h\" }}\n",
        receiver.address
    );
    let old = Home::new(&[ENDPOINTS, ARCHIVE, &crm]);
    let mut service = old.start();
    for serial in 0..30 {
        let carrier = u32::try_from(serial % 4).unwrap();
        assert_eq!(service.zoom(&cnam(carrier, serial)).status, 200);
    }
    eventually("deliveries have got as far as they can", || {
        service.metric("hookswitch_open_deliveries{handler=\"archive\"}") == 0.0
            && service.metric("hookswitch_ledger_lag") == 0.0
            && old
                .json(&["events", "list"])
                .to_string()
                .contains("\"open\":1")
    });
    let database = Database::new();
    let new = home(&database.url());
    let from = old.config();
    let migrate = [
        "migrate",
        "embedded-to-postgres",
        "--from",
        from.to_str().unwrap(),
    ];
    let busy = new.run(&migrate);
    assert_eq!(busy.status.code(), Some(69), "{busy:?}");
    let said = String::from_utf8(busy.stderr).unwrap();
    assert!(said.contains("in use"), "{said}");
    let wrong = old.run(&migrate);
    let said = String::from_utf8(wrong.stderr).unwrap();
    assert!(said.contains("cannot be moved into"), "{said}");
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    let before = known(&old);
    assert_eq!(before.len(), 30);

    let moved = new.run(&migrate);
    assert!(moved.status.success(), "{moved:?}");
    let said = String::from_utf8(moved.stdout).unwrap();
    assert!(said.starts_with("30 events with 60 deliveries"), "{said}");
    assert!(known(&new) == before, "what is known differs");

    // As if it had been cut short: some events are there, and others are not.
    database.sql(
        "WITH gone AS (DELETE FROM hookswitch.events WHERE position % 2 = 0 RETURNING position),
         deliveries AS (DELETE FROM hookswitch.deliveries USING gone
             WHERE deliveries.position = gone.position),
         ended AS (DELETE FROM hookswitch.ended USING gone WHERE ended.position = gone.position),
         attempts AS (DELETE FROM hookswitch.attempts USING gone
             WHERE attempts.position = gone.position)
         DELETE FROM hookswitch.seen USING gone WHERE seen.position = gone.position",
    );
    let again = new.run(&migrate);
    assert!(again.status.success(), "{again:?}");
    assert_eq!(String::from_utf8(again.stdout).unwrap(), said);
    assert!(known(&new) == before, "what is known differs");

    let _service = new.start();
    eventually("the service has taken its place", || {
        new.run(&migrate).status.code() == Some(69)
    });
}

#[test]
fn an_event_that_is_damaged_stays_behind_and_the_others_are_moved() {
    let old = Home::new(&[ENDPOINTS, ARCHIVE]);
    let mut service = old.start();
    for serial in 0..5 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    eventually("all are delivered", || old.archived().len() == 5);
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    let segment = old.path().join("data/journal/0000000001.segment");
    let mut bytes = fs::read(&segment).unwrap();
    let text = b"serial 3";
    let at = bytes.windows(text.len()).position(|bytes| bytes == text);
    bytes[at.unwrap()] ^= 1;
    fs::write(&segment, bytes).unwrap();

    let database = Database::new();
    let new = home(&database.url());
    let from = old.config();
    let moved = new.run(&[
        "migrate",
        "embedded-to-postgres",
        "--from",
        from.to_str().unwrap(),
    ]);
    let said = String::from_utf8(moved.stdout.clone()).unwrap();
    assert_eq!(moved.status.code(), Some(1), "{moved:?}");
    assert!(said.starts_with("4 events with 4 deliveries"), "{said}");
    assert!(said.contains("1 event is damaged"), "{said}");
    assert_eq!(known(&new).len(), 4);
}
