//! Zoom: an HMAC over the raw body, and a challenge that is answered with the same secret.
//!
//! Zoom signs `v0:`, the timestamp header as sent, `:`, and the body as sent. The answer to a challenge is
//! an HMAC with the same key, of a text that the sender of the challenge chooses. An unverified challenge
//! would therefore let anyone have a forged event signed. So the signature of a challenge is verified like
//! that of an event, and its text is limited to characters of which no signed message can consist.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Admission, Composed, Examination, Freshness, Message, Provider, ProviderKind, Reason, Refusal,
    Reply, Request, Verified,
    signature::{self, SigningKey, Tokens},
};
use crate::{
    event::{DedupeKey, EventId},
    secret::{Secret, Secrets},
};

const NAME: &str = "zoom";

const SIGNATURE: HeaderName = HeaderName::from_static("x-zm-signature");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-zm-request-timestamp");
/// The id of a delivery. A retry has the same one. Several events share an `x-zm-trackingid`.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-zm-request-id");

const CHALLENGE: &str = "endpoint.url_validation";

/// The largest difference between a signature's timestamp and our clock, either way. Zoom documents none.
/// Zoom signs each retry anew, so the window need not cover the 85 minutes of retries.
const WINDOW: SignedDuration = SignedDuration::from_secs(300);

/// The settings of a Zoom endpoint.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// The app's Secret Token. Two while it is being replaced.
    secret_tokens: Secrets,
    /// Whether a bad signature is answered 401, after which Zoom does not retry, or 503, after which Zoom
    /// retries for 85 minutes.
    #[serde(default)]
    on_bad_signature: OnBadSignature,
    /// A credential that the Zoom app is set up to send besides its signature.
    #[serde(default)]
    require: Option<Require>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
enum OnBadSignature {
    #[default]
    Refuse,
    Retry,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Require {
    Basic {
        username: String,
        password: Secret,
    },
    Bearer {
        token: Secret,
    },
    Header {
        #[schemars(with = "String")]
        name: RequiredHeader,
        value: Secret,
    },
}

/// A header name, checked while the settings are read.
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
            secrets: self.secret_tokens,
            retry_bad_signature: self.on_bad_signature == OnBadSignature::Retry,
            required: self.require.map(RequiredCredential::new),
        }
    }
}

#[derive(Debug)]
pub(super) struct Zoom {
    /// Never empty.
    keys: Vec<SigningKey>,
    /// The secrets that `keys` are made of.
    secrets: Secrets,
    retry_bad_signature: bool,
    required: Option<RequiredCredential>,
}

/// The credential that a request needs besides its signature.
#[derive(Debug)]
struct RequiredCredential {
    header: HeaderName,
    expected: Tokens,
    value: Secret,
}

impl RequiredCredential {
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

    fn is_in(&self, headers: &HeaderMap) -> bool {
        let sent = headers.get(&self.header);
        sent.is_some_and(|sent| self.expected.position(sent.as_bytes()).is_some())
    }
}

impl Provider for Zoom {
    fn admit(&self, request: Request<'_>, now: Timestamp) -> Result<Admission, Refusal> {
        let (secret, key) = self
            .key(request.headers, &request.body, now)
            .map_err(|reason| self.refusal(reason))?;
        // A challenge does not need the required credential. Nothing says that Zoom sends it then, and
        // Zoom disables a subscription whose challenges are refused.
        if let Some(token) = challenge(&request.body) {
            return Ok(Admission {
                event: None,
                reply: answer(&token, key),
                secret: Some(secret),
            });
        }
        if let Some(required) = &self.required
            && !required.is_in(request.headers)
        {
            return Err(self.refusal(Reason::RequirementUnmet));
        }
        let identities = identities(request.headers, &request.body);
        let dedupe = identities.map(|(what, value)| DedupeKey::new(NAME, what, value));
        let dedupe = dedupe.collect();
        Ok(Admission {
            event: Some(Verified::new(NAME, request, now, dedupe)),
            reply: Reply::Empty,
            secret: Some(secret),
        })
    }

    fn examine(&self, request: &Request<'_>) -> Examination {
        let signature = Signature::read(request.headers);
        let signed_at = request.headers.get(TIMESTAMP).and_then(signed_at);
        Examination {
            secret: signature
                .ok()
                .and_then(|signature| self.signer(&signature, &request.body)),
            secrets: self.keys.len(),
            freshness: signed_at.map(|signed_at| Freshness {
                signed_at,
                window: WINDOW,
            }),
            covers_body: true,
            dedupe: identities(request.headers, &request.body)
                .map(|(what, _)| what)
                .collect(),
        }
    }

    fn explain(&self, request: &Request<'_>, reason: Reason) -> String {
        match reason {
            Reason::MissingCredential => {
                let missing = [SIGNATURE, TIMESTAMP];
                let missing = missing.into_iter();
                let missing: Vec<_> = missing
                    .filter(|name| !request.headers.contains_key(name))
                    .map(|name| name.to_string())
                    .collect();
                let missing = missing.join(" and ");
                format!("{missing} is missing; let no proxy drop headers that begin with `x-zm-`")
            }
            Reason::MalformedCredential => format!(
                "{SIGNATURE} is not `v0=` and 64 hexadecimal digits; Zoom sends nothing else, so look \
                 at what changed the header"
            ),
            Reason::Stale => format!(
                "{TIMESTAMP} is no number of seconds; Zoom sends nothing else, so look at what changed \
                 the header"
            ),
            Reason::RequirementUnmet => {
                let header = self.required.as_ref().map(|required| &required.header);
                let header = header.map_or("", HeaderName::as_str);
                let has = match request.headers.contains_key(header) {
                    true => "has another value than",
                    false => "is missing, which is",
                };
                format!(
                    "the signature is good, and the header {header} {has} what `require` asks for; set \
                     up the same in the Zoom app, or take `require` out"
                )
            }
            Reason::WrongCredential | Reason::MalformedHandshake => format!(
                "the signature in {SIGNATURE} fits none of `secret_tokens`; compare them with the Secret \
                 Token of the Zoom app, under Features > Access"
            ),
        }
    }

    fn secrets(&self) -> &[Secret] {
        self.secrets.as_slice()
    }

    fn compose(&self, message: Message<'_>, now: Timestamp) -> Composed {
        let Some(key) = self.keys.first() else {
            unreachable!("settings without a secret are refused while they are read");
        };
        let (body, delivery, expected) = match message {
            Message::Handshake => {
                // Zoom's own tokens have 22 characters of base64url.
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
        if let Some(required) = &self.required {
            insert(required.header.clone(), required.value.expose());
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
        // Two copies can be made in one millisecond, and a Zoom body has no other identity.
        let id = EventId::new(now).to_string();
        envelope.insert("copy_id".to_owned(), id.into());
        Some(Bytes::from(body.to_string()))
    }
}

impl Zoom {
    /// The key of the request's signature and its index, if the signature is good and fresh.
    fn key(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Result<(usize, &SigningKey), Reason> {
        let signature = Signature::read(headers)?;
        let signer = self.signer(&signature, body);
        let key = signer.and_then(|signer| Some((signer, self.keys.get(signer)?)));
        let key = key.ok_or(Reason::WrongCredential)?;
        // A timestamp that cannot be parsed is treated as stale, since its signature is good.
        match signed_at(signature.timestamp) {
            Some(signed_at) if signature::is_fresh(signed_at, now, WINDOW) => Ok(key),
            _ => Err(Reason::Stale),
        }
    }

    /// The index of the key that `signature` over `body` was made with.
    fn signer(&self, signature: &Signature<'_>, body: &[u8]) -> Option<usize> {
        let message: [&[u8]; 4] = [b"v0:", signature.timestamp.as_bytes(), b":", body];
        let mut keys = self.keys.iter();
        keys.position(|key| key.verifies(&message, &signature.mac))
    }

    fn refusal(&self, reason: Reason) -> Refusal {
        Refusal {
            reason,
            // Zoom signs a retry anew. Whoever replays an old request gains nothing by a retry.
            retry: reason == Reason::Stale || self.retry_bad_signature,
        }
    }
}

/// The signature of a request, which has not been verified.
struct Signature<'a> {
    mac: [u8; 32],
    /// The timestamp as it was sent, which is part of the signed message.
    timestamp: &'a HeaderValue,
}

impl<'a> Signature<'a> {
    fn read(headers: &'a HeaderMap) -> Result<Self, Reason> {
        let signature = headers.get(SIGNATURE).ok_or(Reason::MissingCredential)?;
        let timestamp = headers.get(TIMESTAMP).ok_or(Reason::MissingCredential)?;
        let digits = signature.as_bytes().strip_prefix(b"v0=");
        let mac = digits.and_then(signature::from_hex);
        let mac = mac.ok_or(Reason::MalformedCredential)?;
        Ok(Self { mac, timestamp })
    }
}

/// What a duplicate of an event shares with it, each with its name: the body, and the id of the delivery.
fn identities<'a>(
    headers: &'a HeaderMap,
    body: &'a [u8],
) -> impl Iterator<Item = (&'static str, &'a [u8])> {
    let id = headers.get(REQUEST_ID).filter(|id| !id.is_empty());
    let id = id.map(|id| ("request-id", id.as_bytes()));
    [("body", body)].into_iter().chain(id)
}

/// The time in the timestamp header, in seconds. (`event_ts` is in milliseconds.)
fn signed_at(timestamp: &HeaderValue) -> Option<Timestamp> {
    let seconds = timestamp.to_str().ok()?.parse().ok()?;
    Timestamp::from_second(seconds).ok()
}

/// The largest body of a challenge, in bytes: a token of 128 and some hundred others. Most events are larger,
/// and are not parsed as a challenge.
const CHALLENGE_LIMIT: usize = 512;

/// The token of a challenge, if it can be answered. A challenge with any other token is stored as an
/// unrecognized event.
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

/// Whether `token` is safe to sign: without `:` and `{` it is never a message that Zoom signs.
fn is_answerable(token: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.=+/".contains(&byte);
    (1..=128).contains(&token.len()) && token.bytes().all(allowed)
}

/// The reply to a challenge: its token, and the HMAC of the token.
fn answer(token: &str, key: &SigningKey) -> Reply {
    let encrypted = signature::to_hex(&key.sign(&[token.as_bytes()]));
    let answer = serde_json::json!({ "plainToken": token, "encryptedToken": encrypted });
    Reply::Body {
        content_type: HeaderValue::from_static("application/json"),
        body: Bytes::from(answer.to_string()),
    }
}
