//! Retries, parking, replays, and order per key, with a real server as the receiver.

use serde_json::Value;

use crate::harness::{
    ARCHIVE, ENDPOINTS, Engine, Receiver, cnam, eventually, on_every_engine, serials,
};

on_every_engine![
    a_temporary_failure_blocks_its_key_and_no_other,
    a_delivery_that_keeps_failing_is_parked_and_can_be_replayed,
    a_final_answer_parks_at_once,
    parked_deliveries_of_a_removed_handler_can_be_skipped,
    a_handler_whose_server_is_down_delays_no_other,
    order_holds_for_many_keys_at_once,
    a_late_old_event_is_marked_as_superseded,
    a_program_that_embeds_the_crate_brings_its_own_kind,
];

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

fn a_temporary_failure_blocks_its_key_and_no_other(engine: Engine) {
    let receiver = Receiver::start();
    let home = engine.home(&[
        ENDPOINTS,
        &crm(&receiver, "").replace("attempts = 3", "attempts = 100000"),
    ]);
    let service = home.start();
    receiver.answer("serial 2\"", 503);
    for serial in 1..=4 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
        assert_eq!(service.zoom(&cnam(2, serial + 10)).status, 200);
    }
    eventually("the other key's events are delivered", || {
        serials(&receiver.received(), 2).len() == 4
    });
    assert_eq!(serials(&receiver.received(), 1), ["serial 1"]);
    receiver.answer("serial 2\"", 200);
    eventually("the key's next events are delivered", || {
        serials(&receiver.received(), 1).len() == 4
    });
    assert_eq!(
        serials(&receiver.received(), 1),
        ["serial 1", "serial 2", "serial 3", "serial 4"]
    );
    assert_eq!(
        serials(&receiver.received(), 2),
        ["serial 11", "serial 12", "serial 13", "serial 14"]
    );
}

fn a_delivery_that_keeps_failing_is_parked_and_can_be_replayed(engine: Engine) {
    let receiver = Receiver::start();
    let home = engine.home(&[ENDPOINTS, &crm(&receiver, "")]);
    let service = home.start();
    receiver.answer("serial 2\"", 500);
    for serial in 1..=3 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    eventually("the key's next event is delivered", || {
        serials(&receiver.received(), 1) == ["serial 1", "serial 3"]
    });
    let mut parked = Value::Null;
    eventually("the delivery is parked", || {
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
        serials(&receiver.received(), 1).len(),
        2,
        "a dry run delivers nothing"
    );

    receiver.answer("serial 2\"", 200);
    home.json(&["replay", "--parked", "--reason", "the server is mended"]);
    eventually("the event is delivered", || {
        serials(&receiver.received(), 1).len() == 3
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

fn a_final_answer_parks_at_once(engine: Engine) {
    let receiver = Receiver::start();
    let home = engine.home(&[ENDPOINTS, &crm(&receiver, "")]);
    let service = home.start();
    receiver.answer("serial 1\"", 422);
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("the delivery is parked", || {
        home.json(&["parked", "list"])[0]["attempts"] == 1
    });
    assert_eq!(
        service.metric(r#"hookswitch_deliveries_total{handler="crm",outcome="parked"}"#),
        1.0
    );
}

fn parked_deliveries_of_a_removed_handler_can_be_skipped(engine: Engine) {
    let receiver = Receiver::start();
    receiver.answer("serial", 422);
    let home = engine.home(&[ENDPOINTS, ARCHIVE, &crm(&receiver, "")]);
    let service = home.start();
    for serial in [1, 2] {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    eventually("both deliveries are parked", || home.parked().len() == 2);
    home.configure(&[ENDPOINTS, ARCHIVE]);
    service.signal("HUP");
    eventually("the handler is gone", || {
        service.log().contains("the configuration was reloaded")
    });
    let counted = || service.metric("hookswitch_parked_deliveries{handler=\"crm\"}");
    eventually("both deliveries are counted", || counted() == 2.0);
    let why = "the new one asks for what it lacks";
    let skip = |more: &[&str]| {
        let command = ["parked", "skip", "--reason", why];
        home.json(&[&command[..], more].concat())
    };
    let refused = home.run(&["parked", "skip", "--reason", why]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");

    let first = home.json(&["parked", "list"])[0]["id"].clone();
    let first = first.as_str().unwrap();
    assert_eq!(skip(&[first, "--dry-run"]).as_array().unwrap().len(), 1);
    assert_eq!(home.parked().len(), 2, "a dry run skips nothing");
    assert_eq!(skip(&[first])[0]["id"], first);
    assert_eq!(home.parked().len(), 1);
    assert_eq!(skip(&["--handler", "crm"]).as_array().unwrap().len(), 1);
    assert_eq!(skip(&["--handler", "crm"]), serde_json::json!([]));
    assert!(home.parked().is_empty());
    let event = home.json(&["events", "show", first]);
    let deliveries = event["deliveries"].as_array().unwrap();
    let crm = deliveries.iter().find(|one| one["handler"] == "crm");
    let crm = crm.unwrap();
    assert_eq!(
        (&crm["state"], &crm["why"]),
        (&"skipped".into(), &why.into())
    );
    eventually("no delivery is counted", || counted() == 0.0);
}

fn a_handler_whose_server_is_down_delays_no_other(engine: Engine) {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let broken = format!(
        "[handlers.broken]\nkind = \"http\"\nevents = [\"*\"]\nurl = \"http://{address}/\"\n"
    );
    // The listener accepts no connections, so the system completes them and nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let slow = format!(
        "[handlers.slow]\nkind = \"http\"\nevents = [\"*\"]\nurl = \"http://{}/\"\ntimeout = \"60s\"\n",
        silent.local_addr().unwrap()
    );
    let home = engine.home(&[ENDPOINTS, ARCHIVE, &broken, &slow]);
    let mut service = home.start();
    for serial in 0..100 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    eventually("the sound handler has them all", || {
        home.archived().len() == 100
    });
    service.kill(); // The slow handler would not be done in time.
}

fn order_holds_for_many_keys_at_once(engine: Engine) {
    let receiver = Receiver::start();
    let home = engine.home(&[ENDPOINTS, &crm(&receiver, "concurrency = 16")]);
    let service = home.start();
    for serial in 0..200 {
        let carrier = u32::try_from(serial % 10).unwrap();
        assert_eq!(service.zoom(&cnam(carrier, serial)).status, 200);
    }
    eventually("all events are received", || {
        receiver.received().len() == 200
    });
    for carrier in 0..10 {
        let wanted: Vec<_> = (0..20)
            .map(|turn| format!("serial {}", turn * 10 + carrier))
            .collect();
        assert_eq!(serials(&receiver.received(), carrier), wanted);
    }
}

fn a_late_old_event_is_marked_as_superseded(engine: Engine) {
    let home = engine.home(&[ENDPOINTS, ARCHIVE]);
    let service = home.start();
    // The number's newer event arrives first.
    assert_eq!(service.zoom(&cnam(1, 6)).status, 200);
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

fn a_program_that_embeds_the_crate_brings_its_own_kind(engine: Engine) {
    let home = engine.home(&[
        ENDPOINTS,
        r#"
[handlers.addresses]
kind = "address-list"
events = ["zoom.number-management.peering-number-emergency-address-updated"]
path = "{dir}/addresses.txt"
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
        std::fs::read_to_string(home.path().join("addresses.txt")).unwrap_or_default()
            == "+12025550199 1 Example Way\n"
    });
}
