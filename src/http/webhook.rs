//! The one route: find the endpoint, have the request admitted, have its event stored, answer.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::Method;
use jiff::Timestamp;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use tokio::time::{Instant, timeout};
use tower_http::catch_panic::CatchPanicLayer;

use super::{
    Endpoint, Settings,
    answer::Answer,
    body::{Collected, Collector},
    presence::Presence,
    room::Room,
    throttle::Throttle,
};
use crate::{
    event::{self, EventName},
    provider::{self, Reply, Verified},
    store::{APPEND_BUDGET, AppendError, Store},
    telemetry::{ByAnswer, ByEndpoint, ByEvent, Fraction, Metrics},
};

/// The endpoint under which requests are counted that came to none.
const NOWHERE: &str = "none";

/// Takes what is posted to the endpoints.
pub struct Webhook {
    routes: ArcSwap<Routes>,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    clock: fn() -> Timestamp,
    collector: Collector,
    /// In requests; those whose body is on its way can be let go.
    slots: Room,
    append_budget: Duration,
    requests: AtomicU64,
}

impl Webhook {
    /// A webhook that serves `endpoints` and keeps their events in `store`.
    pub fn new(
        settings: &Settings,
        endpoints: Vec<Endpoint>,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        clock: fn() -> Timestamp,
    ) -> Self {
        Self {
            routes: ArcSwap::from_pointee(Routes::new(endpoints, &metrics)),
            store,
            metrics,
            clock,
            collector: Collector::new(settings),
            slots: Room::new(settings.max_in_flight),
            append_budget: APPEND_BUDGET,
            requests: AtomicU64::new(0),
        }
    }

    /// Serves `endpoints` from now on, in place of those before. A request that has found its
    /// endpoint is answered by that one.
    pub fn reroute(&self, endpoints: Vec<Endpoint>) {
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

    /// The one route, ready to be served. A panic of ours on the way is answered like any failure.
    pub(super) fn router(self: Arc<Self>) -> Router {
        let webhook = Arc::clone(&self);
        let catch = CatchPanicLayer::custom(move |_: Box<dyn std::any::Any + Send>| {
            webhook.respond(&webhook.routes.load().nowhere, Answer::Panic)
        });
        Router::new()
            .fallback(async |State(webhook): State<Arc<Self>>, request: Request| {
                webhook.receive(request).await
            })
            .with_state(self)
            .layer(catch)
    }

    async fn receive(&self, request: Request) -> Response {
        let routes = self.routes.load_full();
        let Some(route) = routes.by_path.get(request.uri().path()) else {
            return self.respond(&routes.nowhere, Answer::Path);
        };
        if request.method() != Method::POST {
            return self.respond(&routes.nowhere, Answer::Method);
        }
        let started = Instant::now();
        let _in_flight = InFlight::enter(&self.metrics.in_flight);
        let answer = match self.take(route, request).await {
            Ok(answer) | Err(answer) => answer,
        };
        let response = self.respond(&route.answers, answer);
        route
            .answer_seconds
            .observe(started.elapsed().as_secs_f64());
        response
    }

    fn respond(&self, answers: &Answers, answer: Answer) -> Response {
        // A number of its own for the log, which tells apart the lines of requests that are served
        // at the same time. It never leaves the process.
        let request = self.requests.fetch_add(1, Ordering::Relaxed);
        answers.count(&answer, request, self.clock);
        answer.into_response()
    }

    /// Either kind of result is an answer; an `Err` cuts the way to it short.
    async fn take(&self, route: &Route, request: Request) -> Result<Answer, Answer> {
        let presence = request.extensions().get::<Presence>().cloned();
        if presence.as_ref().is_some_and(Presence::is_draining) {
            return Err(Answer::Draining);
        }
        let _slot = self.slots.take(1).await.ok_or(Answer::Overloaded)?;
        let (head, body) = request.into_parts();
        // Once it has arrived whole nobody can push it out, and its memory is held until the store
        // has written it.
        let Collected {
            bytes,
            memory: _memory,
        } = self
            .collector
            .collect(&head.headers, body, &self.slots)
            .await?;
        let _work = presence.as_ref().map(Presence::work);

        let now = (self.clock)();
        let request = provider::Request {
            endpoint: &route.endpoint.name,
            headers: &head.headers,
            body: bytes,
        };
        let admission = route
            .endpoint
            .provider
            .admit(request, now)
            .map_err(Answer::Refused)?;
        let stored = admission.event.is_some();
        if let Some(event) = admission.event {
            self.store(route, event).await?;
        }
        if admission.reply != Reply::Accepted {
            route.last_handshake.set(seconds(now));
        }
        Ok(if stored {
            Answer::Stored(admission.reply)
        } else {
            Answer::Handshake(admission.reply)
        })
    }

    async fn store(&self, route: &Route, event: Verified) -> Result<(), Answer> {
        let (id, name) = {
            let notification = event.notification();
            (notification.id, notification.name.clone())
        };
        match timeout(self.append_budget, self.store.append(event)).await {
            Ok(Ok(())) => {}
            Ok(Err(AppendError::Overloaded)) => return Err(Answer::Overloaded),
            Ok(Err(error)) => return Err(Answer::Unavailable(error.to_string())),
            Err(_) => {
                let why = format!("the store took longer than {:?}", self.append_budget);
                return Err(Answer::Unavailable(why));
            }
        }
        tracing::debug!(event.id = %id, event.name = %name, "an event was stored");
        route.count(&name, &self.metrics);
        Ok(())
    }
}

/// Which endpoint serves which path.
struct Routes {
    by_path: HashMap<String, Route>,
    nowhere: Answers,
}

impl Routes {
    fn new(endpoints: Vec<Endpoint>, metrics: &Metrics) -> Self {
        let by_path = endpoints
            .into_iter()
            .map(|endpoint| (endpoint.path.clone(), Route::new(endpoint, metrics)))
            .collect();
        Self {
            by_path,
            nowhere: Answers::new(NOWHERE, &Answer::WORDS_NOWHERE, metrics),
        }
    }
}

/// An endpoint with its metrics, which are looked up once.
struct Route {
    endpoint: Endpoint,
    answers: Answers,
    /// Few, so that looking through them is the quickest way to one.
    events: Vec<(EventName, Counter)>,
    misdirected: Counter,
    last_handshake: Fraction,
    answer_seconds: Histogram,
}

impl Route {
    fn new(endpoint: Endpoint, metrics: &Metrics) -> Self {
        let label = ByEndpoint::from(&endpoint.name);
        let provider = endpoint.family.provider();
        let events = event::event_names()
            .into_iter()
            .filter(|name| name.provider() == provider)
            .map(|name| {
                let counter = event_counter(&endpoint, &name, metrics);
                (name, counter)
            })
            .collect();
        Self {
            answers: Answers::new(endpoint.name.as_str(), &Answer::WORDS, metrics),
            events,
            misdirected: metrics.misdirected.get_or_create(&label).clone(),
            last_handshake: metrics
                .last_handshake_timestamp_seconds
                .get_or_create(&label)
                .clone(),
            answer_seconds: metrics.answer_seconds.get_or_create(&label).clone(),
            endpoint,
        }
    }

    fn count(&self, name: &EventName, metrics: &Metrics) {
        match self.events.iter().find(|(known, _)| known == name) {
            Some((_, counter)) => counter.inc(),
            None => event_counter(&self.endpoint, name, metrics).inc(),
        };
        if is_of_another_family(name, self.endpoint.family) {
            self.misdirected.inc();
        }
    }
}

/// Whether some other family claims an event of that name. One that no family claims has a name
/// of two parts and is at home at every endpoint of its provider.
fn is_of_another_family(name: &EventName, family: &event::Family) -> bool {
    let claimed_by = name.as_str().rsplit_once('.').map(|(family, _)| family);
    claimed_by.is_some_and(|claimed_by| claimed_by.contains('.') && claimed_by != family.name)
}

fn event_counter(endpoint: &Endpoint, name: &EventName, metrics: &Metrics) -> Counter {
    let label = ByEvent {
        endpoint: endpoint.name.to_string(),
        event: name.to_string(),
    };
    metrics.events.get_or_create(&label).clone()
}

/// Counts answers, and writes down those that somebody should know of.
struct Answers {
    endpoint: String,
    /// By [`Answer::word`]. Few, with the usual answer first, so that looking through them is the
    /// quickest way to one.
    by_word: Vec<(&'static str, Counter, Throttle)>,
}

impl Answers {
    fn new(endpoint: &str, words: &[&'static str], metrics: &Metrics) -> Self {
        let line = |answer| {
            let label = ByAnswer {
                endpoint: endpoint.to_owned(),
                answer,
            };
            let counter = metrics.requests.get_or_create(&label).clone();
            (answer, counter, Throttle::default())
        };
        Self {
            endpoint: endpoint.to_owned(),
            by_word: words.iter().copied().map(line).collect(),
        }
    }

    fn count(&self, answer: &Answer, request: u64, clock: fn() -> Timestamp) {
        let mut lines = self.by_word.iter();
        if let Some((_, counter, throttle)) = lines.find(|(word, ..)| *word == answer.word()) {
            counter.inc();
            self.log(answer, throttle, request, clock);
        }
    }

    fn log(&self, answer: &Answer, throttle: &Throttle, request: u64, clock: fn() -> Timestamp) {
        if matches!(answer, Answer::Stored(_) | Answer::Handshake(_)) {
            return;
        }
        let Some(suppressed) = throttle.pass(clock()) else {
            return;
        };
        let (endpoint, reason) = (self.endpoint.as_str(), answer.word());
        match answer {
            Answer::Stored(_) | Answer::Handshake(_) => {}
            Answer::Path | Answer::Method | Answer::Draining | Answer::BrokenBody => {
                tracing::info!(
                    endpoint,
                    request,
                    reason,
                    suppressed,
                    "a request was turned away"
                );
            }
            Answer::Refused(_) | Answer::TooLarge | Answer::SlowBody | Answer::Overloaded => {
                tracing::warn!(
                    endpoint,
                    request,
                    reason,
                    suppressed,
                    "a request was refused"
                );
            }
            Answer::Unavailable(why) => {
                tracing::error!(
                    endpoint,
                    request,
                    reason,
                    why,
                    suppressed,
                    "an event was not stored"
                );
            }
            Answer::Panic => {
                tracing::error!(request, reason, suppressed, "a request made us panic");
            }
        }
    }
}

/// One more request in flight until this is dropped.
struct InFlight(Gauge);

impl InFlight {
    fn enter(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A moment as Prometheus wants it.
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
