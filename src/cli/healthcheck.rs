//! `healthcheck`: asks a running service whether it is ready, for images without an HTTP client.

use std::{
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::Context;

use super::Exit;
use crate::config;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How long to wait for an answer, in milliseconds
    #[arg(long, default_value_t = 2000, value_name = "MS")]
    timeout_ms: u64,
}

/// Asks `/readyz` of the admin server that the configuration names.
pub(super) fn run(args: &Args, path: &Path) -> anyhow::Result<Exit> {
    let address = connect_address(config::load_admin(path)?.listen);
    let url = format!("http://{address}/readyz");
    let (ready, body) = super::block_on(async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_millis(args.timeout_ms))
            .build()?;
        let answer = client.get(&url).send().await;
        let answer = answer.with_context(|| format!("no service answers at {url}"))?;
        let ready = answer.status().is_success();
        Ok((ready, answer.text().await.unwrap_or_default()))
    })?;
    writeln!(io::stdout(), "{}", body.trim_end())?;
    Ok(if ready { Exit::Success } else { Exit::Negative })
}

/// The address to connect to: loopback where the server listens on every address.
fn connect_address(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
