//! The methods of authentication.

use std::fs;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use serde_json::{Value, json};

use super::{Client, Server, bus, reasons, start};
use crate::harness::{ENDPOINTS, Home, cnam, eventually};

/// A handler that authenticates with `auth`, with few retries.
fn showing(name: &str, server: &Server, auth: &str) -> String {
    let more = format!("subject = \"telephony\"\nauth = {{ {auth} }}");
    bus(name, server, &more).replace("attempts = 100000", "attempts = 3")
}

/// A secret in a file of the server's folder.
fn file(server: &Server, name: &str, secret: &str) -> String {
    let path = server.dir().join(name);
    fs::write(&path, secret).unwrap();
    format!("{{ file = {path:?} }}")
}

/// Checks that an event is delivered by the handler `right`, and parked by the handler `wrong`,
/// which the server rejects, and that no output contains `secrets`.
fn check(client: &mut Client, right: &str, wrong: &str, secrets: &[String]) {
    client.create("telephony", &["telephony"], &json!({}));
    let home = Home::new(&[ENDPOINTS, right, wrong]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("a delivery is parked", || !reasons(&home).is_empty());
    let parked = reasons(&home);
    assert_eq!(parked.len(), 1, "{parked:?}");
    assert!(
        parked["wrong"]
            .contains("authorization violation; the server does not accept what `auth` shows it"),
        "{parked:?}"
    );
    eventually("the event is delivered", || client.count("telephony") == 1);
    for secret in secrets {
        assert!(!service.log().contains(secret), "{}", service.log());
        assert!(!parked["wrong"].contains(secret), "{parked:?}");
    }
}

#[test]
fn a_wrong_token_is_reported_and_not_shown() {
    let server = start("authorization { token: sesame }");
    let mut client = Client::connect_as(server.address(), json!({ "auth_token": "sesame" }));
    check(
        &mut client,
        &showing("right", &server, "token = \"sesame\""),
        &showing("wrong", &server, "token = \"hush-hush\""),
        &["sesame".to_owned(), "hush-hush".to_owned()],
    );
}

#[test]
fn a_user_authenticates_with_an_nkey() {
    let (known, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let server = start(&format!(
        "authorization {{ users: [ {{ nkey: {} }}, {{ user: admin, password: admin }} ] }}",
        known.public_key()
    ));
    let mut client = Client::connect_as(
        server.address(),
        json!({ "user": "admin", "pass": "admin" }),
    );
    let handler = |name: &str, pair: &KeyPair| {
        let seed = file(&server, name, &format!("{}\n", pair.seed().unwrap()));
        showing(name, &server, &format!("nkey = {seed}"))
    };
    check(
        &mut client,
        &handler("right", &known),
        &handler("wrong", &stranger),
        &[known, stranger].map(|pair| pair.seed().unwrap()),
    );
}

/// Claims about `subject`, signed by `issuer`: a JWT of NATS.
fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: &Value) -> String {
    let encode = |claims: &Value| BASE64_URL_SAFE_NO_PAD.encode(claims.to_string());
    let (issuer_key, subject_key) = (issuer.public_key(), subject.public_key());
    let header = encode(&json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let claims = encode(&json!({
        "jti": subject_key, "iat": 1_700_000_000, "name": "test",
        "iss": issuer_key, "sub": subject_key, "nats": nats,
    }));
    let signed = format!("{header}.{claims}");
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

fn user_jwt(account: &KeyPair, user: &KeyPair) -> String {
    let nats = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    jwt(account, user, &nats)
}

/// A user's credentials in the format of NATS's own tool.
fn credentials(jwt: &str, user: &KeyPair) -> String {
    let seed = user.seed().unwrap();
    format!(
        "-----BEGIN NATS USER JWT-----
{jwt}
------END NATS USER JWT------

************************* IMPORTANT *************************
NKEY Seed printed below can be used to sign and prove identity.
NKEYs are sensitive and should be treated as secrets.

-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------

*************************************************************
"
    )
}

/// The configuration of a server with the accounts of one operator.
fn accounts(operator: &KeyPair, account: &KeyPair) -> String {
    let system = KeyPair::new_account();
    let claims = |disk: i32| {
        json!({
            "type": "account", "version": 2,
            "limits": {
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
                "wildcards": true, "conn": -1, "leaf": -1,
                "mem_storage": disk, "disk_storage": disk, "streams": disk, "consumer": disk,
            },
        })
    };
    let trusted = json!({
        "type": "operator", "version": 2, "system_account": system.public_key(),
    });
    format!(
        "operator: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {}, {}: {} }}",
        jwt(operator, operator, &trusted),
        account.public_key(),
        jwt(operator, account, &claims(-1)),
        system.public_key(),
        jwt(operator, &system, &claims(0)),
    )
}

#[test]
fn a_user_authenticates_with_a_jwt_of_its_account() {
    let operator = KeyPair::new_operator();
    let (account, stranger) = (KeyPair::new_account(), KeyPair::new_account());
    let server = start(&accounts(&operator, &account));
    let user = KeyPair::new_user();
    let known = user_jwt(&account, &user);
    let mut client = Client::connect_signing(server.address(), |nonce| {
        let signature = BASE64_URL_SAFE_NO_PAD.encode(user.sign(nonce).unwrap());
        json!({ "jwt": known, "sig": signature })
    });
    let handler = |name: &str, jwt: &str| {
        let file = file(&server, name, &credentials(jwt, &user));
        showing(name, &server, &format!("credentials = {file}"))
    };
    check(
        &mut client,
        &handler("right", &known),
        &handler("wrong", &user_jwt(&stranger, &user)),
        &[user.seed().unwrap(), known],
    );
}
