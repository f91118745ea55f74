//! The server over real sockets, with real providers and a store in memory.

mod answers;
mod limits;
mod protocols;
mod shutdown;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    event::Notification,
    provider::{Kind, Message, Provider, Verified},
    secret,
    store::{Append, AppendError, BoxFuture, Health, Monitored, StoreError},
};

/// A timeout that only a hang reaches.
const HANG: Duration = Duration::from_secs(20);

/// A setting that a test waits for.
const SHORT: Duration = Duration::from_millis(100);

/// A setting that no test waits for. It is the default of the tests, so that no other setting can end what
/// a test of one setting waits for.
const LONG: Duration = Duration::from_secs(3600);

const RINGCENTRAL: &str = "/ringcentral/phone-number";
const ZOOM: &str = "/zoom/number-management";
const ZOOM_RETRY: &str = "/zoom/retry";

/// The server's clock, stopped.
pub(crate) fn noon() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn provider(name: &str, settings: &str) -> Box<dyn Provider> {
    let sources = secret::Sources {
        env: |_| None,
        inline: true,
    };
    secret::with(sources, || {
        let settings = toml::de::DeValue::parse(settings).unwrap();
        let settings = crate::spanned::Deserializer::new(&settings);
        (Kind::named(name).unwrap().read)(settings).unwrap()
    })
}

fn ringcentral() -> Box<dyn Provider> {
    provider("ringcentral", r#"{ verification_tokens = ["rc-token"] }"#)
}

fn zoom() -> Box<dyn Provider> {
    provider("zoom", r#"{ secret_tokens = ["zoom-secret"] }"#)
}

fn endpoint(path: &str, family: &str, provider: Box<dyn Provider>) -> Endpoint {
    Endpoint {
        name: path
            .trim_start_matches('/')
            .replace('/', "-")
            .as_str()
            .into(),
        family: Family::named(family).unwrap(),
        path: path.to_owned(),
        provider,
    }
}

fn endpoints() -> Vec<Endpoint> {
    let retry = r#"{ secret_tokens = ["zoom-secret"], on_bad_signature = "retry" }"#;
    vec![
        endpoint(RINGCENTRAL, "ringcentral.phone-number", ringcentral()),
        endpoint(ZOOM, "zoom.number-management", zoom()),
        endpoint(
            ZOOM_RETRY,
            "zoom.number-management",
            provider("zoom", retry),
        ),
    ]
}

/// A store in memory whose behaviour a test sets.
pub(crate) struct Memory {
    /// Its health.
    pub(crate) health: watch::Sender<Health>,
    /// When its gauges were last updated.
    pub(crate) measured_at: Mutex<Option<Timestamp>>,
    kept: Mutex<Vec<Notification>>,
    behaviour: Mutex<Behaviour>,
    /// Notified when an append begins.
    entered: Notify,
    /// Notified to let one stalled append continue.
    go_on: Notify,
}

#[derive(Clone, Default)]
enum Behaviour {
    #[default]
    Keep,
    Fail(AppendError),
    Stall,
    Panic,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            health: watch::Sender::new(Health::Sound),
            measured_at: Mutex::default(),
            kept: Mutex::default(),
            behaviour: Mutex::default(),
            entered: Notify::new(),
            go_on: Notify::new(),
        }
    }
}

impl Memory {
    fn set(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    /// Waits until an append has begun.
    async fn entered(&self) {
        let entered = timeout(HANG, self.entered.notified()).await;
        entered.expect("nothing is appended");
    }

    fn kept(&self) -> Vec<Notification> {
        self.kept.lock().unwrap().clone()
    }
}

impl Append for Memory {
    fn append(&self, event: Verified) -> BoxFuture<'_, Result<(), AppendError>> {
        let behaviour = self.behaviour.lock().unwrap().clone();
        Box::pin(async move {
            self.entered.notify_one();
            match behaviour {
                Behaviour::Keep => {}
                Behaviour::Fail(error) => return Err(error),
                Behaviour::Stall => self.go_on.notified().await,
                Behaviour::Panic => panic!("the test's store panics"),
            }
            self.kept.lock().unwrap().push(event.into_notification());
            Ok(())
        })
    }
}

impl Monitored for Memory {
    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn measure(&self, now: Timestamp) -> BoxFuture<'_, Result<(), StoreError>> {
        *self.measured_at.lock().unwrap() = Some(now);
        Box::pin(async { Ok(()) })
    }
}

/// A server that runs while the test does.
struct TestServer {
    address: SocketAddr,
    store: Arc<Memory>,
    metrics: Arc<Metrics>,
    webhook: Arc<Webhook>,
    certificate: Option<Arc<Certificate>>,
    shutdown: CancellationToken,
    served: JoinHandle<Drained>,
}

impl TestServer {
    fn open() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Settings)) -> Self {
        // On a busy machine a second is short, so only the test of the budget keeps to it.
        Self::build(change, HANG)
    }

    /// Two servers whose setting of a duration is [`SHORT`] and [`LONG`]. A test lets both wait for the same
    /// thing, the second one first. When only the first one gives up, the setting is respected.
    fn short_and_long(set: impl Fn(&mut Settings, Duration)) -> [Self; 2] {
        [SHORT, LONG].map(|duration| Self::with(|settings| set(settings, duration)))
    }

    fn build(change: impl FnOnce(&mut Settings), append_budget: Duration) -> Self {
        let mut settings = Settings {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            first_byte_timeout: LONG,
            head_timeout: LONG,
            body_timeout: LONG,
            drain_timeout: LONG,
            ..Settings::default()
        };
        change(&mut settings);
        let metrics = Arc::new(Metrics::default());
        let store = Arc::new(Memory::default());
        let server = Server::bind(&settings, &metrics).unwrap();
        let webhook = Webhook::new(
            &settings,
            endpoints(),
            Arc::clone(&store) as Arc<dyn Append>,
            Arc::clone(&metrics),
            noon,
        );
        let webhook = Arc::new(webhook.with_append_budget(append_budget));
        let shutdown = CancellationToken::new();
        let address = server.local_addr();
        let certificate = server.certificate();
        let until = shutdown.clone().cancelled_owned();
        let served = tokio::spawn(server.serve(Arc::clone(&webhook), until));
        Self {
            address,
            store,
            metrics,
            webhook,
            certificate,
            shutdown,
            served,
        }
    }

    async fn connect(&self) -> Peer {
        Peer(TcpStream::connect(self.address).await.unwrap())
    }

    /// One request on a connection of its own, and the whole answer.
    async fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut peer = self.connect().await;
        peer.send(request).await;
        peer.answer().await
    }

    /// All metrics.
    fn metrics(&self) -> String {
        let format = crate::telemetry::MetricsFormat::Prometheus;
        self.metrics.render(format).unwrap()
    }

    /// The value of the metric whose line begins with `series`.
    fn metric(&self, series: &str) -> f64 {
        let text = self.metrics();
        let line = text.lines().find(|line| line.starts_with(series));
        let line = line.unwrap_or_else(|| panic!("no {series} in:\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    fn answered(&self, endpoint: &str, answer: &str) -> f64 {
        self.metric(&format!(
            "hookswitch_requests_total{{endpoint=\"{endpoint}\",answer=\"{answer}\"}}"
        ))
    }

    async fn drain(self) -> Drained {
        self.shutdown.cancel();
        timeout(HANG, self.served).await.unwrap().unwrap()
    }
}

/// Waits until `condition` holds.
async fn until(condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(HANG, holds)
        .await
        .expect("the condition never holds");
}

/// A client connection, byte by byte.
struct Peer(TcpStream);

impl Peer {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads one answer.
    async fn answer(&mut self) -> Answer {
        let mut raw = Vec::new();
        let head_end = loop {
            if let Some(end) = raw.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            self.read_into(&mut raw).await;
        };
        let head = String::from_utf8(raw[..head_end].to_vec()).unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        while raw.len() < head_end + length {
            self.read_into(&mut raw).await;
        }
        assert_eq!(raw.len(), head_end + length, "more than one answer");
        Answer { raw, head_end }
    }

    async fn read_into(&mut self, raw: &mut Vec<u8>) {
        let read = timeout(HANG, self.0.read_buf(raw))
            .await
            .expect("no answer");
        let so_far = String::from_utf8_lossy(raw).into_owned();
        assert_ne!(read.unwrap(), 0, "closed in place of an answer: {so_far:?}");
    }

    /// Whether the server has neither answered nor closed the connection.
    fn is_waiting(&self) -> bool {
        let read = self.0.try_read(&mut [0]);
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// Waits until the server closes the connection; returns the bytes read until then.
    async fn closed(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let read = timeout(HANG, self.0.read_to_end(&mut rest)).await;
        // A reset closes as well as an end does.
        read.expect("the connection stays open").unwrap_or_default();
        rest
    }
}

/// One answer, byte by byte.
struct Answer {
    raw: Vec<u8>,
    head_end: usize,
}

impl Answer {
    fn status(&self) -> u16 {
        String::from_utf8_lossy(&self.raw[9..12]).parse().unwrap()
    }

    fn body(&self) -> &[u8] {
        &self.raw[self.head_end..]
    }

    /// The whole answer, without the value of its date.
    fn text(&self) -> String {
        let text = String::from_utf8(self.raw.clone()).unwrap();
        let (before, rest) = text.split_once("date: ").unwrap();
        let (_, after) = rest.split_once("\r\n").unwrap();
        format!("{before}date: -\r\n{after}")
    }
}

/// The bytes of a POST.
fn post(path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    request("POST", path, headers, body)
}

/// The bytes of a request.
fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.1\r\nhost: hooks.example\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// The bytes of `message` as `provider` sends it at `now`.
fn authentic(provider: &dyn Provider, path: &str, message: Message<'_>, now: Timestamp) -> Vec<u8> {
    let composed = provider.compose(message, now);
    let headers: Vec<_> = composed
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect();
    let query = composed
        .query
        .map_or_else(String::new, |query| format!("?{query}"));
    let target = format!("{path}{query}");
    request(composed.method.as_str(), &target, &headers, &composed.body)
}

fn ringcentral_event(body: &'static str) -> Vec<u8> {
    let message = Message::Event {
        body: &Bytes::from_static(body.as_bytes()),
        delivery: "one",
    };
    authentic(&*ringcentral(), RINGCENTRAL, message, noon())
}

fn zoom_event(body: &'static str, signed_at: Timestamp) -> Vec<u8> {
    let message = Message::Event {
        body: &Bytes::from_static(body.as_bytes()),
        delivery: "one",
    };
    authentic(&*zoom(), ZOOM, message, signed_at)
}
