//! The handler kind `amqp`, through the real service and a real RabbitMQ.

use std::{net::TcpListener, path::Path, thread};

use serde_json::Value;

use crate::{
    harness::{ENDPOINTS, Home, Service, cnam, distinct_serials, eventually},
    support::rabbitmq::{LONGEST_MESSAGE, Message, RESTRICTED, RabbitMq, Reader},
};

/// A handler that sends to `broker`, with quick retries. A setting in `more` replaces the default
/// here.
fn handler(name: &str, broker: &RabbitMq, more: &str) -> String {
    let mut table = format!(
        "[handlers.{name}]\nkind = \"amqp\"\nevents = [\"zoom.*\"]\n\
         retry = {{ attempts = 100000, first = \"20ms\", ceiling = \"50ms\" }}\n"
    );
    for line in [
        &format!("url = \"amqp://{}\"", broker.address()),
        "exchange = \"\"",
    ] {
        let key = line.split(' ').next().unwrap();
        if !more.lines().any(|other| other.starts_with(key)) {
            table += line;
            table.push('\n');
        }
    }
    format!("{table}{more}\n")
}

fn assert_discreet(service: &Service) {
    let log = service.log();
    assert!(
        !log.contains("+12025550"),
        "a phone number in the log:\n{log}"
    );
}

#[test]
fn an_event_becomes_a_message_in_each_form() {
    let broker = RabbitMq::shared();
    let reader = Reader::new(broker);
    for name in ["forms", "forms-binary", "forms-raw"] {
        reader.queue(name, None);
    }
    reader.exchange("forms", "telephony.zoom.#");
    let home = Home::new(&[
        ENDPOINTS,
        &handler(
            "all",
            broker,
            "exchange = \"forms\"\nrouting_key = \"telephony.{type}.{handler}\"",
        ),
        &handler(
            "bare",
            broker,
            "routing_key = \"forms-raw\"\nformat = \"raw\"",
        ),
        &handler(
            "split",
            broker,
            "routing_key = \"forms-binary\"\nformat = \"binary\"",
        ),
    ]);
    let service = home.start();
    let body = cnam(7, 1);
    assert_eq!(service.zoom(&body).status, 200);

    let whole = reader.wait("forms");
    let event = whole.json();
    let id = event["id"].as_str().unwrap();
    assert_eq!(whole.content_type(), "application/cloudevents+json");
    assert_eq!(whole.headers(), []);
    assert_eq!(
        event["type"],
        "zoom.number-management.peering-number-cnam-updated"
    );
    assert_eq!(event["data"], serde_json::from_str::<Value>(&body).unwrap());
    assert_eq!(whole.exchange, "forms");
    assert_eq!(
        whole.routing_key,
        "telephony.zoom.number-management.peering-number-cnam-updated.all"
    );

    let split = reader.wait("forms-binary");
    assert_eq!(split.content_type(), "application/json");
    assert_eq!(split.body, body.as_bytes());
    let mut expected = Vec::new();
    for (name, value) in event.as_object().unwrap() {
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        if !["data", "datacontenttype"].contains(&name.as_str()) {
            expected.push((format!("cloudEvents_{name}"), text));
        }
    }
    expected.sort();
    assert_eq!(split.headers(), expected);

    let bare = reader.wait("forms-raw");
    assert_eq!(bare.content_type(), "application/json");
    assert_eq!(bare.body, body.as_bytes());
    assert_eq!(bare.headers(), []);

    for message in [whole, split, bare] {
        let properties = message.properties;
        assert_eq!(properties.message_id().as_ref().unwrap().as_str(), id);
        let name = properties.kind().as_ref().unwrap().as_str();
        assert_eq!(name, "zoom.number-management.peering-number-cnam-updated");
        assert_eq!(properties.timestamp(), &Some(1_700_000_000));
        assert_eq!(properties.delivery_mode(), &Some(2));
        assert_eq!(properties.app_id().as_ref().unwrap().as_str(), "hookswitch");
    }
    eventually("all three deliveries are done", || {
        home.json(&["events", "show", id])["deliveries"]
            .as_array()
            .unwrap()
            .iter()
            .all(|delivery| delivery["state"] == "done")
    });
}

#[test]
fn permanent_refusals_are_parked_and_the_rest_is_delivered() {
    let broker = RabbitMq::shared();
    let reader = Reader::new(broker);
    reader.queue("sound", None);
    let restricted = format!(
        "username = \"{}\"\npassword = \"{}\"\nexchange = \"amq.topic\"",
        RESTRICTED.0, RESTRICTED.1
    );
    let home = Home::new(&[
        ENDPOINTS,
        &handler("forbidden", broker, &restricted),
        &handler(
            "large",
            broker,
            "routing_key = \"sound\"\nevents = [\"ringcentral.*\"]",
        )
        .replacen("events = [\"zoom.*\"]\n", "", 1),
        &handler("lost", broker, "exchange = \"no-such-exchange\""),
        &handler(
            "long",
            broker,
            &format!("routing_key = \"{}{{id}}\"", "x".repeat(250)),
        ),
        &handler("nobody", broker, "routing_key = \"no-queue.{subject}\""),
        &handler("sound", broker, "routing_key = \"sound\""),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    let filler = "x".repeat(LONGEST_MESSAGE);
    let body = format!(r#"{{"uuid":"1","filler":"{filler}"}}"#);
    assert_eq!(
        service
            .ringcentral("/ringcentral/phone-number", &body)
            .status,
        200
    );
    reader.wait("sound");
    eventually("the other deliveries are parked", || {
        home.parked().len() == 5
    });
    let expected = [
        (
            "forbidden",
            "does not let this user publish to the exchange \"amq.topic\"",
        ),
        ("large", "does not take such a message (code 406)"),
        (
            "long",
            "the routing key would be 286 bytes long; AMQP takes 255",
        ),
        ("lost", "the broker has no exchange \"no-such-exchange\""),
        (
            "nobody",
            "no queue is bound to the exchange \"\" for the event's routing key",
        ),
    ];
    let mut parked = home.parked().into_iter();
    for (name, reason) in expected {
        let (handler, why) = parked.next().unwrap();
        assert_eq!(handler, name);
        assert!(why.contains(reason), "{name}: {why}");
    }
    assert_discreet(&service);
    assert_eq!(service.zoom(&cnam(1, 2)).status, 200);
    reader.wait("sound");
}

#[test]
fn a_full_queue_is_retried_until_it_has_room() {
    let broker = RabbitMq::shared();
    let reader = Reader::new(broker);
    reader.queue("full", Some(1));
    let home = Home::new(&[
        ENDPOINTS,
        &handler("full", broker, "routing_key = \"full\""),
    ]);
    let service = home.start();
    for serial in 1..=3 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    eventually("the queue is full", || {
        service
            .log()
            .contains("rejected the message, as it does when a queue is full")
    });
    for serial in 1..=3 {
        assert_eq!(cnam_of(&reader.wait("full")), (1, serial));
    }
    assert_eq!(home.parked(), []);
}

/// The carrier and the serial number of an event in the structured content mode.
fn cnam_of(message: &Message) -> (u64, u64) {
    let object = &message.json()["data"]["payload"]["object"];
    let serial = object["cnam"].as_str().unwrap();
    let serial = serial.strip_prefix("serial ").unwrap().parse().unwrap();
    (object["carrier_code"].as_u64().unwrap(), serial)
}

#[test]
fn a_refused_login_is_retried_and_reported_without_the_password() {
    let broker = RabbitMq::shared();
    let few = "retry = { attempts = 2, first = \"1ms\" }";
    let wrong = |more: &str| {
        let table = handler("wrong", broker, &format!("{few}\n{more}"));
        let quick = "retry = { attempts = 100000, first = \"20ms\", ceiling = \"50ms\" }\n";
        table.replacen(quick, "", 1)
    };
    for (more, reason) in [
        (
            "password = \"hush-hush\"",
            "it does not accept the user name or the password",
        ),
        ("vhost = \"elsewhere\"", "it has no such virtual host"),
    ] {
        let home = Home::new(&[ENDPOINTS, &wrong(more)]);
        let service = home.start();
        assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
        eventually("the delivery is parked", || !home.parked().is_empty());
        let (_, why) = home.parked().remove(0);
        assert!(
            why.contains(&format!("cannot connect to the broker: {reason}")),
            "{why}"
        );
        let log = service.log();
        assert!(log.contains(reason) && !log.contains("hush-hush"), "{log}");
    }
}

#[test]
fn over_tls_both_sides_are_verified_by_the_ca() {
    let broker = RabbitMq::shared();
    let reader = Reader::new(broker);
    reader.queue("tls", None);
    let url = format!(
        "url = \"amqps://localhost:{}\"",
        broker.tls_address().port()
    );
    let home = Home::new(&[]);
    let shown = broker.client.settings(home.path());
    let unknown = format!("{url}\nrouting_key = \"tls\"");
    let nameless = format!("{unknown}\ntls.ca = \"{{dir}}/ca.pem\"");
    let known = format!("{nameless}\n{shown}");
    std::fs::write(home.path().join("ca.pem"), &broker.authority).unwrap();
    home.configure(&[
        ENDPOINTS,
        &handler("known", broker, &known),
        &handler("nameless", broker, &nameless),
        &handler("unknown", broker, &unknown),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(3, 1)).status, 200);
    assert_eq!(cnam_of(&reader.wait("tls")), (3, 1));
    eventually("the other handler rejects the certificate", || {
        service.log().contains(
            "to unknown failed, and is retried: cannot connect to the broker: \
                                IO error: invalid peer certificate",
        )
    });
    eventually(
        "the broker rejects the handler without a certificate",
        || {
            let log = service.log();
            let mut reasons = log.lines().filter(|line| line.contains(" to nameless "));
            reasons.any(|reason| reason.contains("received fatal alert: CertificateRequired"))
        },
    );
    assert!(reader.take("tls").is_none());
}

#[test]
fn a_silent_broker_occupies_no_threads() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let knocks = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let heard = knocks.clone();
    thread::spawn(move || {
        for stream in silent.incoming().map_while(Result::ok) {
            heard.lock().unwrap().push(stream);
        }
    });
    let home = Home::new(&[
        ENDPOINTS,
        &format!(
            "[handlers.silent]\nkind = \"amqp\"\nevents = [\"*\"]\nurl = \"amqp://{address}\"\n\
             exchange = \"\"\nconnect_timeout = \"50ms\"\n\
             retry = {{ attempts = 100000, first = \"1ms\", ceiling = \"1ms\" }}\n"
        ),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("three connections were attempted", || {
        knocks.lock().unwrap().len() >= 3
    });
    assert!(service.log().contains("it did not answer within 50ms"));
    eventually("one connection at most is being made", || {
        library_threads(service.id()) <= 1
    });
}

/// The number of the client library's threads in a process.
fn library_threads(id: u32) -> usize {
    let tasks = std::fs::read_dir(Path::new("/proc").join(id.to_string()).join("task")).unwrap();
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    tasks
        .filter_map(name)
        .filter(|name| name.starts_with("lapin"))
        .count()
}

/// A broker of this test's own, since the test kills it.
#[test]
fn nothing_is_lost_when_the_broker_is_killed_or_down_or_out_of_memory() {
    let mut broker = RabbitMq::start();
    let reader = Reader::new(&broker);
    reader.queue("kept", None);
    let home = Home::new(&[
        ENDPOINTS,
        &handler("kept", &broker, "routing_key = \"kept\""),
    ]);
    let mut service = home.start();
    let post = |service: &Service, serials: std::ops::Range<u64>| {
        for serial in serials {
            for carrier in 0..4 {
                assert_eq!(service.zoom(&cnam(carrier, serial)).status, 200);
            }
        }
    };
    let burst = thread::scope(|scope| {
        let burst = scope.spawn(|| post(&service, 0..50));
        let done = r#"hookswitch_deliveries_total{handler="kept",outcome="done"}"#;
        eventually("some events are delivered", || service.metric(done) >= 20.0);
        broker.kill();
        burst.join()
    });
    burst.unwrap();
    eventually("the log names the missing broker", || {
        service.log().contains("cannot connect to the broker")
    });
    // The service also starts without its broker.
    service.signal("TERM");
    service.wait();
    service = home.start();
    post(&service, 50..60);
    drop(reader);
    broker.restart();

    let reader = Reader::new(&broker);
    let mut received = Vec::new();
    let mut collect = |count: u64| {
        let expected: Vec<_> = (0..count)
            .map(|serial| format!("serial {serial}"))
            .collect();
        eventually("everything is delivered, in order", || {
            received.extend(std::iter::from_fn(|| Some(reader.take("kept")?.json())));
            (0..4).all(|carrier| distinct_serials(&received, carrier) == expected)
        });
    };
    collect(60);

    broker.control(&["set_vm_memory_high_watermark", "0.000001"]);
    post(&service, 60..61);
    eventually("the log names the full broker", || {
        service.log().contains("is short of memory or disk")
    });
    broker.control(&["set_vm_memory_high_watermark", "0.4"]);
    collect(61);
    assert_eq!(home.parked(), []);
}
