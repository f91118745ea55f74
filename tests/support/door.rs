//! TLS in front of a server that knows nothing of it.

use std::sync::Arc;

use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::harness::{Identity, certificate};

/// A door that lets in whoever shows a certificate of its visitor's authority.
pub(crate) struct Door {
    /// The authority that vouches for it, in PEM.
    pub(crate) authority: String,
    /// What it wants to be shown.
    pub(crate) visitor: Identity,
    /// How a server has it.
    pub(crate) config: Arc<ServerConfig>,
}

impl Door {
    pub(crate) fn new() -> Self {
        let visitor = Identity::new();
        let (authority, key) = certificate();
        let config = config(&authority, &key, &visitor).into();
        Self {
            authority,
            visitor,
            config,
        }
    }
}

fn config(certificate: &str, key: &str, visitor: &Identity) -> ServerConfig {
    let pem = |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut visitors = RootCertStore::empty();
    visitors.add(pem(&visitor.authority)).unwrap();
    let visitors = WebPkiClientVerifier::builder_with_provider(visitors.into(), provider.clone());
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(visitors.build().unwrap())
        .with_single_cert(vec![pem(certificate)], key)
        .unwrap()
}
