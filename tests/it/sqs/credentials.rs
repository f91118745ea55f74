//! The sources of credentials.

use std::{fs, net::TcpListener, process::Command};

use super::{done, handler, keyless};
use crate::{
    harness::{ENDPOINTS, Home, Service, cnam, eventually, hookswitch},
    sqs::stand_in::{ID, SECRET, Sqs, TOKEN},
};

/// The service without the credentials in the tests' own environment.
fn stranger(home: &Home) -> Command {
    let mut command = hookswitch();
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    // The endpoint of the instance metadata is a closed port.
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    command.env("HOME", home.path()).env(
        "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        format!("http://{nobody}"),
    );
    command
}

/// Posts one more event, and waits until it is delivered.
fn deliver(service: &Service, number: u32) {
    assert_eq!(service.zoom(&cnam(1, number.into())).status, 200);
    eventually("the event has arrived", || {
        done(service, "bus") == f64::from(number)
    });
}

#[test]
fn keys_are_read_from_variables_and_files() {
    let sqs = Sqs::start();
    sqs.allow("ASIAEXAMPLE", "another-secret", Some("a-session"));
    let keys = r#"
access_key_id = { env = "KEY_ID" }
secret_access_key = { file = "{dir}/key" }
session_token = { env = "SESSION" }
"#;
    let home = Home::new(&[ENDPOINTS, &keyless("bus", &sqs, "telephony", keys)]);
    fs::write(home.path().join("key"), "another-secret\n").unwrap();
    let mut command = hookswitch();
    command
        .env("KEY_ID", "ASIAEXAMPLE")
        .env("SESSION", "a-session");
    deliver(&Service::spawn(&home, command), 1);
}

#[test]
fn without_keys_the_environment_and_then_a_profile_are_used() {
    let sqs = Sqs::start();
    let home = Home::new(&[ENDPOINTS, &keyless("bus", &sqs, "telephony", "")]);
    let mut command = stranger(&home);
    command
        .env("AWS_ACCESS_KEY_ID", ID)
        .env("AWS_SECRET_ACCESS_KEY", SECRET);
    deliver(&Service::spawn(&home, command), 1);

    let home = Home::new(&[ENDPOINTS, &keyless("bus", &sqs, "telephony", "")]);
    fs::create_dir(home.path().join(".aws")).unwrap();
    let profile = format!("[work]\naws_access_key_id = {ID}\naws_secret_access_key = {SECRET}\n");
    fs::write(home.path().join(".aws/credentials"), profile).unwrap();
    let mut command = stranger(&home);
    command.env("AWS_PROFILE", "work");
    deliver(&Service::spawn(&home, command), 1);
}

/// A service that gets its credentials from its container's agent, with `token`.
fn contained(home: &Home, sqs: &Sqs, token: &str) -> Service {
    let mut command = stranger(home);
    let agent = format!("http://{}/credentials", sqs.address);
    command
        .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent)
        .env("AWS_CONTAINER_AUTHORIZATION_TOKEN", token);
    Service::spawn(home, command)
}

#[test]
fn credentials_of_a_container_agent_are_kept_until_the_queue_refuses_them() {
    let sqs = Sqs::start();
    sqs.allow("ASIAFIRST", "first-secret", Some("first-session"));
    let home = Home::new(&[ENDPOINTS, &keyless("bus", &sqs, "telephony", "")]);
    let service = contained(&home, &sqs, TOKEN);
    deliver(&service, 1);
    deliver(&service, 2);
    assert_eq!(sqs.credential_requests(), 1);
    sqs.allow("ASIASECOND", "second-secret", Some("second-session"));
    deliver(&service, 3);
    assert_eq!(sqs.credential_requests(), 2);
}

#[test]
fn expiring_credentials_are_renewed() {
    let sqs = Sqs::start();
    sqs.allow(ID, SECRET, Some("a-session"));
    sqs.expire_after(100);
    let home = Home::new(&[ENDPOINTS, &keyless("bus", &sqs, "telephony", "")]);
    let service = contained(&home, &sqs, TOKEN);
    deliver(&service, 1);
    deliver(&service, 2);
    assert_eq!(sqs.credential_requests(), 2);
}

#[test]
fn an_instance_uses_the_credentials_of_its_metadata() {
    let sqs = Sqs::start();
    sqs.allow(ID, SECRET, Some("a-session"));
    let home = Home::new(&[ENDPOINTS, &keyless("bus", &sqs, "telephony", "")]);
    let mut command = stranger(&home);
    let metadata = format!("http://{}", sqs.address);
    command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata);
    deliver(&Service::spawn(&home, command), 1);
}

#[test]
fn a_failing_agent_ends_the_search_with_its_error() {
    let sqs = Sqs::start();
    let home = Home::new(&[ENDPOINTS, &keyless("bus", &sqs, "telephony", "")]);
    let service = contained(&home, &sqs, "a-token-of-somebody-else");
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    let why = "there are no credentials: the container's agent has none: ECS task not authorized";
    eventually(why, || service.log().contains(why));
    assert!(!service.log().contains("the instance's metadata"));
}

#[test]
fn missing_credentials_are_reported() {
    let sqs = Sqs::start();
    let home = Home::new(&[ENDPOINTS, &keyless("bus", &sqs, "telephony", "")]);
    let service = Service::spawn(&home, stranger(&home));
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    let why = "there are no credentials: the instance's metadata has none: ";
    eventually(why, || service.log().contains(why));

    let mut command = stranger(&home);
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    drop(service);
    let service = Service::spawn(&home, command);
    let why = "there are no credentials: none are where AWS's tools look; give `access_key_id` and";
    eventually(why, || service.log().contains(why));
    assert_eq!(sqs.requests(), 0);
}

#[test]
fn wrong_and_unknown_keys_are_distinguished_and_can_be_corrected() {
    let sqs = Sqs::start();
    let home = Home::new(&[ENDPOINTS]);
    let wrong = handler("bus", &sqs, "telephony", "").replace(SECRET, "a-wrong-secret");
    home.configure(&[ENDPOINTS, &wrong]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    let why = "InvalidSignatureException (403); see whether `secret_access_key` and `region` are";
    eventually(why, || service.log().contains(why));

    let unknown = handler("bus", &sqs, "telephony", "").replace(ID, "AKIDUNKNOWN");
    home.configure(&[ENDPOINTS, &unknown]);
    service.signal("HUP");
    let why = "UnrecognizedClientException (403); see whether `access_key_id`";
    eventually(why, || service.log().contains(why));

    home.configure(&[ENDPOINTS, &handler("bus", &sqs, "telephony", "")]);
    service.signal("HUP");
    eventually("the event has arrived", || {
        sqs.messages("telephony").len() == 1
    });
    assert_eq!(home.parked(), []);
    assert!(!service.log().contains(SECRET) && !service.log().contains("a-wrong-secret"));
}
