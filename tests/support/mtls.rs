//! Mutual TLS for a test's server.

use std::sync::Arc;

use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use crate::harness::{Identity, certificate};

/// A server's certificate, and the client whose certificate the server requires.
pub(crate) struct MutualTls {
    /// The CA certificate of the server, PEM.
    pub(crate) authority: String,
    /// The client's certificate and key.
    pub(crate) client: Identity,
    /// The server's configuration.
    pub(crate) config: Arc<ServerConfig>,
}

impl MutualTls {
    pub(crate) fn new() -> Self {
        let client = Identity::new();
        let (authority, key) = certificate();
        let config = config(&authority, &key, &client).into();
        Self {
            authority,
            client,
            config,
        }
    }
}

fn config(certificate: &str, key: &str, client: &Identity) -> ServerConfig {
    let pem = |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut clients = RootCertStore::empty();
    clients.add(pem(&client.authority)).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(clients.into(), provider.clone());
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(vec![pem(certificate)], key)
        .unwrap()
}
