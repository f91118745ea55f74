//! Every answer, byte by byte.

use http::{HeaderMap, HeaderValue, Method};
use jiff::SignedDuration;

use super::*;
use crate::{
    provider::{Admission, Composed, Examination, Reason, Refusal, Reply, Request},
    secret::Secret,
    store::APPEND_BUDGET,
};

const EMPTY_200: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\ndate: -\r\n\r\n";
const EMPTY_401: &str = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\ndate: -\r\n\r\n";
const EMPTY_503: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\ndate: -\r\n\r\n";

#[tokio::test]
async fn an_authentic_event_is_stored_byte_for_byte_and_answered_with_an_empty_200() {
    let server = TestServer::open();
    let body = r#"{ "uuid" : "17",  "event":"/restapi/v1.0/thing" }"#;
    assert_eq!(server.ask(ringcentral_event(body)).await.text(), EMPTY_200);
    let other = r#"{"event":"thing.done","note":"\u00e9\/"}"#;
    assert_eq!(
        server.ask(zoom_event(other, noon())).await.text(),
        EMPTY_200
    );

    let kept = server.store.kept();
    assert_eq!(kept[0].body, body);
    assert_eq!(kept[0].endpoint.as_str(), "ringcentral-phone-number");
    assert_eq!(kept[0].received_at, noon());
    assert_eq!(kept[1].body, other);
    assert_eq!(server.answered("zoom-number-management", "stored"), 1.0);
}

#[tokio::test]
async fn an_unreadable_body_is_stored_too() {
    let server = TestServer::open();
    for body in ["", "not JSON", "[1]", "{\"event\":7}"] {
        assert_eq!(server.ask(ringcentral_event(body)).await.text(), EMPTY_200);
        assert_eq!(server.ask(zoom_event(body, noon())).await.text(), EMPTY_200);
    }
    assert_eq!(server.store.kept().len(), 8);
    let unrecognized =
        "hookswitch_events_total{endpoint=\"zoom-number-management\",event=\"zoom.unrecognized\"}";
    assert_eq!(server.metric(unrecognized), 4.0);
}

#[tokio::test]
async fn a_query_string_does_not_affect_routing() {
    let server = TestServer::open();
    let path = format!("{RINGCENTRAL}?auth_token=x&y=%2F");
    let request = post(&path, &[("Verification-Token", "rc-token")], b"{}");
    assert_eq!(server.ask(request).await.text(), EMPTY_200);
}

#[tokio::test]
async fn a_ringcentral_handshake_is_echoed() {
    let server = TestServer::open();
    let echo = "HTTP/1.1 200 OK\r\nvalidation-token: a-b/c\r\ncontent-type: application/json\r\n\
                content-length: 0\r\ndate: -\r\n\r\n";
    let handshake = post(RINGCENTRAL, &[("Validation-Token", "a-b/c")], b"");
    assert_eq!(server.ask(handshake).await.text(), echo);
    assert!(server.store.kept().is_empty());

    let headers = [
        ("Validation-Token", "a-b/c"),
        ("Verification-Token", "rc-token"),
    ];
    let with_body = post(RINGCENTRAL, &headers, b"{}");
    assert_eq!(server.ask(with_body).await.text(), echo);
    assert_eq!(server.store.kept().len(), 1, "the body is an event too");
    let last = "hookswitch_last_handshake_timestamp_seconds{endpoint=\"ringcentral-phone-number\"}";
    assert_eq!(server.metric(last), 1_800_000_000.0);
    let last = "hookswitch_last_event_timestamp_seconds{endpoint=\"ringcentral-phone-number\"}";
    assert_eq!(server.metric(last), 1_800_000_000.0);
    let other = "hookswitch_last_event_timestamp_seconds{endpoint=\"zoom-number-management\"}";
    assert_eq!(server.metric(other), 0.0);
}

#[tokio::test]
async fn a_zoom_challenge_is_answered_with_json() {
    let server = TestServer::open();
    let composed = zoom().compose(Message::Handshake, noon());
    let Reply::Body { body: expected, .. } = composed.expected else {
        panic!("an answer with a body is expected");
    };
    let answer = server
        .ask(authentic(&*zoom(), ZOOM, Message::Handshake, noon()))
        .await;
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\ndate: -\r\n\r\n",
        expected.len()
    );
    assert_eq!(
        answer.text(),
        head + std::str::from_utf8(&expected).unwrap()
    );
    assert!(server.store.kept().is_empty());
    assert_eq!(server.answered("zoom-number-management", "handshake"), 1.0);
}

#[tokio::test]
async fn every_answer_is_shorter_than_1024_bytes() {
    let server = TestServer::open();
    let longest = "t".repeat(512);
    let handshake = post(RINGCENTRAL, &[("Validation-Token", &longest)], b"");
    let answer = server.ask(handshake).await;
    assert_eq!(answer.status(), 200);
    assert!(answer.text().contains(&longest));
    assert!(answer.raw.len() < 1024, "{}", answer.raw.len());

    let token = "t".repeat(128);
    let body =
        format!(r#"{{"event":"endpoint.url_validation","payload":{{"plainToken":"{token}"}}}}"#);
    let body = Bytes::from(body);
    let message = Message::Event {
        body: &body,
        delivery: "challenge",
    };
    let answer = server.ask(authentic(&*zoom(), ZOOM, message, noon())).await;
    assert!(String::from_utf8_lossy(answer.body()).contains(&token));
    assert!(answer.raw.len() < 1024, "{}", answer.raw.len());
}

#[tokio::test]
async fn a_request_that_is_not_authentic_is_refused_and_not_stored() {
    let server = TestServer::open();
    let forged = String::from_utf8(zoom_event("{\"event\":\"a\"}", noon())).unwrap();
    let forged = forged.replace("{\"event\":\"a\"}", "{\"event\":\"b\"}");
    for (request, endpoint, reason) in [
        (
            post(RINGCENTRAL, &[], b"{}"),
            "ringcentral-phone-number",
            "missing_credential",
        ),
        (
            post(RINGCENTRAL, &[("Verification-Token", "guess")], b"{}"),
            "ringcentral-phone-number",
            "wrong_credential",
        ),
        (
            post(RINGCENTRAL, &[("Validation-Token", "two words")], b""),
            "ringcentral-phone-number",
            "malformed_handshake",
        ),
        (
            post(ZOOM, &[], b"{}"),
            "zoom-number-management",
            "missing_credential",
        ),
        (
            forged.into_bytes(),
            "zoom-number-management",
            "wrong_credential",
        ),
    ] {
        assert_eq!(server.ask(request).await.text(), EMPTY_401, "{reason}");
        assert_eq!(server.answered(endpoint, reason), 1.0);
    }
    assert!(server.store.kept().is_empty());
}

#[tokio::test]
async fn a_stale_signature_is_retried_and_so_is_a_bad_one_if_configured() {
    let server = TestServer::open();
    let old = noon() - SignedDuration::from_mins(6);
    assert_eq!(server.ask(zoom_event("{}", old)).await.text(), EMPTY_503);
    let unsigned = post(ZOOM_RETRY, &[], b"{}");
    assert_eq!(server.ask(unsigned).await.text(), EMPTY_503);
    assert!(server.store.kept().is_empty());
    assert_eq!(server.answered("zoom-number-management", "stale"), 1.0);
}

#[tokio::test]
async fn an_unknown_path_is_answered_404_and_another_method_405() {
    let server = TestServer::open();
    let not_found = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\ndate: -\r\n\r\n";
    for path in [
        "/",
        "/zoom",
        "/zoom/number-management/",
        "/zoom/Number-management",
    ] {
        assert_eq!(server.ask(post(path, &[], b"{}")).await.text(), not_found);
    }
    let not_allowed =
        "HTTP/1.1 405 Method Not Allowed\r\nallow: POST\r\ncontent-length: 0\r\ndate: -\r\n\r\n";
    for method in ["GET", "PUT", "OPTIONS", "BREW"] {
        let request = format!("{method} {ZOOM} HTTP/1.1\r\nhost: hooks.example\r\n\r\n");
        assert_eq!(server.ask(request).await.text(), not_allowed, "{method}");
    }
    assert_eq!(server.answered("none", "path"), 4.0);
    assert_eq!(server.answered("none", "method"), 4.0);
}

/// A provider whose handshake is a GET, and whose proof is a parameter of the query.
#[derive(Debug)]
struct QueryProvider;

impl Provider for QueryProvider {
    fn methods(&self) -> &'static [Method] {
        const { &[Method::POST, Method::GET] }
    }

    fn admit(&self, request: Request<'_>, now: Timestamp) -> Result<Admission, Refusal> {
        let query = request
            .query
            .and_then(|query| query.strip_prefix("token=secret"));
        let query = query.ok_or(Refusal {
            reason: Reason::WrongCredential,
            retry: false,
        })?;
        if *request.method == Method::GET {
            let challenge = query.strip_prefix("&challenge=").unwrap_or_default();
            let reply = Reply::Body {
                content_type: HeaderValue::from_static("text/plain"),
                body: Bytes::from(challenge.to_owned()),
            };
            return Ok(Admission {
                event: None,
                reply,
                secret: None,
            });
        }
        let event = Verified::unproven(Notification {
            id: crate::event::EventId::new(now),
            endpoint: request.endpoint.clone(),
            name: "zoom.unrecognized".into(),
            key: None,
            subjects: Vec::new(),
            occurred_at: None,
            received_at: now,
            topics: Vec::new(),
            dedupe: Vec::new(),
            body: request.body,
        });
        Ok(Admission {
            event: Some(event),
            reply: Reply::Empty,
            secret: None,
        })
    }

    fn examine(&self, request: &Request<'_>) -> Examination {
        let is_proved = request
            .query
            .is_some_and(|query| query.starts_with("token=secret"));
        Examination {
            secret: is_proved.then_some(0),
            secrets: 1,
            freshness: None,
            covers_body: false,
            dedupe: Vec::new(),
        }
    }

    fn explain(&self, _: &Request<'_>, reason: Reason) -> String {
        reason.to_string()
    }

    fn secrets(&self) -> &[Secret] {
        &[]
    }

    fn compose(&self, message: Message<'_>, _: Timestamp) -> Composed {
        let (method, query, body, expected) = match message {
            Message::Handshake => {
                let expected = Reply::Body {
                    content_type: HeaderValue::from_static("text/plain"),
                    body: Bytes::from_static(b"a%2Bb"),
                };
                let query = "token=secret&challenge=a%2Bb";
                (Method::GET, query, Bytes::new(), expected)
            }
            Message::Event { body, .. } => {
                (Method::POST, "token=secret", body.clone(), Reply::Empty)
            }
        };
        Composed {
            method,
            query: Some(query.to_owned()),
            headers: HeaderMap::new(),
            body,
            expected,
        }
    }

    fn freshen(&self, _: &[u8], _: Timestamp) -> Option<Bytes> {
        None
    }
}

#[tokio::test]
async fn a_provider_can_have_a_get_handshake_and_a_proof_in_its_query() {
    const PATH: &str = "/query";
    let server = TestServer::open();
    let family = "zoom.number-management";
    let endpoints = vec![
        endpoint(PATH, family, Box::new(QueryProvider)),
        endpoint(ZOOM, family, zoom()),
    ];
    server.webhook.replace_endpoints(endpoints);
    let handshake = authentic(&QueryProvider, PATH, Message::Handshake, noon());
    let echo =
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\ndate: -\r\n\r\na%2Bb";
    assert_eq!(server.ask(handshake).await.text(), echo);
    let last = "hookswitch_last_handshake_timestamp_seconds{endpoint=\"query\"}";
    assert_eq!(server.metric(last), 1_800_000_000.0);
    assert!(server.store.kept().is_empty());

    let message = Message::Event {
        body: &Bytes::from_static(b"{}"),
        delivery: "one",
    };
    let event = authentic(&QueryProvider, PATH, message, noon());
    assert_eq!(server.ask(event).await.text(), EMPTY_200);
    assert_eq!(server.store.kept().len(), 1);

    let ask = async |method: &str, target: &str| {
        let request = request(method, target, &[], b"");
        server.ask(request).await.text()
    };
    assert_eq!(ask("POST", "/query?token=guess").await, EMPTY_401);
    assert_eq!(ask("GET", PATH).await, EMPTY_401);
    let not_allowed = |methods: &str| {
        format!(
            "HTTP/1.1 405 Method Not Allowed\r\nallow: {methods}\r\ncontent-length: 0\r\ndate: -\r\n\r\n"
        )
    };
    assert_eq!(ask("PUT", PATH).await, not_allowed("POST, GET"));
    // The methods of one provider are not those of another.
    assert_eq!(ask("GET", ZOOM).await, not_allowed("POST"));
}

#[tokio::test]
async fn a_store_failure_is_not_answered_200() {
    let server = TestServer::open();
    for (error, answer) in [
        (
            AppendError::Unavailable("the disk is full".to_owned()),
            "unavailable",
        ),
        (
            AppendError::Poisoned("a sync failed".to_owned()),
            "unavailable",
        ),
        (AppendError::Closed, "unavailable"),
        (AppendError::Overloaded, "overloaded"),
    ] {
        server.store.set(Behaviour::Fail(error));
        assert_eq!(server.ask(ringcentral_event("{}")).await.text(), EMPTY_503);
        assert!(server.answered("ringcentral-phone-number", answer) >= 1.0);
    }
    server.store.set(Behaviour::Keep);
    assert_eq!(server.ask(ringcentral_event("{}")).await.text(), EMPTY_200);
}

#[tokio::test]
async fn a_slow_store_is_answered_503_before_the_sender_times_out() {
    let server = TestServer::build(|_| {}, APPEND_BUDGET);
    server.store.set(Behaviour::Stall);
    assert_eq!(server.ask(zoom_event("{}", noon())).await.text(), EMPTY_503);
    assert!(server.store.kept().is_empty());
    assert_eq!(
        server.answered("zoom-number-management", "unavailable"),
        1.0
    );
}

#[tokio::test]
async fn a_flood_of_forgeries_is_one_log_line_without_their_content() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(log.clone())
        .with_ansi(false)
        .finish();
    // While there is only one subscriber, whether a line is written at all is decided for good on
    // the thread that comes to it first, which may be another test's. With two, both are asked.
    let _second = tracing::Dispatch::new(
        tracing_subscriber::fmt()
            .with_writer(std::io::sink)
            .finish(),
    );
    let _guard = tracing::subscriber::set_default(subscriber);
    let server = TestServer::open();
    for _ in 0..50 {
        let forged = post(
            RINGCENTRAL,
            &[("verification-token", "my-guess")],
            b"my-body",
        );
        assert_eq!(server.ask(forged).await.status(), 401);
    }
    let text = log.text();
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.contains("refused"))
        .collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert!(lines[0].contains("reason=\"wrong_credential\""), "{text}");
    assert!(
        !text.contains("my-guess") && !text.contains("my-body"),
        "{text}"
    );
    assert_eq!(
        server.answered("ringcentral-phone-number", "wrong_credential"),
        50.0
    );
}

/// The log of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_panic_is_answered_503_and_affects_no_other_request() {
    let server = TestServer::open();
    server.store.set(Behaviour::Panic);
    let mut peer = server.connect().await;
    peer.send(ringcentral_event("{}")).await;
    assert_eq!(peer.answer().await.text(), EMPTY_503);
    server.store.set(Behaviour::Keep);
    peer.send(ringcentral_event("{}")).await;
    assert_eq!(peer.answer().await.text(), EMPTY_200);
    assert_eq!(server.answered("none", "panic"), 1.0);
    assert_eq!(server.metric("hookswitch_in_flight"), 0.0);
}

#[tokio::test]
async fn endpoints_are_replaced_at_once_and_connections_stay_open() {
    let server = TestServer::open();
    let mut peer = server.connect().await;
    peer.send(ringcentral_event("{}")).await;
    assert_eq!(peer.answer().await.status(), 200);

    server
        .webhook
        .replace_endpoints(vec![endpoint(ZOOM, "zoom.number-management", zoom())]);
    peer.send(ringcentral_event("{}")).await;
    assert_eq!(peer.answer().await.status(), 404);
    peer.send(zoom_event("{}", noon())).await;
    assert_eq!(peer.answer().await.status(), 200);
    assert_eq!(server.answered("zoom-number-management", "stored"), 1.0);
}

#[tokio::test]
async fn the_lag_of_a_provider_is_the_age_of_its_events_on_arrival() {
    let server = TestServer::open();
    let created =
        include_str!("../../../fixtures/ringcentral/phone-number/a-number-was-created.json");
    let (before, after) = created.split_once("2026-03-04T15:21:07.412Z").unwrap();
    // The first is 90 s old. The clock of the second one's provider is ahead.
    for time in ["2027-01-15T07:58:30Z", "2027-01-15T08:00:30Z"] {
        let body = format!("{before}{time}{after}");
        let token = [("Verification-Token", "rc-token")];
        let event = post(RINGCENTRAL, &token, body.as_bytes());
        assert_eq!(server.ask(event).await.text(), EMPTY_200);
    }
    // This one does not say when it happened.
    assert_eq!(server.ask(ringcentral_event("{}")).await.text(), EMPTY_200);
    let lag = |part: &str| {
        let labels = "{endpoint=\"ringcentral-phone-number\"}";
        server.metric(&format!("hookswitch_provider_lag_seconds_{part}{labels}"))
    };
    assert_eq!((lag("sum"), lag("count")), (90.0, 2.0));
}

#[tokio::test]
async fn each_secret_has_the_time_of_its_last_use_through_a_rotation() {
    let server = TestServer::open();
    let replace = |tokens: &str| {
        let settings = format!("{{ verification_tokens = [{tokens}] }}");
        let provider = provider("ringcentral", &settings);
        let endpoints = vec![endpoint(RINGCENTRAL, "ringcentral.phone-number", provider)];
        server.webhook.replace_endpoints(endpoints);
    };
    let used = |secret: usize| {
        let labels = format!("endpoint=\"ringcentral-phone-number\",secret=\"{secret}\"");
        format!("hookswitch_secret_last_used_timestamp_seconds{{{labels}}}")
    };
    assert_eq!(server.metric(&used(1)), 0.0);
    assert_eq!(server.ask(ringcentral_event("{}")).await.text(), EMPTY_200);
    assert_eq!(server.metric(&used(1)), 1_800_000_000.0);

    replace("\"rc-token-new\", \"rc-token\"");
    assert_eq!(server.metric(&used(1)), 0.0);
    assert_eq!(server.metric(&used(2)), 1_800_000_000.0);
    let handshake = [
        ("Validation-Token", "a"),
        ("Verification-Token", "rc-token-new"),
    ];
    let answer = server.ask(post(RINGCENTRAL, &handshake, b"")).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(server.metric(&used(1)), 1_800_000_000.0);

    replace("\"rc-token-new\"");
    assert_eq!(server.metric(&used(1)), 1_800_000_000.0);
    assert!(!server.metrics().contains(&used(2)));
}

#[tokio::test]
async fn an_endpoint_that_is_removed_leaves_no_gauge_behind() {
    let server = TestServer::open();
    let of_zoom = || {
        let metrics = server.metrics();
        let lines = metrics.lines().filter(|line| {
            line.contains("endpoint=\"zoom-number-management\"")
                && (line.contains("_timestamp_seconds{") || line.contains("_info{"))
        });
        lines.count()
    };
    assert_eq!(of_zoom(), 4);
    let endpoints = vec![endpoint(
        RINGCENTRAL,
        "ringcentral.phone-number",
        ringcentral(),
    )];
    server.webhook.replace_endpoints(endpoints);
    assert_eq!(of_zoom(), 0);
}
