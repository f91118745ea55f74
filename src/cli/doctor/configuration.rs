//! The configuration, as `check` sees it.

use std::path::Path;

use super::finding::{Finding, Severity};
use crate::{
    app::Builder,
    cli::output::count,
    config::{self, Config, Problem, Report},
};

const CHECK: &str = "configuration";

/// Reads the configuration. `None` when a service could not start from it.
pub(super) fn check(path: &Path, builder: &Builder, findings: &mut Vec<Finding>) -> Option<Config> {
    match builder.load(path) {
        Ok(config) => {
            let endpoints = count(config.endpoints.len() as u64, "endpoint");
            let handlers = count(config.handlers.len() as u64, "handler");
            let sound = format!("{} is sound: {endpoints}, {handlers}", path.display());
            findings.push(Finding::fine(CHECK, sound));
            report(&config.warnings, findings);
            Some(config)
        }
        Err(problems) => {
            report(&problems, findings);
            None
        }
    }
}

fn report(report: &Report, findings: &mut Vec<Finding>) {
    findings.extend(report.problems().iter().map(|problem| {
        let place = match &problem.place {
            Some(place) => {
                let config::Location { line, column } = report.location(place.start);
                format!("{}:{line}:{column}: ", report.path())
            }
            None => format!("{}: ", report.path()),
        };
        Finding {
            severity: severity(problem),
            check: CHECK,
            message: place + &problem.message,
            help: problem.help.clone(),
        }
    }));
}

fn severity(problem: &Problem) -> Severity {
    match problem.is_error() {
        true => Severity::Blocker,
        false => Severity::Warning,
    }
}
