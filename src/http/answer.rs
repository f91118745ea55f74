//! Every answer of the server, and the only place that knows the status of each.
//!
//! | answer | status | reason |
//! |---|---|---|
//! | [`Accepted`] | 200 | |
//! | [`Refused`](Rejection::Refused) | 401, or 503 when the provider floor asks for a retry | |
//! | [`TooLarge`](Rejection::TooLarge) | 413 | a retry would be as large |
//! | [`Path`](Rejection::Path), [`Method`](Rejection::Method) | 404, 405 | |
//! | all others | 503 | Zoom retries after 503 and never after 4xx; RingCentral treats both alike. Never 429, after which Zoom does not retry |

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};

use crate::{
    provider::{Reason, Refusal, Reply},
    telemetry::label_enum,
};

/// A request that succeeded.
#[derive(Debug)]
pub enum Accepted {
    /// Its event is on stable storage.
    Stored(Reply),
    /// It was a handshake.
    Handshake(Reply),
}

/// Why a request failed.
#[derive(Debug)]
pub enum Rejection {
    /// It is not authentic.
    Refused(Refusal),
    /// No endpoint has that path.
    Path,
    /// The provider does not use the method; the methods that it uses.
    Method(HeaderValue),
    /// The body is over the limit.
    TooLarge,
    /// The body took too long.
    SlowBody,
    /// The body was cut short, or is not encoded as the head says.
    BrokenBody,
    /// A limit is exhausted, or the store is behind.
    Overloaded,
    /// The store did not accept the event, for this reason.
    Unavailable(String),
    /// The server is shutting down.
    Draining,
    /// The service panicked.
    Panic,
}

/// The `answer` label of metrics and the `reason` field of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
    /// The request is not authentic.
    Refused(Reason),
    /// Any other answer.
    Other(OtherLabel),
}

label_enum! {
    /// The label of every answer but a refusal.
    pub(super) enum OtherLabel {
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
    }
}

impl Label {
    /// The number of labels.
    pub(super) const COUNT: usize = Reason::ALL.len() + OtherLabel::ALL.len();

    /// All labels, each at its [`index`](Self::index).
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let refused = Reason::ALL.into_iter().map(Self::Refused);
        refused.chain(OtherLabel::ALL.into_iter().map(Self::Other))
    }

    /// A number under [`COUNT`](Self::COUNT) that no other label has.
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Refused(reason) => reason as usize,
            Self::Other(label) => Reason::ALL.len() + label as usize,
        }
    }

    /// The label value.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Refused(reason) => reason.as_str(),
            Self::Other(label) => label.as_str(),
        }
    }
}

impl From<&Accepted> for Label {
    fn from(accepted: &Accepted) -> Self {
        Self::Other(match accepted {
            Accepted::Stored(_) => OtherLabel::Stored,
            Accepted::Handshake(_) => OtherLabel::Handshake,
        })
    }
}

impl From<&Rejection> for Label {
    fn from(rejection: &Rejection) -> Self {
        Self::Other(match rejection {
            Rejection::Refused(refusal) => return Self::Refused(refusal.reason),
            Rejection::Path => OtherLabel::Path,
            Rejection::Method(_) => OtherLabel::Method,
            Rejection::TooLarge => OtherLabel::TooLarge,
            Rejection::SlowBody => OtherLabel::SlowBody,
            Rejection::BrokenBody => OtherLabel::BrokenBody,
            Rejection::Overloaded => OtherLabel::Overloaded,
            Rejection::Unavailable(_) => OtherLabel::Unavailable,
            Rejection::Draining => OtherLabel::Draining,
            Rejection::Panic => OtherLabel::Panic,
        })
    }
}

impl Accepted {
    /// The `answer` label of metrics.
    pub fn label(&self) -> &'static str {
        Label::from(self).as_str()
    }
}

impl Rejection {
    /// The `answer` label of metrics and the `reason` field of logs.
    pub fn label(&self) -> &'static str {
        Label::from(self).as_str()
    }

    /// The status of the answer.
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Refused(Refusal { retry: false, .. }) => StatusCode::UNAUTHORIZED,
            Self::Path => StatusCode::NOT_FOUND,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Refused(Refusal { retry: true, .. })
            | Self::SlowBody
            | Self::BrokenBody
            | Self::Overloaded
            | Self::Unavailable(_)
            | Self::Draining
            | Self::Panic => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// The value of `Allow` for `methods`.
pub fn allow(methods: &[Method]) -> HeaderValue {
    let names: Vec<_> = methods.iter().map(Method::as_str).collect();
    #[expect(
        clippy::expect_used,
        reason = "a method is a token, and so a header value"
    )]
    HeaderValue::try_from(names.join(", ")).expect("methods are tokens")
}

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        let (Self::Stored(reply) | Self::Handshake(reply)) = self;
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        match reply {
            Reply::Empty => {
                headers.insert(CONTENT_LENGTH, NONE);
            }
            Reply::Header(name, value) => {
                headers.insert(name, value);
                // RingCentral requires this type in a handshake, although there is no body.
                headers.insert(header::CONTENT_TYPE, JSON);
                headers.insert(CONTENT_LENGTH, NONE);
            }
            Reply::Body { content_type, body } => {
                headers.insert(header::CONTENT_TYPE, content_type);
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
        if let Self::Method(allowed) = self {
            headers.insert(header::ALLOW, allowed);
        }
        headers.insert(CONTENT_LENGTH, NONE);
        response
    }
}

const CONTENT_LENGTH: HeaderName = header::CONTENT_LENGTH;
/// The content length of an empty body, formatted once.
const NONE: HeaderValue = HeaderValue::from_static("0");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
