//! HTTP/2 and TLS.

use std::{fs, path::Path};

use super::*;

/// A client that trusts `certificate` alone.
fn client(server: &TestServer, certificate: &str) -> reqwest::Client {
    let certificate = reqwest::Certificate::from_pem(certificate.as_bytes()).unwrap();
    reqwest::Client::builder()
        .tls_certs_only([certificate])
        .resolve("hooks.example", server.address)
        .timeout(HANG)
        .build()
        .unwrap()
}

async fn post_event(client: &reqwest::Client, url: &str) -> reqwest::Result<reqwest::Response> {
    client
        .post(url)
        .header("verification-token", "rc-token")
        .body("{}")
        .send()
        .await
}

/// Writes a new certificate for `hooks.example` and its key, and returns the certificate.
fn renew(files: &Tls) -> String {
    let renewed = rcgen::generate_simple_self_signed(vec!["hooks.example".to_owned()]).unwrap();
    let certificate = renewed.cert.pem();
    fs::write(&files.certificate, &certificate).unwrap();
    fs::write(&files.key, renewed.signing_key.serialize_pem()).unwrap();
    certificate
}

fn files(folder: &Path) -> Tls {
    Tls {
        certificate: folder.join("server.pem"),
        key: folder.join("server.key"),
    }
}

#[tokio::test]
async fn http2_works_without_tls_with_prior_knowledge() {
    let server = TestServer::open();
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .timeout(HANG)
        .build()
        .unwrap();
    let url = format!("http://{}{RINGCENTRAL}", server.address);
    for _ in 0..3 {
        let response = post_event(&client, &url).await.unwrap();
        assert_eq!(response.version(), reqwest::Version::HTTP_2);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-length"], "0");
    }
    assert_eq!(server.metric("hookswitch_connections "), 1.0);
    assert_eq!(server.store.kept().len(), 3);
    assert_eq!(server.drain().await, Drained { complete: true });
}

#[tokio::test]
async fn both_http_versions_work_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let certificate = renew(&files);
    let server = TestServer::with(|settings| settings.tls = Some(files));
    let url = format!(
        "https://hooks.example:{}{RINGCENTRAL}",
        server.address.port()
    );
    let response = post_event(&client(&server, &certificate), &url)
        .await
        .unwrap();
    assert_eq!(response.version(), reqwest::Version::HTTP_2);
    assert_eq!(response.status(), 200);

    let certificate = reqwest::Certificate::from_pem(certificate.as_bytes()).unwrap();
    let old = reqwest::Client::builder()
        .tls_certs_only([certificate])
        .resolve("hooks.example", server.address)
        .http1_only()
        .timeout(HANG)
        .build()
        .unwrap();
    let response = post_event(&old, &url).await.unwrap();
    assert_eq!(response.version(), reqwest::Version::HTTP_11);
    assert_eq!(response.status(), 200);
    assert!(server.metric("hookswitch_certificate_expiry_timestamp_seconds") > 1.8e9);
}

#[tokio::test]
async fn a_valid_new_certificate_replaces_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let first = renew(&files);
    let server = TestServer::with(|settings| settings.tls = Some(files.clone()));
    let url = format!(
        "https://hooks.example:{}{RINGCENTRAL}",
        server.address.port()
    );
    let certificate = server.certificate.clone().unwrap();
    assert!(!certificate.refresh().unwrap(), "nothing is new yet");

    let second = renew(&files);
    assert!(certificate.refresh().unwrap());
    assert!(post_event(&client(&server, &first), &url).await.is_err());
    assert!(post_event(&client(&server, &second), &url).await.is_ok());

    // The key of another certificate, then no key, then no file.
    let stray = rcgen::KeyPair::generate().unwrap().serialize_pem();
    fs::write(&files.key, stray).unwrap();
    assert!(matches!(
        certificate.refresh(),
        Err(CertificateError::Unusable(why)) if why.contains("is not that of")
    ));
    assert!(
        !certificate.refresh().unwrap(),
        "one bad renewal is reported once"
    );
    fs::write(&files.key, "no key").unwrap();
    assert!(matches!(
        certificate.refresh(),
        Err(CertificateError::Unusable(why)) if why.contains("no private key")
    ));
    fs::remove_file(&files.key).unwrap();
    assert!(matches!(
        certificate.refresh(),
        Err(CertificateError::Unreadable { .. })
    ));
    assert!(post_event(&client(&server, &second), &url).await.is_ok());

    let third = renew(&files);
    assert!(certificate.refresh().unwrap());
    assert!(post_event(&client(&server, &third), &url).await.is_ok());
}

#[tokio::test]
async fn an_unfinished_tls_handshake_is_closed_after_the_timeout_of_the_first_byte() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    renew(&files);
    let [server, patient] = TestServer::short_and_long(|settings, timeout| {
        settings.tls = Some(files.clone());
        settings.first_byte_timeout = timeout;
    });
    let mut waiting = patient.connect().await;
    for sent in ["", "\x16\x03\x01"] {
        waiting.send(sent).await;
        let mut peer = server.connect().await;
        peer.send(sent).await;
        peer.closed().await;
        assert!(waiting.is_waiting(), "{sent:?}");
    }
    assert_eq!(server.metric("hookswitch_connections_refused_total"), 2.0);
}

#[tokio::test]
async fn a_connection_that_does_not_speak_tls_is_closed_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    renew(&files);
    let server = TestServer::with(|settings| settings.tls = Some(files));
    let mut peer = server.connect().await;
    peer.send("POST / HTTP/1.1\r\n\r\n").await;
    peer.closed().await;
    until(|| server.metric("hookswitch_connections_refused_total") == 1.0).await;
}

#[tokio::test]
async fn a_failed_bind_names_its_cause() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = Settings {
        listen: taken.local_addr().unwrap(),
        ..Settings::default()
    };
    let metrics = Metrics::default();
    let error = Server::bind(&settings, &metrics).unwrap_err().to_string();
    assert!(error.starts_with("cannot listen on 127.0.0.1:"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    settings.tls = Some(files(folder.path()));
    let error = Server::bind(&settings, &metrics).unwrap_err().to_string();
    assert!(error.contains("server.pem"), "{error}");
}
