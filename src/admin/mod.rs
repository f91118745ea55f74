//! Floor 5: the admin server: probes, metrics, the API and the operator's pages, on a listener of its
//! own.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200 while the process can answer at all |
//! | `/readyz` | 200 `ready`, or 503 with the reason in one word |
//! | `/metrics` | all metrics as text; OpenMetrics if `Accept` names it |
//! | `/api/v1` | the API: see [`api`] |
//! | all others | the pages: see [`page`] |
//!
//! **Invariant:** only `/livez` and `/readyz` answer whoever asks, in one word. Everything else goes
//! through [`Access::admit`](access::Access::admit), where [`access`] says who may do what.
//!
//! **Invariant:** numbers, names and addresses are masked for callers without the role `raw`.

mod access;
mod api;
mod console;
mod mask;
mod page;
mod probes;
mod readiness;
mod streams;
#[cfg(test)]
mod tests;
mod text;

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{Router, middleware, response::Response};
use http::{HeaderName, HeaderValue, header, request::Parts};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;

pub use self::{
    access::Role,
    console::{Console, Operators},
    readiness::{Phase, Readiness},
};

use self::{
    access::{Access, Caller, Denied, Tokens},
    api::problem::Problem,
    streams::Streams,
};
use crate::{
    http::{self as ingress, Drained, Listener, ListenerMetrics},
    secret::Secret,
    telemetry::Metrics,
};

/// The TOML's `[admin]`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The address to listen on. With port 0 the system chooses the port.
    pub listen: SocketAddr,
    /// A token with the role `read`, for a monitoring tool. Unless the listener is on loopback, this token
    /// or one of `tokens` is required. Probes need none.
    pub token: Option<Secret>,
    /// The tokens by name. The name of a token stands in the audit log.
    pub tokens: Tokens,
    /// The names by which browsers address the server, besides `localhost` and addresses. Requests for
    /// other names are refused.
    pub hosts: Vec<String>,
}

impl Settings {
    /// A token for commands that only look. Every token may.
    pub fn any_token(&self) -> Option<&Secret> {
        let named = self.tokens.values().map(|token| &token.token);
        self.token.as_ref().into_iter().chain(named).next()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            token: None,
            tokens: Tokens::new(),
            hosts: Vec::new(),
        }
    }
}

/// The most open connections: those of people, of monitoring tools, and live streams.
const MAX_CONNECTIONS: usize = 128;

/// How long the drain waits for monitoring tools. They retry.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The admin server. [`bind`](Self::bind) takes the address; [`serve`](Self::serve) accepts
/// connections.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    handle: Handle,
}

/// Changes a running admin server.
#[derive(Clone)]
pub struct Handle(Arc<AdminState>);

impl Server {
    /// Binds the address. Needs a Tokio runtime.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound.
    pub fn bind(
        settings: &Settings,
        readiness: Arc<Readiness>,
        metrics: Arc<Metrics>,
        clock: fn() -> Timestamp,
    ) -> Result<Self, ingress::Error> {
        let limits = ingress::Settings {
            listen: settings.listen,
            max_connections: MAX_CONNECTIONS,
            drain_timeout: DRAIN_TIMEOUT,
            ..ingress::Settings::default()
        };
        let state = AdminState {
            access: Access::new(settings, metrics.admin_login_failures.clone()),
            readiness,
            metrics,
            clock,
            console: OnceLock::new(),
            streams: Streams::default(),
        };
        Ok(Self {
            listener: Listener::bind(&limits, ListenerMetrics::default())?,
            handle: Handle(Arc::new(state)),
        })
    }

    /// The bound address. Its port is the one that the system chose where the settings say 0.
    pub const fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Changes the server while it runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until `shutdown` is ready.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Drained {
        let router = Router::new()
            .merge(probes::router())
            .nest(api::PREFIX, api::router())
            .merge(page::router())
            .layer(middleware::map_response(protect))
            .with_state(self.handle.0);
        self.listener.serve(router, shutdown).await
    }
}

impl Handle {
    /// Sets what the API and the pages show, once the store is open. Later calls have no effect.
    pub fn set_console(&self, console: Arc<Console>) {
        self.0.console.get_or_init(|| console);
    }

    /// Replaces the tokens and the hosts.
    pub fn reload(&self, settings: &Settings) {
        self.0.access.replace(settings);
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handle")
    }
}

/// What the routes share.
struct AdminState {
    access: Access,
    readiness: Arc<Readiness>,
    metrics: Arc<Metrics>,
    clock: fn() -> Timestamp,
    console: OnceLock<Arc<Console>>,
    streams: Streams,
}

impl AdminState {
    /// Admits a request for something that `role` allows.
    async fn admit(&self, request: &Parts, role: Role) -> Result<Caller, Denied> {
        let (method, headers) = (&request.method, &request.headers);
        self.access
            .admit(method, headers, role, (self.clock)())
            .await
    }

    /// What an admitted request is answered from, once the store is open.
    fn context(&self, caller: Caller, request: &Parts) -> Result<api::Context, Problem> {
        let phase = || self.readiness.not_ready().unwrap_or("starting");
        let console = self.console.get().cloned();
        let host = request.headers.get(header::HOST);
        let host = host
            .and_then(|host| host.to_str().ok())
            .unwrap_or("127.0.0.1");
        let scheme = if self.access.needs_tls() {
            "https"
        } else {
            "http"
        };
        Ok(api::Context {
            console: console.ok_or_else(|| Problem::starting(phase()))?,
            caller,
            origin: format!("{scheme}://{host}"),
        })
    }
}

/// The headers of every answer. A page loads nothing from elsewhere, runs no script that stands in
/// itself, and is shown in no frame.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    // Not `no-referrer`, with which browsers send `Origin: null`.
    (header::REFERRER_POLICY, "same-origin"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
];

/// Adds the headers that every answer has.
async fn protect(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}
