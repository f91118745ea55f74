//! The wire to a server: whether others could listen on it.

use std::net::IpAddr;

/// Whether `host` is this machine, so that nobody listens on the way to it: a name, or an IP address
/// with or without brackets. Names but `localhost` are not looked up.
pub fn is_here(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_here() {
        for host in [
            "localhost",
            "127.0.0.1",
            "127.8.8.8",
            "::1",
            "[::1]",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_here(host), "{host}");
        }
        for host in [
            "",
            "db.example.com",
            "localhost.example.com",
            "10.0.0.1",
            "0.0.0.0",
            "[::]",
        ] {
            assert!(!is_here(host), "{host}");
        }
    }
}
