//! RingCentral: a shared token in a header, and a handshake that expects a header back.
//!
//! RingCentral has no signature. The only proof of origin is the token that the subscription was created
//! with: every notification has it in `Verification-Token`. The current guide names the header
//! `Validation-Token`; the API specification, the SDKs and working integrations do not. So either header
//! can carry the proof, and a request with a `Validation-Token` and a body is an event too.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Admission, Composed, Examination, Message, Provider, ProviderKind, Reason, Refusal, Reply,
    Request, Verified, signature::Tokens,
};
use crate::{
    event::{DedupeKey, EventId},
    secret::{Secret, Secrets},
};

const NAME: &str = "ringcentral";

const VALIDATION_TOKEN: HeaderName = HeaderName::from_static("validation-token");
const VERIFICATION_TOKEN: HeaderName = HeaderName::from_static("verification-token");

/// The longest handshake token that is sent back, in bytes. RingCentral's have about 36 bytes and no
/// documented limit. The whole answer must stay under 1024 bytes, headers included.
const HANDSHAKE_TOKEN_LIMIT: usize = 512;

/// The settings of a RingCentral endpoint.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// The `deliveryMode.verificationToken` of the subscription. Two while it is being replaced.
    verification_tokens: Secrets,
}

impl ProviderKind for Settings {
    const KIND: &'static str = NAME;
    const EXAMPLE: &'static str = r#"
[endpoints.ringcentral-phone-number]
family = "ringcentral.phone-number"
path = "/ringcentral/phone-number"
verification_tokens = [{ env = "RINGCENTRAL_VERIFICATION_TOKEN" }]
"#;
    type Provider = RingCentral;

    fn build(self) -> RingCentral {
        RingCentral {
            tokens: Tokens::new(&self.verification_tokens),
            secrets: self.verification_tokens,
        }
    }
}

#[derive(Debug)]
pub(super) struct RingCentral {
    tokens: Tokens,
    /// The tokens themselves. [`compose`](Provider::compose) sends the first one.
    secrets: Secrets,
}

impl Provider for RingCentral {
    fn admit(&self, request: Request<'_>, now: Timestamp) -> Result<Admission, Refusal> {
        let proof = self.proof(request.headers);
        // A body that is sent with our token is stored, even if it is `{}`.
        let is_empty = request.body.is_empty() || (proof.is_err() && is_blank(&request.body));
        if is_empty && request.headers.contains_key(VALIDATION_TOKEN) {
            return handshake(request.headers, proof);
        }
        let secret = Some(proof.map_err(Reason::without_retry)?);
        // An event is stored even if the token beside it cannot be sent back.
        let reply = echo(request.headers).unwrap_or(Reply::Empty);
        let (what, value) = identity(&request.body);
        let dedupe = vec![DedupeKey::new(NAME, what, &value)];
        let event = Some(Verified::new(NAME, request, now, dedupe));
        Ok(Admission {
            event,
            reply,
            secret,
        })
    }

    fn secrets(&self) -> &[Secret] {
        self.secrets.as_slice()
    }

    fn examine(&self, request: &Request<'_>) -> Examination {
        Examination {
            secret: self.proof(request.headers).ok(),
            secrets: self.secrets.as_slice().len(),
            freshness: None,
            covers_body: false,
            dedupe: vec![identity(&request.body).0],
        }
    }

    fn explain(&self, _request: &Request<'_>, reason: Reason) -> String {
        match reason {
            Reason::MissingCredential => format!(
                "the header {VERIFICATION_TOKEN} is missing; set `deliveryMode.verificationToken` when \
                 the subscription is created, and let no proxy drop the header"
            ),
            Reason::MalformedHandshake => format!(
                "the token in {VALIDATION_TOKEN} cannot be sent back: it is empty, longer than \
                 {HANDSHAKE_TOKEN_LIMIT} bytes, or not visible ASCII; RingCentral sends no such token"
            ),
            Reason::MalformedCredential
            | Reason::WrongCredential
            | Reason::Stale
            | Reason::RequirementUnmet => format!(
                "the token in {VERIFICATION_TOKEN} is none of `verification_tokens`; create the \
                 subscription again with one of them, or add the token of the subscription to them"
            ),
        }
    }

    fn compose(&self, message: Message<'_>, now: Timestamp) -> Composed {
        let mut headers = HeaderMap::new();
        let json = HeaderValue::from_static("application/json; charset=UTF-8");
        headers.insert(header::CONTENT_TYPE, json);
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static("RingCentral-Webhook/8.3"),
        );
        if let Ok(token) = HeaderValue::from_str(self.secrets.first().expose()) {
            headers.insert(VERIFICATION_TOKEN, token);
        }
        match message {
            Message::Handshake => {
                let token = EventId::new(now).to_string();
                let token = HeaderValue::from_str(&token).unwrap_or(HeaderValue::from_static("-"));
                headers.insert(VALIDATION_TOKEN, token.clone());
                Composed {
                    method: Method::POST,
                    query: None,
                    headers,
                    body: Bytes::new(),
                    expected: Reply::Header(VALIDATION_TOKEN, token),
                }
            }
            Message::Event { body, .. } => Composed {
                method: Method::POST,
                query: None,
                headers,
                body: body.clone(),
                expected: Reply::Empty,
            },
        }
    }

    fn freshen(&self, body: &[u8], now: Timestamp) -> Option<Bytes> {
        let mut body: Value = serde_json::from_slice(body).ok()?;
        let envelope = body.as_object_mut()?;
        envelope.insert("uuid".to_owned(), EventId::new(now).to_string().into());
        envelope.insert("timestamp".to_owned(), format!("{now:.3}").into());
        Some(Bytes::from(body.to_string()))
    }
}

impl RingCentral {
    /// The index of the token that one of the two headers has.
    fn proof(&self, headers: &HeaderMap) -> Result<usize, Reason> {
        let verification = headers.get(VERIFICATION_TOKEN);
        let validation = headers.get(VALIDATION_TOKEN);
        let known = |token: Option<&HeaderValue>| self.tokens.position(token?.as_bytes());
        // Both are compared, whatever the first one is.
        let (verified, validated) = (known(verification), known(validation));
        verified.or(validated).ok_or(match verification {
            Some(_) => Reason::WrongCredential,
            None => Reason::MissingCredential,
        })
    }
}

/// Whether a body can be a handshake's: empty by the guide, an empty JSON object by one report.
fn is_blank(body: &[u8]) -> bool {
    matches!(body.trim_ascii(), b"" | b"{}")
}

/// The verdict on a handshake without an event.
///
/// RingCentral sends a handshake while the subscription is being created, with or without our token. A
/// *wrong* token is refused: the operator notices it when the subscription is created, and not when events
/// are refused.
fn handshake(headers: &HeaderMap, proof: Result<usize, Reason>) -> Result<Admission, Refusal> {
    if proof == Err(Reason::WrongCredential) {
        return Err(Reason::WrongCredential.without_retry());
    }
    let reply = echo(headers).ok_or(Reason::MalformedHandshake.without_retry())?;
    Ok(Admission {
        event: None,
        reply,
        secret: proof.ok(),
    })
}

/// The reply with a handshake's token, if the token is visible ASCII and not too long.
fn echo(headers: &HeaderMap) -> Option<Reply> {
    let token = headers.get(VALIDATION_TOKEN)?;
    let is_safe = (1..=HANDSHAKE_TOKEN_LIMIT).contains(&token.len())
        && token.as_bytes().iter().all(u8::is_ascii_graphic);
    is_safe.then(|| Reply::Header(VALIDATION_TOKEN, token.clone()))
}

/// What all duplicates of an event share, with its name: its subscription and its `uuid`, which need not be a
/// UUID. Without a `uuid`, the whole body.
fn identity(body: &[u8]) -> (&'static str, Cow<'_, [u8]>) {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Identity<'a> {
        #[serde(borrow)]
        uuid: Cow<'a, str>,
        #[serde(default)]
        subscription_id: Option<String>,
    }
    match serde_json::from_slice::<Identity<'_>>(body) {
        Ok(Identity {
            uuid,
            subscription_id,
        }) if !uuid.is_empty() => {
            let subscription = subscription_id.unwrap_or_default();
            (
                "uuid",
                format!("{subscription}\0{uuid}").into_bytes().into(),
            )
        }
        _ => ("body", body.into()),
    }
}
