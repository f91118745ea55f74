use http::{HeaderMap, HeaderName, HeaderValue};

use super::{SIGNED_AT, admit, at, dedupe, headers, kept, provider, refused};
use crate::provider::{Admission, Reason, Refusal, Reply};

pub(super) const SETTINGS: &str = r#"{ verification_tokens = ["rc-token-old", "rc-token-new"] }"#;

const VERIFIED: (&str, &str) = ("verification-token", "rc-token-old");

fn post(pairs: &[(&str, &str)], body: &'static str) -> Result<Admission, Refusal> {
    let provider = provider("ringcentral", SETTINGS);
    admit(&*provider, &headers(pairs), body, at(SIGNED_AT))
}

const EVENT: &str = r#"{"uuid": "1", "subscriptionId": "s", "event": "/restapi/v1.0/glip/posts"}"#;

#[test]
fn any_of_the_tokens_proves_an_event_in_either_header() {
    for (pairs, secret) in [
        (&[VERIFIED][..], 0),
        (&[("Verification-Token", "rc-token-new")], 1),
        (&[("validation-token", "rc-token-new")], 1),
        (&[VERIFIED, ("validation-token", "rc-token-new")], 0),
    ] {
        let admission = post(pairs, EVENT).expect("it is admitted");
        assert_eq!(admission.secret, Some(secret));
        let event = admission.event.expect("it is kept").into_notification();
        assert_eq!(event.body, EVENT);
        assert_eq!(event.name.as_str(), "ringcentral.unrecognized");
    }
    assert_eq!(kept(post(&[VERIFIED], EVENT)), "ringcentral.unrecognized");
}

#[test]
fn a_token_that_is_listed_twice_proves_an_event() {
    let twice = provider("ringcentral", r#"{ verification_tokens = ["t", "t"] }"#);
    let headers = headers(&[("verification-token", "t")]);
    let verdict = admit(&*twice, &headers, EVENT, at(SIGNED_AT));
    assert_eq!(kept(verdict), "ringcentral.unrecognized");
}

#[test]
fn a_wrong_or_missing_token_is_refused_without_retry() {
    for (pairs, reason) in [
        (&[][..], Reason::MissingCredential),
        (&[("validation-token", "probe")], Reason::MissingCredential),
        (&[("verification-token", "guess")], Reason::WrongCredential),
        (&[("verification-token", "")], Reason::WrongCredential),
        (
            &[("verification-token", "rc-token-ol")],
            Reason::WrongCredential,
        ),
        (
            &[("verification-token", "rc-token-oldd")],
            Reason::WrongCredential,
        ),
        (
            &[("verification-token", "RC-TOKEN-OLD")],
            Reason::WrongCredential,
        ),
        (
            &[("authorization", "rc-token-old")],
            Reason::MissingCredential,
        ),
    ] {
        let verdict = refused(post(pairs, EVENT));
        assert_eq!(verdict, (reason, false), "{pairs:?}");
    }
}

fn echoed(verdict: Result<Admission, Refusal>) -> (String, bool) {
    let admission = verdict.expect("it is admitted");
    let Reply::Header(name, value) = admission.reply else {
        panic!("nothing is echoed");
    };
    assert_eq!(name, "validation-token");
    let value = value.to_str().expect("it is ASCII").to_owned();
    (value, admission.event.is_some())
}

#[test]
fn a_handshake_is_echoed_with_or_without_our_token() {
    let probe = ("validation-token", "probe-1");
    let echo = ("probe-1".to_owned(), false);
    assert_eq!(echoed(post(&[probe], "")), echo);
    assert_eq!(echoed(post(&[probe, VERIFIED], "")), echo);
    let wrong = post(&[probe, ("verification-token", "guess")], "");
    assert_eq!(refused(wrong), (Reason::WrongCredential, false));
}

#[test]
fn a_handshake_with_an_empty_json_body_is_no_event() {
    for body in ["{}", " {}\n", "\r\n"] {
        let admission = post(&[("validation-token", "probe")], body).expect("it is admitted");
        assert!(admission.event.is_none(), "{body:?}");
    }
}

#[test]
fn an_event_with_a_handshake_is_admitted_and_echoed() {
    let probe = ("validation-token", "probe-1");
    let verdict = post(&[probe, VERIFIED], EVENT);
    assert_eq!(echoed(verdict), ("probe-1".to_owned(), true));
    let wrong = post(&[probe, ("verification-token", "guess")], EVENT);
    assert_eq!(refused(wrong), (Reason::WrongCredential, false));
}

#[test]
fn only_a_short_token_of_visible_ascii_is_echoed() {
    let (longest, too_long) = ("t".repeat(512), "t".repeat(513));
    assert_eq!(
        echoed(post(&[("validation-token", &longest)], "")),
        (longest.clone(), false)
    );
    for token in [too_long.as_str(), "", "two words", "tab\there"] {
        let bad = [("validation-token", token), VERIFIED];
        let malformed = (Reason::MalformedHandshake, false);
        assert_eq!(refused(post(&bad, "")), malformed, "{token:?}");
        // An event with such a token is authentic.
        assert_eq!(kept(post(&bad, EVENT)), "ringcentral.unrecognized");
    }
    let opaque = HeaderValue::from_bytes(b"caf\xc3\xa9").expect("it is a value");
    let headers = HeaderMap::from_iter([(HeaderName::from_static("validation-token"), opaque)]);
    let provider = provider("ringcentral", SETTINGS);
    let verdict = admit(&*provider, &headers, "", at(SIGNED_AT));
    assert_eq!(refused(verdict), (Reason::MalformedHandshake, false));
}

#[test]
fn a_duplicate_has_the_same_subscription_and_uuid_or_else_the_same_body() {
    let keys = |body| dedupe(post(&[VERIFIED], body));
    let first = keys(r#"{"uuid": "1", "subscriptionId": "s", "timestamp": "a"}"#);
    assert_eq!(first.len(), 1);
    let resent = keys(r#"{"timestamp": "b", "subscriptionId": "s", "uuid": "1"}"#);
    assert_eq!(first, resent);
    for other in [
        r#"{"uuid": "2", "subscriptionId": "s", "timestamp": "a"}"#,
        r#"{"uuid": "1", "subscriptionId": "t", "timestamp": "a"}"#,
        r#"{"uuid": "1", "timestamp": "a"}"#,
        r#"{"uuid": "s1", "subscriptionId": "", "timestamp": "a"}"#,
        r#"{"uuid": "", "subscriptionId": "s", "timestamp": "a"}"#,
        r#"{"uuid": 1, "subscriptionId": "s", "timestamp": "a"}"#,
        r#"{"subscriptionId": "s", "timestamp": "a"}"#,
        "not JSON",
    ] {
        assert_ne!(first, keys(other), "{other}");
        assert_eq!(keys(other), keys(other), "{other}");
    }
    // Without a uuid, a single byte makes another event.
    assert_ne!(keys(r#"{"uuid": ""}"#), keys(r#"{"uuid":""}"#));
    assert_ne!(keys(r#"{"a": 1}"#), keys(r#"{"a": 2}"#));
    assert_eq!(
        keys(r#"{"uuid": "1", "subscriptionId": null}"#),
        keys(r#"{"uuid": "1"}"#)
    );
}
