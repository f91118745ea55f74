//! The accept loop, and its drain.
//!
//! Ready-made servers keep an idle connection for ever. This one closes it after a timeout, or earlier
//! when other connections need its permit.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{extract::Request, response::Response};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

use super::{
    Error, Settings,
    certificate::{self, Certificate},
    connection::{self, Connection},
    limiter::{Limiter, Permit},
};
use crate::telemetry::FloatGauge;

/// The length of the system's accept queue. A burst of a thousand connections is queued, not refused.
const BACKLOG: u32 = 4096;

/// The pause after a failed accept, which may be for want of file descriptors. Without a pause the
/// loop would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The least time between two log lines about failed accepts.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A listening socket, the limits of its connections, and its certificate.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    settings: Settings,
    tls: Option<(Arc<Certificate>, Arc<ServerConfig>)>,
    metrics: ListenerMetrics,
}

/// The metrics of one listener.
#[derive(Clone, Debug, Default)]
pub struct ListenerMetrics {
    /// Open connections.
    pub open: Gauge,
    /// Connections closed for sending no request, or for a failed TLS handshake.
    pub refused: Counter,
    /// When the certificate expires, in seconds since 1970.
    pub certificate_expiry: FloatGauge,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Whether all requests in flight were answered before the deadline.
    pub complete: bool,
}

impl Listener {
    /// Binds the address and reads the certificate. Needs a Tokio runtime.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound, or the certificate or its key cannot be used.
    pub fn bind(settings: &Settings, metrics: ListenerMetrics) -> Result<Self, Error> {
        let tls = match &settings.tls {
            None => None,
            Some(files) => {
                let expiry = metrics.certificate_expiry.clone();
                let certificate = Arc::new(Certificate::load(files, expiry)?);
                let config = certificate::server_config(Arc::clone(&certificate))?;
                Some((certificate, Arc::new(config)))
            }
        };
        let (socket, address) = listen(settings.listen).map_err(|error| Error::Bind {
            address: settings.listen,
            error,
        })?;
        Ok(Self {
            socket,
            address,
            settings: settings.clone(),
            tls,
            metrics,
        })
    }

    /// The bound address.
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The certificate, where there is one.
    pub fn certificate(&self) -> Option<Arc<Certificate>> {
        self.tls
            .as_ref()
            .map(|(certificate, _)| Arc::clone(certificate))
    }

    /// Serves `service` until `shutdown` is ready, then drains.
    pub async fn serve<S>(self, service: S, shutdown: impl Future<Output = ()>) -> Drained
    where
        S: Service<Request, Response = Response, Error = Infallible, Future: Send>,
        S: Clone + Send + Sync + 'static,
    {
        let certificate = self.certificate();
        let drain_timeout = self.settings.drain_timeout;
        let draining = CancellationToken::new();
        let abort = CancellationToken::new();
        let tasks = TaskTracker::new();
        let context = Arc::new(connection::Context::new(
            &self.settings,
            self.tls.map(|(_, config)| TlsAcceptor::from(config)),
            self.metrics,
            service,
            tasks.clone(),
            draining.clone(),
        ));
        let accept = accept(
            self.socket,
            &context,
            self.settings.max_connections,
            &tasks,
            &abort,
        );
        let watch = async {
            match certificate {
                Some(certificate) => certificate.watch().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown => {}
            () = accept => {}
            () = watch => {}
        }
        // The socket is closed by now, so no connection is accepted while the others drain.
        draining.cancel();
        tasks.close();
        let complete = timeout(drain_timeout, tasks.wait()).await.is_ok();
        abort.cancel();
        Drained { complete }
    }
}

/// Accepts connections for ever. Dropping the future closes the socket.
async fn accept<S>(
    socket: TcpListener,
    context: &Arc<connection::Context<S>>,
    max_connections: usize,
    tasks: &TaskTracker,
    abort: &CancellationToken,
) where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send>,
    S: Clone + Send + Sync + 'static,
{
    let limiter = Limiter::new(max_connections);
    let mut logged_at: Option<Instant> = None;
    loop {
        let stream = match socket.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if is_connection_error(&error) => continue,
            Err(error) => {
                if logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                    tracing::error!(%error, "a connection cannot be accepted");
                    logged_at = Some(Instant::now());
                }
                // An idle connection may hold the descriptors that are short.
                limiter.evict_longest();
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let permit = acquire(&limiter).await;
        let connection = Connection::new(Arc::clone(context), &limiter, abort.child_token());
        tasks.spawn(async move {
            connection.serve(set_nodelay(stream)).await;
            drop(permit);
        });
    }
}

/// Acquires a permit, however long that takes. A connection answers within seconds, and can be
/// evicted afterwards.
async fn acquire(limiter: &Limiter) -> Permit {
    loop {
        if let Some(permit) = limiter.acquire(1).await {
            return permit;
        }
    }
}

/// Turns Nagle's algorithm off: an answer is small and written whole.
fn set_nodelay(stream: TcpStream) -> TcpStream {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY cannot be set");
    }
    stream
}

/// Whether an error concerns one connection, lost before it was accepted, and not the socket.
fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
    )
}

fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restart must not wait until the system forgets the connections of the previous process.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let socket = socket.listen(BACKLOG)?;
    let address = socket.local_addr()?;
    Ok((socket, address))
}
