//! Zoom. The signatures were computed with another implementation of HMAC-SHA256.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use jiff::{SignedDuration, Timestamp};

use super::{SIGNED_AT, admit, at, dedupe, headers, kept, provider, refused};
use crate::{
    event::{DedupeKey, EndpointName},
    provider::{Admission, Composed, Message, Reason, Refusal, Reply},
};

pub(super) const SETTINGS: &str = r#"{ secret_tokens = ["zoom-secret-one"] }"#;

const BODY: &[u8] = br#"{"event":"phone.peering_number_cnam_updated"}"#;
const SIGNATURE: &str = "v0=1ea767a624845a812adbe307e2bcf4c967239e3ad99d3fe3451e44f8d8f3391b";
/// The same body, signed with `zoom-secret-two`.
const SECOND_SIGNATURE: &str =
    "v0=a5c0d30a0fc858e75cb710006f4c8297c165ce1441af73f0483a2a877574f208";

/// Sends `body` to Zoom's endpoint with `signature` made at `SIGNED_AT`.
fn admit_signed(
    settings: &str,
    signature: &str,
    body: &'static [u8],
) -> Result<Admission, Refusal> {
    let timestamp = SIGNED_AT.to_string();
    let headers = headers(&[
        ("x-zm-signature", signature),
        ("x-zm-request-timestamp", &timestamp),
    ]);
    admit(&*provider("zoom", settings), &headers, body, at(SIGNED_AT))
}

#[test]
fn a_signed_body_is_admitted_byte_for_byte() {
    let admission = admit_signed(SETTINGS, SIGNATURE, BODY).expect("it is admitted");
    let notification = admission.event.expect("it is kept").into_notification();
    assert_eq!(notification.body, BODY);
    assert_eq!(notification.received_at, at(SIGNED_AT));
    assert_eq!(notification.endpoint, EndpointName::new("endpoint"));
}

#[test]
fn the_signature_is_over_the_bytes_and_not_over_their_meaning() {
    let pretty = b"{ \"event\" : \"meeting.\\u0073tarted\",\n  \"n\": 3457.0, \"u\": \"\\/\" }";
    let signature = "v0=168ec501af114c12b7e35794de0a959461a588a5e37377110682d37fd434ae75";
    assert_eq!(
        kept(admit_signed(SETTINGS, signature, pretty)),
        "zoom.unrecognized"
    );
    let compact = br#"{"event":"meeting.started","n":3457.0,"u":"/"}"#;
    let wrong = (Reason::WrongCredential, false);
    assert_eq!(refused(admit_signed(SETTINGS, signature, compact)), wrong);
}

#[test]
fn a_signed_body_that_is_not_text_is_admitted() {
    let signature = "v0=79e7982e32ba765118acd2288cfeea7f37fb9bed30e037329a8d76805b7f6b83";
    let verdict = admit_signed(SETTINGS, signature, b"\xff\xfe{\"event\":");
    assert_eq!(kept(verdict), "zoom.unrecognized");
}

#[test]
fn any_of_the_secrets_verifies_and_no_other_does() {
    let both = r#"{ secret_tokens = ["zoom-secret-one", "zoom-secret-two"] }"#;
    let name = "zoom.number-management.unreadable";
    assert_eq!(kept(admit_signed(both, SIGNATURE, BODY)), name);
    assert_eq!(kept(admit_signed(both, SECOND_SIGNATURE, BODY)), name);
    let wrong = (Reason::WrongCredential, false);
    assert_eq!(
        refused(admit_signed(SETTINGS, SECOND_SIGNATURE, BODY)),
        wrong
    );
    let third = r#"{ secret_tokens = ["zoom-secret-three", "zoom-secret-four"] }"#;
    assert_eq!(refused(admit_signed(third, SIGNATURE, BODY)), wrong);
}

#[test]
fn the_admission_says_which_secret_verified() {
    let both = r#"{ secret_tokens = ["zoom-secret-one", "zoom-secret-two"] }"#;
    let secret = |signature| admit_signed(both, signature, BODY).unwrap().secret;
    assert_eq!(secret(SIGNATURE), Some(0));
    assert_eq!(secret(SECOND_SIGNATURE), Some(1));
}

#[test]
fn a_signature_can_have_upper_case_digits() {
    let upper = format!("v0={}", SIGNATURE[3..].to_uppercase());
    assert_eq!(
        kept(admit_signed(SETTINGS, &upper, BODY)),
        "zoom.number-management.unreadable"
    );
}

#[test]
fn only_64_digits_after_v0_are_a_signature() {
    let digits = &SIGNATURE[3..];
    for signature in [
        format!("v1={digits}"),
        format!("V0={digits}"),
        format!("sha256={digits}"),
        digits.to_owned(),
        format!("v0={}", &digits[1..]),
        format!("v0={digits}0"),
        format!("v0={digits}00"),
        format!("v0={}g", &digits[..63]),
        format!("v0=+{}", &digits[1..]),
        format!("v0= {}", &digits[1..]),
        format!("v0=v0={digits}"),
        "v0=".to_owned(),
        String::new(),
    ] {
        let verdict = refused(admit_signed(SETTINGS, &signature, BODY));
        assert_eq!(verdict, (Reason::MalformedCredential, false), "{signature}");
    }
}

#[test]
fn signature_and_timestamp_are_both_required() {
    let timestamp = SIGNED_AT.to_string();
    let provider = provider("zoom", SETTINGS);
    for pairs in [
        &[][..],
        &[("x-zm-signature", SIGNATURE)],
        &[("x-zm-request-timestamp", timestamp.as_str())],
        &[("authorization", "zoom-secret-one")],
    ] {
        let verdict = admit(&*provider, &headers(pairs), BODY, at(SIGNED_AT));
        assert_eq!(refused(verdict), (Reason::MissingCredential, false));
    }
}

#[test]
fn the_timestamp_is_signed_as_it_was_sent() {
    let provider = provider("zoom", SETTINGS);
    for timestamp in ["1772637668", "01772637667", "+1772637667", "1772637667000"] {
        let headers = headers(&[
            ("x-zm-signature", SIGNATURE),
            ("x-zm-request-timestamp", timestamp),
        ]);
        let verdict = admit(&*provider, &headers, BODY, at(SIGNED_AT));
        let wrong = (Reason::WrongCredential, false);
        assert_eq!(refused(verdict), wrong, "{timestamp}");
    }
}

#[test]
fn bytes_moved_from_the_body_to_the_timestamp_are_refused() {
    let provider = provider("zoom", SETTINGS);
    let moved = format!("{SIGNED_AT}:{{\"event\"");
    let headers = headers(&[
        ("x-zm-signature", SIGNATURE),
        ("x-zm-request-timestamp", &moved),
    ]);
    let rest: &[u8] = br#""phone.peering_number_cnam_updated"}"#;
    let verdict = admit(&*provider, &headers, rest, at(SIGNED_AT));
    assert_eq!(refused(verdict), (Reason::Stale, true));
}

#[test]
fn a_signature_is_good_for_300_seconds_on_either_side() {
    let provider = provider("zoom", SETTINGS);
    let body = Bytes::from_static(BODY);
    let message = Message::Event {
        body: &body,
        delivery: "one",
    };
    let composed = provider.compose(message, at(SIGNED_AT));
    let verdict = |now| admit(&*provider, &composed.headers, body.clone(), now);
    let second = SignedDuration::from_secs(1);
    let nano = SignedDuration::from_nanos(1);
    for edge in [at(SIGNED_AT - 300), at(SIGNED_AT + 300), at(SIGNED_AT)] {
        assert!(verdict(edge).is_ok(), "{edge}");
    }
    // Zoom signs a retry anew.
    let stale = (Reason::Stale, true);
    for early in [nano, second] {
        assert_eq!(refused(verdict(at(SIGNED_AT - 300) - early)), stale);
    }
    for late in [nano, second, second * 86_400] {
        assert_eq!(refused(verdict(at(SIGNED_AT + 300) + late)), stale);
    }
}

#[test]
fn a_stale_forgery_is_refused_as_a_forgery() {
    let provider = provider("zoom", SETTINGS);
    let timestamp = SIGNED_AT.to_string();
    let headers = headers(&[
        ("x-zm-signature", SECOND_SIGNATURE),
        ("x-zm-request-timestamp", &timestamp),
    ]);
    let verdict = admit(&*provider, &headers, BODY, at(SIGNED_AT + 3600));
    assert_eq!(refused(verdict), (Reason::WrongCredential, false));
}

#[test]
fn a_bad_signature_can_be_retried() {
    let retry = r#"{ secret_tokens = ["zoom-secret-one"], on_bad_signature = "retry" }"#;
    for (signature, reason) in [
        (SECOND_SIGNATURE, Reason::WrongCredential),
        ("v1=00", Reason::MalformedCredential),
    ] {
        assert_eq!(
            refused(admit_signed(retry, signature, BODY)),
            (reason, true)
        );
    }
    let unsigned = admit(
        &*provider("zoom", retry),
        &headers(&[]),
        BODY,
        at(SIGNED_AT),
    );
    assert_eq!(refused(unsigned), (Reason::MissingCredential, true));
    let refuse = r#"{ secret_tokens = ["zoom-secret-one"], on_bad_signature = "refuse" }"#;
    assert_eq!(
        refused(admit_signed(refuse, SECOND_SIGNATURE, BODY)),
        (Reason::WrongCredential, false)
    );
}

// === challenges ===

/// Sends `body`, properly signed at `signed_at`, to an endpoint with `settings`.
fn signed(settings: &str, body: &str, signed_at: Timestamp) -> Result<Admission, Refusal> {
    let provider = provider("zoom", settings);
    let body = Bytes::from(body.to_owned());
    let message = Message::Event {
        body: &body,
        delivery: "one",
    };
    let Composed { mut headers, .. } = provider.compose(message, signed_at);
    headers.remove("authorization");
    headers.remove("x-shared");
    admit(&*provider, &headers, body.clone(), at(SIGNED_AT))
}

fn challenge(token: &str) -> String {
    let token = serde_json::Value::from(token);
    format!(
        r#"{{"payload":{{"plainToken":{token}}},"event_ts":1654503849680,"event":"endpoint.url_validation"}}"#
    )
}

const TEST_SECRET: &str = r#"{ secret_tokens = ["secretValueTest"] }"#;
const TEST_TOKEN: &str = "qgg8vlvZRS6UYooatFL8Aw";

fn answer(verdict: Result<Admission, Refusal>) -> serde_json::Value {
    let admission = verdict.expect("it is admitted");
    assert!(admission.event.is_none(), "a challenge is no event");
    let Reply::Body { content_type, body } = admission.reply else {
        panic!("it is not answered as a challenge");
    };
    assert_eq!(content_type, "application/json");
    serde_json::from_slice(&body).expect("the answer is JSON")
}

#[test]
fn a_challenge_is_answered_with_the_mac_of_its_token() {
    let answer = answer(signed(TEST_SECRET, &challenge(TEST_TOKEN), at(SIGNED_AT)));
    assert_eq!(
        answer,
        serde_json::json!({
            "plainToken": TEST_TOKEN,
            "encryptedToken": "70c1f2e2e6ca2d39297490d1f9142c7d701415ea8e6151f6562a08fa657a40ff",
        })
    );
}

#[test]
fn a_challenge_is_answered_with_the_secret_that_signed_it() {
    // Composed with the first secret and sent to an endpoint where that one is the second.
    let sender = provider("zoom", TEST_SECRET);
    let both = provider(
        "zoom",
        r#"{ secret_tokens = ["other", "secretValueTest"] }"#,
    );
    let Composed {
        headers,
        body,
        expected,
        ..
    } = sender.compose(Message::Handshake, at(SIGNED_AT));
    let admission = admit(&*both, &headers, body, at(SIGNED_AT)).expect("it is admitted");
    assert_eq!(admission.reply, expected);
}

#[test]
fn a_challenge_that_is_not_signed_or_not_fresh_is_not_answered() {
    let provider = provider("zoom", TEST_SECRET);
    let unsigned = admit(
        &*provider,
        &headers(&[]),
        challenge(TEST_TOKEN),
        at(SIGNED_AT),
    );
    assert_eq!(refused(unsigned), (Reason::MissingCredential, false));
    let stale = signed(TEST_SECRET, &challenge(TEST_TOKEN), at(SIGNED_AT - 301));
    assert_eq!(refused(stale), (Reason::Stale, true));
}

#[test]
fn a_challenge_never_signs_a_message_of_zoom() {
    let forged = format!("v0:{SIGNED_AT}:{{\"event\":\"forged\"}}");
    for token in [
        forged.as_str(),
        "v0:1:",
        "{}",
        "a b",
        "a\nb",
        "a\"b",
        "a%3A",
        "\u{ff1a}",
        "",
        &"a".repeat(129),
    ] {
        let verdict = signed(TEST_SECRET, &challenge(token), at(SIGNED_AT));
        assert_eq!(kept(verdict), "zoom.unrecognized", "{token:?}");
    }
    for token in ["a", "AZaz09_-.=+/", &"a".repeat(128)] {
        let answer = answer(signed(TEST_SECRET, &challenge(token), at(SIGNED_AT)));
        assert_eq!(answer["plainToken"], token);
    }
}

#[test]
fn a_body_of_more_than_512_bytes_is_no_challenge() {
    let longest = format!("{:<512}", challenge(TEST_TOKEN));
    answer(signed(TEST_SECRET, &longest, at(SIGNED_AT)));
    let too_long = format!("{longest} ");
    let verdict = signed(TEST_SECRET, &too_long, at(SIGNED_AT));
    assert_eq!(kept(verdict), "zoom.unrecognized");
}

#[test]
fn another_event_with_a_token_is_no_challenge() {
    let body = r#"{"event": "meeting.started", "payload": {"plainToken": "abc"}}"#;
    let verdict = signed(TEST_SECRET, body, at(SIGNED_AT));
    assert_eq!(kept(verdict), "zoom.unrecognized");
}

// === required credentials ===

#[test]
fn a_required_credential_is_checked_besides_the_signature() {
    let body = std::str::from_utf8(BODY).expect("it is text");
    for (require, name, value, near_misses) in [
        (
            r#"{ basic = { username = "zoom", password = "pa:ss" } }"#,
            "authorization",
            "Basic em9vbTpwYTpzcw==",
            ["Basic em9vbTpwYTpzc3M=", "Bearer pa:ss", "em9vbTpwYTpzcw=="],
        ),
        (
            r#"{ bearer = { token = "tok-1" } }"#,
            "authorization",
            "Bearer tok-1",
            ["Bearer tok-2", "tok-1", "Bearer tok-11"],
        ),
        (
            r#"{ header = { name = "X-Shared", value = "v-1" } }"#,
            "x-shared",
            "v-1",
            ["v-2", "v-1, v-1", ""],
        ),
    ] {
        let settings = format!(r#"{{ secret_tokens = ["s"], require = {require} }}"#);
        let without = signed(&settings, body, at(SIGNED_AT));
        assert_eq!(
            refused(without),
            (Reason::RequirementUnmet, false),
            "{require}"
        );

        let provider = provider("zoom", &settings);
        let body = Bytes::from_static(BODY);
        let message = Message::Event {
            body: &body,
            delivery: "one",
        };
        let composed = provider.compose(message, at(SIGNED_AT));
        assert_eq!(composed.headers[name], value, "{require}");
        let verdict = |headers: &HeaderMap| admit(&*provider, headers, body.clone(), at(SIGNED_AT));
        assert!(verdict(&composed.headers).is_ok(), "{require}");
        for near_miss in near_misses {
            let mut headers = composed.headers.clone();
            headers.insert(name, HeaderValue::from_static(near_miss));
            let unmet = (Reason::RequirementUnmet, false);
            assert_eq!(refused(verdict(&headers)), unmet, "{near_miss}");
        }
        // The credential alone proves nothing.
        let mut headers = composed.headers.clone();
        headers.insert("x-zm-signature", HeaderValue::from_static(SECOND_SIGNATURE));
        assert_eq!(refused(verdict(&headers)).0, Reason::WrongCredential);
    }
}

#[test]
fn a_challenge_does_not_need_the_required_credential() {
    let settings = r#"{ secret_tokens = ["s"], require = { bearer = { token = "tok-1" } } }"#;
    answer(signed(settings, &challenge(TEST_TOKEN), at(SIGNED_AT)));
}

// === duplicates ===

#[test]
fn a_duplicate_has_the_same_body_or_the_same_request_id() {
    let provider = provider("zoom", SETTINGS);
    let keys = |body: &'static [u8], delivery, now| {
        let body = Bytes::from_static(body);
        let message = Message::Event {
            body: &body,
            delivery,
        };
        let mut headers = provider.compose(message, now).headers;
        headers.insert(
            "x-zm-trackingid",
            HeaderValue::from_static("v=2.0;rid=WEB_1"),
        );
        dedupe(admit(&*provider, &headers, body, now))
    };
    let first = keys(BODY, "1", at(SIGNED_AT));
    let retry = keys(BODY, "1", at(SIGNED_AT + 304));
    assert_eq!(first, retry, "a retry is signed anew and is the same event");

    let shares = |a: &[DedupeKey], b: &[DedupeKey]| a.iter().any(|key| b.contains(key));
    let other_id = keys(BODY, "2", at(SIGNED_AT));
    assert!(shares(&first, &other_id));
    let other_body = keys(b"{}", "1", at(SIGNED_AT));
    assert!(shares(&first, &other_body));
    let other = keys(b"{}", "2", at(SIGNED_AT));
    assert!(!shares(&first, &other), "a tracking id is shared by events");
    let without_id = keys(BODY, "", at(SIGNED_AT));
    assert_eq!(without_id.len(), 1);
    assert!(shares(&first, &without_id));
    assert!(!shares(
        &keys(b"[]", "", at(SIGNED_AT)),
        &keys(b"{}", "", at(SIGNED_AT))
    ));
}
