//! What machines ask: whether the service lives, whether it is ready, and its metrics.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, StatusCode, header};

use super::{AdminState, access::Role, api::problem::Problem};
use crate::telemetry::MetricsFormat;

/// The media type by which a client asks for OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// The routes of `/livez`, `/readyz` and `/metrics`.
pub(super) fn router() -> Router<Arc<AdminState>> {
    Router::new()
        .route("/livez", get(async || "live"))
        .route("/readyz", get(get_readiness))
        .route("/metrics", get(get_metrics))
}

async fn get_readiness(State(state): State<Arc<AdminState>>) -> (StatusCode, &'static str) {
    match state.readiness.not_ready() {
        None => (StatusCode::OK, "ready"),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
    }
}

async fn get_metrics(State(state): State<Arc<AdminState>>, request: Request) -> Response {
    let (head, _) = request.into_parts();
    if let Err(denied) = state.admit(&head, Role::Read).await {
        return Problem::from(denied).into_response();
    }
    state.readiness.measure((state.clock)()).await;
    let format = metrics_format(&head.headers);
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
