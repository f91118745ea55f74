//! The handler kind `nats`, through the real service and a real server with streams.

mod auth;
mod tls;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{
    harness::{ENDPOINTS, Home, PATIENCE, cnam, distinct_serials, eventually, serials},
    support::server::Server,
};

/// The command for a server with streams and the additional configuration `config`.
fn command(dir: &Path, port: u16, config: &str) -> Command {
    let dir = dir.to_str().unwrap();
    let config = format!(
        "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{dir}/streams\" }}\n{config}\n"
    );
    let file = format!("{dir}/nats.conf");
    fs::write(&file, config.replace("{dir}", dir)).unwrap();
    let mut command = Command::new("nats-server");
    command.args(["--config", &file]);
    command
}

fn start(config: &str) -> Server {
    Server::start(|dir, port| command(dir, port, config))
}

/// A handler that publishes to `server`, with quick retries.
fn bus(name: &str, server: &Server, more: &str) -> String {
    let scheme = if more.contains("ca = ") {
        "tls"
    } else {
        "nats"
    };
    format!(
        r#"
[handlers.{name}]
kind = "nats"
events = ["*"]
servers = ["{scheme}://{}"]
retry = {{ attempts = 100000, first = "20ms", ceiling = "100ms" }}
{more}
"#,
        server.address()
    )
}

/// A client with its own implementation of the protocol, so that the tests do not depend on the
/// service's client.
struct Client {
    stream: BufReader<TcpStream>,
    inboxes: u32,
}

/// One message of a stream.
#[derive(Debug)]
struct Stored {
    subject: String,
    headers: BTreeMap<String, String>,
    data: Vec<u8>,
}

impl Client {
    fn connect(to: SocketAddr) -> Self {
        Self::connect_as(to, json!({}))
    }

    fn connect_as(to: SocketAddr, user: Value) -> Self {
        Self::connect_signing(to, |_| user)
    }

    /// Connects. `user` makes the credentials from the server's nonce, which some users must sign.
    fn connect_signing(to: SocketAddr, user: impl FnOnce(&[u8]) -> Value) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self {
            stream: BufReader::new(stream),
            inboxes: 0,
        };
        let info = client.line();
        let info: Value = serde_json::from_str(info.strip_prefix("INFO ").unwrap()).unwrap();
        let mut user = user(info["nonce"].as_str().unwrap_or_default().as_bytes());
        user["verbose"] = json!(false);
        client.send(&format!("CONNECT {user}\r\nPING\r\n"));
        assert_eq!(client.line(), "PONG");
        client
    }

    fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Sends a request to JetStream.
    fn ask(&mut self, what: &str, question: &Value) -> Value {
        self.inboxes += 1;
        let inbox = self.inboxes;
        let question = question.to_string();
        let length = question.len();
        self.send(&format!(
            "SUB inbox.{inbox} {inbox}\r\nPUB $JS.API.{what} inbox.{inbox} {length}\r\n{question}\r\n"
        ));
        loop {
            let line = self.line();
            if line == "PING" {
                self.send("PONG\r\n");
                continue;
            }
            assert!(line.starts_with(&format!("MSG inbox.{inbox} ")), "{line}");
            let length: usize = line.rsplit(' ').next().unwrap().parse().unwrap();
            let mut answer = vec![0; length + 2];
            self.stream.read_exact(&mut answer).unwrap();
            return serde_json::from_slice(&answer).unwrap();
        }
    }

    /// Creates a stream of `subjects`.
    fn create(&mut self, stream: &str, subjects: &[&str], more: &Value) {
        let mut config = json!({ "name": stream, "subjects": subjects });
        config.as_object_mut().unwrap().extend(
            more.as_object()
                .unwrap()
                .iter()
                .map(|(key, value)| (key.clone(), value.clone())),
        );
        let created = self.ask(&format!("STREAM.CREATE.{stream}"), &config);
        assert_eq!(created.get("error"), None, "{created}");
    }

    /// The number of messages in a stream.
    fn count(&mut self, stream: &str) -> u64 {
        let info = self.ask(&format!("STREAM.INFO.{stream}"), &json!({}));
        // A server that has just started may not have loaded the stream.
        info["state"]["messages"].as_u64().unwrap_or(0)
    }

    /// All messages of a stream without deleted messages.
    fn stored(&mut self, stream: &str) -> Vec<Stored> {
        (1..=self.count(stream))
            .map(|seq| {
                let what = format!("STREAM.MSG.GET.{stream}");
                let answer = self.ask(&what, &json!({ "seq": seq }));
                let message = &answer["message"];
                let bytes = |name: &str| {
                    let text = message[name].as_str().unwrap_or_default();
                    BASE64_STANDARD.decode(text).unwrap()
                };
                let headers = String::from_utf8(bytes("hdrs")).unwrap();
                Stored {
                    subject: message["subject"].as_str().unwrap().to_owned(),
                    headers: headers
                        .lines()
                        .filter_map(|line| line.split_once(':'))
                        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                        .collect(),
                    data: bytes("data"),
                }
            })
            .collect()
    }

    /// The events in a stream of structured messages.
    fn events(&mut self, stream: &str) -> Vec<Value> {
        self.stored(stream)
            .iter()
            .map(|message| serde_json::from_slice(&message.data).unwrap())
            .collect()
    }
}

/// The reasons of the parked deliveries, by handler.
fn reasons(home: &Home) -> BTreeMap<String, String> {
    let parked = home.json(&["parked", "list"]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let parked = parked.as_array().unwrap().iter();
    parked
        .map(|delivery| (text(&delivery["handler"]), text(&delivery["why"])))
        .collect()
}

#[test]
fn a_message_contains_the_event_in_each_form() {
    let server = start("");
    let mut client = Client::connect(server.address());
    client.create("telephony", &["telephony.>"], &json!({}));
    let home = Home::new(&[
        ENDPOINTS,
        &bus("whole", &server, "subject = \"telephony.whole.{type}\""),
        &bus(
            "parts",
            &server,
            "subject = \"telephony.{handler}.{endpoint}.{key}\"\nformat = \"binary\"",
        ),
        &bus(
            "bare",
            &server,
            "subject = \"telephony.bare\"\nformat = \"raw\"",
        ),
    ]);
    let service = home.start();
    let body = cnam(1, 7);
    assert_eq!(service.zoom(&body).status, 200);
    // One stream has the event of each handler, since the messages of two handlers are no
    // duplicates.
    eventually("all events have arrived", || client.count("telephony") == 3);
    let stored = client.stored("telephony");
    let of = |start: &str| {
        let found = stored
            .iter()
            .find(|message| message.subject.starts_with(start));
        found.unwrap_or_else(|| panic!("{start}: {stored:?}"))
    };

    let whole = of("telephony.whole.");
    assert_eq!(
        whole.subject,
        "telephony.whole.zoom.number-management.peering-number-cnam-updated"
    );
    let event: Value = serde_json::from_slice(&whole.data).unwrap();
    let id = event["id"].as_str().unwrap();
    assert_eq!(event["specversion"], "1.0");
    assert_eq!(event["data"], serde_json::from_str::<Value>(&body).unwrap());
    let expected = [
        ("Content-Type", "application/cloudevents+json".to_owned()),
        ("Nats-Msg-Id", format!("{id}/whole")),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value));
    assert_eq!(whole.headers, BTreeMap::from(expected));

    let parts = of("telephony.parts.");
    assert_eq!(
        parts.subject,
        "telephony.parts.number-management.zoom%2Enumber-management/acct-1/1"
    );
    assert_eq!(parts.data, body.as_bytes());
    let expected = [
        ("ce-specversion", "1.0".to_owned()),
        ("ce-id", id.to_owned()),
        ("ce-source", "/hookswitch/number-management".to_owned()),
        (
            "ce-type",
            "zoom.number-management.peering-number-cnam-updated".to_owned(),
        ),
        ("ce-subject", "+12025550001".to_owned()),
        ("ce-time", "2023-11-14T22:13:20.007Z".to_owned()),
        ("ce-datacontenttype", "application/json".to_owned()),
        (
            "ce-receivedtime",
            event["receivedtime"].as_str().unwrap().to_owned(),
        ),
        (
            "ce-partitionkey",
            "zoom.number-management/acct-1/1".to_owned(),
        ),
        ("ce-attempt", "1".to_owned()),
        ("ce-superseded", "false".to_owned()),
        ("Nats-Msg-Id", format!("{id}/parts")),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value));
    assert_eq!(parts.headers, BTreeMap::from(expected));

    let bare = of("telephony.bare");
    assert_eq!(bare.data, body.as_bytes());
    assert_eq!(bare.headers["Content-Type"], "application/json");
    assert_eq!(bare.headers.len(), 2, "{:?}", bare.headers);
}

#[test]
fn a_server_that_starts_late_gets_every_event() {
    let mut server = start("");
    Client::connect(server.address()).create("telephony", &["telephony"], &json!({}));
    server.stop("TERM");
    let home = Home::new(&[ENDPOINTS, &bus("bus", &server, "subject = \"telephony\"")]);
    let service = home.start();
    for serial in 1..=5 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    eventually("the log gives the reason", || {
        service.log().contains("cannot connect to the broker: ")
            && service.log().contains("refused")
    });
    server.restart(|dir, port| command(dir, port, ""));
    let mut client = Client::connect(server.address());
    eventually("all events have arrived", || client.count("telephony") == 5);
    let wanted: Vec<_> = (1..=5).map(|serial| format!("serial {serial}")).collect();
    assert_eq!(serials(&client.events("telephony"), 1), wanted);
}

#[test]
fn a_server_killed_under_load_costs_neither_events_nor_order() {
    let mut server = start("");
    Client::connect(server.address()).create("telephony", &["telephony"], &json!({}));
    let home = Home::new(&[
        ENDPOINTS,
        &bus("bus", &server, "subject = \"telephony\"\ntimeout = \"2s\""),
    ]);
    let service = home.start();
    let outcomes = |outcome: &str| {
        service.metric(&format!(
            r#"hookswitch_deliveries_total{{handler="bus",outcome="{outcome}"}}"#
        ))
    };
    for serial in 0..90 {
        match serial {
            30 => {
                eventually("some events are delivered", || outcomes("done") > 0.0);
                server.kill();
            }
            60 => {
                eventually("some attempts fail", || outcomes("retry") > 0.0);
                server.restart(|dir, port| command(dir, port, ""));
            }
            _ => {}
        }
        let carrier = u32::try_from(serial % 3).unwrap();
        assert_eq!(service.zoom(&cnam(carrier, serial)).status, 200);
    }
    eventually("all events are delivered", || outcomes("done") >= 90.0);
    let events = Client::connect(server.address()).events("telephony");
    for carrier in 0..3 {
        let wanted: Vec<_> = (0..30)
            .map(|turn| format!("serial {}", turn * 3 + carrier))
            .collect();
        assert_eq!(distinct_serials(&events, carrier), wanted);
    }
}

#[test]
fn a_replay_is_no_duplicate_to_the_stream() {
    let server = start("");
    let mut client = Client::connect(server.address());
    client.create("telephony", &["telephony"], &json!({}));
    let home = Home::new(&[ENDPOINTS, &bus("bus", &server, "subject = \"telephony\"")]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("the event has arrived", || client.count("telephony") == 1);
    for (times, reason) in [(2, "lost"), (3, "lost")] {
        let replayed = home.json(&["replay", "--handler", "bus", "--reason", reason]);
        assert_eq!(replayed, json!([["bus", 1]]));
        eventually("the event has arrived again", || {
            client.count("telephony") == times
        });
    }
    let events = client.events("telephony");
    assert_eq!(events[0].get("replayreason"), None);
    assert_eq!(events[2]["replayreason"], "lost");
    assert_eq!(events[0]["id"], events[2]["id"]);
    let id = events[0]["id"].as_str().unwrap();
    // Each replay has its own id, which its attempts share.
    let stored = client.stored("telephony").into_iter();
    let ids: Vec<_> = stored.map(|it| it.headers["Nats-Msg-Id"].clone()).collect();
    let wanted = ["", "/1", "/2"].map(|end| format!("{id}/bus{end}"));
    assert_eq!(ids, wanted);
}

#[test]
fn permanent_failures_are_parked_and_a_missing_stream_is_retried() {
    let server = start(
        "max_payload: 4096\n\
         authorization { users: [\n\
           { user: admin, password: admin }\n\
           { user: hookswitch, password: hush, permissions: {\n\
             publish: [\"telephony.>\"], subscribe: [\"_INBOX.>\"] } }\n\
         ] }",
    );
    let mut client = Client::connect_as(
        server.address(),
        json!({ "user": "admin", "pass": "admin" }),
    );
    client.create(
        "small",
        &["telephony.small"],
        &json!({ "max_msg_size": 512 }),
    );
    client.create("large", &["telephony.large.>"], &json!({}));
    let handler = |name: &str, subject: &str| {
        let more = format!(
            "subject = {subject:?}\n\
             auth = {{ user = {{ name = \"hookswitch\", password = \"hush\" }} }}"
        );
        bus(name, &server, &more)
    };
    let home = Home::new(&[
        ENDPOINTS,
        &handler("small", "telephony.small"),
        &handler("large", "telephony.large.{key}"),
        &handler("denied", "private.{type}"),
        &handler("early", "telephony.early.{type}"),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("two deliveries are parked", || reasons(&home).len() == 2);
    let parked = reasons(&home);
    assert!(
        parked["small"].contains("message size exceeds maximum allowed (10054)"),
        "{parked:?}"
    );
    assert!(
        parked["denied"].contains("denies the user to publish"),
        "{parked:?}"
    );
    eventually("the handler without a stream logs the reason", || {
        service.log().contains("no stream takes the message")
    });
    // Subjects contain ordering keys, which are personal data and must not be in a log.
    assert!(!service.log().contains("private.zoom"), "{}", service.log());

    client.create("early", &["telephony.early.>"], &json!({}));
    eventually("the event is delivered when the stream exists", || {
        client.count("early") == 1
    });

    assert_eq!(client.count("large"), 1);
    let long = cnam(1, 2).replace("serial 2", &"x".repeat(5000));
    assert_eq!(service.zoom(&long).status, 200);
    eventually("one more delivery is parked", || {
        reasons(&home).contains_key("large")
    });
    assert!(reasons(&home)["large"].contains("max payload size exceeded"));
    assert_eq!(service.zoom(&cnam(1, 3)).status, 200);
    eventually("the next event is delivered", || client.count("large") == 2);
}

#[test]
fn a_subject_that_is_too_long_is_parked_and_breaks_no_connection() {
    let server = start("");
    let mut client = Client::connect(server.address());
    client.create("telephony", &["telephony.>"], &json!({}));
    let home = Home::new(&[
        ENDPOINTS,
        &bus("bus", &server, "subject = \"telephony.{key}\""),
    ]);
    let service = home.start();
    let long = cnam(1, 1).replace("acct-1", &"a".repeat(5000));
    assert_eq!(service.zoom(&long).status, 200);
    eventually("the delivery is parked", || {
        reasons(&home)
            .get("bus")
            .is_some_and(|why| why.contains("are the most"))
    });
    assert_eq!(service.zoom(&cnam(2, 2)).status, 200);
    eventually("another event is delivered", || {
        client.count("telephony") == 1
    });
}
