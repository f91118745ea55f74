//! The test harness: the real binary in a folder of its own, a provider's requests, and a handler's
//! server.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant, UNIX_EPOCH},
};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tempfile::TempDir;

use crate::support::{mtls::MutualTls, postgres::Database};

/// A timeout for any condition, on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const RINGCENTRAL_TOKEN: &str = "a-token-for-tests";
pub(crate) const ZOOM_SECRET: &str = "a-secret-for-tests";

/// Makes each case a test for each [`Engine`] of the store. The compiler reports a case that is not
/// listed as dead code.
macro_rules! on_every_engine {
    ($($case:ident,)+) => {
        on_every_engine!(embedded Embedded: $($case,)+);
        #[cfg(feature = "postgres")]
        on_every_engine!(postgres Postgres: $($case,)+);
    };
    ($name:ident $engine:ident: $($case:ident,)+) => {
        mod $name {
            $(
                #[test]
                fn $case() {
                    super::$case($crate::harness::Engine::$engine);
                }
            )+
        }
    };
}
pub(crate) use on_every_engine;

/// The engine of a service's store.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Engine {
    Embedded,
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "left out"))]
    Postgres,
}

impl Engine {
    /// The folder of a service on this engine, with the configuration `config`. The store of
    /// [`ENDPOINTS`] is replaced by a store of this engine.
    pub(crate) fn home(self, config: &[&str]) -> Home {
        let database = match self {
            Self::Embedded => None,
            Self::Postgres => Some(Database::new()),
        };
        let home = Home {
            dir: tempfile::tempdir().unwrap(),
            database,
        };
        home.configure(config);
        home
    }
}

/// The store of [`ENDPOINTS`].
const EMBEDDED: &str = "kind = \"embedded\"\npath = \"{dir}/data\"\nreserve = 0\n";

/// Three endpoints on free ports, and an embedded store. A test adds the handlers. `{dir}` is the
/// folder of the service.
pub(crate) const ENDPOINTS: &str = r#"
[server]
listen = "127.0.0.1:0"

[admin]
listen = "127.0.0.1:0"

[store]
kind = "embedded"
path = "{dir}/data"
reserve = 0

[endpoints.phone-number]
family = "ringcentral.phone-number"
path = "/ringcentral/phone-number"
verification_tokens = ["a-token-for-tests"]

[endpoints.extension-info]
family = "ringcentral.extension-info"
path = "/ringcentral/extension-info"
verification_tokens = ["a-token-for-tests"]

[endpoints.number-management]
family = "zoom.number-management"
path = "/zoom/number-management"
secret_tokens = ["a-secret-for-tests"]
"#;

/// A handler that writes every event to `events.ndjson`.
pub(crate) const ARCHIVE: &str = r#"
[handlers.archive]
kind = "file"
events = ["*"]
path = "{dir}/events.ndjson"
"#;

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The size of the answer in bytes.
    pub(crate) fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

/// The folder of a service. It outlives the process.
pub(crate) struct Home {
    dir: TempDir,
    /// The database, where the store is not in the folder.
    database: Option<Database>,
}

impl Home {
    /// A folder with an embedded store.
    pub(crate) fn new(config: &[&str]) -> Self {
        Engine::Embedded.home(config)
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path().join("hookswitch.toml")
    }

    /// The URL of the store, where it is a database.
    #[cfg(feature = "postgres")]
    pub(crate) fn database_url(&self) -> String {
        self.database.as_ref().unwrap().url()
    }

    /// Writes the configuration, the concatenation of `parts`.
    pub(crate) fn configure(&self, parts: &[&str]) {
        let mut config = parts.concat();
        if let Some(database) = &self.database {
            let store = format!("kind = \"postgres\"\nurl = \"{}\"\n", database.url());
            config = config.replace(EMBEDDED, &store);
        }
        let dir = self.path().to_str().unwrap();
        fs::write(self.config(), config.replace("{dir}", dir)).unwrap();
    }

    /// Runs a subcommand to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        hookswitch()
            .args(arguments)
            .arg("--config")
            .arg(self.config())
            .output()
            .unwrap()
    }

    /// Runs a subcommand that prints JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The CloudEvents in the archive.
    pub(crate) fn archived(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.path().join("events.ndjson")).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// The parked deliveries, as sorted pairs of handler and reason.
    pub(crate) fn parked(&self) -> Vec<(String, String)> {
        let parked = self.json(&["parked", "list"]);
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let rows = parked.as_array().unwrap().iter();
        let mut rows: Vec<_> = rows
            .map(|row| (text(&row["handler"]), text(&row["why"])))
            .collect();
        rows.sort();
        rows
    }

    pub(crate) fn start(&self) -> Service {
        Service::spawn(self, hookswitch())
    }
}

pub(crate) fn hookswitch() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hookswitch"));
    command
        .env_remove("RUST_LOG")
        .env_remove("HOOKSWITCH_CONFIG");
    command
}

/// A running `serve`. When dropped, it is stopped as an operator stops it, and must drain: a test that leaves
/// it in another state kills it or waits for its end.
pub(crate) struct Service {
    child: Child,
    /// Whether the test has seen the end of the process.
    is_over: bool,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Service {
    /// Starts `command`, which runs `hookswitch`, and waits until it prints its addresses.
    pub(crate) fn spawn(home: &Home, command: Command) -> Self {
        Self::try_spawn(home, command).unwrap_or_else(|ended| panic!("{ended}"))
    }

    /// The same, for a service that may end before that. The error says how it ended.
    pub(crate) fn try_spawn(home: &Home, mut command: Command) -> Result<Self, String> {
        let mut child = command
            .arg("serve")
            .arg("--config")
            .arg(home.config())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = follow(child.stderr.take().unwrap());
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut introduction = String::new();
        while !introduction.contains("operators ") {
            if stdout.read_line(&mut introduction).unwrap() == 0 {
                let status = child.wait().unwrap();
                let log = log.lock().unwrap();
                return Err(format!("serve ended with {status}: {introduction}{log}"));
            }
        }
        // The pipe is read to its end, so that the service never writes to a closed pipe.
        thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        let listener = |word: &str| {
            let line = introduction
                .lines()
                .find(|line| line.trim().starts_with(word))
                .unwrap();
            let url = line.split("//").nth(1).unwrap();
            url.split('/').next().unwrap().parse().unwrap()
        };
        Ok(Self {
            address: listener("zoom."),
            admin: listener("operators"),
            child,
            is_over: false,
            log,
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.child.id().to_string())
            .status();
        assert!(sent.unwrap().success());
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.is_over = true;
    }

    /// The exit status, if the process has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().unwrap();
        self.is_over |= status.is_some();
        status
    }

    /// Waits for the end of the process.
    pub(crate) fn wait_for_end(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the service ends", || {
            status = self.ended();
            status.is_some()
        });
        status.unwrap()
    }

    /// Waits for the end of the process, and returns its exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.wait_for_end().code()
    }

    /// The log so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        request(self.address, "POST", path, headers, body).unwrap()
    }

    /// Posts a RingCentral event with the right token.
    pub(crate) fn ringcentral(&self, path: &str, body: &str) -> Answer {
        self.post(
            path,
            &[("verification-token", RINGCENTRAL_TOKEN)],
            body.as_bytes(),
        )
    }

    /// Posts a Zoom event, signed now.
    pub(crate) fn zoom(&self, body: &str) -> Answer {
        self.post(
            "/zoom/number-management",
            &as_pairs(&zoom_headers(body.as_bytes(), ZOOM_SECRET, unix_now())),
            body.as_bytes(),
        )
    }

    pub(crate) fn ready(&self) -> (u16, String) {
        let answer = request(self.admin, "GET", "/readyz", &[], b"").unwrap();
        (
            answer.status,
            String::from_utf8(answer.body).unwrap().trim().to_owned(),
        )
    }

    /// The value of the metric whose line starts with `series`; 0 if there is none.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let answer = request(self.admin, "GET", "/metrics", &[], b"").unwrap();
        let text = String::from_utf8(answer.body).unwrap();
        let line = text.lines().find(|line| line.starts_with(series));
        line.map_or(0.0, |line| {
            line.rsplit_once(' ').unwrap().1.parse().unwrap()
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if thread::panicking() {
            drop(self.child.kill());
            drop(self.child.wait());
            eprintln!("the service's log:\n{}", self.log());
        } else if !self.is_over {
            if self.ended().is_none() {
                self.signal("TERM");
            }
            let status = self.wait_for_end();
            assert!(
                status.success(),
                "the service ended with {status} after the test:\n{}",
                self.log()
            );
        }
    }
}

/// Collects the output of `pipe`.
fn follow(pipe: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let log = Arc::new(Mutex::new(String::new()));
    let collected = log.clone();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut log = log.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
    collected
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(10)); // Between two looks at the condition.
    }
}

pub(crate) fn unix_now() -> i64 {
    let now = UNIX_EPOCH.elapsed().unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

/// Zoom's signature headers for `body` at `at`, in Unix seconds.
pub(crate) fn zoom_headers(body: &[u8], secret: &str, at: i64) -> Vec<(String, String)> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("v0:{at}:").as_bytes());
    mac.update(body);
    let mac: String = mac
        .finalize()
        .into_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    vec![
        ("x-zm-request-timestamp".to_owned(), at.to_string()),
        ("x-zm-signature".to_owned(), format!("v0={mac}")),
    ]
}

pub(crate) fn as_pairs(headers: &[(String, String)]) -> Vec<(&str, &str)> {
    headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

/// Sends one request on a connection of its own.
pub(crate) fn request(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Answer> {
    request_within(PATIENCE, to, method, path, headers, body)
}

/// The same, with a timeout of `limit` for each step.
pub(crate) fn request_within(
    limit: Duration,
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let mut message = format!(
        "{method} {path} HTTP/1.1\r\nhost: {to}\r\ncontent-length: {}\r\nconnection: close\r\n",
        body.len()
    );
    for (name, value) in headers {
        message.push_str(&format!("{name}: {value}\r\n"));
    }
    message.push_str("\r\n");
    // A server may answer and close before it has read the whole request.
    let written = stream
        .write_all(message.as_bytes())
        .and_then(|()| stream.write_all(body));
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    if answer.is_empty() {
        written?;
        read?;
    }
    parse_answer(&answer).ok_or_else(|| {
        let text = String::from_utf8_lossy(&answer).into_owned();
        std::io::Error::other(format!("not a whole answer: {text:?}"))
    })
}

fn parse_answer(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer {
        status,
        head,
        body: bytes[end..].to_vec(),
    })
}

/// A server for `http` handlers. It records the requests and answers with configured statuses.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    seen: Arc<Seen>,
    statuses: Arc<Statuses>,
}

type Seen = Mutex<Vec<serde_json::Value>>;
type Statuses = Mutex<HashMap<String, u16>>;

impl Receiver {
    pub(crate) fn start() -> Self {
        Self::listen(serve_one::<TcpStream>)
    }

    /// A receiver with mutual TLS.
    pub(crate) fn start_tls(tls: &MutualTls) -> Self {
        let config = tls.config.clone();
        Self::listen(move |stream, seen, statuses| {
            let session = rustls::ServerConnection::new(config.clone()).unwrap();
            serve_one(rustls::StreamOwned::new(session, stream), seen, statuses);
        })
    }

    fn listen(serve: impl Fn(TcpStream, &Seen, &Statuses) + Clone + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let receiver = Self {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
            statuses: Arc::default(),
        };
        let (seen, statuses) = (receiver.seen.clone(), receiver.statuses.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (seen, statuses) = (seen.clone(), statuses.clone());
                let serve = serve.clone();
                thread::spawn(move || serve(stream, &seen, &statuses));
            }
        });
        receiver
    }

    /// Answers `status` to every event whose body contains `text`, until the next call.
    pub(crate) fn answer(&self, text: &str, status: u16) {
        self.statuses
            .lock()
            .unwrap()
            .insert(text.to_owned(), status);
    }

    /// The CloudEvents that were answered 200, in order of arrival.
    pub(crate) fn received(&self) -> Vec<serde_json::Value> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve_one<S: Read + Write>(stream: S, seen: &Seen, statuses: &Statuses) {
    let mut reader = BufReader::new(stream);
    while let Some(text) = read_request(&mut reader) {
        let status = {
            let statuses = statuses.lock().unwrap();
            let configured = statuses
                .iter()
                .find(|(needle, _)| text.contains(needle.as_str()));
            configured.map_or(200, |(_, status)| *status)
        };
        if status == 200 {
            seen.lock()
                .unwrap()
                .push(serde_json::from_str(&text).unwrap());
        }
        let answer = format!("HTTP/1.1 {status} told\r\ncontent-length: 0\r\n\r\n");
        if reader.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// A self-signed certificate for a server on this machine, and its key, PEM.
pub(crate) fn certificate() -> (String, String) {
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// A client's certificate, its key, and its CA certificate, PEM.
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) authority: String,
}

impl Identity {
    pub(crate) fn new() -> Self {
        let named = |name: &str| {
            let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
            let holder = &mut params.distinguished_name;
            holder.push(rcgen::DnType::CommonName, name);
            params
        };
        let mut authority = named("authority");
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let authority = rcgen::CertifiedIssuer::self_signed(authority, key).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = named("hookswitch").signed_by(&key, &authority).unwrap();
        Self {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            authority: authority.pem(),
        }
    }

    /// Writes the certificate and the key into a folder, and returns the settings that name them.
    pub(crate) fn settings(&self, dir: &Path) -> String {
        let (certificate, key) = (dir.join("client.pem"), dir.join("client-key.pem"));
        fs::write(&certificate, &self.certificate).unwrap();
        fs::write(&key, &self.key).unwrap();
        format!("tls.certificate = {certificate:?}\ntls.key = {key:?}")
    }
}

/// The body of the next request on a connection; `None` when the connection ends before.
pub(crate) fn read_request(reader: &mut impl BufRead) -> Option<String> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return None;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(String::from_utf8_lossy(&body).into_owned())
}

/// A caller-name change of the number of `carrier`, with a serial number. Changes of one carrier share
/// their ordering key; changes of two carriers share none.
pub(crate) fn cnam(carrier: u32, serial: u64) -> String {
    let number = format!("+1202555{:04}", carrier % 10_000);
    cnam_about(carrier, &[&number], serial)
}

/// The same of `numbers`.
pub(crate) fn cnam_about(carrier: u32, numbers: &[&str], serial: u64) -> String {
    let event_ts = 1_700_000_000_000 + serial;
    let numbers = serde_json::to_string(numbers).unwrap();
    format!(
        r#"{{"event":"number_management.peering_number_cnam_updated","event_ts":{event_ts},"payload":{{"account_id":"acct-{carrier}","object":{{"carrier_code":{carrier},"phone_numbers":{numbers},"cnam":"serial {serial}"}}}}}}"#
    )
}

/// The serial numbers of the caller-name changes of `carrier` among `events`, in order.
pub(crate) fn serials(events: &[serde_json::Value], carrier: u32) -> Vec<String> {
    events
        .iter()
        .map(|event| &event["data"]["payload"]["object"])
        .filter(|object| object["carrier_code"] == carrier)
        .map(|object| object["cnam"].as_str().unwrap().to_owned())
        .collect()
}

/// [`serials`] without duplicates: each serial number where it first occurs. Order per key does not
/// cover duplicates.
#[cfg(any(
    feature = "amqp",
    feature = "mqtt",
    feature = "nats",
    feature = "redis",
    feature = "sqs"
))]
pub(crate) fn distinct_serials(events: &[serde_json::Value], carrier: u32) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    let mut serials = serials(events, carrier);
    serials.retain(|serial| seen.insert(serial.clone()));
    serials
}

/// A contact-center phone-number event with the id `uuid`.
pub(crate) fn phone_number(uuid: &str, id: &str) -> String {
    format!(
        r#"{{"uuid":"{uuid}","event":"/restapi/v1.0/account/400123/phone-number?usageType=ContactCenterNumber","timestamp":"2026-03-01T10:00:00.000Z","subscriptionId":"sub-1","ownerId":"77","body":{{"eventType":"Created","phoneNumberInfo":{{"id":"{id}","phoneNumber":"+12025550147","usageType":"ContactCenterNumber"}}}}}}"#
    )
}
