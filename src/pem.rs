//! PEM files: a certificate with its intermediates, its private key, and whether they belong
//! together.
//!
//! The files are read together with the settings that name them, so that a problem is reported at
//! the setting.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustls::{
    Error, InconsistentKeys,
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{Error as PemError, PemObject},
    },
    sign::CertifiedKey,
};
use serde::Deserialize;

use crate::secret;

/// A certificate, followed by its intermediates.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct CertificateChain {
    /// The file.
    pub path: PathBuf,
    certificates: Vec<CertificateDer<'static>>,
}

/// The private key of a certificate.
#[derive(Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct PrivateKey {
    /// The file.
    pub path: PathBuf,
    key: PrivateKeyDer<'static>,
}

impl CertificateChain {
    /// Parses the content `pem` of the file at `path`.
    ///
    /// # Errors
    ///
    /// Says what the file holds instead, and what to do.
    pub fn parse(path: &Path, pem: &[u8]) -> Result<Self, String> {
        let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let certificates = certificates.map_err(|error| broken(path, &error))?;
        if certificates.is_empty() {
            let path = path.display();
            return Err(match PrivateKeyDer::from_pem_slice(pem) {
                Ok(_) => format!(
                    "{path} holds a private key and no certificate; name it as the `key`, and the \
                     certificate's file here"
                ),
                Err(_) => format!(
                    "{path} holds no certificate in PEM form; it should hold the certificate and \
                     then its intermediates"
                ),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            certificates,
        })
    }

    /// The certificates in the order of the file, DER.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }
}

impl PrivateKey {
    /// Parses the content `pem` of the file at `path`.
    ///
    /// # Errors
    ///
    /// Says what the file holds instead, and what to do.
    pub fn parse(path: &Path, pem: &[u8]) -> Result<Self, String> {
        let error = match PrivateKeyDer::from_pem_slice(pem) {
            Ok(key) => {
                let path = path.to_owned();
                return Ok(Self { path, key });
            }
            Err(error) => error,
        };
        if !matches!(error, PemError::NoItemsFound) {
            return Err(broken(path, &error));
        }
        let path = path.display();
        let is_encrypted = pem.windows(9).any(|word| word == b"ENCRYPTED");
        let is_certificate = CertificateDer::from_pem_slice(pem).is_ok();
        Err(match (is_encrypted, is_certificate) {
            (true, _) => format!(
                "{path} holds a private key that is encrypted; decrypt it, for example with \
                 `openssl pkey`"
            ),
            (_, true) => format!(
                "{path} holds a certificate and no private key; name it as the `certificate`, and \
                 the key's file here"
            ),
            _ => format!(
                "{path} holds no private key in PEM form; it should hold one that is not encrypted"
            ),
        })
    }
}

/// A certificate with its key.
///
/// # Errors
///
/// Names both files, when they do not belong together or cannot be used.
pub fn certify(chain: &CertificateChain, key: &PrivateKey) -> Result<CertifiedKey, String> {
    let (certificates, der) = (chain.certificates.clone(), key.key.clone_key());
    let certified = CertifiedKey::from_der(certificates, der, &aws_lc_rs::default_provider());
    certified.map_err(|error| {
        let (certificate, key) = (chain.path.display(), key.path.display());
        match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => format!(
                "the key in {key} is not that of the certificate in {certificate}; name the two \
                 files that belong together"
            ),
            error => format!(
                "the certificate in {certificate} and the key in {key} cannot be used: {error}"
            ),
        }
    })
}

impl TryFrom<PathBuf> for CertificateChain {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        Self::parse(&path, &read(&path)?)
    }
}

impl TryFrom<PathBuf> for PrivateKey {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        Self::parse(&path, &read(&path)?)
    }
}

/// The content of the file at `path`.
///
/// # Errors
///
/// When the file cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    if secret::is_unread() {
        return Err(secret::NOT_READ.to_owned());
    }
    fs::read(path).map_err(|error| {
        let path = path.display();
        format!("{path} cannot be read: {error}; name a PEM file that this user may read")
    })
}

fn broken(path: &Path, error: &PemError) -> String {
    let path = path.display();
    format!("{path} is a broken PEM file: {error}; copy it whole")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_holds_instead_is_said() {
        let made = rcgen::generate_simple_self_signed(["hooks.example".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let cut = |pem: &str| pem[..pem.len() / 2].to_owned();
        let path = Path::new("/server.pem");
        for (content, why) in [
            (String::new(), "no certificate in PEM form"),
            (key.clone(), "a private key and no certificate; name it as"),
            (cut(&certificate), "a broken PEM file"),
        ] {
            let refused = CertificateChain::parse(path, content.as_bytes()).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        for (content, why) in [
            (String::new(), "no private key in PEM form"),
            (certificate.clone(), "a certificate and no private key"),
            (encrypted, "is encrypted; decrypt it"),
            (cut(&key), "a broken PEM file"),
        ] {
            let refused = PrivateKey::parse(path, content.as_bytes()).err().unwrap();
            assert!(refused.contains(why), "{refused}");
        }
        let both = format!("{certificate}{key}");
        let chain = CertificateChain::parse(path, both.as_bytes()).unwrap();
        let key = PrivateKey::parse(path, both.as_bytes()).ok().unwrap();
        assert!(certify(&chain, &key).is_ok(), "one file may hold both");
    }
}
