//! Who is believed when they say that a server is the one that it says it is.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use rustls_platform_verifier::BuilderVerifierExt;
use serde::Deserialize;

use super::BuildError;

/// The certificates of authorities in a PEM file, which is read while the settings are.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "PathBuf")]
pub(super) struct Authorities(Arc<RootCertStore>);

impl Authorities {
    /// TLS 1.2 and 1.3 with a server that `authorities` vouch for; those of the system, where there
    /// are none.
    ///
    /// # Errors
    ///
    /// When the system has no authorities.
    pub(super) fn client_config(authorities: Option<&Self>) -> Result<ClientConfig, BuildError> {
        let refuse = |problem: rustls::Error| {
            BuildError(format!(
                "TLS cannot be set up: {problem}; are the system's CA certificates installed?"
            ))
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(refuse)?;
        let builder = match authorities {
            Some(Self(roots)) => builder.with_root_certificates(roots.clone()),
            None => builder.with_platform_verifier().map_err(refuse)?,
        };
        Ok(builder.with_no_client_auth())
    }
}

impl TryFrom<PathBuf> for Authorities {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        let wrong = |problem: &dyn std::fmt::Display| {
            let path = path.display();
            format!("{path} cannot be read as a PEM file with certificates: {problem}")
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&path).map_err(|error| wrong(&error))? {
            let certificate = certificate.map_err(|error| wrong(&error))?;
            roots.add(certificate).map_err(|error| wrong(&error))?;
        }
        if roots.is_empty() {
            return Err(wrong(&"there is none in it"));
        }
        Ok(Self(Arc::new(roots)))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_without_a_certificate_is_refused_while_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        for (content, why) in [(None, "No such file"), (Some("nothing"), "there is none")] {
            if let Some(content) = content {
                fs::write(&path, content).unwrap();
            }
            let refused = Authorities::try_from(path.clone()).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(&path, made.cert.pem()).unwrap();
        assert!(Authorities::try_from(path).is_ok());
    }
}
