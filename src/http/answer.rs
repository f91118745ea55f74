//! Every answer of the server, and the only place that knows the status of each.
//!
//! | answer | status | why that one |
//! |---|---|---|
//! | [`Accepted`] | 200 | |
//! | [`Refused`](Rejection::Refused) | 401, or 503 when the provider floor asks for another try | |
//! | [`TooLarge`](Rejection::TooLarge) | 413 | a second try would be as large |
//! | [`Path`](Rejection::Path), [`Method`](Rejection::Method) | 404, 405 | |
//! | all others | 503 | Zoom repeats after 503, and after no 4xx; RingCentral is as patient with one as with the other. Never 429, which Zoom takes as final |

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::{
    provider::{Reason, Refusal, Reply},
    telemetry::label_enum,
};

/// A request that gets what it came for.
#[derive(Debug)]
pub(super) enum Accepted {
    /// Its event is on stable storage.
    Stored(Reply),
    /// It was a handshake and nothing else.
    Handshake(Reply),
}

/// Why a request does not get what it came for.
#[derive(Debug)]
pub(super) enum Rejection {
    /// It was not shown to come from its provider.
    Refused(Refusal),
    /// There is no endpoint of that path.
    Path,
    /// It was not a POST.
    Method,
    /// Its body is over the limit.
    TooLarge,
    /// Its body took too long.
    SlowBody,
    /// Its body ended before its end, or is not in the form that the head promised.
    BrokenBody,
    /// A limit is exhausted, or the store is behind.
    Overloaded,
    /// The store did not take the event, for this reason.
    Unavailable(String),
    /// The server is shutting down.
    Draining,
    /// Something of ours panicked.
    Panic,
}

label_enum! {
    /// The `answer` label of metrics and the `reason` field of logs.
    pub(super) enum Label {
        Stored = "stored",
        Handshake = "handshake",
        TooLarge = "too_large",
        SlowBody = "slow_body",
        BrokenBody = "broken_body",
        Overloaded = "overloaded",
        Unavailable = "unavailable",
        Draining = "draining",
        Path = "path",
        Method = "method",
        Panic = "panic",
        MissingCredential = Reason::MissingCredential.as_str(),
        MalformedCredential = Reason::MalformedCredential.as_str(),
        WrongCredential = Reason::WrongCredential.as_str(),
        Stale = Reason::Stale.as_str(),
        RequirementUnmet = Reason::RequirementUnmet.as_str(),
        MalformedHandshake = Reason::MalformedHandshake.as_str(),
    }
}

impl From<&Accepted> for Label {
    fn from(accepted: &Accepted) -> Self {
        match accepted {
            Accepted::Stored(_) => Self::Stored,
            Accepted::Handshake(_) => Self::Handshake,
        }
    }
}

impl From<&Rejection> for Label {
    fn from(rejection: &Rejection) -> Self {
        match rejection {
            Rejection::Refused(refusal) => refusal.reason.into(),
            Rejection::Path => Self::Path,
            Rejection::Method => Self::Method,
            Rejection::TooLarge => Self::TooLarge,
            Rejection::SlowBody => Self::SlowBody,
            Rejection::BrokenBody => Self::BrokenBody,
            Rejection::Overloaded => Self::Overloaded,
            Rejection::Unavailable(_) => Self::Unavailable,
            Rejection::Draining => Self::Draining,
            Rejection::Panic => Self::Panic,
        }
    }
}

impl From<Reason> for Label {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::MissingCredential => Self::MissingCredential,
            Reason::MalformedCredential => Self::MalformedCredential,
            Reason::WrongCredential => Self::WrongCredential,
            Reason::Stale => Self::Stale,
            Reason::RequirementUnmet => Self::RequirementUnmet,
            Reason::MalformedHandshake => Self::MalformedHandshake,
        }
    }
}

impl Rejection {
    const fn status(&self) -> StatusCode {
        match self {
            Self::Refused(Refusal { again: false, .. }) => StatusCode::UNAUTHORIZED,
            Self::Path => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Refused(Refusal { again: true, .. })
            | Self::SlowBody
            | Self::BrokenBody
            | Self::Overloaded
            | Self::Unavailable(_)
            | Self::Draining
            | Self::Panic => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        let (Self::Stored(reply) | Self::Handshake(reply)) = self;
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        match reply {
            Reply::Accepted => {
                headers.insert(CONTENT_LENGTH, NONE);
            }
            Reply::Echo(name, value) => {
                headers.insert(name, value);
                // RingCentral takes no other type in a handshake, though there is no body.
                headers.insert(header::CONTENT_TYPE, JSON);
                headers.insert(CONTENT_LENGTH, NONE);
            }
            Reply::Challenge(body) => {
                headers.insert(header::CONTENT_TYPE, JSON);
                headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
                *response.body_mut() = Body::from(body);
            }
        }
        response
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        if let Self::Method = self {
            headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        headers.insert(CONTENT_LENGTH, NONE);
        response
    }
}

const CONTENT_LENGTH: HeaderName = header::CONTENT_LENGTH;
/// The length of no body, as text that need not be written anew for each answer.
const NONE: HeaderValue = HeaderValue::from_static("0");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
