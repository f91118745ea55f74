//! Order per number: the events of one number wait for each other, and the events of two numbers of
//! one account do not.

use std::{
    io::{BufReader, Write},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Barrier},
    thread,
};

use serde_json::Value;

use crate::harness::{
    ENDPOINTS, Engine, Home, Receiver, Service, cnam_about, eventually, on_every_engine,
    read_request, serials,
};

on_every_engine![
    a_number_that_keeps_failing_blocks_no_other_of_its_account,
    numbers_of_one_account_are_delivered_concurrently,
    an_event_without_a_readable_number_waits_for_its_account_and_blocks_it,
    an_event_of_several_numbers_waits_for_each_and_blocks_only_those,
    the_event_that_a_delivery_waits_for_is_shown,
    a_body_of_80_000_numbers_is_delivered_in_the_order_of_its_account,
];

/// A handler that posts to `address` and never stops retrying.
fn patient(address: SocketAddr, extra: &str) -> String {
    format!(
        r#"
[handlers.crm]
kind = "http"
events = ["zoom.number-management.*"]
url = "http://{address}/hooks"
retry = {{ attempts = 1000000, first = "20ms", ceiling = "50ms" }}
{extra}
"#
    )
}

/// Phone number `n` of the tests.
fn number(n: u64) -> String {
    format!("+1202555{n:04}")
}

/// Posts the change `serial` of `numbers` of account `account`.
fn post(service: &Service, account: u32, numbers: &[u64], serial: u64) {
    let numbers: Vec<_> = numbers.iter().map(|n| number(*n)).collect();
    let numbers: Vec<_> = numbers.iter().map(String::as_str).collect();
    let body = cnam_about(account, &numbers, serial);
    assert_eq!(service.zoom(&body).status, 200);
}

/// A text that occurs only in the body of the change `serial`.
fn mark(serial: u64) -> String {
    format!("serial {serial}\"")
}

/// The output of `events show` for the change `serial`; null until the event is listed.
fn shown(home: &Home, serial: u64) -> Value {
    let listed = home.json(&["events", "list", "--limit", "100"]);
    let ids = listed.as_array().unwrap().iter();
    let cnam = format!("serial {serial}");
    ids.map(|event| home.json(&["events", "show", event["id"].as_str().unwrap()]))
        .find(|event| event["body"]["payload"]["object"]["cnam"] == cnam.as_str())
        .unwrap_or_default()
}

/// Waits until the change `serial` is queued behind the change `other`.
fn waits(home: &Home, serial: u64, other: u64) {
    eventually(&format!("{serial} waits for {other}"), || {
        let (event, other) = (shown(home, serial), shown(home, other));
        let delivery = &event["deliveries"][0];
        delivery["state"] == "queued" && delivery["waits_for"] == other["id"]
    });
}

/// Waits until the receiver has received exactly `wanted` of `account`, in this order.
fn assert_received(receiver: &Receiver, account: u32, wanted: &[u64]) {
    let wanted: Vec<_> = wanted.iter().map(|n| format!("serial {n}")).collect();
    eventually(&format!("{wanted:?} are received"), || {
        serials(&receiver.received(), account).len() >= wanted.len()
    });
    assert_eq!(serials(&receiver.received(), account), wanted);
}

fn a_number_that_keeps_failing_blocks_no_other_of_its_account(engine: Engine) {
    let receiver = Receiver::start();
    receiver.answer(&mark(7), 500);
    let home = engine.home(&[ENDPOINTS, &patient(receiver.address, "")]);
    let service = home.start();
    for serial in 0..100 {
        post(&service, 1, &[serial % 50], serial);
    }
    eventually("all other events arrive", || {
        receiver.received().len() == 98
    });
    let arrived = serials(&receiver.received(), 1);
    for n in (0..50).filter(|n| *n != 7) {
        let place = |serial: u64| {
            arrived
                .iter()
                .position(|one| *one == format!("serial {serial}"))
        };
        assert!(place(n).unwrap() < place(n + 50).unwrap(), "{n}");
    }
    let failing = &shown(&home, 7)["deliveries"][0];
    assert_eq!(failing["state"], "ready");
    assert!(failing["attempts"].as_u64().unwrap() > 1, "{failing}");
    waits(&home, 57, 7);

    receiver.answer(&mark(7), 200);
    eventually("the number's next events are delivered", || {
        receiver.received().len() == 100
    });
    let last = serials(&receiver.received(), 1).split_off(98);
    assert_eq!(last, ["serial 7", "serial 57"]);
}

/// A server that answers when as many requests have arrived as `barrier` waits for.
fn answer_together(barrier: Arc<Barrier>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let barrier = barrier.clone();
            thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                while read_request(&mut reader).is_some() {
                    barrier.wait();
                    let answer = b"HTTP/1.1 200 told\r\ncontent-length: 0\r\n\r\n";
                    reader.get_mut().write_all(answer).unwrap();
                }
            });
        }
    });
    address
}

fn numbers_of_one_account_are_delivered_concurrently(engine: Engine) {
    let address = answer_together(Arc::new(Barrier::new(8)));
    // A retry after a timeout would be counted at the barrier again.
    let at_once = patient(address, "concurrency = 8\ntimeout = \"1h\"");
    let home = engine.home(&[ENDPOINTS, &at_once]);
    let service = home.start();
    for serial in 0..8 {
        post(&service, 1, &[serial], serial);
    }
    eventually(
        "all eight events are received concurrently and delivered",
        || service.metric(r#"hookswitch_deliveries_total{handler="crm",outcome="done"}"#) == 8.0,
    );
}

fn an_event_without_a_readable_number_waits_for_its_account_and_blocks_it(engine: Engine) {
    let receiver = Receiver::start();
    let home = engine.home(&[ENDPOINTS, &patient(receiver.address, "")]);
    let service = home.start();
    receiver.answer(&mark(1), 503);
    receiver.answer(&mark(3), 503);
    post(&service, 1, &[1], 1);
    post(&service, 1, &[2], 2);
    let unreadable = cnam_about(1, &[&number(2), "reception"], 3);
    assert_eq!(service.zoom(&unreadable).status, 200);
    post(&service, 1, &[4], 4);
    post(&service, 2, &[4], 5);
    assert_received(&receiver, 1, &[2]);
    assert_received(&receiver, 2, &[5]);
    waits(&home, 3, 1);
    waits(&home, 4, 3);

    receiver.answer(&mark(1), 200);
    eventually("the unreadable one is attempted", || {
        shown(&home, 3)["deliveries"][0]["attempts"].as_u64() > Some(1)
    });
    post(&service, 2, &[6], 6);
    assert_received(&receiver, 2, &[5, 6]);
    waits(&home, 4, 3);
    assert_received(&receiver, 1, &[2, 1]);

    receiver.answer(&mark(3), 200);
    assert_received(&receiver, 1, &[2, 1, 3, 4]);
}

fn an_event_of_several_numbers_waits_for_each_and_blocks_only_those(engine: Engine) {
    let receiver = Receiver::start();
    let home = engine.home(&[ENDPOINTS, &patient(receiver.address, "")]);
    let service = home.start();
    // Each of the two events that the third one waits for finishes first once, in its own account.
    for (account, [first, second]) in [(1, [10, 11]), (2, [21, 20])] {
        let [a, b, both, after, other] = [0, 1, 2, 3, 4].map(|n| u64::from(account) * 10 + n);
        receiver.answer(&mark(a), 503);
        receiver.answer(&mark(b), 503);
        post(&service, account, &[1], a);
        post(&service, account, &[2], b);
        post(&service, account, &[1, 3, 2], both);
        post(&service, account, &[3], after);
        post(&service, account, &[4], other);
        assert_received(&receiver, account, &[other]);
        waits(&home, after, both);

        receiver.answer(&mark(first), 200);
        waits(&home, both, second);
        waits(&home, after, both);
        assert_received(&receiver, account, &[other, first]);

        receiver.answer(&mark(second), 200);
        assert_received(&receiver, account, &[other, first, second, both, after]);
    }
}

fn the_event_that_a_delivery_waits_for_is_shown(engine: Engine) {
    let receiver = Receiver::start();
    receiver.answer(&mark(1), 503);
    let home = engine.home(&[ENDPOINTS, &patient(receiver.address, "")]);
    let service = home.start();
    post(&service, 1, &[1], 1);
    post(&service, 1, &[1], 2);
    waits(&home, 2, 1);
    assert_eq!(shown(&home, 1)["deliveries"][0]["waits_for"], Value::Null);
    let [first, second] = [1, 2].map(|serial| shown(&home, serial)["id"].clone());
    let text = home.run(&["events", "show", second.as_str().unwrap()]);
    let text = String::from_utf8(text.stdout).unwrap();
    let line = format!(
        "handler crm: queued, 0 attempts, waits for {}\n",
        first.as_str().unwrap()
    );
    assert!(text.contains(&line), "{text}");
}

fn a_body_of_80_000_numbers_is_delivered_in_the_order_of_its_account(engine: Engine) {
    let receiver = Receiver::start();
    let home = engine.home(&[ENDPOINTS, &patient(receiver.address, "")]);
    let service = home.start();
    receiver.answer(&mark(1), 503);
    receiver.answer(&mark(2), 503);
    post(&service, 1, &[1], 1);
    let numbers: Vec<_> = (0..80_000).map(|n| format!("44207{n:05}")).collect();
    let numbers: Vec<_> = numbers.iter().map(String::as_str).collect();
    let body = cnam_about(1, &numbers, 2);
    assert!((1_000_000..1 << 20).contains(&body.len()), "{}", body.len());
    assert_eq!(service.zoom(&body).status, 200);
    post(&service, 1, &[3], 3);
    waits(&home, 2, 1);
    waits(&home, 3, 2);

    receiver.answer(&mark(1), 200);
    assert_received(&receiver, 1, &[1]);
    receiver.answer(&mark(2), 200);
    assert_received(&receiver, 1, &[1, 2, 3]);
}
