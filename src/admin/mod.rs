//! Floor 5: the admin server: probes and metrics, on a listener of its own.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200 while the process can answer at all |
//! | `/readyz` | 200 `ready`, or 503 with one word for why not |
//! | `/metrics` | all metrics as text, to whoever has the token |
//!
//! **Invariant:** nothing here changes anything, and nothing here says more than one word to
//! somebody without the token.

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
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::timeout;

pub use readiness::{Phase, Readiness};

use crate::{
    http::{self as ingress, Drained, Listener, ListenerMetrics},
    secret::Secret,
    telemetry::Metrics,
};

/// What the TOML's `[admin]` says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The bearer token that `/metrics` asks for; required unless the listener is on loopback.
    /// Probes answer without it: they say one word.
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

/// How many connections an operator's tools may have open.
const MAX_CONNECTIONS: usize = 64;

/// How long the drain waits for an operator's tools. They ask again.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the store may take to bring its gauges up to date before the metrics are shown as they
/// are.
const MEASURE_BUDGET: Duration = Duration::from_secs(2);

/// What Prometheus is told that the metrics are.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The admin server. [`bind`](Self::bind) takes the address; [`serve`](Self::serve) accepts
/// connections.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    /// The digest of the token, so that a comparison takes the same time whatever is sent.
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
        let panel = Arc::new(Panel {
            readiness,
            metrics,
            clock,
            token: self.token,
        });
        let router = Router::new()
            .route("/livez", get(async || "live"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(show_metrics))
            .with_state(panel);
        self.listener.serve(router, shutdown).await
    }
}

/// What an operator can look at.
struct Panel {
    readiness: Arc<Readiness>,
    metrics: Arc<Metrics>,
    clock: fn() -> Timestamp,
    token: Option<[u8; 32]>,
}

async fn readyz(State(panel): State<Arc<Panel>>) -> (StatusCode, &'static str) {
    match panel.readiness.obstacle() {
        None => (StatusCode::OK, "ready"),
        Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, obstacle),
    }
}

async fn show_metrics(State(panel): State<Arc<Panel>>, headers: HeaderMap) -> Response {
    if !panel.admits(&headers) {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        return (StatusCode::UNAUTHORIZED, challenge).into_response();
    }
    panel.measure().await;
    match panel.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

impl Panel {
    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(expected) = &self.token else {
            return true;
        };
        headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "))
            .is_some_and(|token| digest(token).ct_eq(expected).into())
    }

    /// Has the store bring its gauges up to date. Where it cannot, the rest is still worth seeing.
    async fn measure(&self) {
        let Some(store) = self.readiness.store() else {
            return;
        };
        match timeout(MEASURE_BUDGET, store.measure((self.clock)())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the store's gauges are out of date"),
            Err(_) => tracing::warn!("the store's gauges are out of date: it took too long"),
        }
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
