//! The HTTP client of the kinds that post requests.

use std::time::Duration;

use reqwest::{Client, ClientBuilder, redirect::Policy};
use rustls::ClientConfig;

use super::{BuildContext, BuildError, with_causes};
use crate::client_tls::ClientTls;

/// Who we say that we are.
pub(super) const USER_AGENT: &str = concat!("hookswitch/", env!("CARGO_PKG_VERSION"));

/// How long a connection is kept for the next request: less than common servers keep theirs, so
/// that none is used just as the other side closes it.
const KEPT_IDLE: Duration = Duration::from_secs(20);

/// A client that follows no redirects, asks the environment for no proxies, and has connections for
/// every attempt that may be under way.
///
/// # Errors
///
/// When the system's CA bundle is needed and there is none.
pub(super) fn builder(
    context: &BuildContext,
    connect_timeout: Duration,
    tls: &ClientTls,
) -> Result<ClientBuilder, BuildError> {
    let tls = speak(tls).map_err(BuildError)?;
    let builder = Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(USER_AGENT)
        .redirect(Policy::none())
        .no_proxy()
        .connect_timeout(connect_timeout.min(context.timeout))
        // A backstop: the dispatcher gives the attempt up sooner, and says so.
        .timeout(context.timeout.saturating_mul(2))
        .pool_idle_timeout(KEPT_IDLE)
        .pool_max_idle_per_host(context.concurrency);
    Ok(builder)
}

/// TLS as HTTP has it: the newest version that both sides speak is agreed on by the way.
fn speak(tls: &ClientTls) -> Result<ClientConfig, String> {
    let mut config = tls.config()?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Why there is no client.
pub(super) fn refuse(error: reqwest::Error) -> BuildError {
    let problem = describe(error);
    BuildError(format!("the HTTP client cannot be built: {problem}"))
}

/// What went wrong, down to its first cause, without the URL.
pub(super) fn describe(error: reqwest::Error) -> String {
    with_causes(&error.without_url())
}
