//! `doctor`: everything that a service depends on, checked at once.
//!
//! **Invariant:** nothing is changed, and no other machine is asked but a database that is the store, and with
//! `--targets` the servers of the handlers. A handshake that is posted to the running service counts in its
//! metrics as one of a provider.

mod answers;
mod certificate;
mod configuration;
mod finding;
mod secrets;
mod service;
mod store;
mod targets;

use std::path::Path;

use self::{
    finding::{Finding, Severity},
    service::Service,
};
use super::{Exit, output::Format};
use crate::{
    app::{self, Builder},
    config::{self, Config},
    http,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Post no signed handshake to the running service, which its metrics would count as a provider's
    #[arg(long)]
    without_handshake: bool,
    /// Connect to the servers of all handlers too
    #[arg(long)]
    targets: bool,
    #[command(flatten)]
    format: Format,
}

/// Prints the findings, the worst first.
pub(super) fn run(args: &Args, path: &Path, builder: &Builder) -> anyhow::Result<Exit> {
    let mut findings = Vec::new();
    let config = configuration::check(path, builder, &mut findings);
    // These sections may be sound in a file that is not.
    let service = match config::load_admin(path) {
        Ok(admin) => service::check(&admin, &mut findings),
        Err(_) => Service::default(),
    };
    if let Some(config) = config.as_ref().filter(|_| service.is_running == Some(true)) {
        answers::check(config, &service, !args.without_handshake, &mut findings);
    }
    if let Ok(engine) = config::load_store(path) {
        store::check(&*engine, &service, &mut findings);
    }
    if let Some(config) = &config {
        secrets::check(config, path, &mut findings);
        certificate::check(&config.server, app::now(), &mut findings);
        findings.push(check_descriptors(config));
        if args.targets {
            targets::check(config, &mut findings)?;
        }
    }
    findings.sort_by_key(|finding| finding.severity);
    print(args, &findings)?;
    let is_blocked = findings
        .iter()
        .any(|finding| finding.severity == Severity::Blocker);
    Ok(match is_blocked {
        true => Exit::Negative,
        false => Exit::Success,
    })
}

/// Compares `max_connections` with the limit of this process, which may differ from that of the service.
fn check_descriptors(config: &Config) -> Finding {
    const CHECK: &str = "descriptors";
    let most = config.server.max_connections;
    match http::shortage(most) {
        None => Finding::fine(CHECK, format!("enough for {most} connections")),
        Some((wanted, has)) => Finding::warning(
            CHECK,
            format!(
                "a process like this one can have {has} files, and {most} connections need {wanted}"
            ),
            "raise LimitNOFILE of the unit or `ulimit -n`, or lower `max_connections`",
        ),
    }
}

fn print(args: &Args, findings: &[Finding]) -> anyhow::Result<()> {
    args.format.print(
        findings,
        ["severity", "check", "what, and what to do"],
        |finding| {
            [
                finding.severity.as_str().to_owned(),
                finding.check.to_owned(),
                finding.text(),
            ]
        },
        "nothing was checked",
    )
}
