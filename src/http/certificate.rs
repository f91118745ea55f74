//! The server's certificate, reloaded when its files change.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use x509_cert::der::Decode;

use super::{Error, Tls};
use crate::{
    pem::{self, CertificateChain, PrivateKey},
    telemetry::FloatGauge,
};

/// How often the files are read. A certificate is renewed minutes before it expires, at the least.
const INTERVAL: Duration = Duration::from_secs(10);

/// A certificate and its key, from the last valid content of their files.
#[derive(Debug)]
pub struct Certificate {
    files: Tls,
    current: ArcSwap<CertifiedKey>,
    /// The last content of the files, valid or not, so that a bad renewal is logged once.
    last_read: Mutex<Pem>,
    expiry: FloatGauge,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{} cannot be read: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A file does not hold what it should, or the files do not belong together.
    #[error("{0}")]
    Unusable(String),
}

/// The content of both files.
#[derive(PartialEq, Eq)]
struct Pem {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Certificate {
    /// Reads `files`; keeps `expiry` at the time when the certificate expires.
    pub(super) fn load(files: &Tls, expiry: FloatGauge) -> Result<Self, CertificateError> {
        let pem = Pem::read(files)?;
        let key = pem.parse(files)?;
        let certificate = Self {
            files: files.clone(),
            current: ArcSwap::from_pointee(key),
            last_read: Mutex::new(pem),
            expiry,
        };
        certificate.report_expiry();
        Ok(certificate)
    }

    /// Reads the files again. Returns whether their content is new. Open connections keep the
    /// certificate of their handshake.
    ///
    /// # Errors
    ///
    /// When the files cannot be read or used; the certificate in use stays in use.
    pub fn refresh(&self) -> Result<bool, CertificateError> {
        let pem = Pem::read(&self.files)?;
        let mut last_read = self
            .last_read
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *last_read == pem {
            return Ok(false);
        }
        let parsed = pem.parse(&self.files);
        *last_read = pem;
        self.current.store(Arc::new(parsed?));
        self.report_expiry();
        Ok(true)
    }

    /// Reads the files every 10 seconds, for ever.
    pub(super) async fn watch(self: Arc<Self>) {
        let mut unreadable = false;
        loop {
            tokio::time::sleep(INTERVAL).await;
            let certificate = Arc::clone(&self);
            let Ok(refreshed) = tokio::task::spawn_blocking(move || certificate.refresh()).await
            else {
                continue;
            };
            let was_unreadable = unreadable;
            unreadable = matches!(refreshed, Err(CertificateError::Unreadable { .. }));
            match refreshed {
                Ok(true) => tracing::info!("the certificate was renewed"),
                Ok(false) => {}
                // A missing file is logged once.
                Err(CertificateError::Unreadable { .. }) if was_unreadable => {}
                Err(error) => {
                    tracing::error!(%error, "the new certificate cannot be used; the old one stays in use");
                }
            }
        }
    }

    fn report_expiry(&self) {
        let current = self.current.load();
        if let Some(not_after) = current.cert.first().and_then(|der| not_after(der)) {
            self.expiry.set(not_after.as_secs_f64());
        }
    }
}

/// The last moment at which the certificate `der` is valid, in Unix time; `None` when it cannot be parsed.
/// rustls reads the certificate too, but does not say.
fn not_after(der: &[u8]) -> Option<Duration> {
    let certificate = x509_cert::Certificate::from_der(der).ok()?;
    let validity = certificate.tbs_certificate.validity;
    Some(validity.not_after.to_unix_duration())
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _client: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl Pem {
    fn read(files: &Tls) -> Result<Self, CertificateError> {
        let read = |path: &Path| {
            fs::read(path).map_err(|error| CertificateError::Unreadable {
                path: path.to_owned(),
                error,
            })
        };
        Ok(Self {
            certificate: read(&files.certificate)?,
            key: read(&files.key)?,
        })
    }

    fn parse(&self, files: &Tls) -> Result<CertifiedKey, CertificateError> {
        let parse = || {
            let chain = CertificateChain::parse(&files.certificate, &self.certificate)?;
            pem::certify(&chain, &PrivateKey::parse(&files.key, &self.key)?)
        };
        parse().map_err(CertificateError::Unusable)
    }
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pem(..)")
    }
}

/// TLS 1.2 and 1.3, with HTTP/2 or HTTP/1.1 over them.
pub(super) fn server_config(certificate: Arc<Certificate>) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(year: i32) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["hooks.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 3, 4);
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn both_encodings_of_time_are_parsed() {
        for (year, expected) in [
            (2031, "2031-03-04T00:00:00Z"),
            (2049, "2049-03-04T00:00:00Z"),
            (2077, "2077-03-04T00:00:00Z"),
        ] {
            let expected: jiff::Timestamp = expected.parse().unwrap();
            let end = not_after(&certificate(year)).unwrap();
            assert_eq!(end.as_secs(), u64::try_from(expected.as_second()).unwrap());
        }
    }

    #[test]
    fn a_truncated_certificate_has_no_expiry() {
        let whole = certificate(2031);
        for length in 0..whole.len() {
            assert_eq!(not_after(&whole[..length]), None);
        }
    }
}
