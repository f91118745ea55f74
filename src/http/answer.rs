//! Every answer that the door gives, and the only place that knows how each one sounds.
//!
//! | answer | status | why that one |
//! |---|---|---|
//! | [`Stored`](Answer::Stored), [`Handshake`](Answer::Handshake) | 200 | |
//! | [`Refused`](Answer::Refused) | 401, or 503 when the provider floor asks for another try | |
//! | [`TooLarge`](Answer::TooLarge) | 413 | a second try would be as large |
//! | [`Path`](Answer::Path), [`Method`](Answer::Method) | 404, 405 | |
//! | all others | 503 | Zoom repeats after 503, and after no 4xx; RingCentral is as patient with one as with the other. Never 429, which Zoom takes as final |

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::provider::{Reason, Refusal, Reply};

/// How a request is answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// Its event is on stable storage.
    Stored(Reply),
    /// It was a handshake and nothing else.
    Handshake(Reply),
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
    /// There is no room for it, or the store is behind.
    Overloaded,
    /// The store did not take the event, for this reason.
    Unavailable(String),
    /// The door is closing.
    Draining,
    /// Something of ours panicked.
    Panic,
}

impl Answer {
    /// The words for all answers that an endpoint can give.
    pub(super) const WORDS: [&str; 15] = [
        "stored",
        "handshake",
        "too_large",
        "slow_body",
        "broken_body",
        "overloaded",
        "unavailable",
        "draining",
        "panic",
        Reason::MissingCredential.as_str(),
        Reason::MalformedCredential.as_str(),
        Reason::WrongCredential.as_str(),
        Reason::Stale.as_str(),
        Reason::RequirementUnmet.as_str(),
        Reason::MalformedHandshake.as_str(),
    ];

    /// The words for all answers that are given where there is no endpoint.
    pub(super) const WORDS_NOWHERE: [&str; 3] = ["path", "method", "panic"];

    /// The word for it in metrics and logs.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Stored(_) => "stored",
            Self::Handshake(_) => "handshake",
            Self::Refused(refusal) => refusal.reason.as_str(),
            Self::Path => "path",
            Self::Method => "method",
            Self::TooLarge => "too_large",
            Self::SlowBody => "slow_body",
            Self::BrokenBody => "broken_body",
            Self::Overloaded => "overloaded",
            Self::Unavailable(_) => "unavailable",
            Self::Draining => "draining",
            Self::Panic => "panic",
        }
    }

    const fn status(&self) -> StatusCode {
        match self {
            Self::Stored(_) | Self::Handshake(_) => StatusCode::OK,
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

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        let length = match self {
            Self::Stored(Reply::Echo(name, value)) | Self::Handshake(Reply::Echo(name, value)) => {
                headers.insert(name, value);
                // RingCentral takes no other type in a handshake, though there is no body.
                headers.insert(header::CONTENT_TYPE, JSON);
                NONE
            }
            Self::Stored(Reply::Challenge(body)) | Self::Handshake(Reply::Challenge(body)) => {
                headers.insert(header::CONTENT_TYPE, JSON);
                let length = body.len();
                *response.body_mut() = Body::from(body);
                HeaderValue::from(length)
            }
            Self::Method => {
                headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
                NONE
            }
            _ => NONE,
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, length);
        response
    }
}

const CONTENT_LENGTH: HeaderName = header::CONTENT_LENGTH;
/// The length of no body, as text that need not be written anew for each answer.
const NONE: HeaderValue = HeaderValue::from_static("0");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
