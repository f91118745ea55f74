//! The handler kind `redis`, through the real service and a real server with streams.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
};

use serde_json::Value;

use crate::{
    harness::{
        ENDPOINTS, Home, Identity, PATIENCE, Service, certificate, cnam, distinct_serials,
        eventually, serials,
    },
    support::server::{Server, free_port},
};

/// The command for a server that syncs each entry before it replies.
fn command(dir: &Path, port: u16, more: &[&str]) -> Command {
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"])
        .arg(dir)
        .args(["--appendonly", "yes", "--appendfsync", "always"])
        .args(["--repl-diskless-sync-delay", "0"])
        .args(more);
    command
}

fn start(more: &[&str]) -> Server {
    Server::start(|dir, port| command(dir, port, more))
}

/// A handler that adds to a stream with the handler's name, with quick retries.
fn handler(name: &str, at: impl std::fmt::Display, more: &str) -> String {
    format!(
        r#"
[handlers.{name}]
kind = "redis"
events = ["*"]
url = "{at}"
stream = "{name}"
retry = {{ attempts = 100000, first = "20ms", ceiling = "100ms" }}
{more}
"#
    )
}

fn plain(server: &Server) -> String {
    format!("redis://{}", server.address())
}

/// A client with its own implementation of the protocol, so that the tests do not depend on the
/// service's client.
struct Client(BufReader<TcpStream>);

/// A server's reply.
#[derive(Debug, PartialEq)]
enum Reply {
    Text(String),
    Number(i64),
    List(Vec<Self>),
    Error(String),
    Nothing,
}

impl Client {
    fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    fn ask(&mut self, words: &[&str]) -> Reply {
        let mut question = format!("*{}\r\n", words.len());
        for word in words {
            question += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.get_mut().write_all(question.as_bytes()).unwrap();
        self.reply()
    }

    fn reply(&mut self) -> Reply {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let (kind, rest) = line.trim_end().split_at(1);
        let number = || rest.parse::<i64>().unwrap();
        match kind {
            "+" => Reply::Text(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Number(number()),
            "$" | "*" if number() < 0 => Reply::Nothing,
            "$" => {
                let mut text = vec![0; usize::try_from(number()).unwrap() + 2];
                self.0.read_exact(&mut text).unwrap();
                text.truncate(text.len() - 2);
                Reply::Text(String::from_utf8(text).unwrap())
            }
            "*" => Reply::List((0..number()).map(|_| self.reply()).collect()),
            _ => panic!("{line:?}"),
        }
    }

    fn ok(&mut self, words: &[&str]) {
        assert_eq!(self.ask(words), Reply::Text("OK".to_owned()), "{words:?}");
    }

    /// The number of entries in a stream; 0 while the server is loading its data.
    fn count(&mut self, stream: &str) -> i64 {
        match self.ask(&["XLEN", stream]) {
            Reply::Number(count) => count,
            _ => 0,
        }
    }

    /// The fields of each entry of a stream.
    fn entries(&mut self, stream: &str) -> Vec<Vec<(String, String)>> {
        let Reply::List(entries) = self.ask(&["XRANGE", stream, "-", "+"]) else {
            panic!("{stream} is no stream");
        };
        let text = |reply: &Reply| match reply {
            Reply::Text(text) => text.clone(),
            other => panic!("{other:?} is no text"),
        };
        let fields = |entry: &Reply| match entry {
            Reply::List(entry) => match &entry[1] {
                Reply::List(fields) => fields
                    .chunks(2)
                    .map(|field| (text(&field[0]), text(&field[1])))
                    .collect(),
                other => panic!("{other:?} are no fields"),
            },
            other => panic!("{other:?} is no entry"),
        };
        entries.iter().map(fields).collect()
    }

    /// The events in a stream of structured entries.
    fn events(&mut self, stream: &str) -> Vec<Value> {
        let entries = self.entries(stream).into_iter();
        entries
            .map(|fields| {
                assert_eq!(fields.len(), 1, "{fields:?}");
                assert_eq!(fields[0].0, "event");
                serde_json::from_str(&fields[0].1).unwrap()
            })
            .collect()
    }
}

/// Waits until the log contains `why` as the reason of a failed attempt.
fn says(service: &Service, why: &str) {
    eventually(why, || service.log().contains(why));
}

#[test]
fn an_entry_contains_the_event_in_each_form() {
    let server = start(&[]);
    let at = plain(&server) + "/3";
    let home = Home::new(&[
        ENDPOINTS,
        &handler("whole", &at, ""),
        &handler("parts", &at, "format = \"binary\""),
        &handler("bare", &at, "format = \"raw\""),
    ]);
    let service = home.start();
    let body = cnam(1, 7);
    assert_eq!(service.zoom(&body).status, 200);
    let mut client = Client::connect(server.address());
    client.ok(&["SELECT", "3"]);
    eventually("all events have arrived", || {
        ["whole", "parts", "bare"].map(|stream| client.count(stream)) == [1, 1, 1]
    });

    let events = client.events("whole");
    assert_eq!(events[0]["specversion"], "1.0");
    assert_eq!(
        events[0]["data"],
        serde_json::from_str::<Value>(&body).unwrap()
    );

    let of_event = |name: &str| events[0][name].as_str().unwrap().to_owned();
    let expected = [
        ("specversion", "1.0".to_owned()),
        ("id", of_event("id")),
        ("source", "/hookswitch/number-management".to_owned()),
        (
            "type",
            "zoom.number-management.peering-number-cnam-updated".to_owned(),
        ),
        ("subject", "+12025550001".to_owned()),
        ("time", "2023-11-14T22:13:20.007Z".to_owned()),
        ("datacontenttype", "application/json".to_owned()),
        ("receivedtime", of_event("receivedtime")),
        ("partitionkey", "zoom.number-management/acct-1/1".to_owned()),
        ("attempt", "1".to_owned()),
        ("superseded", "false".to_owned()),
        ("data", body.clone()),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value));
    assert_eq!(client.entries("parts"), [expected.to_vec()]);
    assert_eq!(client.entries("bare"), [vec![("data".to_owned(), body)]]);
}

#[test]
fn a_server_that_starts_late_gets_every_event() {
    let mut server = start(&[]);
    server.kill();
    let home = Home::new(&[ENDPOINTS, &handler("late", plain(&server), "")]);
    let service = home.start();
    for serial in 1..=5 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    says(&service, "cannot connect: Connection refused");
    server.restart(|dir, port| command(dir, port, &[]));
    let mut client = Client::connect(server.address());
    eventually("all events have arrived", || client.count("late") == 5);
    let wanted: Vec<_> = (1..=5).map(|serial| format!("serial {serial}")).collect();
    assert_eq!(serials(&client.events("late"), 1), wanted);
}

#[test]
fn a_server_killed_under_load_costs_neither_events_nor_order() {
    let mut server = start(&[]);
    let home = Home::new(&[ENDPOINTS, &handler("stream", plain(&server), "")]);
    let service = home.start();
    let outcomes = |outcome: &str| {
        service.metric(&format!(
            r#"hookswitch_deliveries_total{{handler="stream",outcome="{outcome}"}}"#
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
                server.restart(|dir, port| command(dir, port, &[]));
            }
            _ => {}
        }
        let carrier = u32::try_from(serial % 3).unwrap();
        assert_eq!(service.zoom(&cnam(carrier, serial)).status, 200);
    }
    eventually("all events are delivered", || outcomes("done") >= 90.0);
    let events = Client::connect(server.address()).events("stream");
    for carrier in 0..3 {
        let wanted: Vec<_> = (0..30)
            .map(|turn| format!("serial {}", turn * 3 + carrier))
            .collect();
        assert_eq!(distinct_serials(&events, carrier), wanted);
    }
}

#[test]
fn connections_that_were_closed_while_idle_cost_no_attempt() {
    let server = start(&[]);
    let home = Home::new(&[ENDPOINTS, &handler("stream", plain(&server), "")]);
    let service = home.start();
    let mut client = Client::connect(server.address());
    for serial in 1..=3 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
        let count = i64::try_from(serial).unwrap();
        eventually("the event has arrived", || client.count("stream") == count);
        client.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    }
    let retried = r#"hookswitch_deliveries_total{handler="stream",outcome="retry"}"#;
    assert_eq!(service.metric(retried), 0.0, "{}", service.log());
}

#[test]
fn a_stream_is_cut_to_about_its_length() {
    let server = start(&["--stream-node-max-entries", "10"]);
    let home = Home::new(&[ENDPOINTS, &handler("short", plain(&server), "maxlen = 20")]);
    let service = home.start();
    for serial in 0..60 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    let mut client = Client::connect(server.address());
    eventually("the last event has arrived", || {
        let events = client.events("short");
        serials(&events, 1)
            .last()
            .is_some_and(|last| last == "serial 59")
    });
    let count = client.count("short");
    assert!((20..=30).contains(&count), "{count}");
}

#[test]
fn an_entry_counts_once_enough_replicas_have_it() {
    let server = start(&[]);
    let wait = "wait = { replicas = 1, timeout = \"50ms\" }";
    let home = Home::new(&[ENDPOINTS, &handler("stream", plain(&server), wait)]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    says(
        &service,
        "0 of the 1 replicas to wait for have the entry in time",
    );
    let done = r#"hookswitch_deliveries_total{handler="stream",outcome="done"}"#;
    assert_eq!(service.metric(done), 0.0);

    let primary = server.address().port().to_string();
    let replica = start(&["--replicaof", "127.0.0.1", &primary]);
    eventually("the delivery is done", || service.metric(done) == 1.0);
    assert!(Client::connect(replica.address()).count("stream") >= 1);
}

#[test]
fn a_refusal_is_reported_and_its_entry_added_once_it_is_resolved() {
    let server = start(&[]);
    let mut client = Client::connect(server.address());
    client.ok(&["ACL", "SETUSER", "reader", "on", ">hush", "~*", "+xlen"]);
    client.ok(&["SET", "occupied", "by a text"]);
    let at = plain(&server);
    let auth = |password: &str| format!("username = \"reader\"\npassword = {password:?}");
    let home = Home::new(&[
        ENDPOINTS,
        &handler("occupied", &at, ""),
        &handler("forbidden", &at, &auth("hush")),
        &handler("stranger", &at, &auth("hush-hush")),
        &handler("synced", &at, "wait = { fsync = true }"),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    says(
        &service,
        "refused XADD with WRONGTYPE; the key that `stream` names is no stream",
    );
    says(
        &service,
        "refused XADD with NOPERM; let the user run this command",
    );
    says(
        &service,
        "cannot connect: the server refused `username` and `password`",
    );
    says(
        &service,
        "refused WAITAOF with ERR; `fsync` takes Redis 7.2",
    );
    let log = service.log();
    for hidden in ["hush", "serial 1", "12025550001"] {
        assert!(!log.contains(hidden), "{log}");
    }

    assert_eq!(client.ask(&["DEL", "occupied"]), Reply::Number(1));
    client.ok(&["ACL", "SETUSER", "reader", "+xadd", ">hush-hush"]);
    eventually("all events have arrived", || {
        ["occupied", "forbidden", "stranger"].map(|stream| client.count(stream)) == [1, 1, 1]
    });

    client.ok(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(service.zoom(&cnam(1, 2)).status, 200);
    says(&service, "refused XADD with OOM; its memory is full");
    client.ok(&["CONFIG", "SET", "maxmemory", "0"]);
    client.ok(&["REPLICAOF", "127.0.0.1", "1"]);
    assert_eq!(service.zoom(&cnam(2, 3)).status, 200);
    says(&service, "refused XADD with READONLY; it is a replica");
    client.ok(&["REPLICAOF", "NO", "ONE"]);
    eventually("all events have arrived", || client.count("occupied") == 3);
}

#[test]
fn an_entry_that_keeps_failing_is_parked_with_its_reason() {
    let server = start(&["--requirepass", "sesame"]);
    let open = handler("open", plain(&server), "");
    let home = Home::new(&[
        ENDPOINTS,
        &open.replace("attempts = 100000", "attempts = 2"),
        &handler("known", plain(&server), "password = \"sesame\""),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    let parked = || home.json(&["parked", "list"]);
    eventually("a delivery is parked", || parked()[0]["handler"] == "open");
    let why = parked()[0]["why"].as_str().unwrap().to_owned();
    assert!(why.contains("NOAUTH; it wants a password"), "{why}");
    let mut client = Client::connect(server.address());
    client.ok(&["AUTH", "sesame"]);
    eventually("the other event has arrived", || client.count("known") == 1);
}

/// A server with its certificate in `cert.pem`, and its port with TLS. The test itself connects
/// without TLS. `more` is added to the TLS settings.
fn start_secure(more: &[&str]) -> (Server, u16) {
    let secure = free_port();
    let server = Server::start(|dir, port| {
        let (certificate, key) = certificate();
        fs::write(dir.join("cert.pem"), certificate).unwrap();
        fs::write(dir.join("key.pem"), key).unwrap();
        let files = ["--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem"];
        let secure = secure.to_string();
        command(
            dir,
            port,
            &[&["--tls-port", &secure], &files[..], more].concat(),
        )
    });
    (server, secure)
}

#[test]
fn tls_is_used_and_the_server_is_verified_by_the_ca() {
    let more = ["--tls-auth-clients", "no", "--tls-ca-cert-file", "cert.pem"];
    let (server, secure) = start_secure(&more);
    let known = server.dir().join("cert.pem");
    let unknown = server.dir().join("other.pem");
    fs::write(&unknown, certificate().0).unwrap();
    let at = format!("rediss://127.0.0.1:{secure}");
    let home = Home::new(&[
        ENDPOINTS,
        &handler("trusting", &at, &format!("tls.ca = {known:?}")),
        &handler("wary", &at, &format!("tls.ca = {unknown:?}")),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    let mut client = Client::connect(server.address());
    eventually("the handler that trusts the server delivers", || {
        client.count("trusting") == 1
    });
    says(&service, "invalid peer certificate");
    assert_eq!(client.count("wary"), 0);
}

#[test]
fn a_client_certificate_is_presented_on_request() {
    let identity = Identity::new();
    let authority = tempfile::NamedTempFile::new().unwrap();
    fs::write(&authority, &identity.authority).unwrap();
    let authority = authority.path().to_str().unwrap();
    let more = ["--tls-auth-clients", "yes", "--tls-ca-cert-file", authority];
    let (server, secure) = start_secure(&more);
    let shown = identity.settings(server.dir());
    let at = format!("rediss://127.0.0.1:{secure}");
    let ca = format!("tls.ca = {:?}", server.dir().join("cert.pem"));
    let home = Home::new(&[
        ENDPOINTS,
        &handler("named", &at, &format!("{ca}\n{shown}")),
        &handler("nameless", &at, &ca),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    let mut client = Client::connect(server.address());
    eventually("the handler with a certificate delivers", || {
        client.count("named") == 1
    });
    says(
        &service,
        "to nameless failed, and is retried: cannot connect: received fatal alert: CertificateRequired",
    );
    assert_eq!(client.count("nameless"), 0);
}
