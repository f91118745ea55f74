//! Receivers that use the public libraries for Standard Webhooks and CloudEvents, in Python and
//! JavaScript.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    harness::{
        ARCHIVE, ENDPOINTS, Home, ZOOM_SECRET, as_pairs, cnam, eventually, unix_now, zoom_headers,
    },
    support::server::Server,
};

/// Two keys in the format of `openssl rand -base64 24`.
const KEY: &str = "p/vQtNG7+cGZBOG3mXuCjrLbIDy/8wWk";
const OTHER_KEY: &str = "C2FVsBQIhrscChlQIMV+b5sSYob7oD8F";

/// The path of `name` among the libraries.
///
/// # Panics
///
/// When `tests/run` has not installed the libraries.
pub(crate) fn libraries(name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_hookswitch")).ancestors();
    let folder = target.map(|folder| folder.join("tools").join(name));
    let found = folder.into_iter().find(|folder| folder.is_dir());
    found.unwrap_or_else(|| panic!("there is no target/tools/{name}; `tests/run FILTER` makes it"))
}

/// A running receiver. It drops duplicates by `webhook-id`, and answers each message with a 503
/// first, so that each message arrives twice.
struct Receiver(Server);

impl Receiver {
    fn python(secret: &str) -> Self {
        let path = ("PYTHONPATH", libraries("python"));
        Self::start(&["python3", "-B"], "receiver.py", path, secret)
    }

    fn javascript(secret: &str) -> Self {
        let path = ("NODE_PATH", libraries("node/node_modules"));
        Self::start(&["node"], "receiver.js", path, secret)
    }

    fn start(
        interpreter: &[&str],
        script: &str,
        (variable, libraries): (&str, PathBuf),
        secret: &str,
    ) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/it/verifiers")
            .join(script);
        Self(Server::start(|_, port| {
            let mut command = Command::new(interpreter[0]);
            command.args(&interpreter[1..]).arg(script);
            command.args([&port.to_string(), secret]);
            command.env(variable, libraries);
            command
        }))
    }

    /// The handler `name`, which posts to this receiver and signs with `secret`.
    fn handler(&self, name: &str, secret: &str) -> String {
        format!(
            r#"
[handlers.{name}]
kind = "http"
events = ["*"]
url = "http://{}/"
signing_secret = "{secret}"
retry = {{ attempts = 100000, first = "20ms", ceiling = "100ms" }}
"#,
            self.0.address()
        )
    }

    /// The messages without duplicates.
    fn messages(&self) -> Vec<Value> {
        let log = self.0.log();
        // The last line may be incomplete.
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        let messages: Result<_, _> = whole.lines().map(serde_json::from_str).collect();
        messages.unwrap_or_else(|_| panic!("the receiver failed: {log}"))
    }

    /// The events of the messages, by id, as the library has parsed them.
    fn events(&self) -> Vec<Value> {
        by_id(
            self.messages()
                .into_iter()
                .map(|message| message["event"].clone()),
        )
    }
}

/// The parts that are equal in all deliveries of an event, by event id.
fn by_id(events: impl IntoIterator<Item = Value>) -> Vec<Value> {
    let lasting = |event: Value| {
        let names = [
            "id",
            "source",
            "type",
            "subject",
            "datacontenttype",
            "partitionkey",
            "data",
            "data_base64",
        ];
        names.map(|name| event[name].clone()).into_iter().collect()
    };
    let mut events: Vec<Value> = events.into_iter().map(lasting).collect();
    events.sort_by_key(|event| event[0].to_string());
    events
}

#[test]
fn the_libraries_verify_every_message_and_read_every_event() {
    // The prefix is optional on both sides.
    let prefixed = format!("whsec_{KEY}");
    let (python, javascript) = (Receiver::python(KEY), Receiver::javascript(&prefixed));
    let home = Home::new(&[
        ENDPOINTS,
        ARCHIVE,
        &python.handler("python", &prefixed),
        &javascript.handler("javascript", KEY),
    ]);
    let service = home.start();
    let to = format!("http://{}", service.address);
    let sent = home.json(&["send", "--all", "--to", &to]);
    let sent = sent.as_array().unwrap().iter();
    let mut events = sent.filter(|sent| sent["message"] != "handshake").count();
    // A body that is neither JSON nor UTF-8.
    let body = [0xff; 3];
    let headers = zoom_headers(&body, ZOOM_SECRET, unix_now());
    let answer = service.post("/zoom/number-management", &as_pairs(&headers), &body);
    assert_eq!(answer.status, 200);
    events += 1;

    eventually("all events are archived", || {
        home.archived().len() == events
    });
    for receiver in [python, javascript] {
        eventually("all messages are received", || {
            receiver.messages().len() == events
        });
        assert_eq!(receiver.events(), by_id(home.archived()));
    }
}

#[test]
fn the_libraries_refuse_what_another_key_signed() {
    let (python, javascript) = (Receiver::python(KEY), Receiver::javascript(KEY));
    let home = Home::new(&[
        ENDPOINTS,
        &python.handler("python", OTHER_KEY),
        &javascript.handler("javascript", OTHER_KEY),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("both deliveries are parked", || home.parked().len() == 2);
    let why = "the answer was 401 Unauthorized";
    let parked = [("javascript", why), ("python", why)].map(|(to, why)| (to.into(), why.into()));
    assert_eq!(home.parked(), parked);
}

#[test]
fn a_replay_is_no_copy_to_a_receiver_that_drops_copies() {
    let (python, javascript) = (Receiver::python(KEY), Receiver::javascript(KEY));
    let home = Home::new(&[
        ENDPOINTS,
        &python.handler("python", KEY),
        &javascript.handler("javascript", KEY),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("the event is received", || !python.messages().is_empty());
    let id = python.messages()[0]["event"]["id"].clone();
    let id = id.as_str().unwrap();
    let reasons = ["the receiver lost a day", "and another one"];
    for reason in reasons {
        eventually("each delivery is done", || {
            let event = home.json(&["events", "show", id]);
            let deliveries = event["deliveries"].as_array().unwrap();
            deliveries
                .iter()
                .all(|delivery| delivery["state"] == "done")
        });
        home.json(&["replay", id, "--reason", reason]);
    }
    for receiver in [python, javascript] {
        eventually("each replay is received", || receiver.messages().len() == 3);
        let messages = receiver.messages();
        let received = messages.iter().map(|message| &message["event"]);
        let received: Vec<_> = received
            .map(|event| (&event["id"], &event["replayreason"]))
            .collect();
        let expected = [Value::Null, reasons[0].into(), reasons[1].into()];
        let id = Value::from(id);
        assert_eq!(received, expected.each_ref().map(|reason| (&id, reason)));
    }
}
