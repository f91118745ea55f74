//! A server that behaves like SQS for `SendMessage` in its JSON protocol, by its documentation,
//! since only Amazon can run the real one.

use std::{
    collections::{HashMap, VecDeque},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use jiff::Timestamp;
use md5::{Digest, Md5};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::{Value, json};

use super::signature::Request;
use crate::harness::unix_now;

pub(super) const REGION: &str = "eu-west-1";
pub(super) const ID: &str = "AKIDEXAMPLE";
pub(super) const SECRET: &str = "a-secret/of+tests";

/// The token that a request for credentials must contain.
pub(super) const TOKEN: &str = "a-token-of-the-machine";

/// The server. It ends with the tests' process.
pub(super) struct Sqs {
    pub(super) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

/// A fault that applies to a request.
#[derive(Clone, Copy)]
pub(super) enum Fault {
    /// The request is refused.
    Refuse(u16, &'static str),
    /// The message is accepted, and the connection is closed without an answer.
    LoseAnswer,
    /// The message is accepted, and the answer has the digest of something else.
    WrongDigest,
    /// Another server answers.
    WrongServer,
}

/// A message in a queue.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) body: String,
    pub(super) content_type: String,
    pub(super) group: Option<String>,
    pub(super) deduplication_id: Option<String>,
}

impl Message {
    /// The event of a structured message.
    pub(super) fn event(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

struct Account {
    id: String,
    secret: String,
    token: Option<String>,
}

#[derive(Default)]
struct State {
    accounts: Vec<Account>,
    queues: HashMap<String, Vec<Message>>,
    faults: VecDeque<Fault>,
    largest: usize,
    requests: usize,
    credential_requests: usize,
    lifetime: i64,
}

/// A refusal: its status and code.
type Refusal = (u16, &'static str);

impl Sqs {
    /// A server with the queues `telephony` and `telephony.fifo`.
    pub(super) fn start() -> Self {
        Self::serve(None)
    }

    /// The same over TLS, with a certificate and its key in PEM.
    pub(super) fn start_tls(certificate: &str, key: &str) -> Self {
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Self::serve(Some(Arc::new(config)))
    }

    fn serve(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let sqs = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
        };
        sqs.state().largest = 1 << 20;
        sqs.expire_after(3600);
        sqs.make("telephony");
        sqs.make("telephony.fifo");
        sqs.allow(ID, SECRET, None);
        let state = sqs.state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (state, tls) = (state.clone(), tls.clone());
                thread::spawn(move || match tls {
                    None => converse(stream, &state),
                    Some(tls) => {
                        let session = ServerConnection::new(tls).unwrap();
                        converse(StreamOwned::new(session, stream), &state);
                    }
                });
            }
        });
        sqs
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Creates a queue.
    pub(super) fn make(&self, queue: &str) {
        self.state().queues.insert(queue.to_owned(), Vec::new());
    }

    /// Accepts these keys, and no others, from now on.
    pub(super) fn allow(&self, id: &str, secret: &str, token: Option<&str>) {
        self.state().accounts = vec![Account {
            id: id.to_owned(),
            secret: secret.to_owned(),
            token: token.map(str::to_owned),
        }];
    }

    /// Applies these faults to the next requests.
    pub(super) fn inject(&self, faults: &[Fault]) {
        self.state().faults.extend(faults);
    }

    /// Refuses messages of more than `largest` bytes.
    pub(super) fn limit(&self, largest: usize) {
        self.state().largest = largest;
    }

    /// The number of requests so far.
    pub(super) fn requests(&self) -> usize {
        self.state().requests
    }

    /// The number of requests for credentials.
    pub(super) fn credential_requests(&self) -> usize {
        self.state().credential_requests
    }

    /// Issues credentials that are valid for `seconds`.
    pub(super) fn expire_after(&self, seconds: i64) {
        self.state().lifetime = seconds;
    }

    /// The messages in a queue, in the order of arrival.
    pub(super) fn messages(&self, queue: &str) -> Vec<Message> {
        self.state().queues[queue].clone()
    }

    /// The events in a queue.
    pub(super) fn events(&self, queue: &str) -> Vec<Value> {
        self.messages(queue).iter().map(Message::event).collect()
    }
}

fn converse(stream: impl Read + Write, state: &Mutex<State>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream) {
        let Some((status, body)) = state.lock().unwrap().answer(&request) else {
            return;
        };
        let answer = format!(
            "HTTP/1.1 {status} told\r\ncontent-type: application/x-amz-json-1.0\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn read(stream: &mut impl BufRead) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            text => lines.push(text.to_owned()),
        }
    }
    let mut first = lines[0].split(' ').map(str::to_owned);
    let header = |line: &String| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_owned(), value.trim().to_owned())
    };
    let mut request = Request {
        method: first.next().unwrap(),
        target: first.next().unwrap(),
        headers: lines[1..].iter().map(header).collect(),
        body: Vec::new(),
    };
    let length = request.header("content-length").unwrap_or("0");
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).ok()?;
    request.body = body;
    Some(request)
}

impl State {
    /// The answer; `None` closes the connection.
    fn answer(&mut self, request: &Request) -> Option<(u16, String)> {
        if let Some(answer) = self.credentials(request) {
            return Some(answer);
        }
        self.requests += 1;
        let fault = self.faults.pop_front();
        let done = match fault {
            Some(Fault::Refuse(status, code)) => Err((status, code)),
            Some(Fault::WrongServer) => return Some((200, "welcome".to_owned())),
            Some(Fault::LoseAnswer | Fault::WrongDigest) | None => self.send(request),
        };
        let body = match (fault, done) {
            (_, Err((status, code))) => {
                let body = json!({ "__type": code, "message": "hush" });
                return Some((status, body.to_string()));
            }
            (Some(Fault::LoseAnswer), _) => return None,
            (Some(Fault::WrongDigest), _) => "something else".to_owned(),
            (_, Ok(body)) => body,
        };
        let digest = Md5::digest(body);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let body = json!({ "MessageId": "an-id", "MD5OfMessageBody": digest });
        Some((200, body.to_string()))
    }

    /// The answer of a container's agent or of an instance's metadata; `None` for other requests.
    fn credentials(&mut self, request: &Request) -> Option<(u16, String)> {
        let (method, target) = (request.method.as_str(), request.target.as_str());
        let roles = "/latest/meta-data/iam/security-credentials/";
        if (method, target) == ("PUT", "/latest/api/token") {
            return Some((200, TOKEN.to_owned()));
        }
        let header = match (method, target.strip_prefix(roles)) {
            ("GET", Some(_)) => "x-aws-ec2-metadata-token",
            ("GET", None) => "authorization",
            _ => return None,
        };
        if request.header(header) != Some(TOKEN) {
            return Some((403, "who are you?".to_owned()));
        }
        if target == roles {
            return Some((200, "a-role".to_owned()));
        }
        self.credential_requests += 1;
        let account = &self.accounts[0];
        let credentials = json!({
            "Code": "Success",
            "AccessKeyId": account.id,
            "SecretAccessKey": account.secret,
            "Token": account.token,
            "Expiration": Timestamp::from_second(unix_now() + self.lifetime).unwrap().to_string(),
        });
        Some((200, credentials.to_string()))
    }

    /// Adds a message to its queue, and returns the answer's body.
    fn send(&mut self, request: &Request) -> Result<String, Refusal> {
        self.authenticate(request)?;
        let is_meant = request.method == "POST"
            && request.target == "/"
            && request.header("content-type") == Some("application/x-amz-json-1.0")
            && request.header("x-amz-target") == Some("AmazonSQS.SendMessage");
        if !is_meant {
            return Err((400, "com.amazon.coral.service#UnknownOperationException"));
        }
        let sent: Value = serde_json::from_slice(&request.body)
            .map_err(|_| (400, "com.amazon.coral.service#SerializationException"))?;
        let message = message(&sent, self.largest)?;
        let name = sent["QueueUrl"].as_str().unwrap_or_default();
        let name = name.strip_prefix("http").unwrap_or_default().rsplit('/');
        let name = name.take(1).collect::<String>();
        let queue = self.queues.get_mut(&name);
        let queue = queue.ok_or((400, "com.amazonaws.sqs#QueueDoesNotExist"))?;
        let is_fifo = name.ends_with(".fifo");
        if message.group.is_some() != is_fifo || message.deduplication_id.is_some() != is_fifo {
            return Err((400, "com.amazonaws.sqs#InvalidParameterValue"));
        }
        let body = message.body.clone();
        let is_duplicate =
            |other: &Message| is_fifo && other.deduplication_id == message.deduplication_id;
        // A real queue drops deduplication ids after five minutes, which no test takes.
        if !queue.iter().any(is_duplicate) {
            queue.push(message);
        }
        Ok(body)
    }

    fn authenticate(&self, request: &Request) -> Result<(), Refusal> {
        let missing = "com.amazon.coral.service#MissingAuthenticationTokenException";
        let shown = request.authorization().ok_or((403, missing))?;
        let unknown = "com.amazon.coral.service#UnrecognizedClientException";
        let mut accounts = self.accounts.iter();
        let account = accounts.find(|account| account.id == shown.id);
        let account = account.ok_or((403, unknown))?;
        if request.header("x-amz-security-token") != account.token.as_deref() {
            return Err((403, unknown));
        }
        let meant = (REGION, "sqs");
        let verified = shown.verify(request, &account.secret, meant, unix_now());
        verified.map_err(|_| (403, "com.amazon.coral.service#InvalidSignatureException"))
    }
}

/// Reads a message, and applies SQS's quotas.
fn message(sent: &Value, largest: usize) -> Result<Message, Refusal> {
    let wrong = (400, "com.amazonaws.sqs#InvalidParameterValue");
    let body = sent["MessageBody"].as_str().filter(|body| !body.is_empty());
    let body = body.ok_or((400, "com.amazonaws.sqs#MissingParameter"))?;
    let is_taken = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    if !body.chars().all(is_taken) {
        return Err((400, "com.amazonaws.sqs#InvalidMessageContents"));
    }
    let attributes = sent["MessageAttributes"].as_object().ok_or(wrong)?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let beside: usize = attributes
        .iter()
        .map(|(name, attribute)| {
            let part = |part: &str| attribute[part].as_str().unwrap().len();
            name.len() + part("DataType") + part("StringValue")
        })
        .sum();
    if attributes.len() > 10 || body.len() + beside > largest {
        return Err(wrong);
    }
    let message = Message {
        body: body.to_owned(),
        content_type: text(&attributes["content-type"]["StringValue"]).ok_or(wrong)?,
        group: text(&sent["MessageGroupId"]),
        deduplication_id: text(&sent["MessageDeduplicationId"]),
    };
    let is_id = |id: &String| {
        (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let mut ids = message.group.iter().chain(&message.deduplication_id);
    if ids.all(is_id) {
        Ok(message)
    } else {
        Err(wrong)
    }
}
