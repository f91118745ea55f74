//! The transfer of an embedded store into PostgreSQL: complete, interrupted, of a damaged store,
//! and into a store that refuses it.

mod gate;
mod interrupted;
mod room;

use std::{
    fs,
    process::{Child, Output, Stdio},
};

use jiff::Timestamp;
use serde_json::Value;

use self::gate::Gated;
use crate::{
    harness::{
        ARCHIVE, ENDPOINTS, Home, Receiver, Service, cnam, cnam_about, eventually, hookswitch,
    },
    postgres::home_with,
    support::postgres::{Database, PASSWORD},
};

/// A handler that posts to `receiver`, with quick retries that do not end soon.
fn crm(receiver: &Receiver) -> String {
    format!(
        "[handlers.crm]\nkind = \"http\"\nevents = [\"zoom.*\"]\nurl = \"http://{}/\"\n\
         retry = {{ attempts = 100000, first = \"100ms\", ceiling = \"1s\" }}\n",
        receiver.address
    )
}

/// Runs `migrate` of the store of `old` with the configuration of `new`.
fn migrate(old: &Home, new: &Home) -> Output {
    begin(old, new).wait_with_output().unwrap()
}

fn begin(old: &Home, new: &Home) -> Child {
    hookswitch()
        .args(["migrate", "embedded-to-postgres", "--from"])
        .arg(old.config())
        .arg("--config")
        .arg(new.config())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    [out, err]
        .map(|text| String::from_utf8_lossy(text))
        .concat()
}

/// Each event as in `events list`, with times to the microsecond, since not every store keeps more.
fn listed(home: &Home) -> Vec<Value> {
    let mut events = home.json(&["events", "list", "--limit", "100000"]);
    let events = events.as_array_mut().unwrap();
    for event in &mut *events {
        round(&mut event["received_at"]);
    }
    std::mem::take(events)
}

fn round(time: &mut Value) {
    let exact: Timestamp = time.as_str().unwrap().parse().unwrap();
    *time = exact.as_microsecond().into();
}

/// Each event as in `events show`, without what not every store keeps, such as what a delivery
/// waits for.
fn known(home: &Home) -> Vec<Value> {
    let events = listed(home);
    let ids = events.iter().map(|event| event["id"].as_str().unwrap());
    ids.map(|id| {
        let mut event = home.json(&["events", "show", id]);
        round(&mut event["received_at"]);
        for delivery in event["deliveries"].as_array_mut().unwrap() {
            if delivery["state"] == "queued" {
                delivery["state"] = "ready".into();
            }
            delivery["waits_for"] = Value::Null;
        }
        event
    })
    .collect()
}

/// Stops `service`, which must drain.
fn stop(mut service: Service) {
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
}

#[test]
fn an_embedded_store_is_transferred_whole() {
    let receiver = Receiver::start();
    receiver.answer("serial 3\"", 503);
    receiver.answer("serial 7\"", 410);
    let patient = crm(&receiver).replace("100ms", "1h").replace("1s", "1h");
    let old = Home::new(&[ENDPOINTS, ARCHIVE, &patient]);
    let service = old.start();
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
    let new = home_with(&database.url(), "");
    let busy = migrate(&old, &new);
    assert_eq!(busy.status.code(), Some(69), "{busy:?}");
    assert!(said(&busy).contains("in use"), "{busy:?}");
    let wrong = migrate(&old, &old);
    assert!(
        said(&wrong).contains("(--config): events cannot be moved into"),
        "{wrong:?}"
    );
    let wrong = migrate(&new, &new);
    assert!(
        said(&wrong).contains("(--from): events cannot be moved out of"),
        "{wrong:?}"
    );
    stop(service);
    let before = known(&old);
    assert_eq!(before.len(), 30);

    let moved = migrate(&old, &new);
    assert!(moved.status.success(), "{moved:?}");
    assert!(
        said(&moved).starts_with("30 events with 60 deliveries"),
        "{moved:?}"
    );
    assert!(known(&new) == before, "what is known differs");
    reports_a_complete_transfer(&migrate(&old, &new));
    assert!(known(&new) == before, "a second run changes nothing");

    let _service = new.start();
    eventually("the service has taken its place", || {
        migrate(&old, &new).status.code() == Some(69)
    });
}

fn reports_a_complete_transfer(output: &Output) {
    assert!(output.status.success(), "{output:?}");
    let all = "nothing to move: all of it was moved before\n";
    assert!(said(output).starts_with(all), "{output:?}");
}

#[test]
fn a_transfer_continues_after_the_one_before_despite_deletions() {
    let old = Home::new(&[ENDPOINTS, ARCHIVE]);
    let service = old.start();
    for serial in [1, 2, 3] {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    stop(service);
    let database = Database::new();
    let new = home_with(&database.url(), "");
    assert!(migrate(&old, &new).status.success());
    // Retention deletes events in this way.
    database.sql("TRUNCATE hookswitch.events, hookswitch.seen, hookswitch.ended");
    reports_a_complete_transfer(&migrate(&old, &new));
    assert!(listed(&new).is_empty());

    let service = old.start();
    for serial in [4, 5] {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    stop(service);
    let moved = migrate(&old, &new);
    assert!(moved.status.success(), "{moved:?}");
    let wanted = "2 events with 2 deliveries moved and compared, new since the last move";
    assert!(said(&moved).starts_with(wanted), "{moved:?}");
    assert_eq!(listed(&new), listed(&old)[..2]);

    // Another store with as many events at the same positions is not the same store.
    let other = Home::new(&[ENDPOINTS, ARCHIVE]);
    let service = other.start();
    for serial in 6..=9 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    stop(service);
    let moved = migrate(&other, &new);
    assert!(said(&moved).starts_with("4 events with"), "{moved:?}");
}

#[test]
fn a_store_that_a_service_has_used_since_is_not_mistaken_for_a_bad_transfer() {
    let receiver = Receiver::start();
    receiver.answer("serial", 503);
    let old = Home::new(&[ENDPOINTS, ARCHIVE, &crm(&receiver)]);
    let service = old.start();
    for serial in 0..5 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    eventually("all events are archived", || old.archived().len() == 5);
    stop(service);
    let database = Database::new();
    let new = home_with(&database.url(), &crm(&receiver));
    assert!(migrate(&old, &new).status.success());
    receiver.answer("serial", 200);
    let service = new.start();
    eventually("all events are delivered", || {
        receiver.received().len() == 5
    });
    stop(service);

    reports_a_complete_transfer(&migrate(&old, &new));
    // Without the record of how far the transfer got.
    database.sql("DELETE FROM hookswitch.moves");
    let again = migrate(&old, &new);
    assert_eq!(again.status.code(), Some(69), "{again:?}");
    let wanted = "of 5 transferred events, the new store lacks 0 and differs in 5";
    assert!(said(&again).contains(wanted), "{again:?}");
    assert!(!said(&again).contains("run it again"), "{again:?}");
}

#[test]
fn a_service_started_during_a_transfer_waits_for_its_end() {
    let old = Home::new(&[ENDPOINTS, ARCHIVE]);
    let service = old.start();
    for serial in [1, 2] {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    stop(service);
    let gated = Gated::new();
    let new = home_with(&gated.url(), "");
    stop(new.start()); // The tables are there.
    gated.put_up();
    gated.set(1);
    let moving = begin(&old, &new);
    gated.wait_until_blocked(0);

    let service = new.start();
    eventually("the log gives the reason", || {
        service.log().contains("is being moved into")
    });
    assert_eq!(service.zoom(&cnam(1, 3)).status, 503);
    gated.set(9);
    let moved = moving.wait_with_output().unwrap();
    assert!(moved.status.success(), "{moved:?}");
    eventually("events are accepted", || {
        service.zoom(&cnam(1, 3)).status == 200
    });
}

#[test]
fn tables_of_a_newer_version_are_left_alone() {
    let old = Home::new(&[ENDPOINTS, ARCHIVE]);
    stop(old.start());
    let database = Database::new();
    let new = home_with(&database.url(), "");
    assert!(migrate(&old, &new).status.success());
    database.sql("UPDATE hookswitch.schema_version SET version = 99, needs = 99");
    let refused = migrate(&old, &new);
    assert_eq!(refused.status.code(), Some(69), "{refused:?}");
    for wanted in [
        "(--config)",
        "opening the store at 127.0.0.1",
        "version 99",
        "run that version",
    ] {
        assert!(said(&refused).contains(wanted), "{wanted}: {refused:?}");
    }
    assert!(!said(&refused).contains(PASSWORD), "{refused:?}");
}

/// Flips a bit in the record of the event with `serial`.
fn damage(home: &Home, serial: u64) {
    let segment = home.path().join("data/journal/0000000001.segment");
    let mut bytes = fs::read(&segment).unwrap();
    let text = format!("serial {serial}\"");
    let at = bytes
        .windows(text.len())
        .position(|bytes| bytes == text.as_bytes());
    bytes[at.unwrap()] ^= 1;
    fs::write(&segment, bytes).unwrap();
}

#[test]
fn a_damaged_event_is_not_transferred_and_still_supersedes_older_ones() {
    let receiver = Receiver::start();
    receiver.answer("serial", 503);
    let old = Home::new(&[ENDPOINTS, ARCHIVE, &crm(&receiver)]);
    let service = old.start();
    let number = |serial: u64| format!("+1202555000{serial}");
    for serial in [4, 5, 6] {
        let body = cnam_about(1, &[&number(serial)], serial);
        assert_eq!(service.zoom(&body).status, 200);
    }
    eventually("the events are archived", || old.archived().len() == 3);
    let older = listed(&old);
    let newer = cnam_about(1, &[&number(5)], 1005);
    assert_eq!(service.zoom(&newer).status, 200);
    eventually("all events are archived", || old.archived().len() == 4);
    stop(service);
    let ids = |events: Vec<Value>| events.into_iter().map(|event| event["id"].clone());
    let older: Vec<_> = ids(older).collect();
    let newest = ids(listed(&old)).find(|id| !older.contains(id)).unwrap();
    damage(&old, 1005);

    let database = Database::new();
    let new = home_with(&database.url(), &crm(&receiver));
    let moved = migrate(&old, &new);
    assert_eq!(moved.status.code(), Some(1), "{moved:?}");
    assert!(
        said(&moved).starts_with("3 events with 6 deliveries"),
        "{moved:?}"
    );
    let named = format!(
        "1 event is damaged in the embedded store, and left there; ask the provider \
         for what is missing:\n{}\n",
        newest.as_str().unwrap()
    );
    assert!(said(&moved).contains(&named), "{moved:?}");
    assert_eq!(known(&new).len(), 3);

    receiver.answer("serial", 200);
    let _service = new.start();
    eventually("the open deliveries are made", || {
        receiver.received().len() == 3
    });
    let received = receiver.received().into_iter();
    let superseded: Vec<_> = received
        .filter(|event| event["superseded"] == true)
        .map(|event| event["subject"].clone())
        .collect();
    assert_eq!(superseded, [number(5)]);
}
