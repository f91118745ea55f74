//! Request bodies: read raw and within limits. Each way to fail has an answer of its own.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::LazyLock,
    task::Poll,
    time::Duration,
};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    Settings,
    answer::Rejection,
    limiter::{Limiter, Permit},
};

/// How much of a too large body is read and discarded, and for how long. A sender that is still
/// writing when the connection closes sees a broken connection instead of the answer.
const DISCARD_BYTES: usize = 8 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// The limits on bodies.
#[derive(Debug)]
pub(super) struct Collector {
    max_body: u64,
    timeout: Duration,
    /// A permit is one byte.
    memory: Limiter,
}

/// A whole body, and the permits for its memory.
pub(super) struct Collected {
    pub(super) bytes: Bytes,
    pub(super) memory: Option<Permit>,
}

impl Collector {
    pub(super) fn new(settings: &Settings) -> Self {
        let memory = settings.body_memory.max(settings.max_body);
        Self {
            max_body: settings.max_body,
            timeout: settings.body_timeout,
            memory: Limiter::new(usize::try_from(memory).unwrap_or(usize::MAX)),
        }
    }

    /// Reads `body` to its end. While the rest of the body is on its way, the request stands in the
    /// wait list of `slots` and can be evicted. Most bodies have arrived with their head; they need
    /// neither a wait list nor a timer.
    pub(super) async fn collect(
        &self,
        headers: &HeaderMap,
        mut body: Body,
        slots: &Limiter,
    ) -> Result<Collected, Rejection> {
        let eviction = Eviction::new(CancellationToken::new);
        let collected = {
            let mut reading = pin!(self.read(&mut body, &eviction));
            match poll_once(reading.as_mut()).await {
                Some(collected) => collected,
                None => {
                    let _ticket = slots.wait(&eviction);
                    tokio::select! {
                        () = eviction.cancelled() => Err(Rejection::Overloaded),
                        collected = timeout(self.timeout, reading) => {
                            collected.unwrap_or(Err(Rejection::SlowBody))
                        }
                    }
                }
            }
        };
        // A sender with `Expect: 100-continue` has not sent the body, so there is nothing to discard.
        if let (Err(Rejection::TooLarge), false) =
            (&collected, headers.contains_key(header::EXPECT))
        {
            discard(body).await;
        }
        collected
    }

    async fn read(&self, body: &mut Body, eviction: &Eviction) -> Result<Collected, Rejection> {
        // The size that the head announces is checked before a byte is read.
        if body.size_hint().lower() > self.max_body {
            return Err(Rejection::TooLarge);
        }
        let mut bytes = Chunks::default();
        let mut memory: Option<Permit> = None;
        let mut ticket = None;
        while !body.is_end_stream()
            && let Some(frame) = body.frame().await
        {
            // Trailers are not part of the body.
            let Ok(chunk) = frame.map_err(|_| Rejection::BrokenBody)?.into_data() else {
                continue;
            };
            if chunk.is_empty() {
                continue;
            }
            let total = bytes.len() + chunk.len();
            if u64::try_from(total).is_ok_and(|total| total > self.max_body) {
                return Err(Rejection::TooLarge);
            }
            let size = u32::try_from(chunk.len()).map_err(|_| Rejection::TooLarge)?;
            let permit = self
                .memory
                .acquire(size)
                .await
                .ok_or(Rejection::Overloaded)?;
            match &mut memory {
                Some(memory) => memory.merge(permit),
                None => memory = Some(permit),
            }
            bytes.push(chunk);
            if !body.is_end_stream() {
                ticket.get_or_insert_with(|| self.memory.wait(eviction));
            }
        }
        Ok(Collected {
            bytes: bytes.join(),
            memory,
        })
    }
}

/// Cancelled when the request is evicted; made when the request first has to wait.
type Eviction = LazyLock<CancellationToken>;

/// The output of `future`, if it is ready.
async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|context| {
        Poll::Ready(match future.as_mut().poll(context) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

/// The chunks of a body. Most bodies arrive in one chunk, which is not copied.
#[derive(Default)]
enum Chunks {
    #[default]
    None,
    One(Bytes),
    Many(BytesMut),
}

impl Chunks {
    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(chunk) => chunk.len(),
            Self::Many(chunks) => chunks.len(),
        }
    }

    fn push(&mut self, chunk: Bytes) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(chunk),
            Self::One(first) => {
                let mut chunks = BytesMut::with_capacity(2 * (first.len() + chunk.len()));
                chunks.extend_from_slice(&first);
                chunks.extend_from_slice(&chunk);
                Self::Many(chunks)
            }
            Self::Many(mut chunks) => {
                chunks.extend_from_slice(&chunk);
                Self::Many(chunks)
            }
        };
    }

    fn join(self) -> Bytes {
        match self {
            Self::None => Bytes::new(),
            Self::One(chunk) => chunk,
            Self::Many(chunks) => chunks.freeze(),
        }
    }
}

/// Reads and discards the rest of `body`, within limits.
async fn discard(mut body: Body) {
    let read = async {
        let mut left = DISCARD_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            let Some(less) = left.checked_sub(length) else {
                return;
            };
            left = less;
        }
    };
    // The answer is the same whether the body ended in time or not.
    timeout(DISCARD_TIME, read).await.unwrap_or_default();
}
