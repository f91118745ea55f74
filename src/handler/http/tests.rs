//! What a real server sees, and what becomes of its answers.

use std::sync::{Arc, Mutex};

use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::*;
use crate::{event::Notification, handler::sample, secret::Secret};

/// Nothing here takes a fraction of this, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that gives the same answer to every request, and keeps the requests.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    _tasks: JoinSet<()>,
}

struct Request {
    /// In lower case, with line ends.
    head: String,
    body: Vec<u8>,
}

impl Server {
    /// A server whose answers are `answer`, byte for byte, after which it closes the connection.
    async fn answering(answer: &str) -> Self {
        Self::start(answer, false).await
    }

    /// A server that does not close the connection, and says no more.
    async fn stalling_after(answer: &str) -> Self {
        Self::start(answer, true).await
    }

    async fn start(answer: &str, stalls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hooks?token=hush", listener.local_addr().unwrap());
        let answer = answer.replace("SELF", &url);
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let received = requests.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let request = read(&mut stream).await;
                received.lock().unwrap().push(request);
                stream.write_all(answer.as_bytes()).await.unwrap();
                if stalls {
                    std::future::pending::<()>().await;
                }
            }
        });
        Self {
            url,
            requests,
            _tasks: tasks,
        }
    }

    fn request(&self) -> Request {
        let mut requests = self.requests.lock().unwrap();
        assert_eq!(requests.len(), 1);
        requests.remove(0)
    }
}

async fn read(stream: &mut TcpStream) -> Request {
    let mut bytes = Vec::new();
    let head = loop {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(end) = end {
            break bytes.drain(..end + 4).collect::<Vec<_>>();
        }
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0);
    };
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let request = Request { head, body: bytes };
    let length: usize = request.header("content-length").unwrap().parse().unwrap();
    let mut body = request.body;
    while body.len() < length {
        assert!(stream.read_buf(&mut body).await.unwrap() > 0);
    }
    Request { body, ..request }
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        let line = |line: &'_ str| line.starts_with(&format!("{name}: "));
        let found = self.head.lines().find(|found| line(found))?;
        found.split_once(": ").map(|(_, value)| value)
    }
}

fn settings(url: &str, more: &str) -> Result<Settings, toml::de::Error> {
    let text = format!("{{ url = {url:?}, {more} }}");
    Settings::deserialize(toml::de::ValueDeserializer::parse(&text)?)
}

fn build(settings: Settings) -> Http {
    settings.build(&mut sample::build_context()).unwrap()
}

async fn post(handler: &Http, notification: &Notification) -> Outcome {
    let context = sample::context();
    let delivery = Delivery {
        event: AnyEvent,
        notification,
        context: &context,
    };
    handler.handle(delivery).await
}

async fn post_to(server: &Server, more: &str) -> Outcome {
    let handler = build(settings(&server.url, more).unwrap());
    post(&handler, &sample::notification("{\"a\":\n1}")).await
}

/// The outcome of an answer, as a text.
async fn outcome(answer: &str) -> String {
    let server = Server::answering(&format!("HTTP/1.1 {answer}\r\n\r\n")).await;
    let outcome = post_to(&server, "").await;
    server.request();
    match outcome {
        Outcome::Done => "done".to_owned(),
        Outcome::Retry { after, why } => format!("retry after {after:?}: {why}"),
        Outcome::Park { why } => format!("park: {why}"),
        Outcome::Skip { why } => format!("skip: {why}"),
    }
}

#[tokio::test]
async fn the_status_decides() {
    for (answer, expected) in [
        ("200 OK", "done"),
        ("204 No Content", "done"),
        (
            "408 Request Timeout",
            "retry after None: the answer was 408 Request Timeout",
        ),
        (
            "425 Too Early",
            "retry after None: the answer was 425 Too Early",
        ),
        (
            "429 Too Many Requests\r\nretry-after: 17",
            "retry after Some(17s): the answer was 429 Too Many Requests",
        ),
        (
            "503 Service Unavailable\r\nretry-after: Wed, 04 Mar 2026 06:02:00 GMT",
            "retry after Some(120s): the answer was 503 Service Unavailable",
        ),
        (
            "503 Service Unavailable\r\nretry-after: Wed, 04 Mar 2026 05:00:00 GMT",
            "retry after Some(0ns): the answer was 503 Service Unavailable",
        ),
        (
            "500 Oh No\r\nretry-after: soon",
            "retry after None: the answer was 500 Internal Server Error",
        ),
        (
            "404 Not Found\r\nretry-after: 5",
            "park: the answer was 404 Not Found",
        ),
        ("410 Gone", "park: the answer was 410 Gone"),
        (
            "302 Found\r\nlocation: SELF",
            "park: the answer was 302 Found; redirects are not followed, so set `url` to where \
             it leads",
        ),
        (
            "307 Temporary Redirect\r\nlocation: SELF",
            "park: the answer was 307 Temporary Redirect; redirects are not followed, so set \
             `url` to where it leads",
        ),
    ] {
        assert_eq!(outcome(answer).await, expected, "{answer}");
    }
}

#[tokio::test]
async fn no_answer_is_a_retry_that_does_not_show_the_url() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused = format!("http://{}/?token=hush", listener.local_addr().unwrap());
    drop(listener);
    let cut_off = Server::answering("HTTP/1.1 20").await;
    let nonsense = Server::answering("220 mail.example.com ESMTP\r\n").await;
    for url in [&refused, &cut_off.url, &nonsense.url] {
        let handler = build(settings(url, "").unwrap());
        let outcome = post(&handler, &sample::notification("{}")).await;
        let Outcome::Retry { after: None, why } = outcome else {
            panic!("{url}: {outcome:?}");
        };
        let why = why.to_string();
        assert!(why.starts_with("got no answer: "), "{why}");
        assert!(!why.contains("hush"), "{why}");
    }
}

#[tokio::test]
async fn a_receiver_that_never_answers_is_given_up() {
    let server = Server::stalling_after("").await;
    let mut context = BuildContext::new("crm".into(), 1, Duration::from_millis(20));
    let handler = settings(&server.url, "")
        .unwrap()
        .build(&mut context)
        .unwrap();
    let notification = sample::notification("{}");
    let outcome = timeout(PATIENCE, post(&handler, &notification)).await;
    let Ok(Outcome::Retry { after: None, why }) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(why.to_string().contains("timed out"), "{why}");
}

#[tokio::test]
async fn the_status_counts_though_the_body_never_ends() {
    let endless = "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nand so ";
    let endless = Server::stalling_after(endless).await;
    let long = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1 << 20));
    let long = Server::answering(&long).await;
    // The client itself would wait for longer than this test does.
    let mut context = BuildContext::new("crm".into(), 1, Duration::from_secs(3600));
    for server in [endless, long] {
        let handler = settings(&server.url, "")
            .unwrap()
            .build(&mut context)
            .unwrap();
        let notification = sample::notification("{}");
        let outcome = timeout(PATIENCE, post(&handler, &notification)).await;
        assert!(matches!(outcome, Ok(Outcome::Done)), "{outcome:?}");
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn the_structured_form_is_one_cloud_event() {
    let server = Server::answering(OK).await;
    assert!(matches!(post_to(&server, "").await, Outcome::Done));
    let request = server.request();
    assert!(
        request
            .head
            .starts_with("post /hooks?token=hush http/1.1\r\n")
    );
    assert_eq!(
        request.header("content-type"),
        Some("application/cloudevents+json")
    );
    let id = "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5";
    let message = format!("{id}/sample");
    assert_eq!(request.header("webhook-id"), Some(&*message));
    assert_eq!(request.header("webhook-timestamp"), Some("1772604000"));
    assert_eq!(request.header("webhook-signature"), None);
    let event: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!(event["id"], id);
    assert_eq!(event["data"], json!({"a": 1}));
}

#[tokio::test]
async fn the_binary_form_is_the_body_with_the_attributes_beside_it() {
    let server = Server::answering(OK).await;
    assert!(matches!(
        post_to(&server, "format = \"binary\"").await,
        Outcome::Done
    ));
    let request = server.request();
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_eq!(request.header("ce-specversion"), Some("1.0"));
    assert_eq!(
        request.header("ce-type"),
        Some("zoom.number-management.unrecognized")
    );
    assert_eq!(request.header("ce-subject"), Some("+12025550143"));
    assert_eq!(request.body, b"{\"a\":\n1}");
}

#[tokio::test]
async fn the_raw_form_is_the_body_alone() {
    let server = Server::answering(OK).await;
    let more = "format = \"raw\", headers = { x-tenant = \"acme\" }";
    assert!(matches!(post_to(&server, more).await, Outcome::Done));
    let request = server.request();
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_eq!(request.header("x-tenant"), Some("acme"));
    assert!(!request.head.contains("\r\nce-"), "{}", request.head);
    assert_eq!(request.body, b"{\"a\":\n1}");
}

#[tokio::test]
async fn a_request_is_signed_as_it_is_sent() {
    for format in ["structured", "binary", "raw"] {
        let server = Server::answering(OK).await;
        let secret = Secret::derived("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned());
        let signer = Signer::try_from(secret).unwrap();
        let mut settings = settings(&server.url, &format!("format = {format:?}")).unwrap();
        settings.signing_secret = Some(signer.clone());
        let outcome = post(&build(settings), &sample::notification("{\"a\":\n1}")).await;
        assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
        let request = server.request();
        let id = request.header("webhook-id").unwrap();
        let at = request
            .header("webhook-timestamp")
            .unwrap()
            .parse()
            .unwrap();
        let at = Timestamp::from_second(at).unwrap();
        let expected = signer.sign(id, at, &request.body);
        // The server keeps heads in lower case.
        assert_eq!(
            request.header("webhook-signature"),
            Some(expected.to_lowercase().as_str()),
            "{format}"
        );
    }
}

#[tokio::test]
async fn requests_go_through_a_proxy_that_is_asked_for() {
    let proxy = Server::answering(OK).await;
    let more = format!("proxy = {:?}", proxy.url);
    let settings = settings("http://crm.example.com/hooks", &more).unwrap();
    let outcome = post(&build(settings), &sample::notification("{}")).await;
    assert!(matches!(outcome, Outcome::Done), "{outcome:?}");
    let request = proxy.request();
    assert!(
        request
            .head
            .starts_with("post http://crm.example.com/hooks http/1.1\r\n"),
        "{}",
        request.head
    );
}

#[test]
fn settings_that_cannot_work_are_refused_while_they_are_read() {
    let url = "https://crm.example.com/hooks";
    assert!(settings(url, "").is_ok());
    for wrong in [
        "crm.example.com/hush",
        "ftp://example.com/hush",
        "https://",
        "hush",
    ] {
        let problem = settings(wrong, "").unwrap_err().to_string();
        assert!(problem.contains("a URL looks like"), "{problem}");
    }
    for more in [
        "format = \"xml\"",
        "headers = { content-type = \"text/plain\" }",
        "headers = { webhook-id = \"1\" }",
        "headers = { Ce-Id = \"1\" }",
        "headers = { \"a b\" = \"1\" }",
        "headers = { a = \"1\\n2\" }",
        "headers = { a = { env = \"UNSET\" } }",
        "connect_timeout = 5",
        "proxy = \"\"",
        "follow_redirects = true",
    ] {
        assert!(settings(url, more).is_err(), "{more}");
    }
}

#[test]
fn secrets_are_not_shown() {
    let more = "headers = { authorization = \"Bearer hush\" }";
    let settings = settings("https://crm.example.com/hush", more).unwrap();
    let shown = format!("{settings:?}");
    assert!(!shown.contains("hush"), "{shown}");
}
