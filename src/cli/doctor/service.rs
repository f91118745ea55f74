//! The running service, if there is one.

use std::time::Duration;

use super::finding::Finding;
use crate::{
    admin,
    cli::{block_on, healthcheck},
};

const CHECK: &str = "service";

/// How long an answer of the admin server may take. Metrics can take 2 seconds.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What the admin server says.
#[derive(Debug, Default)]
pub(super) struct Service {
    /// Whether a service answers; `None` where that cannot be asked.
    pub(super) is_running: Option<bool>,
    /// The metrics, in the Prometheus text format.
    metrics: String,
}

impl Service {
    /// The series called `name`, each with its labels and its value.
    pub(super) fn series(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        self.metrics.lines().filter_map(move |line| {
            let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            // Another metric can begin with the same name.
            let is_whole = labels.is_empty() || labels.starts_with('{');
            is_whole.then_some((labels, value.parse().ok()?))
        })
    }
}

/// Asks the admin server for its readiness and its metrics.
pub(super) fn check(settings: &admin::Settings, findings: &mut Vec<Finding>) -> Service {
    let listen = settings.listen;
    if listen.port() == 0 {
        findings.push(Finding::warning(
            CHECK,
            "the system chooses the port of [admin], so a running service cannot be asked",
            "give [admin] a fixed port",
        ));
        return Service::default();
    }
    let ask = |path| block_on(healthcheck::ask(settings, path, TIMEOUT));
    let Ok((is_ready, word)) = ask("/readyz") else {
        findings.push(Finding::warning(
            CHECK,
            format!("no service answers at {listen}"),
            "start it with `hookswitch serve`; what only a running service shows is left out here",
        ));
        return Service {
            is_running: Some(false),
            ..Service::default()
        };
    };
    findings.push(match (is_ready, word.trim()) {
        (true, _) => Finding::fine(CHECK, format!("the service at {listen} is ready")),
        (false, word @ ("starting" | "recovering" | "draining")) => Finding::warning(
            CHECK,
            format!("the service at {listen} is not ready: {word}"),
            "wait, and look again",
        ),
        (false, word) => Finding::blocker(
            CHECK,
            format!("the service at {listen} is not ready: {word}"),
            "the log of the service says why; after `poisoned` it has to be restarted",
        ),
    });
    let metrics = match ask("/metrics") {
        Ok((true, metrics)) => metrics,
        _ => {
            findings.push(Finding::warning(
                CHECK,
                format!("the service at {listen} does not show its metrics"),
                "does the service use the token of this configuration?",
            ));
            String::new()
        }
    };
    Service {
        is_running: Some(true),
        metrics,
    }
}
