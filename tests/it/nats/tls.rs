//! Connections over TLS.

use std::{fs, path::Path};

use serde_json::json;

use super::{Client, Server, bus, command};
use crate::harness::{
    ENDPOINTS, Home, Identity, Service, certificate, cnam, eventually, hookswitch,
};

/// A server that also accepts connections without TLS, such as the test's own. `more` is added to
/// its TLS settings.
fn start(more: &str) -> Server {
    start_with(more, "allow_non_tls: true")
}

fn start_with(more: &str, beside: &str) -> Server {
    Server::start(|dir, port| {
        let (certificate, key) = certificate();
        fs::write(dir.join("cert.pem"), certificate).unwrap();
        fs::write(dir.join("key.pem"), key).unwrap();
        let files = "cert_file: \"{dir}/cert.pem\", key_file: \"{dir}/key.pem\"";
        let tls = format!("tls {{ {files} {more} }}\n{beside}");
        command(dir, port, &tls)
    })
}

#[test]
fn tls_is_used_and_the_server_is_verified_by_the_ca() {
    let server = start("");
    let mut client = Client::connect(server.address());
    client.create("telephony", &["telephony"], &json!({}));
    let known = server.dir().join("cert.pem");
    let unknown = server.dir().join("other.pem");
    fs::write(&unknown, certificate().0).unwrap();
    let handler = |name: &str, ca: &Path| {
        bus(
            name,
            &server,
            &format!("subject = \"telephony\"\ntls.ca = {ca:?}"),
        )
    };
    let home = Home::new(&[
        ENDPOINTS,
        &handler("trusting", &known),
        &handler("wary", &unknown),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("the handler that trusts the server delivers", || {
        client.count("telephony") == 1
    });
    eventually("the other handler logs why it does not", || {
        service.log().contains("invalid peer certificate")
    });
    assert_eq!(
        client.stored("telephony")[0].headers["Nats-Msg-Id"]
            .split('/')
            .nth(1),
        Some("trusting")
    );
}

/// The system's certificate authorities, set by an environment variable here, include the server's.
#[test]
fn tls_is_used_with_a_server_that_requires_it() {
    let server = start_with("", "");
    let handler = bus("plain", &server, "subject = \"telephony\"");
    let home = Home::new(&[ENDPOINTS, &handler]);
    assert!(handler.contains("nats://"), "{handler}");
    let mut command = hookswitch();
    command.env("SSL_CERT_FILE", server.dir().join("cert.pem"));
    let service = Service::spawn(&home, command);
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("the server answers that there is no stream", || {
        service.log().contains("no stream takes the message")
    });
}

#[test]
fn a_client_certificate_is_presented_on_request() {
    let identity = Identity::new();
    let authority = tempfile::NamedTempFile::new().unwrap();
    fs::write(&authority, &identity.authority).unwrap();
    let server = start(&format!(", verify: true, ca_file: {:?}", authority.path()));
    let mut client = Client::connect(server.address());
    client.create("telephony", &["telephony"], &json!({}));
    let shown = identity.settings(server.dir());
    let handler = |name: &str, more: &str| {
        let ca = server.dir().join("cert.pem");
        let more = format!("subject = \"telephony\"\ntls.ca = {ca:?}\n{more}");
        bus(name, &server, &more)
    };
    let home = Home::new(&[
        ENDPOINTS,
        &handler("named", &shown),
        &handler("nameless", ""),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("the handler with a certificate delivers", || {
        client.count("telephony") == 1
    });
    eventually("the other handler logs why it does not", || {
        service
            .log()
            .contains("to nameless failed, and is retried: cannot connect to the broker: IO error: received fatal alert: BadCertificate")
    });
    assert_eq!(client.count("telephony"), 1);
}
