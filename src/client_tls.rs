//! The client's side of TLS.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, ConfigBuilder, Error, WantsVerifier,
    client::{WantsClientCert, danger::ServerCertVerifier},
    crypto::aws_lc_rs,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_platform_verifier::BuilderVerifierExt;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    ca_bundle::CaBundle,
    pem::{self, CertificateChain, PrivateKey},
};

/// The setting `tls`: the CA bundle that verifies the server, and the certificate of the client.
///
/// A server whose certificate `ca`, or else the system's CA bundle, does not verify is refused. The
/// client presents `certificate` when the server asks for one.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(try_from = "Files")]
#[schemars(with = "Files")]
pub struct ClientTls {
    ca: Option<CaBundle>,
    identity: Option<Identity>,
}

/// The table in the TOML.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Files {
    /// A PEM file with the CA bundle that verifies the server, in place of the system's.
    #[schemars(with = "Option<PathBuf>")]
    ca: Option<CaBundle>,
    /// A PEM file with the certificate that is presented to a server that asks for one, followed by
    /// its intermediates.
    #[schemars(with = "Option<PathBuf>")]
    certificate: Option<CertificateChain>,
    /// A PEM file with the private key of the certificate.
    #[schemars(with = "Option<PathBuf>")]
    key: Option<PrivateKey>,
}

/// A certificate and its matching key.
#[derive(Clone)]
struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    certified: Arc<CertifiedKey>,
}

impl TryFrom<Files> for ClientTls {
    type Error = String;

    fn try_from(files: Files) -> Result<Self, String> {
        let identity = match (&files.certificate, &files.key) {
            (Some(certificate), Some(key)) => Some(Identity::new(certificate, key)?),
            (None, None) => None,
            (Some(_), None) => return Err(half("certificate", "key")),
            (None, Some(_)) => return Err(half("key", "certificate")),
        };
        Ok(Self {
            ca: files.ca,
            identity,
        })
    }
}

impl ClientTls {
    /// The keys of the table.
    pub const KEYS: &[&str] = &["ca", "certificate", "key"];

    /// Checks that the table is empty, for a client that does not use TLS.
    ///
    /// # Errors
    ///
    /// Names the key that is set, and `cure`, which says how to get TLS.
    pub fn require_unset(&self, cure: &str) -> Result<(), String> {
        let set = match (&self.ca, &self.identity) {
            (Some(_), _) => "ca",
            (None, Some(_)) => "certificate",
            (None, None) => return Ok(()),
        };
        Err(format!("`tls.{set}` is given, but there is no TLS; {cure}"))
    }

    /// TLS 1.2 and 1.3.
    ///
    /// # Errors
    ///
    /// When the system's CA bundle is needed and there is none.
    pub fn config(&self) -> Result<ClientConfig, String> {
        let builder = builder()?;
        Ok(self.with_identity(match &self.ca {
            Some(ca) => builder.with_root_certificates(ca.roots()),
            None => builder
                .with_platform_verifier()
                .map_err(|error| refuse(&error))?,
        }))
    }

    /// The same as [`config`](Self::config), with `verifier` in place of the CA bundle.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn config_with(
        &self,
        verifier: Arc<dyn ServerCertVerifier>,
    ) -> Result<ClientConfig, String> {
        let builder = builder()?.dangerous();
        Ok(self.with_identity(builder.with_custom_certificate_verifier(verifier)))
    }

    fn with_identity(&self, builder: ConfigBuilder<ClientConfig, WantsClientCert>) -> ClientConfig {
        match &self.identity {
            Some(identity) => {
                let certified = SingleCertAndKey::from(identity.certified.clone());
                builder.with_client_cert_resolver(Arc::new(certified))
            }
            None => builder.with_no_client_auth(),
        }
    }

    /// The path of the CA bundle, for clients that read the file themselves.
    pub fn ca(&self) -> Option<&Path> {
        self.ca.as_ref().map(CaBundle::path)
    }

    /// The paths of the client's certificate and its key, for clients that read the files themselves.
    pub fn identity(&self) -> Option<(&Path, &Path)> {
        let identity = self.identity.as_ref()?;
        Some((&identity.certificate, &identity.key))
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls")
            .field("ca", &self.ca())
            .field("identity", &self.identity())
            .finish()
    }
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    builder
        .with_safe_default_protocol_versions()
        .map_err(|error| refuse(&error))
}

fn refuse(problem: &Error) -> String {
    format!("TLS cannot be set up: {problem}; are the system's CA certificates installed?")
}

fn half(given: &str, missing: &str) -> String {
    format!("`{given}` is given without `{missing}`; name the file of that, or leave both out")
}

impl Identity {
    fn new(certificate: &CertificateChain, key: &PrivateKey) -> Result<Self, String> {
        Ok(Self {
            certificate: certificate.path.clone(),
            key: key.path.clone(),
            certified: Arc::new(pem::certify(certificate, key)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Reads the table of files with these contents: `ca`, `certificate` and `key`.
    fn read(contents: [Option<&str>; 3]) -> Result<ClientTls, String> {
        let folder = tempfile::tempdir().unwrap();
        let mut table = String::new();
        for (key, content) in ClientTls::KEYS.iter().zip(contents) {
            if let Some(content) = content {
                let path = folder.path().join(key);
                fs::write(&path, content).unwrap();
                table += &format!("{key} = {path:?}\n");
            }
        }
        read_table(&table)
    }

    fn read_table(table: &str) -> Result<ClientTls, String> {
        let table = toml::Deserializer::parse(table).unwrap();
        ClientTls::deserialize(table).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn a_certificate_comes_with_its_key_and_both_with_tls() {
        let make = || rcgen::generate_simple_self_signed(["client".to_owned()]).unwrap();
        let (made, other) = (make(), make());
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let (certificate, key) = (Some(&*certificate), Some(&*key));
        let other = other.signing_key.serialize_pem();
        for (texts, why) in [
            ([None, certificate, None], "without `key`"),
            ([None, None, key], "without `certificate`"),
            (
                [None, certificate, Some(&*other)],
                "is not that of the certificate",
            ),
            ([None, key, key], "a private key and no certificate"),
            (
                [None, certificate, certificate],
                "a certificate and no private key",
            ),
        ] {
            let refused = read(texts).unwrap_err();
            assert!(refused.contains(why), "{why}: {refused}");
        }
        for (texts, given) in [
            ([None, None, None], None),
            ([certificate, None, None], Some("`tls.ca` is given")),
            ([None, certificate, key], Some("`tls.certificate` is given")),
            ([certificate, certificate, key], Some("`tls.ca` is given")),
        ] {
            let tls = read(texts).unwrap();
            let refused = tls.require_unset("add it").err();
            assert_eq!(refused.is_some(), given.is_some(), "{refused:?}");
            assert!(
                refused
                    .unwrap_or_default()
                    .contains(given.unwrap_or_default())
            );
            let has_resolver = tls.config().unwrap().client_auth_cert_resolver.has_certs();
            assert_eq!(has_resolver, tls.identity().is_some());
        }
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        for key in ClientTls::KEYS {
            let refused = read_table(&format!("{key} = '/nonexistent/client.pem'")).unwrap_err();
            assert!(
                refused.starts_with("/nonexistent/client.pem cannot"),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_key_is_not_shown() {
        let made = rcgen::generate_simple_self_signed(["client".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let tls = read([None, Some(&certificate), Some(&key)]).unwrap();
        let secret = key.lines().nth(1).unwrap();
        assert!(!format!("{tls:?}").contains(secret), "{tls:?}");
    }
}
