//! The accept loop: who gets a connection, and how the loop ends.
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
    connection::{Connection, Host},
    limiter::{Limiter, Permit},
};
use crate::telemetry::Fraction;

/// How many connections the system holds for us between two turns of the loop: a burst of a
/// thousand at once is kept waiting, not turned away.
const BACKLOG: u32 = 4096;

/// How long the loop pauses when a connection cannot be accepted, for want of file descriptors for
/// example: trying again at once would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long one log line stands for all connections that cannot be accepted.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// A listening socket, the limits of its connections, and its certificate.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    settings: Settings,
    tls: Option<(Arc<Certificate>, Arc<ServerConfig>)>,
    tally: Tally,
}

/// What a listener counts.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Open connections.
    pub open: Gauge,
    /// Connections closed for saying nothing, or for a failed TLS handshake.
    pub refused: Counter,
    /// When the certificate ends, in seconds since 1970.
    pub certificate_ends: Fraction,
}

/// How a listener ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Whether everything in flight was finished in time.
    pub complete: bool,
}

impl Listener {
    /// Takes the address and reads the certificate. Call it inside a runtime.
    ///
    /// # Errors
    ///
    /// When the address cannot be had, or the certificate or its key cannot be used.
    pub fn bind(settings: &Settings, tally: Tally) -> Result<Self, Error> {
        let tls = match &settings.tls {
            None => None,
            Some(files) => {
                let ends = tally.certificate_ends.clone();
                let certificate = Arc::new(Certificate::load(files, ends)?);
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
            tally,
        })
    }

    /// Where it listens.
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
        let cut = CancellationToken::new();
        let tasks = TaskTracker::new();
        let host = Arc::new(Host::new(
            &self.settings,
            self.tls.map(|(_, config)| TlsAcceptor::from(config)),
            self.tally,
            service,
            tasks.clone(),
            draining.clone(),
        ));
        let accept = accept(
            self.socket,
            &host,
            self.settings.max_connections,
            &tasks,
            &cut,
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
        // The socket is closed by now, so nobody new comes in while we wait for the rest.
        draining.cancel();
        tasks.close();
        let complete = timeout(drain_timeout, tasks.wait()).await.is_ok();
        cut.cancel();
        Drained { complete }
    }
}

/// Accepts for ever. The socket is dropped with the future.
async fn accept<S>(
    socket: TcpListener,
    host: &Arc<Host<S>>,
    max_connections: usize,
    tasks: &TaskTracker,
    cut: &CancellationToken,
) where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send>,
    S: Clone + Send + Sync + 'static,
{
    let limiter = Limiter::new(max_connections);
    let mut complained: Option<Instant> = None;
    loop {
        let stream = match socket.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if is_peers_fault(&error) => continue,
            Err(error) => {
                if complained.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL) {
                    tracing::error!(%error, "a connection cannot be accepted");
                    complained = Some(Instant::now());
                }
                // An idle connection may hold what is scarce.
                limiter.evict_longest();
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let permit = acquire(&limiter).await;
        let connection = Connection::new(Arc::clone(host), &limiter, cut.child_token());
        tasks.spawn(async move {
            connection.serve(without_delay(stream)).await;
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

/// Sends answers at once. They are small and whole, so there is nothing to wait for.
fn without_delay(stream: TcpStream) -> TcpStream {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection keeps its delay");
    }
    stream
}

/// Whether the connection was lost before we could take it, which says nothing about the next one.
fn is_peers_fault(error: &io::Error) -> bool {
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
    // A restart must not wait for the connections of the process before it to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let socket = socket.listen(BACKLOG)?;
    let address = socket.local_addr()?;
    Ok((socket, address))
}
