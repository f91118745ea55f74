//! The wire to a server: whether others could listen on it, and what is said where a credential
//! would go over it all the same.
//!
//! **Invariant:** a credential goes beyond this machine without TLS only where the configuration says
//! so in so many words, and then a warning tells of it.

use std::net::IpAddr;

/// Whether `host` is this machine, so that nobody listens on the way to it: a name, or an IP address
/// with or without brackets. Names but `localhost` are not looked up.
pub fn is_here(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

/// A credential that others could read on its way, because a setting says so. Told as a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// The key of the setting.
    pub key: &'static str,
    /// What whoever has the setting does, and after a semicolon what to write in its place. Holds
    /// nothing of the credential.
    pub message: String,
}

impl Exposure {
    /// What there is to tell of `credential`, such as "its password", which goes to `servers`, by name
    /// or address, without TLS, as `key` says. Nothing where all of them are this machine. `cure` is
    /// how to have TLS.
    pub fn new<S: AsRef<str>>(
        key: &'static str,
        credential: &str,
        servers: impl IntoIterator<Item = S>,
        cure: &str,
    ) -> Option<Self> {
        let servers: Vec<_> = servers
            .into_iter()
            .filter(|server| !is_here(server.as_ref()))
            .map(|server| server.as_ref().to_owned())
            .collect();
        if servers.is_empty() {
            return None;
        }
        let servers = servers.join(", ");
        Some(Self {
            key,
            message: format!(
                "sends {credential} to {servers} and asks for no TLS, so that others can read it on \
                 the way; {cure}"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_on_this_machine_is_not_exposed() {
        let told = |servers: &[&str]| {
            let told = Exposure::new("url", "its password", servers, "begin it with \"tls://\"");
            told.map(|exposure| exposure.message)
        };
        assert_eq!(told(&[]), None);
        assert_eq!(told(&["localhost", "[::1]"]), None);
        let told = told(&["localhost", "one.example.com", "10.0.0.2"]);
        assert_eq!(
            told.as_deref(),
            Some(
                "sends its password to one.example.com, 10.0.0.2 and asks for no TLS, so that \
                 others can read it on the way; begin it with \"tls://\""
            )
        );
    }

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
