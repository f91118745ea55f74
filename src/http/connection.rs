//! One connection, from its first byte to its last.
//!
//! The first byte or the TLS handshake has one timeout. Every later wait has one idle timeout for both
//! versions of HTTP. hyper's own timers do not cover the bytes by which hyper detects the version, nor
//! an HTTP/2 connection that only answers pings.

use std::{convert::Infallible, future::Future, pin::pin, sync::Arc, time::Duration};

use axum::{body::Body, extract, response::Response};
use hyper::{
    Request,
    body::{Body as _, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::sleep,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

use super::{Settings, activity::Activity, limiter::Limiter, listener::ListenerMetrics};

/// How long the peer of a closing connection may take to finish a request head that it has begun. An
/// honest peer sends a head at once.
const GRACE: Duration = Duration::from_secs(1);

/// The largest request head. RingCentral's and Zoom's are under 2 KiB; proxies add some. hyper's
/// own limit of 100 headers applies as well.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// The same for HTTP/2, as the sum of names, values and 32 bytes for each.
const MAX_HEADER_LIST_BYTES: u32 = 64 << 10;

/// The most requests in flight on one HTTP/2 connection. A sender with more opens more connections.
const MAX_STREAMS: u32 = 64;

/// The HTTP/2 flow-control windows of one body and of all bodies of a connection.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;

/// When an idle HTTP/2 connection is pinged, and how long its peer may take to answer.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// What all connections of a listener share.
pub(super) struct Context<S> {
    first_byte_timeout: Duration,
    head_timeout: Duration,
    tls: Option<TlsAcceptor>,
    metrics: ListenerMetrics,
    service: S,
    http: auto::Builder<Executor>,
    draining: CancellationToken,
}

impl<S> Context<S> {
    pub(super) fn new(
        settings: &Settings,
        tls: Option<TlsAcceptor>,
        metrics: ListenerMetrics,
        service: S,
        tasks: TaskTracker,
        draining: CancellationToken,
    ) -> Self {
        let mut http = auto::Builder::new(Executor(tasks));
        http.http1()
            .max_buf_size(MAX_HEAD_BYTES)
            // A sender that has closed its half of the connection still gets its answer.
            .half_close(true);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        Self {
            first_byte_timeout: settings.first_byte_timeout,
            head_timeout: settings.head_timeout,
            tls,
            metrics,
            service,
            http,
            draining,
        }
    }
}

/// Spawns hyper's HTTP/2 tasks on the tracker that a drain waits for.
#[derive(Clone)]
struct Executor(TaskTracker);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// One accepted connection.
pub(super) struct Connection<S> {
    context: Arc<Context<S>>,
    activity: Activity,
    eviction: CancellationToken,
}

impl<S> Connection<S>
where
    S: Service<extract::Request, Response = Response, Error = Infallible, Future: Send>,
    S: Clone + Send + Sync + 'static,
{
    /// An accepted connection. Cancelling `eviction` closes it at once.
    pub(super) fn new(
        context: Arc<Context<S>>,
        limiter: &Limiter,
        eviction: CancellationToken,
    ) -> Self {
        let activity = Activity::new(limiter, &eviction, context.draining.clone());
        Self {
            context,
            activity,
            eviction,
        }
    }

    /// Serves the connection until it is closed.
    pub(super) async fn serve(self, stream: TcpStream) {
        self.context.metrics.open.inc();
        let closed_by = tokio::select! {
            () = self.eviction.cancelled() => ClosedBy::Server,
            closed_by = self.serve_stream(stream) => closed_by,
        };
        self.context.metrics.open.dec();
        let draining = self.context.draining.is_cancelled();
        if matches!(closed_by, ClosedBy::Server) && !draining && !self.activity.has_received_head()
        {
            self.context.metrics.refused.inc();
        }
    }

    /// Waits for the first byte or the TLS handshake, then serves HTTP.
    async fn serve_stream(&self, stream: TcpStream) -> ClosedBy {
        match &self.context.tls {
            None => {
                let mut first = [0];
                tokio::select! {
                    () = self.first_byte_overdue() => ClosedBy::Server,
                    peeked = stream.peek(&mut first) => match peeked {
                        Ok(1..) => self.serve_http(stream).await,
                        Ok(0) | Err(_) => ClosedBy::Peer,
                    }
                }
            }
            Some(tls) => tokio::select! {
                () = self.first_byte_overdue() => ClosedBy::Server,
                accepted = tls.accept(stream) => match accepted {
                    Ok(stream) => self.serve_http(stream).await,
                    Err(error) => {
                        tracing::debug!(%error, "a TLS handshake failed");
                        ClosedBy::Server
                    }
                }
            },
        }
    }

    /// Ready when the first byte or the TLS handshake is overdue.
    async fn first_byte_overdue(&self) {
        tokio::select! {
            () = sleep(self.context.first_byte_timeout) => {}
            () = self.context.draining.cancelled() => sleep(GRACE).await,
        }
    }

    async fn serve_http(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> ClosedBy {
        let service = service_fn(|request| self.call(request));
        let served = self
            .context
            .http
            .serve_connection(TokioIo::new(stream), service);
        let mut served = pin!(served);
        let mut idle_timeout = self.context.head_timeout;
        let mut closing = false;
        loop {
            tokio::select! {
                // The drain is polled first, so that an answer sent during the drain says
                // `connection: close`.
                biased;
                () = self.context.draining.cancelled(), if !closing => {}
                ended = served.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection broke");
                    }
                    return if closing { ClosedBy::Server } else { ClosedBy::Peer };
                }
                () = self.activity.idle_for(idle_timeout) => {
                    if closing {
                        return ClosedBy::Server;
                    }
                }
            }
            closing = true;
            idle_timeout = GRACE;
            served.as_mut().graceful_shutdown();
        }
    }

    /// Has the service answer `request`.
    fn call(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response, Infallible>> + Send + use<S> {
        let in_flight = Arc::new(self.activity.begin());
        // A request without a body has arrived whole.
        if request.body().is_end_stream() {
            in_flight.mark_received();
        }
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Arc::clone(&in_flight));
        let mut service = self.context.service.clone();
        async move {
            let response = service.call(request).await;
            drop(in_flight);
            response
        }
    }
}

/// Which side closed a connection.
enum ClosedBy {
    Server,
    Peer,
}
