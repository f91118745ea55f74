//! Logs and metrics, for every floor.
//!
//! **Invariant:** every metric is declared in the table below.
//!
//! **Invariant:** no label and no log field holds a phone number, an address, a name, a token or a
//! body. Label values come from the configuration or from enums, so that no sender can add time
//! series.

use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tracing_subscriber::{
    filter::filter_fn,
    fmt::layer,
    layer::{Layer, SubscriberExt},
    registry,
    util::SubscriberInitExt,
};

use crate::event::{EndpointName, HandlerName};

/// A gauge with a fractional value, such as seconds.
pub type FloatGauge = Gauge<f64, AtomicU64>;

/// Histograms of durations by labels.
pub type DurationHistograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Of what this service does: 100 microseconds to 13 seconds, doubling.
fn duration_histogram() -> Histogram {
    Histogram::new(exponential_buckets(1e-4, 2.0, 18))
}

/// Of what a provider does, which may retry for hours: 125 milliseconds to 4.6 hours, doubling.
fn lag_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.125, 2.0, 18))
}

/// Declares an enum whose variants are the values of a metric label and of a log field. `ALL` and
/// `as_str` come from the same declaration, so that no variant can be missing.
macro_rules! label_enum {
    ($(#[$doc:meta])* $visibility:vis enum $name:ident {
        $($(#[$variant_doc:meta])* $variant:ident = $label:expr,)+
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $visibility enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// All variants, each at the index of its discriminant.
            $visibility const ALL: [Self; [$(stringify!($variant)),+].len()] =
                [$(Self::$variant,)+];

            /// The label value.
            $visibility const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)+
                }
            }
        }
    };
}

pub(crate) use label_enum;

/// By endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByEndpoint {
    /// The endpoint's name.
    pub endpoint: String,
}

/// By endpoint, with the family and the provider of its events.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByFamily {
    /// The endpoint's name.
    pub endpoint: String,
    /// The family.
    pub family: &'static str,
    /// The provider.
    pub provider: &'static str,
}

/// By endpoint and secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BySecret {
    /// The endpoint's name.
    pub endpoint: String,
    /// The place of the secret in the endpoint's list, from 1.
    pub secret: usize,
}

/// By endpoint and answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByAnswer {
    /// The endpoint's name.
    pub endpoint: String,
    /// `stored`, `handshake`, or why the request failed: a refusal's reason, `too_large`, `slow_body`,
    /// `broken_body`, `overloaded`, `unavailable`, `draining`, `path`, `method`, `panic`.
    pub answer: &'static str,
}

/// By event name and endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByEvent {
    /// The endpoint's name.
    pub endpoint: String,
    /// The event name.
    pub event: String,
}

/// By handler.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByHandler {
    /// The handler's name.
    pub handler: String,
}

/// By handler and outcome of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByOutcome {
    /// The handler's name.
    pub handler: String,
    /// `done`, `skipped`, `retry`, `panic`, `timeout`, `parked`.
    pub outcome: &'static str,
}

/// By background task.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByFollower {
    /// `claims`, `health-monitor`, `indexer`, `ledger`, `retention`, `settlements`, `terms`, `upkeep`.
    pub follower: &'static str,
}

/// By phase of the service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByPhase {
    /// `starting`, `recovering`, `serving` or `draining`.
    pub phase: &'static str,
}

/// By version of this library.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByVersion {
    /// The version.
    pub version: &'static str,
}

/// By result of a reload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByResult {
    /// `applied` or `refused`.
    pub result: &'static str,
}

impl From<&EndpointName> for ByEndpoint {
    fn from(endpoint: &EndpointName) -> Self {
        Self {
            endpoint: endpoint.to_string(),
        }
    }
}

impl From<&HandlerName> for ByHandler {
    fn from(handler: &HandlerName) -> Self {
        Self {
            handler: handler.to_string(),
        }
    }
}

macro_rules! metrics {
    ($($field:ident: $kind:ty = $new:expr, $help:literal;)*) => {
        /// All metrics of one running service, so that several services can run in one process.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $(
                #[doc = $help]
                pub $field: $kind,
            )*
        }

        /// The name and the help text of each metric, without the common prefix, and without the
        /// `_total` of counters.
        #[cfg(test)]
        const METRICS: &[(&str, &str)] = &[$((stringify!($field), $help),)*];

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("hookswitch");
                $(
                    let $field: $kind = $new;
                    registry.register(stringify!($field), $help, $field.clone());
                )*
                Self { registry, $($field,)* }
            }
        }
    };
}

metrics! {
    requests: Family<ByAnswer, Counter> = Family::default(), "Requests by endpoint and answer";
    events: Family<ByEvent, Counter> = Family::default(), "Authentic events stored, by event name, duplicates included";
    misdirected: Family<ByEndpoint, Counter> = Family::default(), "Authentic events posted to an endpoint of another family";
    duplicates: Counter = Counter::default(), "Stored duplicates of stored events";
    last_event_timestamp_seconds: Family<ByEndpoint, FloatGauge> = Family::default(), "Time of the last stored event; 0 after a start until the first one";
    last_handshake_timestamp_seconds: Family<ByEndpoint, FloatGauge> = Family::default(), "Time of the last handshake; Zoom repeats its handshake every 72 hours";
    secret_last_used_timestamp_seconds: Family<BySecret, FloatGauge> = Family::default(), "Time at which each secret last proved a sender, by its place in the endpoint's list; 0 until the first time";
    provider_lag_seconds: DurationHistograms<ByEndpoint> = Family::new_with_constructor(lag_histogram), "Time from an event at its provider to its arrival, retries included; 0 if the provider's clock is ahead";
    answer_seconds: DurationHistograms<ByEndpoint> = Family::new_with_constructor(duration_histogram), "Time from the end of a request's head to its answer";
    connections: Gauge = Gauge::default(), "Open connections from providers";
    connections_refused: Counter = Counter::default(), "Connections closed without a request, by a timeout, an eviction or a failed TLS handshake";
    in_flight: Gauge = Gauge::default(), "Requests being read or answered";
    append_seconds: Histogram = duration_histogram(), "Time from an event's arrival at the store to stable storage";
    sync_seconds: Histogram = duration_histogram(), "Duration of one sync of the journal";
    journal_batch: Histogram = Histogram::new(exponential_buckets(1.0, 2.0, 12)), "Events made durable by one sync";
    journal_batch_bytes: Histogram = Histogram::new(exponential_buckets(256.0, 2.0, 16)), "Bytes of the events made durable by one sync";
    journal_bytes: Gauge = Gauge::default(), "Size of the journal on disk";
    journal_damaged_bytes: Gauge = Gauge::default(), "Bytes of the journal with a wrong checksum, as far as the journal has been read";
    disk_free_bytes: Gauge = Gauge::default(), "Free space on the store's disk";
    disk_reserve_bytes: Gauge = Gauge::default(), "Free space under which new events are refused; 0 without a disk of the store's own";
    store_sound: Gauge = Gauge::default(), "1 while the store accepts events, 0 while it is unavailable or poisoned";
    follower_stalled: Family<ByFollower, Gauge> = Family::default(), "Background tasks without progress for 5 s, by task";
    ledger_lag: Gauge = Gauge::default(), "Stored events that are not in the ledger yet";
    deliveries: Family<ByOutcome, Counter> = Family::default(), "Attempts at deliveries by handler and outcome";
    delivery_seconds: DurationHistograms<ByHandler> = Family::new_with_constructor(duration_histogram), "Duration of attempts";
    open_deliveries: Family<ByHandler, Gauge> = Family::default(), "Unfinished deliveries";
    oldest_open_seconds: Family<ByHandler, FloatGauge> = Family::default(), "Age of the oldest unfinished delivery";
    parked_deliveries: Family<ByHandler, Gauge> = Family::default(), "Parked deliveries";
    reloads: Family<ByResult, Counter> = reloads(), "Reloads of the configuration";
    certificate_expiry_timestamp_seconds: FloatGauge = FloatGauge::default(), "Time at which the server's certificate expires; 0 without TLS";
    admin_login_failures: Counter = Counter::default(), "Requests to the admin server with a wrong token";
    start_timestamp_seconds: FloatGauge = FloatGauge::default(), "Time at which the service began to start";
    phase: Family<ByPhase, Gauge> = Family::default(), "1 for the phase that the service is in, 0 for the others";
    config_hash: Gauge = Gauge::default(), "A number for the content of the configuration in force; secrets have no part in it";
    endpoint_info: Family<ByFamily, Gauge> = Family::default(), "1, with the family and the provider of each endpoint as labels";
    build_info: Family<ByVersion, Gauge> = Family::default(), "1, with the version of the service as a label";
}

/// Reloads of both results, so that a rate is known from the first one on.
fn reloads() -> Family<ByResult, Counter> {
    let reloads = Family::default();
    for result in ["applied", "refused"] {
        drop(reloads.get_or_create(&ByResult { result }));
    }
    reloads
}

/// Seconds since 1970, as Prometheus expects them.
#[expect(
    clippy::cast_precision_loss,
    reason = "milliseconds of any real date are exact in an f64"
)]
pub fn seconds(moment: Timestamp) -> f64 {
    moment.as_millisecond() as f64 / 1000.0
}

/// A format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsFormat {
    /// The text format of Prometheus, version 0.0.4.
    Prometheus,
    /// OpenMetrics, version 1.0.0.
    OpenMetrics,
}

impl Metrics {
    /// The metrics in `format`.
    ///
    /// # Errors
    ///
    /// Never in practice: writing to a `String` cannot fail.
    pub fn render(&self, format: MetricsFormat) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(match format {
            MetricsFormat::Prometheus => prometheus_text(&text),
            MetricsFormat::OpenMetrics => text,
        })
    }
}

/// `open_metrics` in the text format of Prometheus. In that format a counter's help and type are
/// those of its time series, whose name ends in `_total`, and there is no end mark.
fn prometheus_text(open_metrics: &str) -> String {
    let (mut text, mut help) = (String::new(), "");
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described;
        } else if let Some(typed) = line.strip_prefix("# TYPE ") {
            let suffix = if typed.ends_with(" counter") {
                "_total"
            } else {
                ""
            };
            for (word, description) in [("HELP", help), ("TYPE", typed)] {
                let (name, rest) = description.split_once(' ').unwrap_or((description, ""));
                text += &format!("# {word} {name}{suffix} {rest}\n");
            }
        } else if !line.starts_with('#') {
            text += line;
            text.push('\n');
        }
    }
    text
}

/// The format of log lines.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    serde::Deserialize,
    serde::Serialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Libraries whose logs quote messages and subjects, and so phone numbers and keys. Their logs are
/// dropped, whatever the filter says. Their errors are in the reasons of failed attempts.
const SILENT: &[&str] = &["amq_protocol", "async_nats", "lapin", "rumqttc"];

/// Starts logging to standard error. `filter` has the syntax of `RUST_LOG`, which takes precedence.
///
/// # Errors
///
/// When `filter` has another syntax.
pub fn start_logging(
    format: LogFormat,
    filter: &str,
    color: bool,
) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = match tracing_subscriber::EnvFilter::try_from_default_env() {
        Ok(filter) => filter,
        Err(_) => tracing_subscriber::EnvFilter::try_new(filter)?,
    };
    let lines = layer().with_writer(std::io::stderr).with_ansi(color);
    let lines = match format {
        LogFormat::Text => lines.with_target(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let discreet = filter_fn(|event| {
        let library = event.target().split("::").next();
        library.is_none_or(|library| !SILENT.contains(&library))
    });
    registry().with(lines).with(filter).with(discreet).init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn each_time_series_has_its_help_and_type_in_the_text_format() {
        let metrics = Metrics::default();
        let endpoint = "numbers".to_owned();
        metrics
            .misdirected
            .get_or_create(&ByEndpoint { endpoint })
            .inc();
        let text = metrics.render(MetricsFormat::Prometheus).unwrap();
        assert!(!text.contains("# EOF"), "{text}");
        let describes = |kind: &str| -> HashMap<&str, &str> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(kind));
            lines.filter_map(|line| line.split_once(' ')).collect()
        };
        let (help, types) = (describes("# HELP "), describes("# TYPE "));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let series = line.split(['{', ' ']).next().unwrap();
            let of_histogram = ["_bucket", "_sum", "_count"];
            let base = of_histogram
                .iter()
                .find_map(|part| series.strip_suffix(part));
            let base = base.filter(|base| types.get(base) == Some(&"histogram"));
            let metric = base.unwrap_or(series);
            assert!(help.contains_key(metric), "no help for {line}");
            let is_counter = types[metric] == "counter";
            assert_eq!(series.ends_with("_total"), is_counter, "{line}");
        }
        for line in [
            "# HELP hookswitch_reloads_total Reloads of the configuration.\n",
            "hookswitch_reloads_total{result=\"applied\"} 0\n",
            "hookswitch_reloads_total{result=\"refused\"} 0\n",
            "hookswitch_misdirected_total{endpoint=\"numbers\"} 1\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

    #[test]
    fn every_metric_is_documented() {
        let operations = include_str!("../docs/operations.md");
        for (name, help) in METRICS {
            let line = format!("| `hookswitch_{name}` | {help} |");
            assert!(
                operations.contains(&line),
                "docs/operations.md lacks this line:\n{line}"
            );
        }
    }
}
