//! What the client of PostgreSQL leaves to its users in URLs of servers: `sslmode`, of which it knows
//! only some values, and what holds where nothing is said.

use std::net::IpAddr;

use tokio_postgres::config::Host;

/// Takes `sslmode` out of the parameters of a URL.
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

/// Whether a host is on this machine, so that nobody listens on the way to it.
pub(crate) fn is_here(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => {
            name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
        }
        #[cfg(unix)]
        Host::Unix(_) => true,
    }
}
