//! The address of the server, and the user.
//!
//! `sslmode` is `verify-full` or `disable`. The default is `verify-full`, and `disable` if all hosts are on this
//! machine. libpq's `require` is not supported: TLS without verification would protect nothing.

use std::{iter, time::Duration};

use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::failure::describe;
use crate::{
    cleartext::CleartextWarning,
    handler::BuildError,
    postgres_url::{self, beyond, split_ssl_mode},
    secret::Secret,
};

/// The silence after which TCP probes the server.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A parsed URL.
#[derive(Debug)]
pub(in crate::handler::sql) struct Config(pub(super) tokio_postgres::Config);

impl Config {
    pub(in crate::handler::sql) fn parse(url: &str) -> Result<Self, String> {
        let (url, mode) = split_ssl_mode(url);
        let mut config: tokio_postgres::Config = url.parse().map_err(|error| {
            format!(
                "{}; a URL looks like \"postgres://user:password@db.example.com/warehouse\"",
                describe(&error)
            )
        })?;
        if config.get_hosts().is_empty() {
            return Err("the URL names no host".to_owned());
        }
        config.ssl_mode(match mode {
            Some("disable") => SslMode::Disable,
            Some("verify-full") => SslMode::Require,
            None if beyond(&config).is_empty() => SslMode::Disable,
            None => SslMode::Require,
            Some(_) => {
                return Err(
                    "the URL's `sslmode` is neither \"verify-full\", which holds where \
                     nothing is said but for hosts on this machine, nor \"disable\""
                        .to_owned(),
                );
            }
        });
        // Of several servers, the one that accepts writes.
        if config.get_target_session_attrs() == TargetSessionAttrs::Any {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if config.get_application_name().is_none() {
            config.application_name("hookswitch");
        }
        config.keepalives_idle(KEEPALIVE);
        Ok(Self(config))
    }

    /// The hosts of the URL with their ports. A socket of this machine is none.
    pub(in crate::handler::sql) fn servers(&self) -> impl Iterator<Item = (&str, u16)> {
        // One port is that of all hosts.
        let ports = self.0.get_ports();
        let one = ports.first().copied().unwrap_or(5432);
        let ports = ports.iter().copied().chain(iter::repeat(one));
        let hosts = self.0.get_hosts().iter().zip(ports);
        hosts.filter_map(|(host, port)| match host {
            Host::Tcp(host) => Some((host.as_str(), port)),
            #[cfg(unix)]
            Host::Unix(_) => None,
        })
    }

    /// The warning about a password, in the URL or `beside` it, that is sent without TLS.
    pub(in crate::handler::sql) fn cleartext_warning(
        &self,
        beside: Option<&Secret>,
    ) -> Option<CleartextWarning> {
        let has_password = self.0.get_password().is_some() || beside.is_some();
        let is_clear = self.0.get_ssl_mode() == SslMode::Disable;
        (has_password && is_clear).then(|| postgres_url::cleartext_warning(&self.0))?
    }

    pub(in crate::handler::sql) fn set_password(
        &mut self,
        password: &Secret,
    ) -> Result<(), BuildError> {
        if self.0.get_password().is_some() {
            return Err(BuildError(
                "the password stands in `url` and in `password` as well; keep one of them"
                    .to_owned(),
            ));
        }
        self.0.password(password.expose());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<tokio_postgres::Config, String> {
        Config::parse(url).map(|Config(config)| config)
    }

    #[test]
    fn tls_is_wanted_of_other_machines_where_nothing_is_said() {
        for (url, expected) in [
            ("postgres://db.example.com/x", SslMode::Require),
            ("postgres://10.0.0.1,localhost/x", SslMode::Require),
            ("postgres://localhost/x", SslMode::Disable),
            ("postgres://127.0.0.1:5433/x", SslMode::Disable),
            ("postgres://[::1]/x", SslMode::Disable),
            ("postgres://%2Frun%2Fpostgresql/x", SslMode::Disable),
            (
                "postgres://localhost/x?hostaddr=127.0.0.1",
                SslMode::Disable,
            ),
            ("postgres://localhost/x?hostaddr=10.0.0.1", SslMode::Require),
            (
                "postgres://db.example.com/x?sslmode=disable",
                SslMode::Disable,
            ),
            (
                "postgres://localhost/x?connect_timeout=1&sslmode=verify-full",
                SslMode::Require,
            ),
        ] {
            assert_eq!(parse(url).unwrap().get_ssl_mode(), expected, "{url}");
        }
    }

    #[test]
    fn a_url_that_cannot_work_is_refused_without_its_password() {
        for (url, why) in [
            ("postgres://u:hush@db/x?sslmode=require", "`sslmode` is"),
            ("postgres://u:hush@db/x?wrong=1", "wrong"),
            ("postgres:///x", "names no host"),
        ] {
            let refusal = parse(url).unwrap_err();
            assert!(refusal.contains(why), "{url}: {refusal}");
            assert!(!refusal.contains("hush"), "{refusal}");
        }
    }
}
