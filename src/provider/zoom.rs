//! Zoom: an HMAC over the raw body, and a challenge to be answered with the same secret.
//!
//! The message that is signed is `v0:`, the timestamp header as it was sent, `:`, and the body as
//! it was sent. The challenge is answered with an HMAC of a text that the asker chooses, under the
//! same key: answered without first checking the asker's own signature, it would sign forged
//! events for anyone. So it is checked like any event, and what is signed is bounded besides to
//! characters that no signed message can be made of.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Admission, Composed, Message, Provider, ProviderKind, Reason, Refusal, Reply, Request,
    Verified,
    signature::{self, SigningKey, Tokens},
};
use crate::{
    event::{DedupeKey, EventId},
    secret::{Secret, Secrets},
};

const NAME: &str = "zoom";

const SIGNATURE: HeaderName = HeaderName::from_static("x-zm-signature");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-zm-request-timestamp");
/// The same over retries of one delivery, unlike `x-zm-trackingid`, which several events share.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-zm-request-id");

const CHALLENGE: &str = "endpoint.url_validation";

/// How far a signature's timestamp may be from our clock, on either side. Zoom names no number;
/// each retry is signed anew, so the window need not cover the 85 minutes of retries.
const WINDOW: SignedDuration = SignedDuration::from_secs(300);

/// What the TOML says of a Zoom endpoint.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// The app's Secret Token; several while it is replaced.
    secret_tokens: Secrets,
    /// Whether a bad signature is final at Zoom (401) or is sent again for 85 minutes (503).
    #[serde(default)]
    on_bad_signature: OnBadSignature,
    /// A credential that Zoom is set up to send besides its signature.
    #[serde(default)]
    require: Option<Require>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum OnBadSignature {
    #[default]
    Refuse,
    Retry,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Require {
    Basic { username: String, password: Secret },
    Bearer { token: Secret },
    Header { name: RequiredHeader, value: Secret },
}

/// A header name that is checked while the settings are read.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct RequiredHeader(HeaderName);

impl TryFrom<String> for RequiredHeader {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        HeaderName::try_from(&name)
            .map(Self)
            .map_err(|_| format!("{name:?} is not a header name"))
    }
}

impl ProviderKind for Settings {
    const KIND: &'static str = NAME;
    const EXAMPLE: &'static str = r#"
[endpoints.zoom-number-management]
family = "zoom.number-management"
path = "/zoom/number-management"
secret_tokens = [{ env = "ZOOM_SECRET_TOKEN" }]
"#;
    type Provider = Zoom;

    fn build(self) -> Zoom {
        Zoom {
            keys: self.secret_tokens.iter().map(SigningKey::new).collect(),
            bad_signature_again: self.on_bad_signature == OnBadSignature::Retry,
            demand: self.require.map(Demand::new),
        }
    }
}

#[derive(Debug)]
pub(super) struct Zoom {
    /// Never empty.
    keys: Vec<SigningKey>,
    bad_signature_again: bool,
    demand: Option<Demand>,
}

/// A header with its one allowed value.
#[derive(Debug)]
struct Demand {
    header: HeaderName,
    expected: Tokens,
    value: Secret,
}

impl Demand {
    fn new(require: Require) -> Self {
        let (header, value) = match require {
            Require::Basic { username, password } => {
                let pair = format!("{username}:{}", password.expose());
                let pair = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, pair);
                (
                    header::AUTHORIZATION,
                    Secret::derived(format!("Basic {pair}")),
                )
            }
            Require::Bearer { token } => {
                let value = Secret::derived(format!("Bearer {}", token.expose()));
                (header::AUTHORIZATION, value)
            }
            Require::Header { name, value } => (name.0, value),
        };
        Self {
            header,
            expected: Tokens::new(&Secrets::one(value.clone())),
            value,
        }
    }

    fn is_met(&self, headers: &HeaderMap) -> bool {
        let sent = headers.get(&self.header);
        sent.is_some_and(|sent| self.expected.contain(sent.as_bytes()))
    }
}

impl Provider for Zoom {
    fn admit(&self, request: Request<'_>, now: Timestamp) -> Result<Admission, Refusal> {
        let key = self
            .signer(request.headers, &request.body, now)
            .map_err(|reason| self.refusal(reason))?;
        // A challenge need not bring the credential that is demanded besides: nothing says that
        // Zoom sends it then, and a refused challenge ends in a disabled subscription.
        if let Some(token) = challenge(&request.body) {
            let reply = answer(&token, key);
            return Ok(Admission { event: None, reply });
        }
        if let Some(demand) = &self.demand
            && !demand.is_met(request.headers)
        {
            return Err(self.refusal(Reason::RequirementUnmet));
        }
        let mut dedupe = vec![DedupeKey::new(NAME, "body", &request.body)];
        if let Some(id) = request.headers.get(REQUEST_ID).filter(|id| !id.is_empty()) {
            dedupe.push(DedupeKey::new(NAME, "request-id", id.as_bytes()));
        }
        Ok(Admission {
            event: Some(Verified::new(NAME, request, now, dedupe)),
            reply: Reply::Empty,
        })
    }

    fn compose(&self, message: Message<'_>, now: Timestamp) -> Composed {
        let Some(key) = self.keys.first() else {
            unreachable!("settings with no secret are refused while they are read");
        };
        let (body, delivery, expected) = match message {
            Message::Handshake => {
                // Zoom's own tokens are 22 characters of base64url.
                let token = signature::to_hex(&key.sign(&[now.to_string().as_bytes()]));
                let token = token.get(..22).unwrap_or_default().to_owned();
                let body = serde_json::json!({
                    "payload": { "plainToken": token },
                    "event_ts": now.as_millisecond(),
                    "event": CHALLENGE,
                });
                let expected = answer(&token, key);
                (Bytes::from(body.to_string()), "challenge", expected)
            }
            Message::Event { body, delivery } => (body.clone(), delivery, Reply::Empty),
        };
        let timestamp = now.as_second().to_string();
        let mac = key.sign(&[b"v0:", timestamp.as_bytes(), b":", &body]);
        let mut headers = HeaderMap::new();
        let mut insert = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        insert(header::CONTENT_TYPE, "application/json; charset=utf-8");
        insert(header::USER_AGENT, "Zoom Marketplace/1.0a");
        insert(TIMESTAMP, &timestamp);
        insert(SIGNATURE, &format!("v0={}", signature::to_hex(&mac)));
        insert(REQUEST_ID, delivery);
        if let Some(demand) = &self.demand {
            insert(demand.header.clone(), demand.value.expose());
        }
        Composed {
            method: Method::POST,
            query: None,
            headers,
            body,
            expected,
        }
    }

    fn freshen(&self, body: &[u8], now: Timestamp) -> Option<Bytes> {
        let mut body: Value = serde_json::from_slice(body).ok()?;
        let envelope = body.as_object_mut()?;
        envelope.insert("event_ts".to_owned(), now.as_millisecond().into());
        // Two copies may be made in one millisecond, and Zoom's body holds no other identity.
        let id = EventId::new(now).to_string();
        envelope.insert("copy_id".to_owned(), id.into());
        Some(Bytes::from(body.to_string()))
    }
}

impl Zoom {
    /// The key that the request is signed with, if the signature is also fresh.
    fn signer(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Result<&SigningKey, Reason> {
        let signature = headers.get(SIGNATURE).ok_or(Reason::MissingCredential)?;
        let timestamp = headers.get(TIMESTAMP).ok_or(Reason::MissingCredential)?;
        let mac = signature
            .as_bytes()
            .strip_prefix(b"v0=")
            .and_then(signature::from_hex)
            .ok_or(Reason::MalformedCredential)?;
        let message: [&[u8]; 4] = [b"v0:", timestamp.as_bytes(), b":", body];
        let mut keys = self.keys.iter();
        let key = keys
            .find(|key| key.verifies(&message, &mac))
            .ok_or(Reason::WrongCredential)?;
        // A time that cannot be read is as good as one that is too far away: Zoom did sign it.
        match signed_at(timestamp) {
            Some(signed_at) if signature::is_fresh(signed_at, now, WINDOW) => Ok(key),
            _ => Err(Reason::Stale),
        }
    }

    fn refusal(&self, reason: Reason) -> Refusal {
        Refusal {
            reason,
            // A stale signature is made anew on a retry: a replayer gains nothing by it.
            again: reason == Reason::Stale || self.bad_signature_again,
        }
    }
}

/// The time in the timestamp header, which is in whole seconds; `event_ts` is in milliseconds.
fn signed_at(timestamp: &HeaderValue) -> Option<Timestamp> {
    let seconds = timestamp.to_str().ok()?.parse().ok()?;
    Timestamp::from_second(seconds).ok()
}

/// The largest body that can be a challenge, in bytes: its token is bounded, and the rest of it is
/// about a hundred. Larger ones, as most events are, need not be read to tell.
const CHALLENGE_LIMIT: usize = 512;

/// The token of a challenge that can be answered. One with another token is no challenge: it goes
/// the way of every authentic body that nobody understands.
fn challenge(body: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Challenge<'a> {
        #[serde(borrow)]
        event: Cow<'a, str>,
        #[serde(borrow)]
        payload: Payload<'a>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Payload<'a> {
        #[serde(borrow)]
        plain_token: Cow<'a, str>,
    }
    if body.len() > CHALLENGE_LIMIT {
        return None;
    }
    let challenge: Challenge<'_> = serde_json::from_slice(body).ok()?;
    let token = challenge.payload.plain_token;
    (challenge.event == CHALLENGE && is_answerable(&token)).then_some(token)
}

/// No `:` and no `{` are among these, so no signed message is ever an answerable token.
fn is_answerable(token: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.=+/".contains(&byte);
    (1..=128).contains(&token.len()) && token.bytes().all(allowed)
}

fn answer(token: &str, key: &SigningKey) -> Reply {
    let encrypted = signature::to_hex(&key.sign(&[token.as_bytes()]));
    let answer = serde_json::json!({ "plainToken": token, "encryptedToken": encrypted });
    Reply::Body {
        content_type: HeaderValue::from_static("application/json"),
        body: Bytes::from(answer.to_string()),
    }
}
