//! `status`: asks a running service what is wrong.

use std::{
    io::{self, Write},
    path::Path,
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::Value;

use super::{Exit, healthcheck::connect_address, output::print_json};
use crate::config;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the answer of the API
    #[arg(long)]
    json: bool,
}

/// Asks `/api/v1/status` of the admin server that the configuration names, with one of its tokens.
pub(super) fn run(args: &Args, path: &Path) -> anyhow::Result<Exit> {
    let admin = config::load_admin(path)?;
    let url = format!("http://{}/api/v1/status", connect_address(admin.listen));
    let token = admin.tokens.values().map(|token| &token.token).next();
    let token = token.or(admin.token.as_ref());
    let status = super::block_on(async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(10))
            .build()?;
        let request = client.get(&url);
        let request = match token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        };
        let answer = request.send().await;
        let answer = answer.with_context(|| format!("no service answers at {url}"))?;
        let (status, body) = (answer.status(), answer.text().await?);
        if !status.is_success() {
            bail!("{url} answers {status}: {body}");
        }
        Ok(serde_json::from_str::<Value>(&body)?)
    })?;
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
