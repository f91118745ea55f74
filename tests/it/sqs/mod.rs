//! The handler kind `sqs`, through the real service and a stand-in for SQS that verifies each
//! signature.

mod credentials;
mod signature;
mod stand_in;

use crate::harness::{
    ENDPOINTS, Home, Service, certificate, cnam, distinct_serials, eventually, serials,
};
use stand_in::{Fault, ID, REGION, SECRET, Sqs};

/// A handler with quick retries and without keys.
fn keyless(name: &str, sqs: &Sqs, queue: &str, more: &str) -> String {
    let scheme = if more.contains("tls.ca = ") {
        "https"
    } else {
        "http"
    };
    format!(
        r#"
[handlers.{name}]
kind = "sqs"
events = ["*"]
queue_url = "{scheme}://{}/111122223333/{queue}"
region = "{REGION}"
retry = {{ attempts = 100000, first = "20ms", ceiling = "100ms" }}
{more}
"#,
        sqs.address
    )
}

fn handler(name: &str, sqs: &Sqs, queue: &str, more: &str) -> String {
    let keys = format!("access_key_id = \"{ID}\"\nsecret_access_key = \"{SECRET}\"");
    keyless(name, sqs, queue, &format!("{keys}\n{more}"))
}

fn key(carrier: u32) -> String {
    format!("zoom.number-management/acct-{carrier}/{carrier}")
}

fn post(service: &Service, serials: std::ops::Range<u64>) {
    for serial in serials {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
        assert_eq!(service.zoom(&cnam(2, serial)).status, 200);
    }
}

/// Waits until a delivery is parked, and returns its reason.
fn why_parked(home: &Home) -> String {
    eventually("the delivery is parked", || !home.parked().is_empty());
    home.parked().remove(0).1
}

fn done(service: &Service, handler: &str) -> f64 {
    let series = format!(r#"hookswitch_deliveries_total{{handler="{handler}",outcome="done"}}"#);
    service.metric(&series)
}

#[test]
fn an_event_is_a_message_in_either_form() {
    let sqs = Sqs::start();
    sqs.make("raw");
    let home = Home::new(&[
        ENDPOINTS,
        &handler("structured", &sqs, "telephony", ""),
        &handler("raw", &sqs, "raw", "format = \"raw\""),
    ]);
    let service = home.start();
    let body = cnam(1, 1).replace("serial 1", "Zoë \u{fffd} ☎");
    assert_eq!(service.zoom(&body).status, 200);
    eventually("both deliveries are done", || {
        done(&service, "structured") == 1.0 && done(&service, "raw") == 1.0
    });
    let [structured] = &sqs.messages("telephony")[..] else {
        panic!("there is more than one message");
    };
    assert_eq!(structured.content_type, "application/cloudevents+json");
    assert_eq!(
        (&structured.group, &structured.deduplication_id),
        (&None, &None)
    );
    let event = structured.event();
    assert_eq!(event["specversion"], "1.0");
    assert_eq!(event["partitionkey"], key(1));
    assert_eq!(
        event["data"],
        serde_json::from_str::<serde_json::Value>(&body).unwrap()
    );
    let [raw] = &sqs.messages("raw")[..] else {
        panic!("there is more than one message");
    };
    assert_eq!(
        (raw.content_type.as_str(), &raw.body),
        ("application/json", &body)
    );
}

#[test]
fn a_fifo_queue_has_each_event_once_in_the_group_of_its_key_though_answers_get_lost() {
    let sqs = Sqs::start();
    let home = Home::new(&[ENDPOINTS, &handler("bus", &sqs, "telephony.fifo", "")]);
    let service = home.start();
    sqs.inject(&[Fault::LoseAnswer; 3]);
    post(&service, 0..5);
    eventually("all deliveries are done", || done(&service, "bus") == 10.0);
    assert!(sqs.requests() >= 13, "three have been sent again");
    let expected: Vec<_> = (0..5).map(|serial| format!("serial {serial}")).collect();
    assert_eq!(sqs.messages("telephony.fifo").len(), 10);
    for carrier in [1, 2] {
        assert_eq!(serials(&sqs.events("telephony.fifo"), carrier), expected);
    }
    for message in sqs.messages("telephony.fifo") {
        let event = message.event();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        assert_eq!(message.group, Some(text(&event["partitionkey"])));
        assert_eq!(
            message.deduplication_id,
            Some(format!("{}/bus", text(&event["id"])))
        );
    }
}

#[test]
fn a_replay_reaches_a_queue_that_has_had_the_event() {
    let sqs = Sqs::start();
    let home = Home::new(&[ENDPOINTS, &handler("bus", &sqs, "telephony.fifo", "")]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("the event has arrived", || {
        sqs.messages("telephony.fifo").len() == 1
    });
    let id = sqs.events("telephony.fifo")[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    for number in 1..=2 {
        eventually("the delivery is done", || {
            done(&service, "bus") == f64::from(number)
        });
        // The answer is lost, so the message is sent twice and stored once.
        sqs.inject(&[Fault::LoseAnswer]);
        let replayed = home.run(&["replay", &id, "--reason", "lost there"]);
        assert!(replayed.status.success(), "{replayed:?}");
        eventually("the message has been sent again", || {
            done(&service, "bus") == f64::from(number + 1)
        });
    }
    let messages = sqs.messages("telephony.fifo");
    let ids: Vec<_> = messages
        .iter()
        .map(|message| message.deduplication_id.clone().unwrap())
        .collect();
    let expected = ["", "/1", "/2"].map(|number| format!("{id}/bus{number}"));
    assert_eq!(ids, expected);
    let reason = |message: &stand_in::Message| message.event()["replayreason"].clone();
    assert_eq!(reason(&messages[2]), "lost there");
}

#[test]
fn temporary_refusals_are_retried_in_order() {
    let sqs = Sqs::start();
    let home = Home::new(&[ENDPOINTS, &handler("bus", &sqs, "telephony", "")]);
    let service = home.start();
    sqs.inject(&[
        Fault::Refuse(400, "com.amazonaws.sqs#RequestThrottled"),
        Fault::Refuse(500, "com.amazon.coral.service#InternalFailure"),
        Fault::Refuse(503, "com.amazon.coral.service#ServiceUnavailable"),
        Fault::WrongServer,
        Fault::WrongDigest,
        Fault::LoseAnswer,
        Fault::Refuse(400, "com.amazonaws.sqs#KmsThrottled"),
    ]);
    post(&service, 0..10);
    let expected: Vec<_> = (0..10).map(|serial| format!("serial {serial}")).collect();
    eventually("all deliveries are done", || done(&service, "bus") == 20.0);
    for carrier in [1, 2] {
        assert_eq!(
            distinct_serials(&sqs.events("telephony"), carrier),
            expected
        );
    }
    assert_eq!(home.parked(), []);
    for why in [
        "the queue refused the message: RequestThrottled (400)",
        "the queue refused the message: InternalFailure (500)",
        "the queue says that it has another body than the one that was sent",
        "the answer was 200 OK, and not SQS's; see where `queue_url` leads",
        "got no answer: ",
    ] {
        assert!(service.log().contains(why), "{why}");
    }
    assert!(
        !service.log().contains("hush"),
        "the queue's words are kept out"
    );
}

#[test]
fn permanent_refusals_are_parked_with_their_reason() {
    let odd = cnam(1, 1).replace("serial 1", "\u{ffff}");
    for (largest, body, more, why) in [
        (
            256,
            &cnam(1, 1),
            "",
            "InvalidParameterValue (400); its body is of ",
        ),
        (
            1 << 20,
            &odd,
            "format = \"raw\"",
            "holds a character that SQS does not take",
        ),
    ] {
        let sqs = Sqs::start();
        sqs.limit(largest);
        let home = Home::new(&[ENDPOINTS, &handler("bus", &sqs, "telephony", more)]);
        let service = home.start();
        assert_eq!(service.zoom(body).status, 200);
        let parked = why_parked(&home);
        assert!(parked.contains(why), "{parked}");
        assert_eq!(sqs.messages("telephony").len(), 0);
    }
}

#[test]
fn a_character_that_sqs_refuses_is_sent_in_the_structured_form() {
    let sqs = Sqs::start();
    let home = Home::new(&[ENDPOINTS, &handler("bus", &sqs, "telephony", "")]);
    let service = home.start();
    assert_eq!(
        service
            .zoom(&cnam(1, 1).replace("serial 1", "\u{fffe}\u{ffff}"))
            .status,
        200
    );
    eventually("the event has arrived", || {
        sqs.messages("telephony").len() == 1
    });
    assert_eq!(serials(&sqs.events("telephony"), 1), ["\u{fffe}\u{ffff}"]);
}

#[test]
fn problems_that_an_operator_can_fix_are_retried_until_they_are_fixed() {
    let sqs = Sqs::start();
    let home = Home::new(&[ENDPOINTS, &handler("bus", &sqs, "to-be-made", "")]);
    let service = home.start();
    sqs.inject(&[Fault::Refuse(
        403,
        "com.amazon.coral.service#AccessDeniedException",
    )]);
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    for why in [
        "AccessDeniedException (403); allow sqs:SendMessage on the queue",
        "QueueDoesNotExist (400); make the queue, or see `queue_url` and `region`",
    ] {
        eventually(why, || service.log().contains(why));
    }
    sqs.make("to-be-made");
    eventually("the event has arrived", || {
        sqs.messages("to-be-made").len() == 1
    });
    assert_eq!(home.parked(), []);
}

#[test]
fn over_tls_the_server_is_verified_by_the_ca() {
    let (certificate, key) = certificate();
    let sqs = Sqs::start_tls(&certificate, &key);
    let home = Home::new(&[]);
    std::fs::write(home.path().join("ca.pem"), &certificate).unwrap();
    let ca = handler("known", &sqs, "telephony", "tls.ca = \"{dir}/ca.pem\"");
    let unknown = handler("wary", &sqs, "telephony", "").replace("http://", "https://");
    home.configure(&[ENDPOINTS, &ca, &unknown]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("the event has arrived", || done(&service, "known") == 1.0);
    eventually("the log gives the other handler's reason", || {
        let log = service.log();
        let mut lines = log.lines().filter(|line| line.contains(" to wary "));
        lines.any(|line| line.contains("certificate"))
    });
    assert_eq!(sqs.messages("telephony").len(), 1);
}
