//! The HTTP client of the kinds that post requests.

use std::time::Duration;

use reqwest::{Client, ClientBuilder, redirect::Policy};
use rustls::ClientConfig;

use super::{BuildContext, BuildError, with_causes};
use crate::client_tls::ClientTls;

/// The value of the `User-Agent` header.
pub(super) const USER_AGENT: &str = concat!("hookswitch/", env!("CARGO_PKG_VERSION"));

/// How long an idle connection is kept: less than common servers keep theirs, so that no request is sent just
/// as the server closes the connection.
const KEPT_IDLE: Duration = Duration::from_secs(20);

/// A client that follows no redirects, uses no proxies of the environment, and keeps a connection for every
/// concurrent attempt.
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
        // A backstop: the dispatcher ends the attempt sooner, and says so.
        .timeout(context.timeout.saturating_mul(2))
        .pool_idle_timeout(KEPT_IDLE)
        .pool_max_idle_per_host(context.concurrency);
    Ok(builder)
}

/// The TLS of HTTP: the handshake also chooses the newest version of HTTP that both sides support.
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
