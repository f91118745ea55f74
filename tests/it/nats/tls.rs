//! Over TLS.

use std::{fs, path::Path};

use serde_json::json;

use super::{Client, Server, bus, command};
use crate::harness::{ENDPOINTS, Home, certificate, cnam, eventually};

#[test]
fn tls_is_asked_for_and_the_server_is_known_by_its_authority() {
    // Others may come without TLS, such as the test itself.
    let server = Server::start(|dir, port| {
        let (certificate, key) = certificate();
        fs::write(dir.join("cert.pem"), certificate).unwrap();
        fs::write(dir.join("key.pem"), key).unwrap();
        let tls = "tls { cert_file: \"{dir}/cert.pem\", key_file: \"{dir}/key.pem\" }\n\
                   allow_non_tls: true";
        command(dir, port, tls)
    });
    let mut client = Client::connect(server.address());
    client.create("telephony", &["telephony"], &json!({}));
    let known = server.dir().join("cert.pem");
    let unknown = server.dir().join("other.pem");
    fs::write(&unknown, certificate().0).unwrap();
    let handler = |name: &str, ca: &Path| {
        bus(
            name,
            &server,
            &format!("subject = \"telephony\"\nca = {ca:?}"),
        )
    };
    let home = Home::new(&[
        ENDPOINTS,
        &handler("trusting", &known),
        &handler("wary", &unknown),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("the one that knows the server delivers", || {
        client.count("telephony") == 1
    });
    eventually("the one that does not says so", || {
        service.log().contains("invalid peer certificate")
    });
    assert_eq!(
        client.stored("telephony")[0].headers["Nats-Msg-Id"]
            .split('/')
            .nth(1),
        Some("trusting")
    );
}
