//! The request handler: find the endpoint, verify the request, store its event, answer.

use std::{
    convert::Infallible,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::{
    extract::{Request, State},
    handler::Handler,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, timeout};
use tower::Service;

use super::{
    Endpoint, Settings,
    activity::InFlight,
    answer::{Accepted, Rejection},
    body::{Collected, Collector},
    limiter::Limiter,
    route::{EndpointStatus, Route, Routes},
};
use crate::{
    event::Notification,
    provider::{self, Admission, Reply, Verified},
    store::{APPEND_BUDGET, Append, AppendError},
    telemetry::{Metrics, seconds},
};

/// Handles requests to the endpoints.
pub struct Webhook {
    routes: ArcSwap<Routes>,
    store: Arc<dyn Append>,
    metrics: Arc<Metrics>,
    clock: fn() -> Timestamp,
    collector: Collector,
    /// Requests in flight. A request whose body is on its way can be evicted.
    slots: Limiter,
    append_budget: Duration,
}

impl Webhook {
    /// A webhook that serves `endpoints` and stores their events in `store`.
    pub fn new(
        settings: &Settings,
        endpoints: Vec<Endpoint>,
        store: Arc<dyn Append>,
        metrics: Arc<Metrics>,
        clock: fn() -> Timestamp,
    ) -> Self {
        Self {
            routes: ArcSwap::from_pointee(Routes::new(endpoints, None, &metrics)),
            store,
            metrics,
            clock,
            collector: Collector::new(settings),
            slots: Limiter::new(settings.max_in_flight),
            append_budget: APPEND_BUDGET,
        }
    }

    /// Replaces the endpoints. A request that has already found its endpoint is answered by it.
    pub fn replace_endpoints(&self, endpoints: Vec<Endpoint>) {
        let before = self.routes.load();
        let routes = Routes::new(endpoints, Some(&before), &self.metrics);
        before.remove_series_unless_in(&routes, &self.metrics);
        self.routes.store(Arc::new(routes));
    }

    /// The endpoints in force, by name, with what they have answered since the process began.
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        let routes = self.routes.load();
        let mut endpoints: Vec<_> = routes.by_path.values().map(Route::status).collect();
        endpoints.sort_by(|one, other| one.name.cmp(&other.name));
        endpoints
    }

    #[cfg(test)]
    pub(super) fn with_append_budget(self, append_budget: Duration) -> Self {
        Self {
            append_budget,
            ..self
        }
    }

    /// The webhook as a tower service.
    pub(super) fn service(
        self: Arc<Self>,
    ) -> impl Service<Request, Response = Response, Error = Infallible, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static {
        let receive = async |State(webhook): State<Arc<Self>>, request: Request| {
            webhook.receive(request).await
        };
        receive.with_state(self)
    }

    /// Answers `request`. A panic is answered 503.
    async fn receive(&self, request: Request) -> Response {
        let answered = catch_panic(self.answer(request)).await;
        answered.unwrap_or_else(|| self.reject(Rejection::Panic))
    }

    async fn answer(&self, request: Request) -> Response {
        let routes = self.routes.load_full();
        let Some(route) = routes.by_path.get(request.uri().path()) else {
            return self.reject(Rejection::Path);
        };
        if !route.methods.contains(request.method()) {
            return self.reject(Rejection::Method(route.allow.clone()));
        }
        let started = Instant::now();
        let _counted = GaugeGuard::new(&self.metrics.in_flight);
        let answer = self.ingest(route, request).await;
        route.answers.count(answer.as_ref(), self.clock);
        let response = answer.into_response();
        route
            .answer_seconds
            .observe(started.elapsed().as_secs_f64());
        response
    }

    /// Answers a request to no endpoint.
    fn reject(&self, rejection: Rejection) -> Response {
        let unrouted = &self.routes.load().unrouted;
        unrouted.count(Err(&rejection), self.clock);
        rejection.into_response()
    }

    /// Reads and verifies a request, and stores its event.
    async fn ingest(&self, route: &Route, request: Request) -> Result<Accepted, Rejection> {
        let in_flight = request.extensions().get::<Arc<InFlight>>().cloned();
        if in_flight.as_deref().is_some_and(InFlight::is_draining) {
            return Err(Rejection::Draining);
        }
        let _slot = self.slots.acquire(1).await.ok_or(Rejection::Overloaded)?;
        let (head, body) = request.into_parts();
        // A request that has arrived whole cannot be evicted. Its memory is held until the store has
        // written the event.
        let Collected {
            bytes,
            memory: _memory,
        } = self
            .collector
            .collect(&head.headers, body, &self.slots)
            .await?;
        if let Some(in_flight) = &in_flight {
            in_flight.mark_received();
        }

        let now = (self.clock)();
        let request = provider::Request {
            endpoint: &route.endpoint.name,
            method: &head.method,
            query: head.uri.query(),
            headers: &head.headers,
            body: bytes,
        };
        let Admission {
            event,
            reply,
            secret,
        } = route
            .endpoint
            .provider
            .admit(request, now)
            .map_err(Rejection::Refused)?;
        if let Some(used) = secret.and_then(|secret| route.secrets_used.get(secret)) {
            used.set(seconds(now));
        }
        let is_event = event.is_some();
        if let Some(event) = event {
            self.store(route, event).await?;
            route.last_event.set(seconds(now));
        }
        if !is_event || reply != Reply::Empty {
            route.last_handshake.set(seconds(now));
        }
        Ok(if is_event {
            Accepted::Stored(reply)
        } else {
            Accepted::Handshake(reply)
        })
    }

    async fn store(&self, route: &Route, event: Verified) -> Result<(), Rejection> {
        let notification = event.notification();
        let (id, lag) = (notification.id, lag_seconds(notification));
        let series = route.series(&notification.name, &self.metrics);
        match timeout(self.append_budget, self.store.append(event)).await {
            Ok(Ok(())) => {}
            Ok(Err(AppendError::Overloaded)) => return Err(Rejection::Overloaded),
            Ok(Err(error)) => return Err(Rejection::Unavailable(error.to_string())),
            Err(_) => {
                let why = format!("the store took longer than {:?}", self.append_budget);
                return Err(Rejection::Unavailable(why));
            }
        }
        tracing::debug!(event.id = %id, event.name = %series.name, "an event was stored");
        series.stored.inc();
        if let Some(lag) = lag {
            route.provider_lag.observe(lag);
        }
        if series.is_misdirected {
            route.misdirected.inc();
        }
        Ok(())
    }
}

/// The output of `future`; `None` when it panics.
async fn catch_panic<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|context| {
        // The future is not polled again after it has panicked.
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
        polled.map_or(Poll::Ready(None), |poll| poll.map(Some))
    })
    .await
}

/// Counts one in a gauge until it is dropped.
struct GaugeGuard(Gauge);

impl GaugeGuard {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// How long an event has been on its way; `None` if its provider does not say when it happened.
fn lag_seconds(notification: &Notification) -> Option<f64> {
    let lag = notification
        .received_at
        .duration_since(notification.occurred_at?);
    Some(lag.as_secs_f64().max(0.0))
}
