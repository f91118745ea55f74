//! Retry, park, replay, and order per key, through a real handler's server.

use serde_json::Value;

use crate::harness::{ARCHIVE, ENDPOINTS, Home, Receiver, cnam, eventually, serials};

/// A handler that posts to `receiver`, with quick retries.
fn crm(receiver: &Receiver, extra: &str) -> String {
    format!(
        r#"
[handlers.crm]
kind = "http"
events = ["zoom.number-management.*"]
url = "http://{}/hooks"
retry = {{ attempts = 3, first = "20ms", ceiling = "50ms" }}
{extra}
"#,
        receiver.address
    )
}

#[test]
fn a_delivery_that_fails_for_a_while_holds_its_key_in_order_and_no_other() {
    let receiver = Receiver::start();
    let home = Home::new(&[
        ENDPOINTS,
        &crm(&receiver, "").replace("attempts = 3", "attempts = 100000"),
    ]);
    let service = home.start();
    receiver.answer("serial 2\"", 503);
    for serial in 1..=4 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
        assert_eq!(service.zoom(&cnam(2, serial + 10)).status, 200);
    }
    eventually("the other key gets through", || {
        serials(&receiver.taken(), 2).len() == 4
    });
    assert_eq!(serials(&receiver.taken(), 1), ["serial 1"]);
    receiver.answer("serial 2\"", 200);
    eventually("the key goes on", || {
        serials(&receiver.taken(), 1).len() == 4
    });
    assert_eq!(
        serials(&receiver.taken(), 1),
        ["serial 1", "serial 2", "serial 3", "serial 4"]
    );
    assert_eq!(
        serials(&receiver.taken(), 2),
        ["serial 11", "serial 12", "serial 13", "serial 14"]
    );
}

#[test]
fn a_delivery_that_goes_on_failing_is_parked_and_replayed_by_hand() {
    let receiver = Receiver::start();
    let home = Home::new(&[ENDPOINTS, &crm(&receiver, "")]);
    let service = home.start();
    receiver.answer("serial 2\"", 500);
    for serial in 1..=3 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    eventually("the next of the key goes on without it", || {
        serials(&receiver.taken(), 1) == ["serial 1", "serial 3"]
    });
    let mut parked = Value::Null;
    eventually("it is parked", || {
        parked = home.json(&["parked", "list"]);
        parked.as_array().unwrap().len() == 1
    });
    assert_eq!(parked[0]["handler"], "crm");
    assert_eq!(parked[0]["attempts"], 3);
    assert!(
        parked[0]["why"].as_str().unwrap().contains("500"),
        "{parked}"
    );

    let plan = home.json(&["replay", "--parked", "--dry-run"]);
    assert_eq!(plan, serde_json::json!([["crm", 1]]));
    assert_eq!(
        serials(&receiver.taken(), 1).len(),
        2,
        "a dry run delivers nothing"
    );

    receiver.answer("serial 2\"", 200);
    home.json(&["replay", "--parked", "--reason", "the server is mended"]);
    eventually("it is delivered", || {
        serials(&receiver.taken(), 1).len() == 3
    });
    eventually("nothing is parked", || {
        home.json(&["parked", "list"]) == serde_json::json!([])
    });
    let id = parked[0]["id"].as_str().unwrap();
    eventually("the record says so", || {
        let event = home.json(&["events", "show", id]);
        event["deliveries"][0]["state"] == "done"
            && event["deliveries"][0]["replay"] == "the server is mended"
    });
}

#[test]
fn a_final_answer_parks_at_once() {
    let receiver = Receiver::start();
    let home = Home::new(&[ENDPOINTS, &crm(&receiver, "")]);
    let service = home.start();
    receiver.answer("serial 1\"", 422);
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("it is parked", || {
        home.json(&["parked", "list"])[0]["attempts"] == 1
    });
    assert_eq!(
        service.metric(r#"hookswitch_deliveries_total{handler="crm",outcome="parked"}"#),
        1.0
    );
}

#[test]
fn a_handler_whose_server_is_gone_delays_no_other() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let broken = format!(
        "[handlers.broken]\nkind = \"http\"\nevents = [\"*\"]\nurl = \"http://{address}/\"\n"
    );
    // Connections to a listener that nobody accepts from are made, and never answered.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let slow = format!(
        "[handlers.slow]\nkind = \"http\"\nevents = [\"*\"]\nurl = \"http://{}/\"\ntimeout = \"60s\"\n",
        silent.local_addr().unwrap()
    );
    let home = Home::new(&[ENDPOINTS, ARCHIVE, &broken, &slow]);
    let service = home.start();
    for serial in 0..100 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    eventually("the sound handler has them all", || {
        home.archived().len() == 100
    });
}

#[test]
fn order_holds_for_many_keys_at_once() {
    let receiver = Receiver::start();
    let home = Home::new(&[ENDPOINTS, &crm(&receiver, "concurrency = 16")]);
    let service = home.start();
    for serial in 0..200 {
        let carrier = u32::try_from(serial % 10).unwrap();
        assert_eq!(service.zoom(&cnam(carrier, serial)).status, 200);
    }
    eventually("all are taken", || receiver.taken().len() == 200);
    for carrier in 0..10 {
        let wanted: Vec<_> = (0..20)
            .map(|turn| format!("serial {}", turn * 10 + carrier))
            .collect();
        assert_eq!(serials(&receiver.taken(), carrier), wanted);
    }
}

#[test]
fn an_old_event_that_comes_late_is_marked_as_superseded() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE]);
    let service = home.start();
    // The same number (serials 1005 and 5 end in one), the newer event first.
    assert_eq!(service.zoom(&cnam(1, 1005)).status, 200);
    eventually("the newer one is archived", || home.archived().len() == 1);
    assert_eq!(service.zoom(&cnam(1, 5)).status, 200);
    eventually("the older one is archived", || home.archived().len() == 2);
    let marks: Vec<_> = home
        .archived()
        .iter()
        .map(|event| event["superseded"].clone())
        .collect();
    assert_ne!(marks[0], Value::Bool(true));
    assert_eq!(marks[1], Value::Bool(true), "{:?}", home.archived());
}

#[test]
fn a_program_that_embeds_the_crate_brings_its_own_kind() {
    let home = Home::new(&[
        ENDPOINTS,
        r#"
[handlers.desk]
kind = "emergency-desk"
events = ["zoom.number-management.peering-number-emergency-address-updated"]
ledger = "{dir}/desk.txt"
"#,
    ]);
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_hookswitch"))
        .with_file_name("examples")
        .join("custom_handler");
    assert!(
        program.exists(),
        "run all of `cargo test`, which builds the examples"
    );
    let service = crate::harness::Service::spawn(&home, std::process::Command::new(program));
    let body = r#"{"event":"number_management.peering_number_emergency_address_updated","event_ts":1,"payload":{"account_id":"a","object":{"carrier_code":1,"phone_numbers":["+12025550199"],"emergency_address":{"address_line1":"1 Example Way"}}}}"#;
    assert_eq!(service.zoom(body).status, 200);
    eventually("the program's own handler has it", || {
        std::fs::read_to_string(home.path().join("desk.txt")).unwrap_or_default()
            == "+12025550199 has a new emergency address\n"
    });
}
