//! TLS in front of a Kafka broker that knows nothing of it.

use std::{net::SocketAddr, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{self, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_rustls::TlsAcceptor;

use crate::harness::{Identity, certificate};

/// A door that lets in whoever shows a certificate of its visitor's authority. Closed when dropped.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    /// The authority that vouches for it, in PEM.
    pub(crate) authority: String,
    /// What it wants to be shown.
    pub(crate) visitor: Identity,
    _runtime: Runtime,
}

impl Relay {
    /// One in front of `broker`, which says in its answers that it is where the relay is.
    pub(crate) fn start(broker: SocketAddr) -> Self {
        let visitor = Identity::new();
        let (authority, key) = certificate();
        let door = TlsAcceptor::from(Arc::new(config(&authority, &key, &visitor)));
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let door = door.clone();
                // An `Err` says that one of the two has left.
                tokio::spawn(async move { relay(stream, door, address, broker).await.ok() });
            }
        });
        Self {
            address,
            authority,
            visitor,
            _runtime: runtime,
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

async fn relay(
    stream: TcpStream,
    door: TlsAcceptor,
    here: SocketAddr,
    broker: SocketAddr,
) -> io::Result<()> {
    let (mut questions, mut answers) = io::split(door.accept(stream).await?);
    let (mut from_broker, mut to_broker) = TcpStream::connect(broker).await?.into_split();
    let asked = async { io::copy(&mut questions, &mut to_broker).await.map(|_| ()) };
    let answered = async {
        // Answer by answer, so that an address is in one piece.
        loop {
            let length = from_broker.read_u32().await?;
            let mut answer = vec![0; usize::try_from(length).unwrap()];
            from_broker.read_exact(&mut answer).await?;
            replace(&mut answer, &written(broker), &written(here));
            answers.write_u32(length).await?;
            answers.write_all(&answer).await?;
            answers.flush().await?;
        }
    };
    tokio::select! {
        ended = asked => ended,
        ended = answered => ended,
    }
}

/// An address as brokers write it: a host, behind its length, and a port.
fn written(address: SocketAddr) -> Vec<u8> {
    let mut bytes = address.ip().to_string().into_bytes();
    bytes.extend(u32::from(address.port()).to_be_bytes());
    bytes
}

/// Writes `new`, which is as long, wherever `old` stands.
fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    for at in 0..(bytes.len() + 1).saturating_sub(old.len()) {
        let place = &mut bytes[at..at + old.len()];
        if place == old {
            place.copy_from_slice(new);
        }
    }
}
