//! Errors of the API: problem details, as RFC 9457 has them.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;

use super::super::access::{Denied, Role};
use crate::store::StoreError;

/// Why a request failed.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Problem {
    /// The status of the answer.
    pub status: u16,
    /// A word for programs, which does not change.
    pub code: &'static str,
    /// What went wrong, in a sentence.
    pub title: &'static str,
    /// What to do about it, or what exactly is wrong.
    pub detail: String,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, title: &'static str, detail: String) -> Self {
        Self {
            status: status.as_u16(),
            code,
            title,
            detail,
        }
    }

    /// A parameter or a body that the operation's schema does not allow.
    pub(in super::super) fn invalid(detail: impl Into<String>) -> Self {
        let title = "The request is not as the operation's schema says.";
        Self::new(StatusCode::BAD_REQUEST, "invalid", title, detail.into())
    }

    /// There is no such thing.
    pub(in super::super) fn absent(detail: impl Into<String>) -> Self {
        let title = "There is no such thing.";
        Self::new(StatusCode::NOT_FOUND, "not-found", title, detail.into())
    }

    /// The service has not opened its store.
    pub(in super::super) fn starting(phase: &str) -> Self {
        let title = "The service cannot answer yet.";
        let detail = format!("it is {phase}; ask again in a moment");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "starting", title, detail)
    }

    /// All places for live streams are taken.
    pub(in super::super) fn too_many_streams(most: usize) -> Self {
        let title = "Too many live streams are open.";
        let detail = format!("there are {most}; close one, or poll");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too-many-streams",
            title,
            detail,
        )
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let title = "The store cannot answer.";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(status, "store", title, error.to_string())
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        let (status, code, title, detail) = match denied {
            Denied::Host => (
                StatusCode::MISDIRECTED_REQUEST,
                "unknown-host",
                "The admin server is not known by this name.",
                "use its address or localhost, or add the name to `hosts` of [admin]".to_owned(),
            ),
            Denied::Anonymous => (
                StatusCode::UNAUTHORIZED,
                "no-token",
                "A token is required.",
                "send `Authorization: Bearer` with a token of [admin.tokens]".to_owned(),
            ),
            Denied::WrongToken => (
                StatusCode::UNAUTHORIZED,
                "wrong-token",
                "The token is wrong.",
                "no token of [admin] has this value".to_owned(),
            ),
            Denied::TooManyFailures => (
                StatusCode::TOO_MANY_REQUESTS,
                "too-many-failures",
                "Too many attempts with wrong tokens.",
                "try again in a second".to_owned(),
            ),
            Denied::Origin => (
                StatusCode::FORBIDDEN,
                "other-origin",
                "The request may come from a page of another origin.",
                "a change needs a bearer token, or `Sec-Fetch-Site` or `Origin` of this server"
                    .to_owned(),
            ),
            Denied::Role(role) => (
                StatusCode::FORBIDDEN,
                "no-role",
                "The token does not allow this.",
                format!("it takes a token with the role `{}`", role.as_str()),
            ),
        };
        Self::new(status, code, title, detail)
    }
}

impl Role {
    /// The role's name in the TOML.
    pub(in super::super) const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Raw => "raw",
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
