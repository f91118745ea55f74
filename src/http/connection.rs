//! One connection, from its first byte to its last.
//!
//! The first byte or the TLS handshake has a deadline, and from then on one deadline covers both
//! versions of HTTP: hyper's own timers know nothing of the bytes by which the versions are told
//! apart, nor of an HTTP/2 connection that answers pings and says nothing else.

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

use super::{Settings, activity::Activity, limiter::Limiter, listener::Tally};

/// How long a connection that is on its way out may still take to finish the head of a request that
/// it has begun. Honest heads are on the wire at once.
const GRACE: Duration = Duration::from_secs(1);

/// The largest request head. RingCentral's and Zoom's are under 2 KiB; proxies add some. hyper's
/// own limit on the number of headers, 100, holds as well.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// The same for HTTP/2, as the sum of names, values and 32 bytes for each.
const MAX_HEADER_LIST_BYTES: u32 = 64 << 10;

/// How many requests one HTTP/2 connection may have in flight. A sender with more of them opens
/// more connections.
const MAX_STREAMS: u32 = 64;

/// How much of one body, and of all bodies of a connection, HTTP/2 may send ahead of our reading.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;

/// How often a quiet HTTP/2 connection is asked whether its peer is there, and for how long.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// What all connections of a listener share.
pub(super) struct Host<S> {
    first_byte_timeout: Duration,
    head_timeout: Duration,
    tls: Option<TlsAcceptor>,
    tally: Tally,
    service: S,
    http: auto::Builder<Executor>,
    draining: CancellationToken,
}

impl<S> Host<S> {
    pub(super) fn new(
        settings: &Settings,
        tls: Option<TlsAcceptor>,
        tally: Tally,
        service: S,
        tasks: TaskTracker,
        draining: CancellationToken,
    ) -> Self {
        let mut http = auto::Builder::new(Executor(tasks));
        http.http1()
            .max_buf_size(MAX_HEAD_BYTES)
            // A sender that has said all it has to say is still owed an answer.
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
            tally,
            service,
            http,
            draining,
        }
    }
}

/// Spawns what HTTP/2 needs where a drain can wait for it.
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

/// One connection that was accepted.
pub(super) struct Connection<S> {
    host: Arc<Host<S>>,
    activity: Activity,
    eviction: CancellationToken,
}

impl<S> Connection<S>
where
    S: Service<extract::Request, Response = Response, Error = Infallible, Future: Send>,
    S: Clone + Send + Sync + 'static,
{
    /// `eviction` closes it, whatever it is doing.
    pub(super) fn new(host: Arc<Host<S>>, limiter: &Limiter, eviction: CancellationToken) -> Self {
        let activity = Activity::new(limiter, &eviction, host.draining.clone());
        Self {
            host,
            activity,
            eviction,
        }
    }

    /// Serves it until either side has had enough.
    pub(super) async fn serve(self, stream: TcpStream) {
        self.host.tally.open.inc();
        let closed = tokio::select! {
            () = self.eviction.cancelled() => Closed::ByUs,
            closed = self.converse(stream) => closed,
        };
        self.host.tally.open.dec();
        let leaving = self.host.draining.is_cancelled();
        if matches!(closed, Closed::ByUs) && !leaving && !self.activity.has_received_head() {
            self.host.tally.refused.inc();
        }
    }

    async fn converse(&self, stream: TcpStream) -> Closed {
        match &self.host.tls {
            None => {
                let mut first = [0];
                tokio::select! {
                    () = self.gives_up_on_first_byte() => Closed::ByUs,
                    peeked = stream.peek(&mut first) => match peeked {
                        Ok(1..) => self.exchange(stream).await,
                        Ok(0) | Err(_) => Closed::ByPeer,
                    }
                }
            }
            Some(tls) => tokio::select! {
                () = self.gives_up_on_first_byte() => Closed::ByUs,
                shaken = tls.accept(stream) => match shaken {
                    Ok(stream) => self.exchange(stream).await,
                    Err(error) => {
                        tracing::debug!(%error, "a TLS handshake failed");
                        Closed::ByUs
                    }
                }
            },
        }
    }

    /// Ready when a connection that has not begun is not worth waiting for any more.
    async fn gives_up_on_first_byte(&self) {
        tokio::select! {
            () = sleep(self.host.first_byte_timeout) => {}
            () = self.host.draining.cancelled() => sleep(GRACE).await,
        }
    }

    /// Takes requests and gives answers.
    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Closed {
        let answer = service_fn(|request| self.answer(request));
        let served = self
            .host
            .http
            .serve_connection(TokioIo::new(stream), answer);
        let mut served = pin!(served);
        let mut idle_timeout = self.host.head_timeout;
        let mut leaving = false;
        loop {
            tokio::select! {
                // The drain comes first, so that an answer given during it says that the
                // connection closes.
                biased;
                () = self.host.draining.cancelled(), if !leaving => {}
                ended = served.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection broke");
                    }
                    return if leaving { Closed::ByUs } else { Closed::ByPeer };
                }
                () = self.activity.idle_for(idle_timeout) => {
                    if leaving {
                        return Closed::ByUs;
                    }
                }
            }
            leaving = true;
            idle_timeout = GRACE;
            served.as_mut().graceful_shutdown();
        }
    }

    fn answer(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response, Infallible>> + Send + use<S> {
        let in_flight = Arc::new(self.activity.begin());
        if request.body().is_end_stream() {
            in_flight.mark_received();
        }
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Arc::clone(&in_flight));
        let mut service = self.host.service.clone();
        async move {
            let response = service.call(request).await;
            drop(in_flight);
            response
        }
    }
}

/// Who ended a connection.
enum Closed {
    ByUs,
    ByPeer,
}
