//! A TLS proxy for a Kafka broker without TLS.

use std::net::SocketAddr;

use tokio::{
    io::{self, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_rustls::TlsAcceptor;

use super::mtls::MutualTls;

/// A TLS proxy for a broker. Stops when dropped.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    pub(crate) tls: MutualTls,
    _runtime: Runtime,
}

impl Relay {
    /// A proxy for `broker`. The broker's answers give the proxy's address in place of its own.
    pub(crate) fn start(broker: SocketAddr) -> Self {
        let tls = MutualTls::new();
        let acceptor = TlsAcceptor::from(tls.config.clone());
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                // `Err` means that the client or the broker has closed its connection.
                tokio::spawn(async move { relay(stream, acceptor, address, broker).await.ok() });
            }
        });
        Self {
            address,
            tls,
            _runtime: runtime,
        }
    }
}

async fn relay(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    here: SocketAddr,
    broker: SocketAddr,
) -> io::Result<()> {
    let (mut questions, mut answers) = io::split(acceptor.accept(stream).await?);
    let (mut from_broker, mut to_broker) = TcpStream::connect(broker).await?.into_split();
    let asked = async { io::copy(&mut questions, &mut to_broker).await.map(|_| ()) };
    let answered = async {
        // Each answer is read as a whole, so that an address is never split.
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

/// An address as brokers encode it: the length of the host, the host, and the port.
fn written(address: SocketAddr) -> Vec<u8> {
    let mut bytes = address.ip().to_string().into_bytes();
    bytes.extend(u32::from(address.port()).to_be_bytes());
    bytes
}

/// Replaces each `old` by `new`, which has the same length.
fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    for at in 0..(bytes.len() + 1).saturating_sub(old.len()) {
        let place = &mut bytes[at..at + old.len()];
        if place == old {
            place.copy_from_slice(new);
        }
    }
}
