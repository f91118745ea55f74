//! Floor 5: the admin server: probes and metrics, on a listener of its own.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200 while the process can answer at all |
//! | `/readyz` | 200 `ready`, or 503 with the reason in one word |
//! | `/metrics` | all metrics as text, for requests with the token; OpenMetrics if `Accept` names it |
//!
//! **Invariant:** the admin server changes nothing. An answer to a request without the token is one
//! word at most.

mod readiness;
#[cfg(test)]
mod tests;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::timeout;

pub use readiness::{Phase, Readiness};

use crate::{
    http::{self as ingress, Drained, Listener, ListenerMetrics},
    secret::Secret,
    telemetry::{Metrics, MetricsFormat},
};

/// The TOML's `[admin]`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The address to listen on. With port 0 the system chooses the port.
    pub listen: SocketAddr,
    /// The bearer token of `/metrics`, required unless the listener is on loopback. Probes need no
    /// token.
    pub token: Option<Secret>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            token: None,
        }
    }
}

/// The most open connections of monitoring tools.
const MAX_CONNECTIONS: usize = 64;

/// How long the drain waits for monitoring tools. They retry.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the store may take to update its gauges. After that the metrics are sent as they are.
const MEASURE_BUDGET: Duration = Duration::from_secs(2);

/// The media type by which a client asks for OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// The admin server. [`bind`](Self::bind) takes the address; [`serve`](Self::serve) accepts
/// connections.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    /// The digest of the token. Digests are compared in constant time.
    token: Option<[u8; 32]>,
}

impl Server {
    /// Binds the address. Needs a Tokio runtime.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound.
    pub fn bind(settings: &Settings) -> Result<Self, ingress::Error> {
        let limits = ingress::Settings {
            listen: settings.listen,
            max_connections: MAX_CONNECTIONS,
            drain_timeout: DRAIN_TIMEOUT,
            ..ingress::Settings::default()
        };
        let token = settings.token.as_ref();
        Ok(Self {
            listener: Listener::bind(&limits, ListenerMetrics::default())?,
            token: token.map(|token| digest(token.expose().as_bytes())),
        })
    }

    /// The bound address. Its port is the one that the system chose where the settings say 0.
    pub const fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` is ready.
    pub async fn serve(
        self,
        readiness: Arc<Readiness>,
        metrics: Arc<Metrics>,
        clock: fn() -> Timestamp,
        shutdown: impl Future<Output = ()>,
    ) -> Drained {
        let state = Arc::new(AdminState {
            readiness,
            metrics,
            clock,
            token: self.token,
        });
        let router = Router::new()
            .route("/livez", get(async || "live"))
            .route("/readyz", get(get_readiness))
            .route("/metrics", get(get_metrics))
            .with_state(state);
        self.listener.serve(router, shutdown).await
    }
}

/// What the routes share.
struct AdminState {
    readiness: Arc<Readiness>,
    metrics: Arc<Metrics>,
    clock: fn() -> Timestamp,
    token: Option<[u8; 32]>,
}

async fn get_readiness(State(state): State<Arc<AdminState>>) -> (StatusCode, &'static str) {
    match state.readiness.not_ready() {
        None => (StatusCode::OK, "ready"),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
    }
}

async fn get_metrics(State(state): State<Arc<AdminState>>, headers: HeaderMap) -> Response {
    if !state.is_authorized(&headers) {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        return (StatusCode::UNAUTHORIZED, challenge).into_response();
    }
    state.measure().await;
    let format = metrics_format(&headers);
    let content_type = match format {
        MetricsFormat::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        MetricsFormat::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
    };
    match state.metrics.render(format) {
        Ok(text) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// OpenMetrics, if the client asks for it by name. What it prefers is not compared: a client that
/// can read both formats gets the newer one.
fn metrics_format(headers: &HeaderMap) -> MetricsFormat {
    let accepted = headers.get_all(header::ACCEPT).iter();
    let mut ranges = accepted
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    let names_it = |range: &str| {
        let name = range.split(';').next().unwrap_or_default();
        name.trim().eq_ignore_ascii_case(OPEN_METRICS)
    };
    match ranges.any(names_it) {
        true => MetricsFormat::OpenMetrics,
        false => MetricsFormat::Prometheus,
    }
}

impl AdminState {
    fn is_authorized(&self, headers: &HeaderMap) -> bool {
        let Some(expected) = &self.token else {
            return true;
        };
        headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "))
            .is_some_and(|token| digest(token).ct_eq(expected).into())
    }

    /// Has the store update its gauges. A failure is logged; the other metrics are still sent.
    async fn measure(&self) {
        let Some(store) = self.readiness.store() else {
            return;
        };
        match timeout(MEASURE_BUDGET, store.measure((self.clock)())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the store's gauges are out of date"),
            Err(_) => {
                tracing::warn!("the store's gauges are out of date: updating them took too long")
            }
        }
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
