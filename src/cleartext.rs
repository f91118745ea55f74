//! Cleartext credentials: the warning about a credential that is sent without TLS.
//!
//! **Invariant:** a credential leaves this machine without TLS only where the configuration says so
//! explicitly, and then a warning is logged.

use std::net::IpAddr;

/// Whether `host` is this machine: the name `localhost`, or a loopback address with or without
/// brackets. Other names are not looked up.
pub fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

/// The warning about a credential that a setting sends in cleartext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CleartextWarning {
    /// The key of the setting.
    pub key: &'static str,
    /// What the handler or store does with the credential, and after a semicolon what to write
    /// instead. Never holds the credential.
    pub message: String,
}

impl CleartextWarning {
    /// Warns that the setting `key` sends `credential`, such as "its password", to `servers` without
    /// TLS. `None` where all servers are this machine. `cure` says how to get TLS.
    pub fn new<S: AsRef<str>>(
        key: &'static str,
        credential: &str,
        servers: impl IntoIterator<Item = S>,
        cure: &str,
    ) -> Option<Self> {
        let servers: Vec<_> = servers
            .into_iter()
            .filter(|server| !is_loopback(server.as_ref()))
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
    fn a_credential_that_stays_on_this_machine_is_not_warned_of() {
        let warning = |servers: &[&str]| {
            let warning =
                CleartextWarning::new("url", "its password", servers, "begin it with \"tls://\"");
            warning.map(|warning| warning.message)
        };
        assert_eq!(warning(&[]), None);
        assert_eq!(warning(&["localhost", "[::1]"]), None);
        let warning = warning(&["localhost", "one.example.com", "10.0.0.2"]);
        assert_eq!(
            warning.as_deref(),
            Some(
                "sends its password to one.example.com, 10.0.0.2 and asks for no TLS, so that \
                 others can read it on the way; begin it with \"tls://\""
            )
        );
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for host in [
            "localhost",
            "127.0.0.1",
            "127.8.8.8",
            "::1",
            "[::1]",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "db.example.com",
            "localhost.example.com",
            "10.0.0.1",
            "0.0.0.0",
            "[::]",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
