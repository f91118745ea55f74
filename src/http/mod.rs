//! Floor 5: the ingress server. It receives the providers' requests, has them verified and stored,
//! and answers.
//!
//! **Invariant:** an event is answered 200 only after [`Append::append`] returned `Ok`.
//!
//! **Invariant:** an answer has no text, is never compressed, and is under 1024 bytes, status line and
//! headers included.
//!
//! **Invariant:** an idle peer cannot exhaust a limit. When connections, requests or memory run short,
//! the peer that has been waited for longest is evicted: its connection is closed, or its request is
//! answered 503.
//!
//! The [`Listener`] accepts a connection, `connection` serves it, and its requests go to the one
//! handler, [`Webhook`].
//!
//! [`Append::append`]: crate::store::Append::append

mod activity;
mod answer;
mod answer_metrics;
mod body;
mod certificate;
mod chain;
mod connection;
mod descriptors;
mod limiter;
mod listener;
mod route;
#[cfg(test)]
pub(crate) mod tests;
mod throttle;
mod webhook;

use std::{future::Future, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    event::{EndpointName, Family},
    pem::{self, CertificateChain, PrivateKey},
    provider::Provider,
    quantity,
    telemetry::Metrics,
};

pub use activity::InFlight;
pub use answer::{Accepted, Rejection, allow};
pub use certificate::{Certificate, CertificateError};
pub use chain::Chain;
pub use descriptors::shortage;
pub use listener::{Drained, Listener, ListenerMetrics};
pub use route::EndpointStatus;
pub use webhook::Webhook;

/// The server that providers post to. [`bind`](Self::bind) takes the address;
/// [`serve`](Self::serve) accepts connections.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
}

impl Server {
    /// Binds the address and reads the certificate. Connections queue until [`serve`](Self::serve).
    /// Needs a Tokio runtime.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound, or the certificate or its key cannot be used.
    pub fn bind(settings: &Settings, metrics: &Metrics) -> Result<Self, Error> {
        let settings = Settings {
            max_connections: descriptors::connections(settings.max_connections),
            ..settings.clone()
        };
        let listener_metrics = ListenerMetrics {
            open: metrics.connections.clone(),
            refused: metrics.connections_refused.clone(),
            certificate_expiry: metrics.certificate_expiry_timestamp_seconds.clone(),
        };
        let listener = Listener::bind(&settings, listener_metrics)?;
        Ok(Self { listener })
    }

    /// The bound address. Its port is the one that the system chose where the settings say 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// The certificate, where this server terminates TLS. `serve` reads its files again every 10
    /// seconds; a reload can do so at once.
    pub fn certificate(&self) -> Option<Arc<Certificate>> {
        self.listener.certificate()
    }

    /// Serves `webhook` until `shutdown` is ready. Then the server accepts no connections, answers
    /// new requests on open connections 503, and waits for requests in flight for at most
    /// [`Settings::drain_timeout`].
    pub async fn serve(self, webhook: Arc<Webhook>, shutdown: impl Future<Output = ()>) -> Drained {
        self.listener.serve(webhook.service(), shutdown).await
    }
}

/// Why a server cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}{}", bind_help(error))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        error: io::Error,
    },
    /// The certificate or its key cannot be used. The configuration is wrong.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// TLS cannot be set up at all.
    #[error("TLS cannot be set up: {0}")]
    Tls(rustls::Error),
}

/// What to do about an address that cannot be listened on.
fn bind_help(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; is something else using the port?",
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        io::ErrorKind::PermissionDenied => {
            "; this user may not listen on the port: give the program CAP_NET_BIND_SERVICE, as the \
             systemd unit does, or choose a port from 1024 on"
        }
        _ => "",
    }
}

/// The TOML's `[server]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The address to listen on. With port 0 the system chooses the port.
    pub listen: SocketAddr,
    /// The certificate, where this server and not a proxy terminates TLS.
    pub tls: Option<Tls>,
    /// The most open connections, if the system allows as many files. A connection over the limit
    /// evicts the connection that has been idle longest.
    pub max_connections: usize,
    /// The most requests in flight. A request over the limit evicts the request whose body has been
    /// on its way longest, which is answered 503. Where there is none, the new request is.
    pub max_in_flight: usize,
    /// The largest body, in bytes; a larger one is answered 413.
    #[serde(with = "quantity::bytes")]
    #[schemars(with = "quantity::Size")]
    pub max_body: u64,
    /// The most bytes of bodies in memory. A body over the limit evicts in the same way as a request.
    /// One body of the largest size is always allowed.
    #[serde(with = "quantity::bytes")]
    #[schemars(with = "quantity::Size")]
    pub body_memory: u64,
    /// The timeout of a new connection's first byte, or of its TLS handshake.
    #[serde(with = "quantity::duration")]
    #[schemars(with = "quantity::Time")]
    pub first_byte_timeout: Duration,
    /// The timeout of a request's head, and of an idle connection between requests.
    #[serde(with = "quantity::duration")]
    #[schemars(with = "quantity::Time")]
    pub head_timeout: Duration,
    /// The timeout of a request's body. Providers themselves give up after 3 seconds.
    #[serde(with = "quantity::duration")]
    #[schemars(with = "quantity::Time")]
    pub body_timeout: Duration,
    /// How long a shutdown waits for requests and deliveries in progress.
    #[serde(with = "quantity::duration")]
    #[schemars(with = "quantity::Time")]
    pub drain_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            tls: None,
            max_connections: 1024,
            max_in_flight: 512,
            max_body: 1 << 20,
            body_memory: 16 << 20,
            first_byte_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(3),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// The files of the server's certificate. They are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate and its intermediates, PEM. Providers do not fetch missing intermediates.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

impl Tls {
    /// What is wrong with the files: each problem with the key of its file, or without one when the
    /// files do not belong together.
    pub fn problems(&self) -> Vec<(Option<&'static str>, String)> {
        let chain = CertificateChain::try_from(self.certificate.clone());
        let key = PrivateKey::try_from(self.key.clone());
        match (chain, key) {
            (Ok(chain), Ok(key)) => {
                let mismatch = pem::certify(&chain, &key).err();
                mismatch
                    .map(|problem| (None, problem))
                    .into_iter()
                    .collect()
            }
            (chain, key) => {
                let chain = chain.err().map(|problem| (Some("certificate"), problem));
                let key = key.err().map(|problem| (Some("key"), problem));
                chain.into_iter().chain(key).collect()
            }
        }
    }
}

/// One URL that a provider posts to.
#[derive(Debug)]
pub struct Endpoint {
    /// Its name in the TOML.
    pub name: EndpointName,
    /// The family that it serves. Authentic events of other families are stored too.
    pub family: &'static Family,
    /// Its path, with a leading slash, compared byte by byte.
    pub path: String,
    /// Who may post to it.
    pub provider: Box<dyn Provider>,
}
