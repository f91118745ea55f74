//! `doctor`: each check finds what is wrong, and nothing where nothing is.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, Issuer, KeyPair};
use serde_json::Value;

use crate::harness::{
    ARCHIVE, ENDPOINTS, Engine, Home, RINGCENTRAL_TOKEN, Receiver, Service, ZOOM_SECRET,
    certificate, cnam, eventually, hookswitch, on_every_engine,
};

on_every_engine![
    a_sound_service_is_fine,
    a_service_with_other_secrets_is_found,
    a_clock_that_is_behind_is_found,
    parked_deliveries_are_found,
];

/// The exit code, and the findings as lines of severity, check and message.
fn doctor(home: &Home, more: &[&str]) -> (i32, String) {
    findings(&home.run(&[&["doctor", "--json"], more].concat()))
}

fn findings(output: &Output) -> (i32, String) {
    let rows: Vec<Value> =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let mut lines = String::new();
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let line = format!(
            "{} {}: {}",
            text("severity"),
            text("check"),
            text("message")
        );
        for secret in [RINGCENTRAL_TOKEN, ZOOM_SECRET] {
            assert!(!row.to_string().contains(secret), "{row}");
        }
        assert_eq!(row["help"].is_null(), text("severity") == "fine", "{row}");
        lines += &format!("{line}\n");
    }
    (output.status.code().unwrap(), lines)
}

/// Checks that a finding begins with `expected`.
#[track_caller]
fn has((_, findings): &(i32, String), expected: &str) {
    let found = findings.lines().any(|line| line.starts_with(expected));
    assert!(found, "there is no {expected:?} in:\n{findings}");
}

#[track_caller]
fn has_none((_, findings): &(i32, String), severity: &str) {
    assert!(!findings.contains(&format!("{severity} ")), "{findings}");
}

/// The configuration in which the addresses of `service` are fixed.
fn fixed(service: &Service) -> String {
    let server = format!("[server]\nlisten = \"{}\"", service.address);
    let admin = format!("[admin]\nlisten = \"{}\"", service.admin);
    let free = "listen = \"127.0.0.1:0\"";
    ENDPOINTS
        .replacen(&format!("[server]\n{free}"), &server, 1)
        .replacen(&format!("[admin]\n{free}"), &admin, 1)
}

fn a_sound_service_is_fine(engine: Engine) {
    let home = engine.home(&[ENDPOINTS, ARCHIVE]);
    let service = home.start();
    home.configure(&[&fixed(&service), ARCHIVE]);
    fs::set_permissions(home.config(), Permissions::from_mode(0o600)).unwrap();
    let handshake = "hookswitch_last_handshake_timestamp_seconds{endpoint=\"number-management\"}";
    let found = doctor(&home, &["--without-handshake"]);
    assert_eq!(service.metric(handshake), 0.0);
    has(&found, "fine answers: an unknown path is answered with ");
    let found = doctor(&home, &[]);
    assert!(service.metric(handshake) > 0.0);
    assert_eq!(found.0, 0, "{}", found.1);
    has_none(&found, "warning");
    for expected in [
        "fine configuration: ",
        "fine service: the service at ",
        "fine answers: a handshake of number-management (the last one before: none since the start)",
        "fine answers: a handshake of phone-number ",
        "fine ledger: ",
        "fine clock: no event has a provider's time",
        "fine parked: ",
        "fine deliveries: none is open",
        "fine secrets: ",
        "fine certificate: a proxy in front",
        "fine descriptors: ",
    ] {
        has(&found, expected);
    }
    if matches!(engine, Engine::Embedded) {
        has(&found, "fine store: a service uses ");
        has(&found, "fine disk: ");
    }
}

fn a_service_with_other_secrets_is_found(engine: Engine) {
    let home = engine.home(&[ENDPOINTS]);
    let service = home.start();
    home.configure(&[&fixed(&service).replace(ZOOM_SECRET, "a-secret-of-another-file")]);
    let found = doctor(&home, &[]);
    assert_eq!(found.0, 1, "{}", found.1);
    has(&found, "blocker answers: a handshake of number-management ");
    has(&found, "fine answers: a handshake of phone-number ");
}

fn a_clock_that_is_behind_is_found(engine: Engine) {
    let home = engine.home(&[ENDPOINTS, ARCHIVE]);
    let service = home.start();
    home.configure(&[&fixed(&service), ARCHIVE]);
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("it is archived", || home.archived().len() == 1);
    has(&doctor(&home, &[]), "fine clock: events come ");
    let ahead = (crate::harness::unix_now() + 3600) * 1000;
    let body = cnam(1, 2).replace("1700000000002", &ahead.to_string());
    assert_eq!(service.zoom(&body).status, 200);
    eventually("it is archived", || home.archived().len() == 2);
    let found = doctor(&home, &[]);
    assert_eq!(found.0, 0, "a warning is no blocker: {}", found.1);
    has(&found, "warning clock: an event of ");
    assert!(found.1.contains(" came 59m"), "{}", found.1);
}

fn parked_deliveries_are_found(engine: Engine) {
    let broken = "[handlers.broken]\nkind = \"exec\"\nevents = [\"*\"]\n\
        command = [\"/bin/false\"]\nretry = { attempts = 1 }\n";
    let home = engine.home(&[ENDPOINTS, broken]);
    let service = home.start();
    home.configure(&[&fixed(&service), broken]);
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("it is parked", || home.parked().len() == 1);
    has(
        &doctor(&home, &[]),
        "warning parked: 1 delivery parked, of broken",
    );
}

#[test]
fn a_service_that_does_not_run_is_a_warning() {
    let home = Home::new(&[ENDPOINTS]);
    drop(home.start());
    let admin = "[admin]\nlisten = \"127.0.0.1:9\"";
    let config = ENDPOINTS.replace("[admin]\nlisten = \"127.0.0.1:0\"", admin);
    home.configure(&[&config]);
    let found = doctor(&home, &[]);
    assert_eq!(found.0, 0, "{}", found.1);
    has(&found, "warning service: no service answers at 127.0.0.1:9");
    has(&found, "fine store: no service uses ");
    // One that holds the store and does not answer is none that does not run.
    home.configure(&[ENDPOINTS]);
    let _service = home.start();
    home.configure(&[&config]);
    let found = doctor(&home, &[]);
    assert_eq!(found.0, 1, "{}", found.1);
    has(&found, "blocker store: a process uses ");
}

#[test]
fn a_broken_configuration_is_a_blocker_and_the_rest_is_checked() {
    let admin = "[admin]\nlisten = \"0.0.0.0:0\"";
    let home = Home::new(&[&ENDPOINTS.replace("[admin]\nlisten = \"127.0.0.1:0\"", admin)]);
    let found = doctor(&home, &[]);
    assert_eq!(found.0, 1, "{}", found.1);
    has(&found, "blocker configuration: ");
    assert!(found.1.contains("hookswitch.toml:6:"), "{}", found.1);
    assert!(
        found.1.contains("beyond loopback, without a token"),
        "{}",
        found.1
    );
    has(&found, "fine store: there is no store at ");
    assert!(!home.path().join("data").exists(), "looking makes nothing");

    // The table has the worst first.
    let table = String::from_utf8(home.run(&["doctor"]).stdout).unwrap();
    let severities = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().next().unwrap());
    let severities: Vec<_> = severities.collect();
    assert!(
        severities.is_sorted() && severities.contains(&"fine"),
        "{table}"
    );
}

#[test]
fn secrets_that_are_weak_or_open_are_found() {
    let home = Home::new(&[]);
    let secret = |name: &str, text: &str, mode: u32| {
        let path = home.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        format!("{{ file = {path:?} }}")
    };
    let tokens = [
        secret("short", "short-one", 0o600),
        secret("example", "local-and-not-secret-zoom", 0o600),
        secret("open", "a-long-secret-that-is-open", 0o644),
        secret("sound", "a-long-secret-that-is-not", 0o640),
    ];
    let config = ENDPOINTS
        .replace("\"a-secret-for-tests\"", &tokens.join(", "))
        .replace("\"a-token-for-tests\"", &tokens[3]);
    home.configure(&[&config]);
    let found = doctor(&home, &[]);
    let of = |name: &str| {
        format!(
            "warning secrets: the secret in {}",
            home.path().join(name).display()
        )
    };
    has(&found, &format!("{} has fewer than 16", of("short")));
    has(
        &found,
        &format!("{} looks like one of a document", of("example")),
    );
    has(&found, &format!("{} can be read by every user", of("open")));
    assert!(!found.1.contains(&of("sound")), "{}", found.1);
    for text in ["short-one", "not-secret-zoom", "that-is-open"] {
        assert!(!found.1.contains(text), "{}", found.1);
    }
    home.configure(&[&config.replace(&tokens[..3].join(", "), &tokens[3])]);
    has(&doctor(&home, &[]), "fine secrets: 1 secret");
}

#[test]
fn a_full_disk_and_open_files_are_found() {
    let home = Home::new(&[ENDPOINTS]);
    drop(home.start());
    has(&doctor(&home, &[]), "fine disk: ");
    let data = home.path().join("data");
    for (path, mode) in [(data.clone(), 0o755), (data.join("ledger.db"), 0o644)] {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    home.configure(&[&ENDPOINTS.replace("reserve = 0", "reserve = \"1000000GiB\"")]);
    let found = doctor(&home, &[]);
    assert_eq!(found.0, 1, "{}", found.1);
    has(&found, "blocker disk: ");
    let file = data.join("ledger.db");
    let expected = format!(
        "warning files: other users of this machine can use {}",
        file.display()
    );
    has(&found, &expected);
}

#[test]
fn too_few_descriptors_are_found() {
    let home = Home::new(&[ENDPOINTS]);
    let doctor = hookswitch();
    let mut limited = Command::new("sh");
    limited
        .arg("-c")
        .arg("ulimit -n 1500; exec \"$@\"")
        .arg("sh");
    limited
        .arg(doctor.get_program())
        .args(["doctor", "--json", "--config"])
        .arg(home.config());
    let found = findings(&limited.output().unwrap());
    has(
        &found,
        "warning descriptors: a process like this one can have 1500 files",
    );
}

/// A certificate of an authority's intermediate: the certificate, the intermediate, and the key, PEM.
fn chain(change: impl FnOnce(&mut CertificateParams)) -> (String, String, String) {
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params
    };
    let root =
        CertifiedIssuer::self_signed(authority("root"), KeyPair::generate().unwrap()).unwrap();
    let between = authority("between");
    let key = KeyPair::generate().unwrap();
    let signed = between.signed_by(&key, &root).unwrap();
    let between = Issuer::new(between, key);
    let mut params = CertificateParams::new(["hooks.example.com".to_owned()]).unwrap();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "hooks");
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &between).unwrap();
    (certificate.pem(), signed.pem(), key.serialize_pem())
}

#[test]
fn a_certificate_that_a_provider_would_not_take_is_found() {
    let tls = "[server]\ntls = { certificate = \"{dir}/server.pem\", key = \"{dir}/key.pem\" }\n";
    let home = Home::new(&[&ENDPOINTS.replace("[server]\n", tls)]);
    let judged = |certificate: &str, key: &str| {
        fs::write(home.path().join("server.pem"), certificate).unwrap();
        fs::write(home.path().join("key.pem"), key).unwrap();
        doctor(&home, &[])
    };
    let (certificate, intermediate, key) = chain(|_| {});
    let whole = format!("{certificate}{intermediate}");
    let found = judged(&whole, &key);
    has(
        &found,
        "fine certificate: for hooks.example.com, with 1 intermediate, until ",
    );
    let found = judged(&certificate, &key);
    has(&found, "warning certificate: the certificate is alone");
    let (other, _, _) = chain(|_| {});
    let found = judged(&format!("{certificate}{other}"), &key);
    assert_eq!(found.0, 1, "{}", found.1);
    has(
        &found,
        "blocker certificate: certificate 2 of the file did not sign certificate 1",
    );
    let found = judged(&format!("{intermediate}{certificate}"), &key);
    assert_eq!(found.0, 1, "{}", found.1);
    has(&found, "blocker configuration: ");

    let (certificate, intermediate, key) = chain(|params| {
        params.not_after = rcgen::date_time_ymd(2020, 3, 4);
    });
    let found = judged(&format!("{certificate}{intermediate}"), &key);
    assert_eq!(found.0, 1, "{}", found.1);
    has(
        &found,
        "blocker certificate: the certificate, or an intermediate, has expired on 2020-03-04",
    );
    let (certificate, intermediate, key) = chain(|params| params.subject_alt_names.clear());
    let found = judged(&format!("{certificate}{intermediate}"), &key);
    has(
        &found,
        "blocker certificate: the certificate has no host name",
    );
    let (certificate, key) = self::certificate();
    let found = judged(&certificate, &key);
    has(
        &found,
        "warning certificate: the certificate is signed by its own key",
    );
}

#[test]
fn the_servers_of_handlers_are_tried_when_that_is_asked_for() {
    let receiver = Receiver::start();
    let handler = |name: &str, server: &str| {
        format!(
            "[handlers.{name}]\nkind = \"http\"\nevents = [\"*\"]\nurl = \"http://{server}/hooks\"\n"
        )
    };
    let home = Home::new(&[
        ENDPOINTS,
        &handler("near", &receiver.address.to_string()),
        &handler("gone", "127.0.0.1:9"),
    ]);
    let found = doctor(&home, &[]);
    assert!(!found.1.contains("targets"), "{}", found.1);
    let found = doctor(&home, &["--targets"]);
    assert_eq!(found.0, 0, "{}", found.1);
    let near = format!("fine targets: {} of near accepts", receiver.address);
    has(&found, &near);
    has(
        &found,
        "warning targets: 127.0.0.1:9 of gone cannot be reached: ",
    );
    assert!(receiver.received().is_empty());
}
