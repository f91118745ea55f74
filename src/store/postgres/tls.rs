//! Encryption of connections to the database.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use rustls_platform_verifier::Verifier;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::settings::{Settings, Tls};
use crate::store::StoreError;

/// What connections are encrypted with.
///
/// # Errors
///
/// When the system has no authorities, or the settings contradict each other.
pub(super) fn connector(settings: &Settings) -> Result<MakeRustlsConnect, StoreError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match (settings.url.tls, &settings.ca) {
        (Tls::VerifyFull, Some(ca)) => {
            WebPkiServerVerifier::builder_with_provider(ca.roots(), provider.clone())
                .build()
                .map_err(|error| wrong(format!("{} is of no use: {error}", ca.path().display())))?
        }
        (Tls::VerifyFull, None) => Arc::new(
            Verifier::new(provider.clone())
                .map_err(|error| wrong(format!("the system's authorities: {error}")))?,
        ),
        (Tls::Require | Tls::Disable, Some(_)) => {
            let why = "store.ca is given, but the URL's sslmode verifies nothing; \
                       write sslmode=verify-full";
            return Err(wrong(why.to_owned()));
        }
        (Tls::Require | Tls::Disable, None) => Arc::new(Anyone(provider.clone())),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

fn wrong(why: String) -> StoreError {
    StoreError::Database {
        what: "preparing the encryption of connections".to_owned(),
        error: why.into(),
    }
}

/// Believes anyone, as `sslmode=require` means it.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
