//! Floor 2: verifies requests. Each provider has its own proof of the sender.
//!
//! **Invariant:** this floor does no I/O, reads no clock, and knows no HTTP status. A verdict is an
//! [`Admission`] or a [`Refusal`], and the server chooses the status.
//!
//! **Invariant:** only this floor can make a [`Verified`], and the store accepts nothing else. So a forged
//! event is never stored.
//!
//! **Invariant:** an authentic body is always admitted, whatever it holds.
//!
//! # What the server asks a provider
//!
//! The server does not know how a provider talks to it. It asks [`Provider::methods`] which methods the
//! provider uses, and answers every other method 405, with these in `Allow`. A request with one of them
//! goes to [`Provider::admit`] with its method, its query, its headers and its body. So a handshake can be
//! a GET, and a proof can be a parameter of the query. The verdict says what to store, and which
//! [`Reply`] to send.
//!
//! An operator asks more: [`diagnose`] says why a saved request is refused, by what [`Provider::examine`]
//! finds in the request.
//!
//! # How to add a provider
//!
//! Write one file beside [`zoom`](self), implement [`ProviderKind`] for its settings and [`Provider`]
//! for the type that they build, and add one line to [`PROVIDERS`].

mod diagnosis;
mod signature;

#[cfg(test)]
mod tests;

use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use jiff::{SignedDuration, Timestamp};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;

pub use diagnosis::{Cause, Diagnosis, diagnose};

use crate::{
    entries::entries,
    event::{self, DedupeKey, EndpointName, EventId, Notification, OrderingKeys},
    secret::Secret,
    spanned,
    telemetry::label_enum,
};

/// A request that has not been verified.
#[derive(Clone, Debug)]
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "RingCentral and Zoom post everything; a handshake by GET has a query"
    )
)]
pub struct Request<'a> {
    /// The endpoint whose path it was sent to.
    pub endpoint: &'a EndpointName,
    /// Its method: one of [`Provider::methods`].
    pub method: &'a Method,
    /// The query of its URL without the `?`, not decoded.
    pub query: Option<&'a str>,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its body, byte for byte.
    pub body: Bytes,
}

/// A company that posts events, with the secrets of one endpoint. Synchronous, since it only hashes for
/// some microseconds.
pub trait Provider: fmt::Debug + Send + Sync + 'static {
    /// The methods of the provider's requests: POST for events, and any other that its handshake uses.
    fn methods(&self) -> &'static [Method] {
        const { &[Method::POST] }
    }

    /// Decides whether `request`, received at `now`, comes from the provider.
    ///
    /// # Errors
    ///
    /// A [`Refusal`] when nothing proves that it does.
    fn admit(&self, request: Request<'_>, now: Timestamp) -> Result<Admission, Refusal>;

    /// Finds out what `request` shows of its sender, whatever the verdict on the request is.
    fn examine(&self, request: &Request<'_>) -> Examination;

    /// Says what is wrong with a request that was refused for `reason`, and after a semicolon what to do.
    /// The text names headers and settings, and quotes no value.
    fn explain(&self, request: &Request<'_>, reason: Reason) -> String;

    /// The secrets of the endpoint, any of which proves the sender, in the order of the TOML.
    fn secrets(&self) -> &[Secret];

    /// Writes `message` as the provider would, so that an endpoint can be tested without the provider.
    fn compose(&self, message: Message<'_>, now: Timestamp) -> Composed;

    /// A copy of the event `body` that counts as a new event at `now`, with an identity and a time of its
    /// own. `None` when the body is not a JSON object.
    fn freshen(&self, body: &[u8], now: Timestamp) -> Option<Bytes>;
}

/// A kind of provider: its settings, which the TOML of an endpoint has besides `family` and `path`.
pub trait ProviderKind: DeserializeOwned + JsonSchema + 'static {
    /// The provider's name: the first part of its families' names.
    const KIND: &'static str;
    /// An endpoint of this provider in a TOML file, for help texts and tests.
    const EXAMPLE: &'static str;
    /// The type that these settings build.
    type Provider: Provider;
    /// Builds the provider. Cannot fail: wrong settings are refused while they are read.
    fn build(self) -> Self::Provider;
}

/// A [`ProviderKind`] with its type erased: one line of [`PROVIDERS`].
#[derive(Debug)]
pub struct Kind {
    /// [`ProviderKind::KIND`].
    pub kind: &'static str,
    /// [`ProviderKind::EXAMPLE`].
    pub example: &'static str,
    /// Reads an endpoint's settings and builds its provider.
    pub read: fn(spanned::Deserializer<'_>) -> Result<Box<dyn Provider>, spanned::Error>,
    /// The JSON Schema of its settings.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}

entries! {
    /// Every kind of provider.
    pub const PROVIDERS: [Kind of Settings];

    mod ringcentral;
    mod zoom;
}

impl Kind {
    const fn of<K: ProviderKind>() -> Self {
        Self {
            kind: K::KIND,
            example: K::EXAMPLE,
            read: |settings| Ok(Box::new(K::deserialize(settings)?.build())),
            schema: K::json_schema,
        }
    }

    /// The provider called `name`.
    pub fn named(name: &str) -> Option<&'static Self> {
        PROVIDERS.iter().find(|kind| kind.kind == name)
    }
}

/// What a request shows of its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examination {
    /// The index of the secret that the proof was made with, among those of the endpoint.
    pub secret: Option<usize>,
    /// The number of secrets of the endpoint.
    pub secrets: usize,
    /// What the proof says of its time; `None` where it says nothing.
    pub freshness: Option<Freshness>,
    /// Whether the proof is over the body, so that a change of one byte on the way spoils the proof.
    pub covers_body: bool,
    /// The values of an event by which its duplicates are recognized, such as `uuid` and `body`.
    pub dedupe: Vec<&'static str>,
}

/// When a proof was made, and for how long it is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// When the provider made the proof, by its clock.
    pub signed_at: Timestamp,
    /// The largest difference from the time of arrival, either way.
    pub window: SignedDuration,
}

/// The verdict on an authentic request: store `event` if there is one, and only then send `reply`.
#[derive(Debug)]
pub struct Admission {
    /// The event to store before the answer.
    pub event: Option<Verified>,
    /// The answer.
    pub reply: Reply,
    /// The index of the [secret](Provider::secrets) that proved the sender. A handshake can do without.
    pub secret: Option<usize>,
}

/// How an admitted request is answered. The status is 200.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// With nothing.
    Empty,
    /// With a header: a handshake that expects one of its own headers back.
    Header(HeaderName, HeaderValue),
    /// With a body: a handshake that expects a computed or a repeated text.
    Body {
        /// Its media type.
        content_type: HeaderValue,
        /// The body, so short that the whole answer is under 1024 bytes.
        body: Bytes,
    },
}

/// A notification with the proof that its provider sent it: only this floor can make one.
#[derive(Debug)]
pub struct Verified {
    notification: Notification,
    ordering_keys: Option<OrderingKeys>,
}

impl Verified {
    /// The notification.
    pub const fn notification(&self) -> &Notification {
        &self.notification
    }

    /// The notification, without the proof.
    #[cfg(test)]
    pub fn into_notification(self) -> Notification {
        self.notification
    }

    /// The notification and its ordering keys, without the proof.
    pub fn into_parts(self) -> (Notification, Option<OrderingKeys>) {
        (self.notification, self.ordering_keys)
    }

    /// A notification without a proof, for tests of the floors above.
    #[cfg(test)]
    pub(crate) fn unproven(notification: Notification) -> Self {
        Self {
            ordering_keys: notification.ordering_keys(),
            notification,
        }
    }

    /// A notification that the caller has verified. Private to this floor.
    fn new(provider: &str, request: Request<'_>, now: Timestamp, dedupe: Vec<DedupeKey>) -> Self {
        let event::Recognized { name, facts, .. } = event::recognize(provider, &request.body);
        let notification = Notification {
            id: EventId::new(now),
            endpoint: request.endpoint.clone(),
            name,
            key: facts.key,
            subjects: facts.subjects,
            occurred_at: facts.occurred_at,
            received_at: now,
            topics: facts.topics,
            dedupe,
            body: request.body,
        };
        Self {
            notification,
            ordering_keys: facts.ordering_keys,
        }
    }
}

/// The verdict on a request that nothing proves to come from its provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("refused: {reason}")]
pub struct Refusal {
    /// The reason.
    pub reason: Reason,
    /// Whether an honest sender should retry, since the fault may be ours or may pass: a clock that is
    /// wrong, a secret that an operator is about to correct.
    pub retry: bool,
}

label_enum! {
    /// Why a request was refused: a metric label and a log field, never part of an answer.
    pub enum Reason {
        /// The header that proves the sender is missing.
        MissingCredential = "missing_credential",
        /// The header that proves the sender has another syntax.
        MalformedCredential = "malformed_credential",
        /// The proof was made with another secret, or for another body.
        WrongCredential = "wrong_credential",
        /// The proof is good, but older or newer than the endpoint allows.
        Stale = "stale",
        /// The signature is good, but the credential that the endpoint requires besides it is not.
        RequirementUnmet = "requirement_unmet",
        /// The request is a handshake whose token cannot be sent back safely.
        MalformedHandshake = "malformed_handshake",
    }
}

impl Reason {
    /// A refusal for this reason, which a retry would not change.
    const fn without_retry(self) -> Refusal {
        Refusal {
            reason: self,
            retry: false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A message for [`Provider::compose`].
#[derive(Clone, Copy, Debug)]
pub enum Message<'a> {
    /// The request with which the provider checks a new endpoint.
    Handshake,
    /// An event.
    Event {
        /// Its body.
        body: &'a Bytes,
        /// The provider's id of this delivery. A retry has the same one.
        delivery: &'a str,
    },
}

/// A request as the provider would send it.
#[derive(Debug)]
pub struct Composed {
    /// Its method.
    pub method: Method,
    /// The query of its URL without the `?`, if it has one.
    pub query: Option<String>,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// The answer of a sound endpoint.
    pub expected: Reply,
}
