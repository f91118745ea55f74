//! The endpoints by path, each with its metrics.

use std::{borrow::Cow, collections::HashMap};

use http::{HeaderValue, Method};
use jiff::Timestamp;
use prometheus_client::metrics::{counter::Counter, histogram::Histogram};

use super::{
    Endpoint,
    answer::{Label, OtherLabel, allow},
    answer_metrics::AnswerMetrics,
};
use crate::{
    event::{self, EndpointName, EventName},
    secret::Secret,
    telemetry::{ByEndpoint, ByEvent, ByFamily, BySecret, FloatGauge, Metrics},
};

/// The `endpoint` label of requests to no endpoint.
const UNROUTED: &str = "none";

/// The endpoints by path.
pub(super) struct Routes {
    pub(super) by_path: HashMap<String, Route>,
    /// The answers to requests to no endpoint.
    pub(super) unrouted: AnswerMetrics,
}

impl Routes {
    /// The routes to `endpoints`. Gauges of what was there `before` go on.
    pub(super) fn new(endpoints: Vec<Endpoint>, before: Option<&Self>, metrics: &Metrics) -> Self {
        let route = |endpoint: Endpoint| {
            let before = before.and_then(|before| before.named(&endpoint.name));
            let path = endpoint.path.clone();
            (path, Route::new(endpoint, before, metrics))
        };
        Self {
            by_path: endpoints.into_iter().map(route).collect(),
            unrouted: AnswerMetrics::new(UNROUTED, is_unrouted, metrics),
        }
    }

    /// The route to the endpoint called `name`.
    fn named(&self, name: &EndpointName) -> Option<&Route> {
        let mut routes = self.by_path.values();
        routes.find(|route| route.endpoint.name == *name)
    }

    /// Removes the gauges of endpoints and secrets that are not in `current`: their last values would
    /// stay, as if their provider had fallen silent. Counters stay.
    pub(super) fn remove_series_unless_in(&self, current: &Self, metrics: &Metrics) {
        for route in self.by_path.values() {
            let kept = current.named(&route.endpoint.name);
            let secrets = kept.map_or(0, |kept| kept.secrets_used.len());
            for index in secrets..route.secrets_used.len() {
                let label = by_secret(&route.endpoint, index);
                metrics.secret_last_used_timestamp_seconds.remove(&label);
            }
            let family = by_family(&route.endpoint);
            if kept.is_none_or(|kept| by_family(&kept.endpoint) != family) {
                metrics.endpoint_info.remove(&family);
            }
            if kept.is_none() {
                let label = ByEndpoint::from(&route.endpoint.name);
                metrics.last_event_timestamp_seconds.remove(&label);
                metrics.last_handshake_timestamp_seconds.remove(&label);
            }
        }
    }
}

/// An endpoint, with what it has answered since the process began.
#[derive(Clone, Debug)]
pub struct EndpointStatus {
    /// Its name in the TOML.
    pub name: EndpointName,
    /// The family that it serves.
    pub family: &'static str,
    /// Its path.
    pub path: String,
    /// When it last stored an event.
    pub last_event: Option<Timestamp>,
    /// When its provider last made a handshake.
    pub last_handshake: Option<Timestamp>,
    /// The number of answers under each label, without those that are 0.
    pub answers: Vec<(&'static str, u64)>,
}

/// An endpoint and its metrics, looked up once.
pub(super) struct Route {
    pub(super) endpoint: Endpoint,
    /// The methods of its provider's requests.
    pub(super) methods: &'static [Method],
    /// The same, as the value of `Allow`.
    pub(super) allow: HeaderValue,
    pub(super) answers: AnswerMetrics,
    /// One for each event name of the provider. They are few, so a linear search is fastest.
    series: Vec<Series>,
    pub(super) misdirected: Counter,
    pub(super) last_handshake: FloatGauge,
    pub(super) last_event: FloatGauge,
    /// When each of the provider's secrets was used last.
    pub(super) secrets_used: Vec<FloatGauge>,
    pub(super) provider_lag: Histogram,
    pub(super) answer_seconds: Histogram,
}

impl Route {
    fn new(endpoint: Endpoint, before: Option<&Self>, metrics: &Metrics) -> Self {
        let label = ByEndpoint::from(&endpoint.name);
        let info = metrics.endpoint_info.get_or_create(&by_family(&endpoint));
        info.set(1);
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
            secrets_used: secrets_used(&endpoint, before, metrics),
            provider_lag: metrics.provider_lag_seconds.get_or_create(&label).clone(),
            answer_seconds: metrics.answer_seconds.get_or_create(&label).clone(),
            endpoint,
        }
    }

    pub(super) fn status(&self) -> EndpointStatus {
        let time = |gauge: &FloatGauge| match gauge.get() {
            0.0 => None,
            seconds => Timestamp::from_millisecond((seconds * 1e3) as i64).ok(),
        };
        let counts = Label::all().map(|label| (label.as_str(), self.answers.count_of(label)));
        EndpointStatus {
            name: self.endpoint.name.clone(),
            family: self.endpoint.family.name,
            path: self.endpoint.path.clone(),
            last_event: time(&self.last_event),
            last_handshake: time(&self.last_handshake),
            answers: counts.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// The time series of events called `name`.
    pub(super) fn series(&self, name: &EventName, metrics: &Metrics) -> Cow<'_, Series> {
        match self.series.iter().find(|series| series.name == *name) {
            Some(series) => Cow::Borrowed(series),
            None => Cow::Owned(Series::new(name.clone(), &self.endpoint, metrics)),
        }
    }
}

/// The gauges of the secrets of `endpoint`. A secret that was in the list `before`, at any place, keeps its
/// time.
fn secrets_used(endpoint: &Endpoint, before: Option<&Route>, metrics: &Metrics) -> Vec<FloatGauge> {
    let used = |secret: &Secret| {
        let before = before?;
        let secrets = before.endpoint.provider.secrets().iter();
        let mut used = secrets.zip(&before.secrets_used);
        let (_, used) = used.find(|(known, _)| known.expose() == secret.expose())?;
        Some(used.get())
    };
    // All times are read before the first is written: secrets may have changed places.
    let times: Vec<_> = endpoint.provider.secrets().iter().map(used).collect();
    let gauges = times.into_iter().enumerate().map(|(index, time)| {
        let label = by_secret(endpoint, index);
        let family = &metrics.secret_last_used_timestamp_seconds;
        let gauge = family.get_or_create(&label).clone();
        gauge.set(time.unwrap_or_default());
        gauge
    });
    gauges.collect()
}

fn by_secret(endpoint: &Endpoint, index: usize) -> BySecret {
    BySecret {
        endpoint: endpoint.name.to_string(),
        secret: index + 1,
    }
}

fn by_family(endpoint: &Endpoint) -> ByFamily {
    ByFamily {
        endpoint: endpoint.name.to_string(),
        family: endpoint.family.name,
        provider: endpoint.family.provider(),
    }
}

/// The time series of events with one name at one endpoint.
#[derive(Clone)]
pub(super) struct Series {
    pub(super) name: EventName,
    pub(super) stored: Counter,
    pub(super) is_misdirected: bool,
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

/// Whether a request to an endpoint can be answered with `label`.
const fn is_routed(label: Label) -> bool {
    !matches!(label, Label::Other(OtherLabel::Path | OtherLabel::Method))
}

/// Whether a request to no endpoint can be answered with `label`.
const fn is_unrouted(label: Label) -> bool {
    use OtherLabel::{Method, Panic, Path};
    matches!(label, Label::Other(Path | Method | Panic))
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
