//! `status`: asks a running service what is wrong.

use std::{
    io::{self, Write},
    path::Path,
    time::Duration,
};

use anyhow::bail;
use serde_json::Value;

use super::{Exit, healthcheck, output::print_json};
use crate::config;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the answer of the API
    #[arg(long)]
    json: bool,
}

/// How long the answer may take: the store may need 2 seconds to count.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks `/api/v1/status` of the admin server that the configuration names, with one of its tokens.
pub(super) fn run(args: &Args, path: &Path) -> anyhow::Result<Exit> {
    let admin = config::load_admin(path)?;
    let asked = healthcheck::ask(&admin, "/api/v1/status", TIMEOUT);
    let (answered, body) = super::block_on(asked)?;
    if !answered {
        bail!("the service does not say: {body}");
    }
    let status: Value = serde_json::from_str(&body)?;
    if args.json {
        print_json(&status)?;
    } else {
        print(&status)?;
    }
    Ok(match text(&status, "level") {
        "critical" => Exit::Negative,
        _ => Exit::Success,
    })
}

fn print(status: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text(status, "summary"))?;
    let problems = status.get("problems").and_then(Value::as_array);
    for problem in problems.into_iter().flatten() {
        let (level, message) = (text(problem, "level"), text(problem, "message"));
        writeln!(out, "\n{level}: {message}\n  {}", text(problem, "remedy"))?;
    }
    Ok(())
}

fn text<'v>(value: &'v Value, member: &str) -> &'v str {
    value
        .get(member)
        .and_then(Value::as_str)
        .unwrap_or_default()
}
