//! The verdicts of each provider on requests, with settings from TOML.

mod ringcentral;
mod zoom;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use jiff::Timestamp;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Admission, Composed, Kind, Message, PROVIDERS, Provider, Reason, Refusal, Reply};
use crate::{
    event::{DedupeKey, EndpointName, families},
    secret::{self, Sources},
    spanned,
};

/// When the signatures in these tests were made: 2026-03-04 15:21:07 UTC.
const SIGNED_AT: i64 = 1_772_637_667;

fn read(name: &str, settings: &str) -> Result<Box<dyn Provider>, spanned::Error> {
    let settings = DeValue::parse(settings).expect("the settings are TOML");
    read_value(Kind::named(name).expect("the provider is known"), &settings)
}

fn read_value(
    kind: &Kind,
    settings: &Spanned<DeValue<'_>>,
) -> Result<Box<dyn Provider>, spanned::Error> {
    let sources = Sources {
        env: |_| Some("of-the-environment".to_owned()),
        inline: true,
    };
    secret::with(sources, || {
        (kind.read)(spanned::Deserializer::new(settings))
    })
}

fn provider(name: &str, settings: &str) -> Box<dyn Provider> {
    read(name, settings).expect("the settings are sound")
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("it is a time")
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        let name = HeaderName::try_from(*name).expect("it is a header name");
        (name, HeaderValue::try_from(*value).expect("it is a value"))
    };
    pairs.iter().map(pair).collect()
}

fn admit(
    provider: &dyn Provider,
    headers: &HeaderMap,
    body: impl Into<Bytes>,
    now: Timestamp,
) -> Result<Admission, Refusal> {
    let request = super::Request {
        endpoint: &EndpointName::new("endpoint"),
        method: &Method::POST,
        query: None,
        headers,
        body: body.into(),
    };
    provider.admit(request, now)
}

/// The reason of a refusal, and whether it asks for a retry.
fn refused(verdict: Result<Admission, Refusal>) -> (Reason, bool) {
    let refusal = verdict.expect_err("it is refused");
    (refusal.reason, refusal.retry)
}

/// The name of an admitted event, whose reply must be empty.
fn kept(verdict: Result<Admission, Refusal>) -> String {
    let admission = verdict.expect("it is admitted");
    assert_eq!(admission.reply, Reply::Empty);
    let event = admission.event.expect("there is an event to keep");
    event.notification().name.to_string()
}

fn dedupe(verdict: Result<Admission, Refusal>) -> Vec<DedupeKey> {
    let event = verdict.expect("it is admitted").event;
    event.expect("there is an event").into_notification().dedupe
}

/// Every provider by its name, as its example says, and with the settings that its example leaves out.
fn providers() -> Vec<(&'static str, Box<dyn Provider>)> {
    let examples = PROVIDERS.iter().map(|kind| (kind.kind, example(kind)));
    let others = [
        ("ringcentral", ringcentral::SETTINGS),
        ("zoom", zoom::SETTINGS),
        (
            "zoom",
            r#"{ secret_tokens = ["s"], require = { basic = { username = "u", password = "p" } } }"#,
        ),
    ];
    let others = others.map(|(name, settings)| (name, provider(name, settings)));
    examples.chain(others).collect()
}

/// The provider of the endpoint in its example.
fn example(kind: &Kind) -> Box<dyn Provider> {
    let example = DeTable::parse(kind.example).expect("the example is TOML");
    let endpoints = example.get_ref().get("endpoints");
    let endpoints = endpoints.and_then(|endpoints| endpoints.get_ref().as_table());
    let endpoint = endpoints.and_then(|endpoints| endpoints.values().next());
    let mut endpoint = endpoint.expect("the example has an endpoint").clone();
    if let DeValue::Table(settings) = endpoint.get_mut() {
        settings.remove("family");
        settings.remove("path");
    }
    read_value(kind, &endpoint).expect("the settings are sound")
}

#[test]
fn a_provider_admits_its_own_messages() {
    for (name, provider) in providers() {
        let now = at(SIGNED_AT);
        let Composed {
            headers,
            body,
            expected,
            ..
        } = provider.compose(Message::Handshake, now);
        let admission = admit(&*provider, &headers, body, now).expect("it is admitted");
        assert!(admission.event.is_none());
        assert_eq!(admission.reply, expected);

        for family in families().filter(|family| family.provider() == name) {
            let body = Bytes::from_static(family.example.as_bytes());
            let message = Message::Event {
                body: &body,
                delivery: "one",
            };
            let Composed {
                headers,
                body,
                expected,
                ..
            } = provider.compose(message, now);
            let admission = admit(&*provider, &headers, body, now).expect("it is admitted");
            assert_eq!(admission.reply, expected);
            let event = admission.event.expect("it is kept").into_notification();
            assert_eq!(event.name, family.event_name(family.changes[0].0));
            assert_eq!(event.provider(), name);
        }
    }
}

#[test]
fn a_freshened_copy_is_a_new_event_with_the_same_name_and_the_given_time() {
    for (name, provider) in providers() {
        let now = at(SIGNED_AT);
        let arrive = |body: &Bytes, delivery| {
            let message = Message::Event { body, delivery };
            let headers = provider.compose(message, now).headers;
            let admission = admit(&*provider, &headers, body.clone(), now);
            let event = admission.expect("it is admitted").event;
            event.expect("it is kept").into_notification()
        };
        for family in families().filter(|family| family.provider() == name) {
            let original = Bytes::from_static(family.example.as_bytes());
            let freshen = || provider.freshen(&original, now).expect("it is an object");
            let original = arrive(&original, "one");
            let (one, two) = (arrive(&freshen(), "two"), arrive(&freshen(), "three"));
            assert_eq!(one.name, original.name);
            assert_eq!(one.key, original.key);
            assert_eq!(one.occurred_at, Some(now));
            // Even two copies of one moment are two events.
            for key in &one.dedupe {
                assert!(!original.dedupe.contains(key));
                assert!(!two.dedupe.contains(key));
            }
        }
        for body in ["", "not JSON", "[]", "7"] {
            assert_eq!(provider.freshen(body.as_bytes(), now), None, "{body:?}");
        }
    }
}

#[test]
fn settings_without_a_secret_or_with_an_unknown_value_are_refused() {
    for (name, settings) in [
        ("ringcentral", "{}"),
        ("ringcentral", "{ verification_tokens = [] }"),
        ("ringcentral", r#"{ verification_tokens = [""] }"#),
        (
            "ringcentral",
            r#"{ verification_tokens = ["a"], token = "b" }"#,
        ),
        ("zoom", "{}"),
        ("zoom", "{ secret_tokens = [] }"),
        ("zoom", r#"{ secret_tokens = ["s", ""] }"#),
        (
            "zoom",
            r#"{ secret_tokens = ["s"], on_bad_signature = "accept" }"#,
        ),
        (
            "zoom",
            r#"{ secret_tokens = ["s"], require = { bearer = { token = "" } } }"#,
        ),
        (
            "zoom",
            r#"{ secret_tokens = ["s"], require = { header = { name = "a b", value = "v" } } }"#,
        ),
        (
            "zoom",
            r#"{ secret_tokens = ["s"], require = { mtls = {} } }"#,
        ),
    ] {
        assert!(read(name, settings).is_err(), "{settings}");
    }
}

#[test]
fn the_debug_output_of_a_provider_shows_no_secret() {
    for (_, provider) in providers() {
        let shown = format!("{provider:?}");
        for secret in ["rc-token", "zoom-secret", "dTpw", "of-the-environment"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}

#[test]
fn every_family_has_a_provider() {
    for family in families() {
        let known = PROVIDERS.iter().any(|kind| kind.kind == family.provider());
        assert!(known, "{}", family.name);
    }
}
