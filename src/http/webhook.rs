//! The request handler: find the endpoint, verify the request, store its event, answer.

use std::{
    array,
    borrow::Cow,
    collections::HashMap,
    convert::Infallible,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::{
    extract::{Request, State},
    handler::Handler,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method};
use jiff::Timestamp;
use prometheus_client::metrics::{
    counter::Counter, family::Family, gauge::Gauge, histogram::Histogram,
};
use tokio::time::{Instant, timeout};
use tower::Service;

use super::{
    Endpoint, Settings,
    activity::InFlight,
    answer::{Accepted, Label, OtherLabel, Rejection, allow},
    body::{Collected, Collector},
    limiter::Limiter,
    throttle::Throttle,
};
use crate::{
    event::{self, EventName, Notification},
    provider::{self, Admission, Reply, Verified},
    store::{APPEND_BUDGET, Append, AppendError},
    telemetry::{ByAnswer, ByEndpoint, ByEvent, FloatGauge, Metrics},
};

/// The `endpoint` label of requests to no endpoint.
const UNROUTED: &str = "none";

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
            routes: ArcSwap::from_pointee(Routes::new(endpoints, &metrics)),
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
        let routes = Routes::new(endpoints, &self.metrics);
        self.routes.store(Arc::new(routes));
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
        let Admission { event, reply } = route
            .endpoint
            .provider
            .admit(request, now)
            .map_err(Rejection::Refused)?;
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
        let Notification { id, name, .. } = event.notification();
        let (id, series) = (*id, route.series(name, &self.metrics));
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

/// The endpoints by path.
struct Routes {
    by_path: HashMap<String, Route>,
    unrouted: AnswerMetrics,
}

impl Routes {
    fn new(endpoints: Vec<Endpoint>, metrics: &Metrics) -> Self {
        let by_path = endpoints
            .into_iter()
            .map(|endpoint| (endpoint.path.clone(), Route::new(endpoint, metrics)))
            .collect();
        Self {
            by_path,
            unrouted: AnswerMetrics::new(UNROUTED, is_unrouted, metrics),
        }
    }
}

/// An endpoint and its metrics, looked up once.
struct Route {
    endpoint: Endpoint,
    /// The methods of its provider's requests.
    methods: &'static [Method],
    /// The same, as the value of `Allow`.
    allow: HeaderValue,
    answers: AnswerMetrics,
    /// One for each event name of the provider. They are few, so a linear search is fastest.
    series: Vec<Series>,
    misdirected: Counter,
    last_handshake: FloatGauge,
    last_event: FloatGauge,
    answer_seconds: Histogram,
}

impl Route {
    fn new(endpoint: Endpoint, metrics: &Metrics) -> Self {
        let label = ByEndpoint::from(&endpoint.name);
        let methods = endpoint.provider.methods();
        let provider = endpoint.family.provider();
        let series = event::event_names()
            .filter(|name| name.provider() == provider)
            .map(|name| Series::new(name, &endpoint, metrics))
            .collect();
        Self {
            methods,
            allow: allow(methods),
            answers: AnswerMetrics::new(endpoint.name.as_str(), is_routed, metrics),
            series,
            misdirected: metrics.misdirected.get_or_create(&label).clone(),
            last_handshake: metrics
                .last_handshake_timestamp_seconds
                .get_or_create(&label)
                .clone(),
            last_event: metrics
                .last_event_timestamp_seconds
                .get_or_create(&label)
                .clone(),
            answer_seconds: metrics.answer_seconds.get_or_create(&label).clone(),
            endpoint,
        }
    }

    /// The time series of events called `name`.
    fn series(&self, name: &EventName, metrics: &Metrics) -> Cow<'_, Series> {
        match self.series.iter().find(|series| series.name == *name) {
            Some(series) => Cow::Borrowed(series),
            None => Cow::Owned(Series::new(name.clone(), &self.endpoint, metrics)),
        }
    }
}

/// The time series of events with one name at one endpoint.
#[derive(Clone)]
struct Series {
    name: EventName,
    stored: Counter,
    is_misdirected: bool,
}

impl Series {
    fn new(name: EventName, endpoint: &Endpoint, metrics: &Metrics) -> Self {
        let label = ByEvent {
            endpoint: endpoint.name.to_string(),
            event: name.to_string(),
        };
        Self {
            stored: metrics.events.get_or_create(&label).clone(),
            is_misdirected: is_of_another_family(&name, endpoint.family),
            name,
        }
    }
}

/// Whether another family than `family` claims events called `name`. A name that no family claims has
/// two parts, and belongs to every endpoint of its provider.
fn is_of_another_family(name: &EventName, family: &event::Family) -> bool {
    let claimed_by = name.as_str().rsplit_once('.').map(|(family, _)| family);
    claimed_by.is_some_and(|claimed_by| claimed_by.contains('.') && claimed_by != family.name)
}

/// Counts the answers of one endpoint, and logs the rejections.
struct AnswerMetrics {
    endpoint: String,
    requests: Family<ByAnswer, Counter>,
    by_label: [AnswerMetric; Label::COUNT],
    /// The number of log lines so far. It tells requests apart that are served at the same time, and
    /// never leaves the process.
    logged: AtomicU64,
}

/// The counter of one [`Label`], and the throttle of its log lines.
#[derive(Default)]
struct AnswerMetric {
    counter: OnceLock<Counter>,
    throttle: Throttle,
}

/// Whether a request to an endpoint can be answered with `label`.
const fn is_routed(label: Label) -> bool {
    !matches!(label, Label::Other(OtherLabel::Path | OtherLabel::Method))
}

/// Whether a request to no endpoint can be answered with `label`.
const fn is_unrouted(label: Label) -> bool {
    use OtherLabel::{Method, Panic, Path};
    matches!(label, Label::Other(Path | Method | Panic))
}

impl AnswerMetrics {
    /// The counters of `expected` labels begin at 0; any other begins at its first answer.
    fn new(endpoint: &str, expected: fn(Label) -> bool, metrics: &Metrics) -> Self {
        let answers = Self {
            endpoint: endpoint.to_owned(),
            requests: metrics.requests.clone(),
            by_label: array::from_fn(|_| AnswerMetric::default()),
            logged: AtomicU64::new(0),
        };
        for label in Label::all().filter(|label| expected(*label)) {
            answers.counter(label);
        }
        answers
    }

    fn of(&self, label: Label) -> &AnswerMetric {
        #[expect(
            clippy::indexing_slicing,
            reason = "there is an element for each label"
        )]
        &self.by_label[label.index()]
    }

    fn counter(&self, label: Label) -> &Counter {
        self.of(label).counter.get_or_init(|| {
            let labels = ByAnswer {
                endpoint: self.endpoint.clone(),
                answer: label.as_str(),
            };
            self.requests.get_or_create(&labels).clone()
        })
    }

    fn count(&self, answer: Result<&Accepted, &Rejection>, clock: fn() -> Timestamp) {
        let label = answer.map_or_else(Label::from, Label::from);
        self.counter(label).inc();
        if let Err(rejection) = answer
            && let Some(suppressed) = self.of(label).throttle.pass(clock())
        {
            self.log(rejection, suppressed);
        }
    }

    fn log(&self, rejection: &Rejection, suppressed: u64) {
        let request = self.logged.fetch_add(1, Ordering::Relaxed);
        let (endpoint, reason) = (self.endpoint.as_str(), rejection.label());
        match rejection {
            Rejection::Path
            | Rejection::Method(_)
            | Rejection::Draining
            | Rejection::BrokenBody => {
                tracing::info!(
                    endpoint,
                    request,
                    reason,
                    suppressed,
                    "a request was rejected"
                );
            }
            Rejection::Refused(_)
            | Rejection::TooLarge
            | Rejection::SlowBody
            | Rejection::Overloaded => {
                tracing::warn!(
                    endpoint,
                    request,
                    reason,
                    suppressed,
                    "a request was refused"
                );
            }
            Rejection::Unavailable(why) => {
                tracing::error!(
                    endpoint,
                    request,
                    reason,
                    why,
                    suppressed,
                    "an event was not stored"
                );
            }
            Rejection::Panic => {
                tracing::error!(request, reason, suppressed, "a request caused a panic");
            }
        }
    }
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

/// Seconds since 1970, as Prometheus expects them.
#[expect(
    clippy::cast_precision_loss,
    reason = "milliseconds of any real date are exact in an f64"
)]
fn seconds(moment: Timestamp) -> f64 {
    moment.as_millisecond() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unexpected_answer_is_counted_from_1() {
        let metrics = Metrics::default();
        let answers = AnswerMetrics::new("x", |_| false, &metrics);
        let counted = |answer| {
            let series =
                format!("hookswitch_requests_total{{endpoint=\"x\",answer=\"{answer}\"}} 1\n");
            metrics
                .render(crate::telemetry::MetricsFormat::Prometheus)
                .unwrap()
                .contains(&series)
        };
        assert!(!counted("path"));
        answers.count(Err(&Rejection::Path), || Timestamp::UNIX_EPOCH);
        assert!(counted("path"));
    }

    #[test]
    fn an_event_is_misdirected_when_another_family_claims_it() {
        let family = event::Family::named("ringcentral.phone-number").unwrap();
        for (name, misdirected) in [
            ("ringcentral.phone-number.created", false),
            ("ringcentral.phone-number.unreadable", false),
            ("ringcentral.unrecognized", false),
            ("ringcentral.extension-info.update", true),
            ("ringcentral.extension-info.unrecognized", true),
        ] {
            let name = EventName::from(name);
            assert_eq!(is_of_another_family(&name, family), misdirected, "{name}");
        }
    }
}
