//! What the client library runs on: tokio, but for how it connects.

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

use crate::handler::dial::{Dial, Stream};

/// A runtime for one connection, which may take `patience` to be made, and what that hangs by
/// meanwhile.
pub(super) fn runtime(
    dial: &Dial,
    patience: Duration,
) -> (
    Runtime<impl RuntimeKit + Clone + Send + Sync + 'static>,
    Thread,
) {
    let thread = Thread::default();
    let tokio = Tokio::current();
    let connector = Connector {
        dial: dial.clone(),
        patience,
        thread: Arc::downgrade(&thread.0),
        tokio: tokio.clone(),
    };
    let parts = RuntimeParts::new(tokio, connector);
    (Runtime::new(parts), thread)
}

/// What a connection hangs by while it is being made. The library makes it on a thread of its own,
/// which would wait for a broker that says nothing for ever; when this is dropped before it is let
/// go, the socket is shut, and the thread ends.
#[derive(Default)]
pub(super) struct Thread(Arc<Socket>);

type Socket = Mutex<Option<net::TcpStream>>;

impl Thread {
    /// The connection is made.
    pub(super) fn let_go(self) {
        lock(&self.0).take();
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if let Some(socket) = lock(&self.0).take() {
            // One that the broker has closed already cannot be shut once more.
            socket.shutdown(Shutdown::Both).ok();
        }
    }
}

fn lock(socket: &Socket) -> MutexGuard<'_, Option<net::TcpStream>> {
    socket.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connects as [`Dial`] does. The library is told nothing of TLS.
#[derive(Clone)]
struct Connector {
    dial: Dial,
    patience: Duration,
    thread: Weak<Socket>,
    tokio: Tokio,
}

impl Connector {
    async fn connect(&self, address: SocketAddr) -> io::Result<Compat<Stream>> {
        let stream = Dial::connect(address).await?;
        let socket = stream.as_fd().try_clone_to_owned()?;
        match self.thread.upgrade() {
            Some(thread) => *lock(&thread) = Some(socket.into()),
            None => return Err(io::ErrorKind::ConnectionAborted.into()),
        }
        Ok(self.dial.secure(stream).await?.compat())
    }
}

impl Reactor for Connector {
    type TcpStream = Compat<Stream>;
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
        let connector = self.clone();
        async move { timeout(connector.patience, connector.connect(address)).await? }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector(..)")
    }
}
