//! URLs of PostgreSQL: `sslmode`, of which the client library knows only some values, and the servers
//! beyond this machine.

use tokio_postgres::{Config, config::Host};

use crate::cleartext::{self, CleartextWarning};

/// Splits `sslmode` from the parameters of a URL.
pub(crate) fn split_ssl_mode(url: &str) -> (String, Option<&str>) {
    let Some((base, parameters)) = url.split_once('?') else {
        return (url.to_owned(), None);
    };
    let (modes, others): (Vec<_>, Vec<_>) = parameters
        .split('&')
        .partition(|parameter| parameter.starts_with("sslmode="));
    let mode = modes
        .last()
        .and_then(|parameter| parameter.strip_prefix("sslmode="));
    (format!("{base}?{}", others.join("&")), mode)
}

/// The names and addresses of servers in `config` that are not this machine.
pub(crate) fn beyond(config: &Config) -> Vec<String> {
    let names = config.get_hosts().iter().filter_map(|host| match host {
        Host::Tcp(name) => Some(name.clone()),
        #[cfg(unix)]
        Host::Unix(_) => None,
    });
    let addresses = config.get_hostaddrs().iter().map(ToString::to_string);
    let mut servers: Vec<_> = names.chain(addresses).collect();
    servers.retain(|server| !cleartext::is_loopback(server));
    servers
}

/// How to get TLS.
pub(crate) const TLS: &str = "write \"sslmode=verify-full\" in the URL's parameters";

/// The warning about a password that is sent to the servers of `config` without TLS.
pub(crate) fn cleartext_warning(config: &Config) -> Option<CleartextWarning> {
    CleartextWarning::new("url", "its password", beyond(config), TLS)
}
