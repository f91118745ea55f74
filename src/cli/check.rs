//! `check`: the problems and warnings of a configuration.

use std::{
    io::{self, Write},
    path::Path,
};

use serde::Serialize;

use super::{
    Exit,
    output::{self, count},
};
use crate::{
    app::Builder,
    config::{self, Location, Problem, Report, Severity},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Check references to secrets, certificates and programs for their form only: they need not be
    /// on this machine
    #[arg(long)]
    without_secrets: bool,
    /// Print JSON instead of a report
    #[arg(long)]
    json: bool,
}

/// The JSON of a report. Its shape is documented in `docs/operations.md`.
#[derive(Debug, Serialize)]
struct Json<'a> {
    file: &'a str,
    sound: bool,
    problems: Vec<JsonProblem<'a>>,
}

#[derive(Debug, Serialize)]
struct JsonProblem<'a> {
    severity: Severity,
    message: &'a str,
    help: Option<&'a str>,
    /// `null` when the problem is the whole file.
    start: Option<Location>,
    end: Option<Location>,
}

/// Prints the problems and warnings, or a summary.
pub(super) fn run(args: &Args, path: &Path, builder: &Builder) -> anyhow::Result<Exit> {
    let (report, summary) = if args.without_secrets {
        let report = config::check_form(path, builder.kinds());
        (
            report,
            "secrets, certificates and programs were not read".to_owned(),
        )
    } else {
        match builder.load(path) {
            Ok(config) => {
                let endpoints = count(config.endpoints.len() as u64, "endpoint");
                let handlers = count(config.handlers.len() as u64, "handler");
                (config.warnings, format!("{endpoints}, {handlers}"))
            }
            Err(report) => (report, String::new()),
        }
    };
    if args.json {
        output::print_json(&Json::of(&report))?;
    } else {
        print(&report, &summary)?;
    }
    Ok(match report.is_sound() {
        true => Exit::Success,
        false => Exit::WrongConfiguration,
    })
}

fn print(report: &Report, summary: &str) -> io::Result<()> {
    if !report.problems().is_empty() {
        let mut stderr = io::stderr().lock();
        let color = output::has_color(&stderr);
        writeln!(stderr, "{}", report.render(color))?;
    }
    if report.is_sound() {
        writeln!(io::stdout(), "{} is sound: {summary}", report.path())?;
    }
    Ok(())
}

impl<'a> Json<'a> {
    fn of(report: &'a Report) -> Self {
        let problem = |problem: &'a Problem| {
            let place = problem.place.as_ref();
            JsonProblem {
                severity: problem.severity,
                message: &problem.message,
                help: problem.help.as_deref(),
                start: place.map(|place| report.location(place.start)),
                end: place.map(|place| report.location(place.end)),
            }
        };
        Self {
            file: report.path(),
            sound: report.is_sound(),
            problems: report.problems().iter().map(problem).collect(),
        }
    }
}
