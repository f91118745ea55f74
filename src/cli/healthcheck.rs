//! `healthcheck`: asks a running service whether it is ready, for images without an HTTP client.

use std::{
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::Context;

use super::Exit;
use crate::{admin, config};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How long to wait for an answer, in milliseconds
    #[arg(long, default_value_t = 2000, value_name = "MS")]
    timeout_ms: u64,
}

/// Asks `/readyz` of the admin server that the configuration names.
pub(super) fn run(args: &Args, path: &Path) -> anyhow::Result<Exit> {
    let admin = config::load_admin(path)?;
    let timeout = Duration::from_millis(args.timeout_ms);
    let (ready, body) = super::block_on(ask(&admin, "/readyz", timeout))?;
    writeln!(io::stdout(), "{}", body.trim_end())?;
    Ok(if ready { Exit::Success } else { Exit::Negative })
}

/// Asks the admin server of `settings` for `path`. Returns whether the answer is a success, and its body.
pub(super) async fn ask(
    settings: &admin::Settings,
    path: &str,
    timeout: Duration,
) -> anyhow::Result<(bool, String)> {
    let url = format!("http://{}{path}", connect_address(settings.listen));
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(timeout)
        .build()?;
    let mut request = client.get(&url);
    if let Some(token) = settings.any_token() {
        request = request.bearer_auth(token.expose());
    }
    let answer = request.send().await;
    let answer = answer.with_context(|| format!("no service answers at {url}"))?;
    let success = answer.status().is_success();
    Ok((success, answer.text().await.unwrap_or_default()))
}

/// The address to connect to: loopback where the server listens on every address.
pub(super) fn connect_address(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
