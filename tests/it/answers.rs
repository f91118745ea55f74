//! The answers of the real service.

use std::{
    net::TcpStream,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use crate::harness::{
    ARCHIVE, Answer, ENDPOINTS, Engine, Home, RINGCENTRAL_TOKEN, Service, ZOOM_SECRET, as_pairs,
    cnam, eventually, on_every_engine, phone_number, request, unix_now, zoom_headers,
};

on_every_engine![
    ringcentral_requests_get_the_documented_answers,
    a_ringcentral_handshake_is_echoed_and_its_body_is_stored,
    zoom_requests_get_the_documented_answers,
    a_zoom_challenge_is_answered_only_when_signed_and_never_signs_a_forgery,
    a_bad_signature_can_be_configured_to_be_retried,
    requests_to_no_endpoint_are_rejected,
    an_event_of_another_family_is_delivered_under_its_own_name,
    a_thousand_concurrent_duplicates_are_one_event,
    a_flood_of_bad_signatures_affects_no_honest_sender_and_no_log,
];

const PHONE: &str = "/ringcentral/phone-number";
const ZOOM: &str = "/zoom/number-management";

/// Asserts what both providers require of every answer.
fn is_sound(answer: &Answer) {
    assert!(answer.len() < 1024, "{} bytes: {answer:?}", answer.len());
    assert_eq!(answer.header("content-encoding"), None, "{answer:?}");
    assert_eq!(answer.header("server"), None, "{answer:?}");
}

/// The names of the archived events, sorted, because events of different keys have no order.
fn archived_names(home: &Home) -> Vec<String> {
    let events = home.archived();
    let mut names: Vec<_> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

fn assert_empty(answer: &Answer, status: u16) {
    is_sound(answer);
    assert_eq!(
        (answer.status, answer.body.as_slice()),
        (status, &b""[..]),
        "{answer:?}"
    );
}

fn ringcentral_requests_get_the_documented_answers(engine: Engine) {
    let home = engine.home(&[ENDPOINTS, ARCHIVE]);
    let service = home.start();
    let event = phone_number("u-1", "501");

    assert_empty(&service.ringcentral(PHONE, &event), 200);
    assert_empty(&service.ringcentral(PHONE, &event), 200);
    assert_empty(
        &service.ringcentral(PHONE, r#"{"event":"/restapi/v1.0/glip/posts"}"#),
        200,
    );
    assert_empty(&service.ringcentral(PHONE, "not json at all"), 200);
    assert_empty(&service.post(PHONE, &[], event.as_bytes()), 401);
    assert_empty(
        &service.post(PHONE, &[("verification-token", "wrong")], event.as_bytes()),
        401,
    );

    eventually("three events are archived", || home.archived().len() == 3);
    assert_eq!(
        archived_names(&home),
        [
            "ringcentral.phone-number.created",
            "ringcentral.unrecognized",
            "ringcentral.unrecognized"
        ]
    );
}

fn a_ringcentral_handshake_is_echoed_and_its_body_is_stored(engine: Engine) {
    let home = engine.home(&[ENDPOINTS, ARCHIVE]);
    let service = home.start();
    let token = "t".repeat(512);

    let bare = service.post(PHONE, &[("validation-token", &token)], b"");
    assert_empty(&bare, 200);
    assert_eq!(bare.header("validation-token"), Some(token.as_str()));
    assert_eq!(bare.header("content-type"), Some("application/json"));

    let event = phone_number("u-2", "502");
    let headers = [
        ("validation-token", "echo-me"),
        ("verification-token", RINGCENTRAL_TOKEN),
    ];
    let with_body = service.post(PHONE, &headers, event.as_bytes());
    assert_empty(&with_body, 200);
    assert_eq!(with_body.header("validation-token"), Some("echo-me"));
    eventually("the event is archived", || home.archived().len() == 1);

    // The header that proves the sender, by its name in the current guide.
    let event = phone_number("u-3", "503");
    let renamed = service.post(
        PHONE,
        &[("validation-token", RINGCENTRAL_TOKEN)],
        event.as_bytes(),
    );
    assert_empty(&renamed, 200);
    eventually("the event is archived", || home.archived().len() == 2);

    let forged = service.post(PHONE, &[("validation-token", "echo-me")], event.as_bytes());
    assert_empty(&forged, 401);
    let too_long = service.post(PHONE, &[("validation-token", &"t".repeat(900))], b"");
    assert_empty(&too_long, 401);
}

fn zoom_requests_get_the_documented_answers(engine: Engine) {
    let home = engine.home(&[ENDPOINTS, ARCHIVE]);
    let service = home.start();
    let event = cnam(7, 1);
    let signed = |body: &str, secret: &str, at: i64| {
        service.post(
            ZOOM,
            &as_pairs(&zoom_headers(body.as_bytes(), secret, at)),
            body.as_bytes(),
        )
    };

    assert_empty(&service.zoom(&event), 200);
    assert_empty(&service.zoom(&event), 200);
    assert_empty(
        &service.zoom(r#"{"event":"meeting.started","payload":{}}"#),
        200,
    );
    assert_empty(
        &service.zoom(r#"{"event":"number_management.peering_number_cnam_updated","payload":7}"#),
        200,
    );
    assert_empty(&service.post(ZOOM, &[], event.as_bytes()), 401);
    assert_empty(&signed(&event, "another-secret", unix_now()), 401);
    assert_empty(&signed(&event, ZOOM_SECRET, unix_now() - 400), 503);
    assert_empty(&signed(&event, ZOOM_SECRET, unix_now() + 400), 503);

    eventually("three events are archived", || home.archived().len() == 3);
    assert_eq!(
        archived_names(&home),
        [
            "zoom.number-management.peering-number-cnam-updated",
            "zoom.number-management.unreadable",
            "zoom.unrecognized",
        ]
    );
    assert!(
        service.metric(r#"hookswitch_requests_total{endpoint="number-management",answer="stale"}"#)
            >= 2.0
    );
}

fn a_zoom_challenge_is_answered_only_when_signed_and_never_signs_a_forgery(engine: Engine) {
    let home = engine.home(&[ENDPOINTS, ARCHIVE]);
    let service = home.start();
    let challenge = |token: &str| {
        format!(
            r#"{{"payload":{{"plainToken":"{token}"}},"event_ts":1,"event":"endpoint.url_validation"}}"#
        )
    };

    let answer = service.zoom(&challenge("abcDEF123_-"));
    is_sound(&answer);
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("application/json"))
    );
    let reply: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(reply["plainToken"], "abcDEF123_-");
    let text = reply["encryptedToken"].as_str().unwrap();
    assert!(
        text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{text}"
    );

    assert_empty(&service.post(ZOOM, &[], challenge("abc").as_bytes()), 401);
    let oracle = service.zoom(&challenge("v0:1700000000:forged"));
    assert_empty(&oracle, 200);
    eventually("the odd challenge is kept for a person to see", || {
        home.archived().len() == 1
    });
    assert_eq!(home.archived()[0]["type"], "zoom.unrecognized");
}

fn a_bad_signature_can_be_configured_to_be_retried(engine: Engine) {
    let patient = ENDPOINTS.replace(
        r#"secret_tokens = ["a-secret-for-tests"]"#,
        "secret_tokens = [\"a-secret-for-tests\"]\non_bad_signature = \"retry\"",
    );
    let home = engine.home(&[&patient]);
    let service = home.start();
    let body = cnam(1, 1);
    let headers = zoom_headers(body.as_bytes(), "another-secret", unix_now());
    assert_empty(
        &service.post(ZOOM, &as_pairs(&headers), body.as_bytes()),
        503,
    );
}

fn requests_to_no_endpoint_are_rejected(engine: Engine) {
    let home = engine.home(&[ENDPOINTS]);
    let service = home.start();
    assert_empty(&service.post("/nowhere", &[], b"{}"), 404);
    let get = request(service.address, "GET", PHONE, &[], b"").unwrap();
    assert_empty(&get, 405);
    let large = vec![b' '; (1 << 20) + 1];
    assert_empty(
        &service.post(PHONE, &[("verification-token", RINGCENTRAL_TOKEN)], &large),
        413,
    );
}

fn an_event_of_another_family_is_delivered_under_its_own_name(engine: Engine) {
    let home = engine.home(&[ENDPOINTS, ARCHIVE]);
    let service = home.start();
    let event = phone_number("u-9", "509");
    assert_empty(
        &service.ringcentral("/ringcentral/extension-info", &event),
        200,
    );
    eventually("the event is archived", || home.archived().len() == 1);
    assert_eq!(
        home.archived()[0]["type"],
        "ringcentral.phone-number.created"
    );
    assert_eq!(
        service.metric(r#"hookswitch_misdirected_total{endpoint="extension-info"}"#),
        1.0
    );
}

fn a_thousand_concurrent_duplicates_are_one_event(engine: Engine) {
    let home = engine.home(&[ENDPOINTS, ARCHIVE]);
    let service = Arc::new(home.start());
    let body = cnam(3, 33);
    let senders: Vec<_> = (0..50)
        .map(|_| {
            let (service, body) = (service.clone(), body.clone());
            thread::spawn(move || {
                (0..20)
                    .map(|_| service.zoom(&body).status)
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    for sender in senders {
        assert_eq!(sender.join().unwrap(), [200; 20]);
    }
    // When this event is delivered, all events before it are.
    assert_eq!(service.zoom(&cnam(3, 34)).status, 200);
    eventually("the last event is archived", || {
        home.archived()
            .iter()
            .any(|event| event["data"]["payload"]["object"]["cnam"] == "serial 34")
    });
    assert_eq!(home.archived().len(), 2);
    eventually("the duplicates are counted", || {
        service.metric("hookswitch_duplicates_total") == 999.0
    });
}

fn a_flood_of_bad_signatures_affects_no_honest_sender_and_no_log(engine: Engine) {
    let home = engine.home(&[ENDPOINTS, ARCHIVE]);
    let service = home.start();
    let over = AtomicBool::new(false);
    let flood = || {
        let body = cnam(9, 9);
        let headers = zoom_headers(body.as_bytes(), "a-guess", unix_now());
        let mut refused = 0;
        while !over.load(Ordering::Relaxed) {
            let answer = service.post(ZOOM, &as_pairs(&headers), body.as_bytes());
            assert_eq!(answer.status, 401);
            refused += 1;
        }
        refused
    };
    let refused: usize = thread::scope(|scope| {
        let floods: Vec<_> = (0..8).map(|_| scope.spawn(flood)).collect();
        let end = Raise(&over);
        for serial in 0..200 {
            // The flood may slow the database so that an append times out; senders retry.
            eventually("an honest event is accepted", || {
                let answer = service.zoom(&cnam(1, serial));
                let may_wait = matches!(engine, Engine::Postgres) && answer.status == 503;
                assert!(answer.status == 200 || may_wait, "{answer:?}");
                answer.status == 200
            });
        }
        drop(end);
        floods.into_iter().map(|flood| flood.join().unwrap()).sum()
    });
    assert!(refused > 200, "{refused} forgeries are no flood");
    eventually("each honest event is archived", || {
        home.archived().len() == 200
    });
    let lines = service.log().matches("wrong_credential").count();
    assert!(
        (1..10).contains(&lines),
        "{lines} lines for {refused} forgeries"
    );
}

/// A service with a limit of open files.
fn with_files(home: &Home, soft: u32, hard: u32) -> Service {
    let mut command = Command::new("sh");
    let limits = format!("ulimit -Sn {soft}; ulimit -Hn {hard}; exec \"$0\" \"$@\"");
    command.args(["-c", &limits, env!("CARGO_BIN_EXE_hookswitch")]);
    Service::spawn(home, command)
}

fn connect(service: &Service, count: usize) -> Vec<TcpStream> {
    let connect = |_| TcpStream::connect(service.address).unwrap();
    (0..count).map(connect).collect()
}

#[test]
fn silent_peers_do_not_exhaust_file_descriptors() {
    let patient = ENDPOINTS.replace("[server]", "[server]\nfirst_byte_timeout = \"1h\"");
    let home = Home::new(&[&patient, ARCHIVE]);
    let service = with_files(&home, 64, 64);
    assert!(service.log().contains("there will be fewer connections"));
    let silent = connect(&service, 80);
    for serial in 0..5 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    eventually("each event is archived", || home.archived().len() == 5);
    assert!(!service.log().contains("Too many open files"));
    drop(silent);
}

#[test]
fn the_limit_of_open_files_is_raised_for_connections() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE]);
    let service = with_files(&home, 64, 4096);
    let silent = connect(&service, 200);
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("each event is archived", || home.archived().len() == 1);
    assert!(!service.log().contains("fewer connections"));
    drop(silent);
}

/// Sets a flag when dropped, even by a panic, so that a thread that polls the flag ends.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
