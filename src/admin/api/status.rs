//! `/status`: what is wrong, the worst first, and what to do about it.

use std::cmp::Reverse;

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Context, NoParameters, Problem as Failure,
    handlers::{self, Handler},
};
use crate::{
    admin::{console::Console, text},
    http::EndpointStatus,
    store::Health,
};

/// How the service is.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Status {
    /// The worst severity of the problems; `ok` without one.
    pub level: Level,
    /// The same in words.
    pub summary: String,
    /// What is wrong, the worst first.
    pub problems: Vec<Problem>,
    /// `starting`, `recovering`, `unavailable`, `poisoned` or `draining`; absent while the service
    /// accepts events.
    pub not_ready: Option<&'static str>,
    /// The version of the program.
    pub version: &'static str,
    /// When the process began.
    pub started_at: Timestamp,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(in super::super) enum Level {
    /// Nothing is wrong.
    Ok,
    /// Somebody should look today.
    Warning,
    /// Somebody should look now: events are refused or do not arrive.
    Critical,
}

impl Level {
    /// The level in a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Problem {
    pub level: Level,
    /// A word for programs, which does not change.
    pub code: &'static str,
    /// The handler or the endpoint that the problem is about.
    pub about: Option<About>,
    /// What is wrong, in a sentence.
    pub message: String,
    /// What to do.
    pub remedy: String,
    /// Since when, if that is known.
    pub since: Option<Timestamp>,
}

/// What a problem is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(in super::super) enum About {
    Handler(String),
    Endpoint(String),
}

/// How long a handler may fail, or be behind, before that is critical.
const PATIENCE: SignedDuration = SignedDuration::from_mins(5);

/// Zoom repeats its handshake every 72 hours, and disables an endpoint that fails it.
/// Source: Zoom's webhook documentation, "Webhook validation".
const ZOOM_HANDSHAKE: SignedDuration = SignedDuration::from_hours(73);

/// How long before its end a certificate is a problem.
const CERTIFICATE_WARNING: SignedDuration = SignedDuration::from_hours(14 * 24);
const CERTIFICATE_CRITICAL: SignedDuration = SignedDuration::from_hours(2 * 24);

pub(super) async fn get(context: Context, _: NoParameters) -> Result<Status, Failure> {
    Ok(of(&context.console).await)
}

/// The status of the service.
pub(in super::super) async fn of(console: &Console) -> Status {
    let now = console.now();
    console.readiness.measure(now).await;
    let mut problems = Vec::new();
    store(console, &mut problems);
    if let Some(why) = &*console.pauses_problem.load() {
        problems.push(Problem {
            level: Level::Critical,
            code: "pauses-unknown",
            about: None,
            message: format!("Which handlers are paused cannot be read: {why}."),
            remedy: "bring the database back, or restore `audit.db`; handlers that were not known to go \
                     on begin no attempt until then"
                .to_owned(),
            since: None,
        });
    }
    for handler in handlers::all(console) {
        problems.extend(of_handler(&handler, now));
    }
    for endpoint in console.webhook.endpoints() {
        problems.extend(of_endpoint(&endpoint, console.started_at, now));
    }
    problems.extend(certificate(console, now));
    // The sort is stable: within a level the store comes before the handlers.
    problems.sort_by_key(|problem| Reverse(problem.level));
    let level = problems.first().map_or(Level::Ok, |worst| worst.level);
    Status {
        level,
        summary: summary(&problems),
        problems,
        not_ready: console.readiness.not_ready(),
        version: env!("CARGO_PKG_VERSION"),
        started_at: console.started_at,
    }
}

fn summary(problems: &[Problem]) -> String {
    let critical = problems
        .iter()
        .filter(|problem| problem.level == Level::Critical)
        .count();
    match (critical, problems.len()) {
        (0, 0) => "Everything is all right.".to_owned(),
        (0, 1) => "One thing needs attention.".to_owned(),
        (0, all) => format!("{all} things need attention."),
        (1, 1) => "One thing is wrong.".to_owned(),
        (all, total) if all == total => format!("{all} things are wrong."),
        (some, total) => format!("{some} of {total} problems need somebody now."),
    }
}

/// The store and the tasks behind it.
fn store(console: &Console, problems: &mut Vec<Problem>) {
    let health = console.store.health().borrow().clone();
    let (code, why, remedy) = match &health {
        Health::Sound => {
            if let Some("unavailable") = console.readiness.not_ready() {
                problems.push(Problem {
                    level: Level::Critical,
                    code: "task-stalled",
                    about: None,
                    message: "A task behind the store makes no progress.".to_owned(),
                    remedy: "the log and the metric `hookswitch_follower_stalled` name the task; \
                             the disk or the database may be slow"
                        .to_owned(),
                    since: None,
                });
            }
            return;
        }
        Health::Unavailable { why } => (
            "store-unavailable",
            why,
            "make room on the disk, or bring the database back; events are refused with 503 until then",
        ),
        Health::Poisoned { why } => (
            "store-poisoned",
            why,
            "the process ends by itself and is safe to start again; look at the disk first",
        ),
    };
    problems.push(Problem {
        level: Level::Critical,
        code,
        about: None,
        message: format!("The store accepts no events: {why}."),
        remedy: remedy.to_owned(),
        since: None,
    });
}

/// What is wrong with a handler.
fn of_handler(handler: &Handler, now: Timestamp) -> Vec<Problem> {
    let mut problems = Vec::new();
    let name = &handler.name;
    let about = || Some(About::Handler(name.clone()));
    let waiting = match handler.open {
        0 => "nothing waits".to_owned(),
        open => format!(
            "{} waiting, oldest {}",
            text::grouped(open),
            handler.oldest()
        ),
    };
    if let Some(pause) = &handler.paused {
        problems.push(Problem {
            level: Level::Warning,
            code: "handler-paused",
            about: about(),
            message: format!(
                "{name} has been paused for {} by {}: {}; {waiting}.",
                text::duration(now.duration_since(pause.since)),
                pause.who,
                pause.reason
            ),
            remedy: format!("resume it when that is mended: `hookswitch handlers resume {name}`"),
            since: Some(pause.since),
        });
    } else if let Some(failing) = &handler.failing {
        let lasting = now.duration_since(failing.since);
        problems.push(Problem {
            level: if lasting > PATIENCE {
                Level::Critical
            } else {
                Level::Warning
            },
            code: "handler-failing",
            about: about(),
            message: format!(
                "{name} has failed for {}: {}; {waiting}.",
                text::duration(lasting),
                failing.why
            ),
            remedy: "mend the receiver: deliveries are retried by themselves, in order".to_owned(),
            since: Some(failing.since),
        });
    } else if handler.open > 0 && handler.oldest_seconds > PATIENCE.as_secs_f64() {
        problems.push(Problem {
            level: Level::Critical,
            code: "handler-behind",
            about: about(),
            message: format!("{name} is behind: {waiting}."),
            remedy: "raise its `concurrency`, or see why its attempts take so long".to_owned(),
            since: None,
        });
    }
    if handler.parked > 0 {
        let parked = text::count(handler.parked, "delivery", "deliveries");
        problems.push(Problem {
            level: Level::Warning,
            code: "parked",
            about: about(),
            message: format!("{name} has {parked} parked."),
            remedy: format!(
                "see why with `hookswitch parked list --handler {name}`; then replay or skip them"
            ),
            since: None,
        });
    }
    problems
}

/// What is wrong with an endpoint.
fn of_endpoint(
    endpoint: &EndpointStatus,
    started_at: Timestamp,
    now: Timestamp,
) -> Option<Problem> {
    let name = &endpoint.name;
    let is_of_zoom = endpoint.family.starts_with("zoom.");
    let silence = |at: Option<Timestamp>| now.duration_since(at.unwrap_or(started_at));
    let handshake = silence(endpoint.last_handshake);
    if !is_of_zoom || handshake <= ZOOM_HANDSHAKE {
        return None;
    }
    let is_silent = silence(endpoint.last_event) > ZOOM_HANDSHAKE;
    Some(Problem {
        level: if is_silent {
            Level::Critical
        } else {
            Level::Warning
        },
        code: "no-handshake",
        about: Some(About::Endpoint(name.to_string())),
        message: format!(
            "Zoom has made no handshake at {name} for {}{}.",
            text::duration(handshake),
            if is_silent {
                ", and sends no events"
            } else {
                ""
            }
        ),
        remedy:
            "validate the endpoint again in Zoom's app; Zoom disables an endpoint that fails its \
                 72-hour validation"
                .to_owned(),
        since: endpoint.last_handshake,
    })
}

fn certificate(console: &Console, now: Timestamp) -> Option<Problem> {
    let expiry = console.metrics.certificate_expiry_timestamp_seconds.get();
    if expiry == 0.0 {
        return None;
    }
    let expiry = Timestamp::from_second(expiry as i64).ok()?;
    let left = expiry.duration_since(now);
    let level = match left {
        left if left < CERTIFICATE_CRITICAL => Level::Critical,
        left if left < CERTIFICATE_WARNING => Level::Warning,
        _ => return None,
    };
    Some(Problem {
        level,
        code: "certificate",
        about: None,
        message: match left.is_negative() {
            true => "The server's certificate has expired.".to_owned(),
            false => format!(
                "The server's certificate expires in {}.",
                text::duration(left)
            ),
        },
        remedy: "put a new certificate into its file; the file is read again within 10 seconds"
            .to_owned(),
        since: None,
    })
}
