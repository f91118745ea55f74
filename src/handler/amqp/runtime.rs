//! The runtime of the client library: tokio, with a connector of our own.

use std::{
    fmt,
    future::Future,
    io::{self, Read, Write},
    net::{self, Shutdown, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use async_rs::{
    Runtime, Tokio,
    traits::{Reactor, RuntimeKit},
    util::RuntimeParts,
};
use tokio::time::timeout;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use crate::handler::broker::connector::{Connection, Connector};

/// A runtime for one connection, which takes at most `connect_timeout` to be made, and a guard of
/// the thread that makes the connection.
pub(super) fn runtime(
    connector: &Connector,
    connect_timeout: Duration,
) -> (
    Runtime<impl RuntimeKit + Clone + Send + Sync + 'static>,
    Thread,
) {
    let thread = Thread::default();
    let tokio = Tokio::current();
    let reactor = ConnectingReactor {
        connector: connector.clone(),
        connect_timeout,
        thread: Arc::downgrade(&thread.0),
        tokio: tokio.clone(),
    };
    let parts = RuntimeParts::new(tokio, reactor);
    (Runtime::new(parts), thread)
}

/// A guard of a connection that is being made. The library connects on a thread of its own, which
/// would wait for a silent broker for ever. When the guard is dropped before it is released, the
/// socket is shut, and the thread ends.
#[derive(Default)]
pub(super) struct Thread(Arc<Socket>);

type Socket = Mutex<Option<net::TcpStream>>;

impl Thread {
    /// Releases the socket, since the connection is made.
    pub(super) fn release(self) {
        lock(&self.0).take();
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if let Some(socket) = lock(&self.0).take() {
            // A socket that the broker has closed cannot be shut again.
            socket.shutdown(Shutdown::Both).ok();
        }
    }
}

fn lock(socket: &Socket) -> MutexGuard<'_, Option<net::TcpStream>> {
    socket.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connects with a [`Connector`]. The library does not see the TLS.
#[derive(Clone)]
struct ConnectingReactor {
    connector: Connector,
    connect_timeout: Duration,
    thread: Weak<Socket>,
    tokio: Tokio,
}

impl ConnectingReactor {
    async fn connect(&self, address: SocketAddr) -> io::Result<Compat<Connection>> {
        let stream = Connector::connect(address).await?;
        let socket = stream.as_fd().try_clone_to_owned()?;
        match self.thread.upgrade() {
            Some(thread) => *lock(&thread) = Some(socket.into()),
            None => return Err(io::ErrorKind::ConnectionAborted.into()),
        }
        Ok(self.connector.secure(stream).await?.compat())
    }
}

impl Reactor for ConnectingReactor {
    type TcpStream = Compat<Connection>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl futures_io::AsyncRead + futures_io::AsyncWrite + Send + Unpin + 'static>
    {
        self.tokio.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.tokio.sleep(duration)
    }

    fn interval(
        &self,
        duration: Duration,
    ) -> impl futures_core::Stream<Item = Instant> + Send + 'static {
        self.tokio.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.clone();
        async move { timeout(connecting.connect_timeout, connecting.connect(address)).await? }
    }
}

impl fmt::Debug for ConnectingReactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectingReactor(..)")
    }
}
