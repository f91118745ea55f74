//! The handler kind `http` over TLS, through the real service.

use std::fs;

use crate::{
    harness::{ENDPOINTS, Home, Receiver, Service, certificate, cnam, eventually},
    support::mtls::MutualTls,
};

/// A handler that posts to `receiver` over TLS, with quick retries.
fn handler(name: &str, receiver: &Receiver, more: &str) -> String {
    format!(
        r#"
[handlers.{name}]
kind = "http"
events = ["*"]
url = "https://{}/hooks"
retry = {{ attempts = 100000, first = "20ms", ceiling = "100ms" }}
{more}
"#,
        receiver.address
    )
}

/// Waits until `service` has logged why deliveries to `handler` are retried.
fn says(service: &Service, handler: &str, why: &str) {
    eventually(why, || {
        let log = service.log();
        let mut lines = log.lines();
        lines.any(|line| line.contains(&format!(" to {handler} ")) && line.contains(why))
    });
}

#[test]
fn both_sides_verify_each_other() {
    let tls = MutualTls::new();
    let receiver = Receiver::start_tls(&tls);
    let home = Home::new(&[]);
    fs::write(home.path().join("ca.pem"), &tls.authority).unwrap();
    fs::write(home.path().join("other.pem"), certificate().0).unwrap();
    let ca = "tls.ca = \"{dir}/ca.pem\"\n";
    let shown = tls.client.settings(home.path());
    let wary = format!("tls.ca = \"{{dir}}/other.pem\"\n{shown}");
    home.configure(&[
        ENDPOINTS,
        &handler("nameless", &receiver, ca),
        &handler("wary", &receiver, &wary),
        &handler("by-the-system", &receiver, &shown),
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    says(&service, "nameless", "CertificateRequired");
    says(&service, "wary", "invalid peer certificate");
    says(&service, "by-the-system", "invalid peer certificate");
    assert_eq!(receiver.received().len(), 0);

    home.configure(&[
        ENDPOINTS,
        &handler("known", &receiver, &format!("{ca}{shown}")),
    ]);
    service.signal("HUP");
    eventually("the reload is in force", || {
        service.log().contains("the configuration was reloaded")
    });
    assert_eq!(service.zoom(&cnam(1, 2)).status, 200);
    eventually("the handler with a certificate delivers", || {
        receiver.received().len() == 1
    });
}
