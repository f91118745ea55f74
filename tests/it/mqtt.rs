//! The handler kind `mqtt`, through the real service and a real Mosquitto.

use std::{collections::BTreeSet, fs};

use rumqttc::{Publish, PublishProperties, QoS};
use serde_json::Value;

use crate::{
    harness::{ENDPOINTS, Home, Service, cnam, cnam_about, distinct_serials, eventually},
    support::mosquitto::{LONGEST_PACKET, Mosquitto, Subscriber},
};

/// A handler that publishes to `broker`, with quick retries. A setting in `more` replaces the
/// default here.
fn handler(name: &str, broker: &Mosquitto, more: &str) -> String {
    let mut table = format!("[handlers.{name}]\nkind = \"mqtt\"\n");
    let url = format!("url = \"mqtt://{}\"", broker.address());
    for line in [
        url.as_str(),
        "events = [\"zoom.*\"]",
        "topic = \"telephony/{handler}\"",
        "retry = { attempts = 100000, first = \"20ms\", ceiling = \"50ms\" }",
    ] {
        let key = line.split(' ').next().unwrap();
        if !more.lines().any(|other| other.starts_with(key)) {
            table += &format!("{line}\n");
        }
    }
    format!("{table}{more}\n")
}

fn json_of(message: &Publish) -> Value {
    serde_json::from_slice(&message.payload).unwrap()
}

fn properties_of(message: &Publish) -> PublishProperties {
    message.properties.clone().unwrap()
}

/// The carrier and the serial number of an event in the structured content mode.
fn cnam_of(message: &Publish) -> (u64, u64) {
    let object = &json_of(message)["data"]["payload"]["object"];
    let serial = object["cnam"].as_str().unwrap();
    let serial = serial.strip_prefix("serial ").unwrap().parse().unwrap();
    (object["carrier_code"].as_u64().unwrap(), serial)
}

#[test]
fn an_event_becomes_a_message_in_each_form() {
    let broker = Mosquitto::start();
    let subscriber = Subscriber::new(&broker, "telephony/#");
    let home = Home::new(&[
        ENDPOINTS,
        &handler("bare", &broker, "format = \"raw\""),
        &handler("split", &broker, "format = \"binary\""),
        &handler(
            "whole",
            &broker,
            "topic = \"telephony/{type}/{subject}/{key}\"\nexpiry = \"1h\"",
        ),
    ]);
    let service = home.start();
    let body = cnam(7, 1);
    assert_eq!(service.zoom(&body).status, 200);

    let name = "zoom.number-management.peering-number-cnam-updated";
    let mut whole = None;
    eventually("the whole event has arrived", || {
        let prefix = format!("telephony/{name}/%2B12025550007/");
        let found = subscriber.messages().into_iter();
        whole = found
            .into_iter()
            .find(|message| message.topic.starts_with(prefix.as_bytes()));
        whole.is_some()
    });
    let whole = whole.unwrap();
    assert_eq!(whole.topic.iter().filter(|byte| **byte == b'/').count(), 3);
    let event = json_of(&whole);
    assert_eq!(event["type"], name);
    assert_eq!(event["data"], serde_json::from_str::<Value>(&body).unwrap());
    let properties = properties_of(&whole);
    let content_type = "application/cloudevents+json".to_owned();
    assert_eq!(properties.content_type, Some(content_type));
    assert_eq!(properties.user_properties, []);
    assert!(properties.message_expiry_interval.unwrap() > 3000);
    assert_eq!(whole.qos, QoS::AtLeastOnce);

    let split = subscriber.wait("telephony/split");
    assert_eq!(&split.payload[..], body.as_bytes());
    let properties = properties_of(&split);
    assert_eq!(properties.content_type, Some("application/json".to_owned()));
    assert_eq!(properties.message_expiry_interval, None);
    let attributes = properties.user_properties.into_iter();
    let attributes: BTreeSet<_> = attributes.collect();
    let mut expected = BTreeSet::new();
    for (name, value) in event.as_object().unwrap() {
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        if !["data", "datacontenttype"].contains(&name.as_str()) {
            expected.insert((name.clone(), text));
        }
    }
    assert_eq!(attributes, expected);

    let bare = subscriber.wait("telephony/bare");
    assert_eq!(&bare.payload[..], body.as_bytes());
    let properties = properties_of(&bare);
    assert_eq!(properties.content_type, Some("application/json".to_owned()));
    assert_eq!(properties.user_properties, []);
    assert!(!bare.retain);
}

#[test]
fn a_message_without_subscribers_is_done_and_a_retained_one_is_kept() {
    let broker = Mosquitto::start();
    let home = Home::new(&[
        ENDPOINTS,
        &handler("kept", &broker, "retain = true"),
        &handler("unheard", &broker, ""),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    for name in ["kept", "unheard"] {
        let series = format!("hookswitch_deliveries_total{{handler=\"{name}\",outcome=\"done\"}}");
        eventually("the delivery is done", || service.metric(&series) == 1.0);
    }
    let late = Subscriber::new(&broker, "telephony/#");
    let kept = late.wait("telephony/kept");
    assert_eq!(cnam_of(&kept), (1, 1));
    assert!(kept.retain);
    assert_eq!(late.messages().len(), 1);
}

#[test]
fn permanent_refusals_are_parked_and_the_rest_is_delivered() {
    let broker = Mosquitto::with("retain_available false", "topic readwrite telephony/#\n");
    let subscriber = Subscriber::new(&broker, "telephony/#");
    let home = Home::new(&[
        ENDPOINTS,
        &handler("forbidden", &broker, "topic = \"elsewhere/{subject}\""),
        &handler("large", &broker, "events = [\"ringcentral.*\"]"),
        &handler("retained", &broker, "retain = true"),
        &handler("sound", &broker, ""),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    let filler = "x".repeat(LONGEST_PACKET);
    let body = format!(r#"{{"uuid":"1","filler":"{filler}"}}"#);
    let path = "/ringcentral/phone-number";
    assert_eq!(service.ringcentral(path, &body).status, 200);
    eventually("the other deliveries are parked", || {
        home.parked().len() == 3
    });
    let expected = [
        (
            "forbidden",
            "does not let this user publish to the event's topic (0x87)",
        ),
        ("large", "bytes long; the broker takes 20000"),
        (
            "retained",
            "the broker keeps no messages for later subscribers",
        ),
    ];
    for ((name, reason), (handler, why)) in expected.into_iter().zip(home.parked()) {
        assert_eq!(handler, name);
        assert!(why.contains(reason), "{name}: {why}");
    }
    let log = service.log();
    assert!(
        !log.contains("2025550"),
        "a phone number in the log:\n{log}"
    );
    assert_eq!(service.zoom(&cnam(1, 2)).status, 200);
    eventually("the sound handler goes on", || {
        let sound = subscriber.messages().into_iter();
        let sound = sound.filter(|message| message.topic == "telephony/sound");
        sound.map(|message| cnam_of(&message)).eq([(1, 1), (1, 2)])
    });
}

#[test]
fn each_acknowledgement_is_that_of_its_own_message() {
    let number = |serial: u64| format!("+12025550{serial:03}");
    let even = (0..100).step_by(2);
    let rights: String = even
        .clone()
        .map(|serial| {
            format!(
                "topic readwrite numbers/{}\n",
                number(serial).replace('+', "%2B")
            )
        })
        .collect();
    let broker = Mosquitto::with("", &rights);
    let subscriber = Subscriber::new(&broker, "numbers/#");
    let more = "topic = \"numbers/{subject}\"\norder = \"none\"\nconcurrency = 32";
    let home = Home::new(&[ENDPOINTS, &handler("numbers", &broker, more)]);
    let service = home.start();
    for serial in 0..100 {
        let body = cnam_about(1, &[&number(serial)], serial);
        assert_eq!(service.zoom(&body).status, 200);
    }
    eventually("all deliveries are settled", || {
        let count = |outcome| {
            let series = format!("handler=\"numbers\",outcome=\"{outcome}\"}}");
            service.metric(&format!("hookswitch_deliveries_total{{{series}"))
        };
        (count("done"), count("parked")) == (50.0, 50.0)
    });
    let delivered: BTreeSet<_> = (subscriber.messages().iter())
        .map(|message| cnam_of(message).1)
        .collect();
    assert!(delivered.into_iter().eq(even));
    let parked = home.json(&["parked", "list"]);
    for row in parked.as_array().unwrap() {
        let event = home.json(&["events", "show", row["id"].as_str().unwrap()]);
        let subject = event["subject"].as_str().unwrap();
        let serial: u64 = subject.strip_prefix("+12025550").unwrap().parse().unwrap();
        assert_eq!(serial % 2, 1);
    }
}

#[test]
fn a_refused_login_is_retried_and_reported_without_the_password() {
    let rights = "topic read telephony/#\nuser hookswitch\ntopic write telephony/#\n";
    let broker = Mosquitto::with("", rights);
    let subscriber = Subscriber::new(&broker, "telephony/#");
    let few = "retry = { attempts = 2, first = \"1ms\" }";
    let user = "username = \"hookswitch\"";
    let home = Home::new(&[
        ENDPOINTS,
        &handler(
            "known",
            &broker,
            &format!("{user}\npassword = \"its-password\""),
        ),
        &handler(
            "wrong",
            &broker,
            &format!("{few}\n{user}\npassword = \"hush-hush\""),
        ),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("the delivery is parked", || !home.parked().is_empty());
    let (handler, why) = home.parked().remove(0);
    assert_eq!(handler, "wrong");
    let reason = "cannot connect to the broker: it does not accept the user name or the password";
    assert!(why.contains(reason), "{why}");
    let log = service.log();
    assert!(log.contains(reason) && !log.contains("hush-hush"), "{log}");
    assert_eq!(cnam_of(&subscriber.wait("telephony/known")), (1, 1));
}

#[test]
fn over_tls_the_broker_is_verified_by_the_ca() {
    let broker = Mosquitto::start();
    let subscriber = Subscriber::new(&broker, "telephony/#");
    let url = format!("url = \"mqtts://localhost:{}\"", broker.tls_port);
    let home = Home::new(&[]);
    fs::write(home.path().join("ca.pem"), &broker.authority).unwrap();
    home.configure(&[
        ENDPOINTS,
        &handler(
            "known",
            &broker,
            &format!("{url}\ntls.ca = \"{{dir}}/ca.pem\""),
        ),
        &handler("unknown", &broker, &url),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(3, 1)).status, 200);
    assert_eq!(cnam_of(&subscriber.wait("telephony/known")), (3, 1));
    eventually("the other handler rejects the certificate", || {
        service.log().contains(
            "to unknown failed, and is retried: cannot connect to the broker: I/O: invalid peer \
             certificate",
        )
    });
    assert_eq!(subscriber.messages().len(), 1);
}

#[test]
fn a_client_certificate_is_presented_on_request() {
    let broker = Mosquitto::start();
    let subscriber = Subscriber::new(&broker, "telephony/#");
    let home = Home::new(&[]);
    fs::write(home.path().join("ca.pem"), &broker.authority).unwrap();
    let shown = broker.client.settings(home.path());
    let nameless = format!(
        "url = \"mqtts://localhost:{}\"\ntls.ca = \"{{dir}}/ca.pem\"",
        broker.mutual_port
    );
    home.configure(&[
        ENDPOINTS,
        &handler("named", &broker, &format!("{nameless}\n{shown}")),
        &handler("nameless", &broker, &nameless),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(3, 1)).status, 200);
    assert_eq!(cnam_of(&subscriber.wait("telephony/named")), (3, 1));
    eventually(
        "the broker rejects the handler without a certificate",
        || {
            let log = service.log();
            let mut reasons = log.lines().filter(|line| line.contains(" to nameless "));
            reasons.any(|reason| reason.contains("received fatal alert: CertificateRequired"))
        },
    );
    assert_eq!(subscriber.messages().len(), 1);
}

#[test]
fn nothing_is_lost_when_the_broker_freezes_or_is_killed_or_down() {
    let mut broker = Mosquitto::start();
    let subscriber = Subscriber::new(&broker, "telephony/#");
    // The broker persists its subscriptions.
    broker.server.signal("USR1");
    let home = Home::new(&[ENDPOINTS, &handler("kept", &broker, "timeout = \"1s\"")]);
    let mut service = home.start();
    let post = |service: &Service, serials: std::ops::Range<u64>| {
        for serial in serials {
            for carrier in 0..4 {
                assert_eq!(service.zoom(&cnam(carrier, serial)).status, 200);
            }
        }
    };
    let arrive = |count: u64| {
        let expected: Vec<_> = (0..count)
            .map(|serial| format!("serial {serial}"))
            .collect();
        eventually("everything is delivered, in order", || {
            let received: Vec<_> = subscriber.messages().iter().map(json_of).collect();
            (0..4).all(|carrier| distinct_serials(&received, carrier) == expected)
        });
    };
    post(&service, 0..5);
    arrive(5);
    broker.server.signal("STOP");
    post(&service, 5..10);
    eventually("an attempt has failed", || {
        service.log().contains("failed, and is retried")
    });
    broker.server.kill();
    eventually("the log names the missing broker", || {
        service.log().contains("cannot connect to the broker")
    });
    // The service also starts without its broker.
    service.signal("TERM");
    service.wait();
    service = home.start();
    post(&service, 10..15);
    broker.restart();
    arrive(15);
    assert_eq!(home.parked(), []);
}
