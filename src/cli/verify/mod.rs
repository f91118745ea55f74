//! `verify`: whether a saved request would be accepted, and if not, why.

mod report;
mod saved_request;

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use jiff::Timestamp;

use self::{
    report::{Problem, Report},
    saved_request::{Length, SavedRequest},
};
use super::Exit;
use crate::{
    app,
    config::Config,
    http::{self as ingress, Accepted, Endpoint, Rejection},
    provider::{self, Admission, Cause, Diagnosis},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The request as it came: its request line, its headers, an empty line and its body; `-` is
    /// standard input
    file: PathBuf,
    /// The endpoint, whatever the path of the request is
    #[arg(long, value_name = "NAME")]
    endpoint: Option<String>,
    /// When the request came: a time (2026-01-31T08:00:00Z) or an age (2h); by default, when the file
    /// was last written
    #[arg(long, value_name = "TIME", value_parser = super::time::parse)]
    at: Option<Timestamp>,
    /// Print JSON instead of a text
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, config: &Config) -> anyhow::Result<Exit> {
    let file = args.file.display().to_string();
    let saved = read(&args.file).and_then(|content| SavedRequest::parse(&content));
    let saved = saved.with_context(|| format!("{file} cannot be verified"))?;
    let (at, clock) = arrival(args);
    let mut report = Report::new(file, at, clock);
    match endpoint(args, config, &saved)? {
        Some(endpoint) => verify(&saved, endpoint, config, &mut report),
        None => {
            report.problems.push(no_such_path(&saved, config));
            report.reject(&Rejection::Path);
        }
    }
    report.print(args.json)?;
    Ok(match report.accepted {
        true => Exit::Success,
        false => Exit::Negative,
    })
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path == Path::new("-") {
        let mut content = Vec::new();
        io::stdin().read_to_end(&mut content)?;
        return Ok(content);
    }
    fs::read(path).context("it cannot be read")
}

/// When the request came, and how that is known.
fn arrival(args: &Args) -> (Timestamp, &'static str) {
    if let Some(at) = args.at {
        return (at, "as --at says");
    }
    let written = fs::metadata(&args.file).and_then(|file| file.modified());
    let written = written.ok().and_then(|at| Timestamp::try_from(at).ok());
    match written {
        Some(at) => (
            at,
            "when the file was last written; --at gives another time",
        ),
        None => (app::now(), "now; --at gives another time"),
    }
}

/// The endpoint that `--endpoint` names, or whose path the request has.
fn endpoint<'a>(
    args: &Args,
    config: &'a Config,
    saved: &SavedRequest,
) -> anyhow::Result<Option<&'a Endpoint>> {
    let endpoints = &config.endpoints;
    let names = || {
        let names: Vec<_> = endpoints
            .iter()
            .map(|endpoint| endpoint.name.as_str())
            .collect();
        names.join(", ")
    };
    let mut all = endpoints.iter();
    match (&args.endpoint, &saved.target) {
        (Some(name), _) => match all.find(|endpoint| endpoint.name.as_str() == name) {
            None => bail!("there is no endpoint {name:?}; there are {}", names()),
            found => Ok(found),
        },
        (None, Some(target)) => Ok(all.find(|endpoint| endpoint.path == target.path())),
        (None, None) => bail!(
            "the request has no request line, so name its endpoint with --endpoint: {}",
            names()
        ),
    }
}

fn no_such_path(saved: &SavedRequest, config: &Config) -> Problem {
    let path = saved.target.as_ref().map_or("", |target| target.path());
    let mut paths = config
        .endpoints
        .iter()
        .map(|endpoint| endpoint.path.as_str());
    let trimmed = path.trim_end_matches('/');
    let is_part = |known: &&str| known.ends_with(trimmed) || trimmed.ends_with(known);
    let help = match paths.clone().find(is_part).filter(|_| !trimmed.is_empty()) {
        Some(known) => format!(
            "the nearest one is {known:?}; does a proxy take away or add a part of the path?"
        ),
        None => {
            let known: Vec<_> = paths.by_ref().collect();
            format!("the paths are {}", known.join(", "))
        }
    };
    Problem::new(format!("no endpoint has the path {path:?}"), help)
}

/// Does with `saved` what the server does, and reports the reasons.
fn verify(saved: &SavedRequest, endpoint: &Endpoint, config: &Config, report: &mut Report) {
    report.set_endpoint(endpoint, saved);
    let methods = endpoint.provider.methods();
    if !methods.contains(&saved.method) {
        let allowed = ingress::allow(methods);
        let takes = allowed.to_str().unwrap_or_default();
        report.problems.push(Problem::new(
            format!(
                "the method is {}, and the endpoint takes {takes}",
                saved.method
            ),
            "a provider's own requests have that method; is this one of them?",
        ));
        return report.reject(&Rejection::Method(allowed));
    }
    let most = config.server.max_body;
    if u64::try_from(saved.body.len()).is_ok_and(|length| length > most) {
        let length = saved.body.len();
        report.problems.push(Problem::new(
            format!("the body has {length} bytes, and `max_body` is {most}"),
            "raise `max_body` in [server]",
        ));
        return report.reject(&Rejection::TooLarge);
    }
    let request = provider::Request {
        endpoint: &endpoint.name,
        method: &saved.method,
        query: saved.target.as_ref().and_then(|target| target.query()),
        headers: &saved.headers,
        body: saved.body.clone(),
    };
    let diagnosis = provider::diagnose(&*endpoint.provider, &request, report.checked_at);
    if let Length::Short(announced) = saved.length
        && !matches!(diagnosis.causes.first(), Some(Cause::Changed(_)))
    {
        let length = saved.body.len();
        report.problems.push(Problem::new(
            format!("the body was cut short: it has {length} of the {announced} bytes that `content-length` announces"),
            "look at what cut the request, or save the whole of it",
        ));
        return report.reject(&Rejection::BrokenBody);
    }
    report.add_examination(&diagnosis.examination);
    let problems = diagnosis
        .causes
        .iter()
        .map(|cause| Problem::of(&cause.to_string()));
    report.problems.extend(problems);
    if diagnosis.refusal.is_some()
        && diagnosis.examination.secret.is_none()
        && let Some(problem) = others_secret(&request, endpoint, config)
    {
        // This explains the rest.
        report.problems.truncate(1);
        report.problems.push(problem);
    }
    conclude(diagnosis, endpoint, config, report);
}

/// The problem that the secret of another endpoint fits.
fn others_secret(
    request: &provider::Request<'_>,
    endpoint: &Endpoint,
    config: &Config,
) -> Option<Problem> {
    let fits = |other: &&Endpoint| {
        other.name != endpoint.name && other.provider.examine(request).secret.is_some()
    };
    let other = config.endpoints.iter().find(fits)?;
    Some(Problem::new(
        format!("a secret of the endpoint {:?} fits", other.name.as_str()),
        format!(
            "the provider should post to {}, or the secrets are swapped",
            other.path
        ),
    ))
}

/// Adds the verdict, and the event as far as it is known.
fn conclude(diagnosis: Diagnosis, endpoint: &Endpoint, config: &Config, report: &mut Report) {
    let accepted = diagnosis
        .admission
        .map(|Admission { event, reply, .. }| match event {
            Some(event) => {
                report.add_event(event, &diagnosis.examination, endpoint, config);
                Accepted::Stored(reply)
            }
            None => Accepted::Handshake(reply),
        });
    match (diagnosis.refusal, accepted) {
        (Some(refusal), _) => report.reject(&Rejection::Refused(refusal)),
        (None, accepted) => accepted.iter().for_each(|accepted| report.accept(accepted)),
    }
}
