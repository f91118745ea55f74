//! Floor 4a: makes one attempt to deliver one event.
//!
//! **Invariant:** a handler knows nothing of stores, retries or other handlers: it gets one delivery and
//! returns its outcome.
//!
//! **Invariant:** every event leaves the process as a CloudEvent, whose `data` is the provider's own bytes.
//!
//! # How to add a kind
//!
//! Write one file beside this one: a struct `Settings` that implements [`HandlerKind`], and a struct
//! that implements [`Handler`] with one `async fn`. Add one line to [`KINDS`]. A program that embeds
//! this crate needs no line: it registers its own kind with the builder.

#[cfg_attr(
    not(feature = "full"),
    allow(
        clippy::allow_attributes,
        dead_code,
        reason = "most builds lack some of the kinds that share it, and none is the same"
    )
)]
mod broker;
mod client;
pub mod cloud_event;
mod kind;
pub mod message;
#[cfg(test)]
mod sample;
mod signature;
mod text_or_secret;

use std::{
    any::type_name,
    fmt,
    future::Future,
    marker::PhantomData,
    num::NonZeroUsize,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

pub use kind::{Build, Kind};

use crate::{
    cleartext::CleartextWarning,
    entries::entries,
    event::{self, EventFamily, EventId, HandlerName, Notification, Unreadable},
};

/// The event that a handler gets: one of a single family, or [`AnyEvent`].
pub trait Event: Sized + Send + Sync + 'static {
    /// Reads the body.
    ///
    /// # Errors
    ///
    /// When the body does not have this shape. The delivery is then parked.
    fn read(body: &[u8]) -> Result<Self, Unreadable>;
}

impl<F: EventFamily> Event for F {
    fn read(body: &[u8]) -> Result<Self, Unreadable> {
        event::decode(body)
    }
}

/// An event of any family, also an unrecognized or unreadable one. Its body is in
/// [`Delivery::notification`].
#[derive(Clone, Copy, Debug, Default)]
pub struct AnyEvent;

impl Event for AnyEvent {
    fn read(_body: &[u8]) -> Result<Self, Unreadable> {
        Ok(Self)
    }
}

/// Delivers events.
pub trait Handler: Send + Sync + 'static {
    /// The type of its events.
    type Event: Event;

    /// Makes one attempt. The future is dropped at the deadline, which counts as a retry, and so does a panic.
    fn handle(&self, delivery: Delivery<'_, Self::Event>) -> impl Future<Output = Outcome> + Send;
}

/// One event for one handler.
#[derive(Debug)]
pub struct Delivery<'a, E> {
    /// The event, parsed.
    pub event: E,
    /// The event as it arrived.
    pub notification: &'a Notification,
    /// The context of this attempt.
    pub context: &'a DeliveryContext,
}

/// The context of one attempt.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeliveryContext {
    /// The handler, as the TOML names it.
    pub handler: HandlerName,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// When the attempt ends at the latest.
    pub deadline: Instant,
    /// When the attempt began.
    pub started_at: Timestamp,
    /// The reason of a replay; `None` if this is none.
    pub replay: Option<String>,
    /// The number of replays of this delivery so far: all attempts of one replay have the same number.
    pub replays: u32,
    /// Whether later events, by the provider's time, have reported all topics of this event again. Zoom's
    /// retries arrive up to 85 minutes late, so an old emergency address can arrive after a newer one.
    pub superseded: bool,
}

impl<E> Delivery<'_, E> {
    /// The event's id, the same for every attempt and replay: a receiver recognizes duplicates by it.
    pub const fn idempotency_key(&self) -> EventId {
        self.notification.id
    }

    /// The id by which a destination drops duplicates, the same in each attempt: the event's id, a slash
    /// and the handler's name, since two handlers may have one destination. A replay must get through
    /// although the destination has the event, so another slash and its number follow.
    pub fn deduplication_id(&self) -> String {
        let (id, context) = (self.idempotency_key(), self.context);
        match context.replays {
            0 => format!("{id}/{}", context.handler),
            replay => format!("{id}/{}/{replay}", context.handler),
        }
    }
}

/// The result of an attempt, as the handler sees it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// The event is delivered.
    Done,
    /// The delivery is to be attempted again.
    Retry {
        /// The least pause before the next attempt, if it is known.
        after: Option<Duration>,
        /// What went wrong.
        why: Error,
    },
    /// No attempt will succeed: a person has to decide.
    Park {
        /// What is wrong.
        why: Error,
    },
    /// The event does not concern the handler.
    Skip {
        /// The reason.
        why: String,
    },
}

impl Outcome {
    /// A retry after the usual pause.
    pub fn retry(why: impl Into<Error>) -> Self {
        Self::Retry {
            after: None,
            why: why.into(),
        }
    }

    /// Parks the delivery.
    pub fn park(why: impl Into<Error>) -> Self {
        Self::Park { why: why.into() }
    }
}

/// An error of a handler. Its text is stored and shown to operators, so it must not contain personal data of
/// the event.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A kind of handler: its settings in the TOML, which build the handler.
pub trait HandlerKind: DeserializeOwned + 'static {
    /// Its `kind` in the TOML.
    const KIND: &'static str;
    /// A handler of this kind as it would stand in a TOML file, for help texts and tests.
    const EXAMPLE: &'static str;
    /// The default of `concurrency`.
    const CONCURRENCY: NonZeroUsize = NonZeroUsize::new(8).unwrap();
    /// The type of the handler.
    type Handler: Handler;

    /// Builds a handler, and tells `context` what the configuration must know about the handler.
    ///
    /// The command `check` builds each handler too. A handler connects to another machine when it gets
    /// its first delivery, so that a destination that is down never prevents a start.
    ///
    /// # Errors
    ///
    /// When the settings cannot work, together or on this machine.
    fn build(self, context: &mut BuildContext) -> Result<Self::Handler, BuildError>;
}

/// The surroundings of a handler that is being built, and what its kind says about the handler.
#[derive(Debug)]
pub struct BuildContext {
    /// The name of the handler in the TOML.
    pub name: HandlerName,
    /// The most concurrent deliveries.
    pub concurrency: usize,
    /// The time limit of one attempt.
    pub timeout: Duration,
    /// The warnings so far.
    pub(crate) warnings: Vec<CleartextWarning>,
    /// The claimed files so far, each with the key of the setting that names the file.
    pub(crate) files: Vec<(&'static str, PathBuf)>,
    /// The addresses of the servers so far, each with its port.
    pub(crate) servers: Vec<String>,
}

impl BuildContext {
    /// The surroundings of the handler `name`.
    pub const fn new(name: HandlerName, concurrency: usize, timeout: Duration) -> Self {
        Self {
            name,
            concurrency,
            timeout,
            warnings: Vec::new(),
            files: Vec::new(),
            servers: Vec::new(),
        }
    }

    /// Warns the operator of credentials that the handler sends without TLS.
    pub fn warn(&mut self, warnings: impl IntoIterator<Item = CleartextWarning>) {
        self.warnings.extend(warnings);
    }

    /// Claims the file at `path`, which the setting `key` names. It is an error of the configuration
    /// that two handlers claim one file.
    pub fn claim_file(&mut self, key: &'static str, path: &Path) {
        self.files.push((key, path.to_owned()));
    }

    /// Names a server that the handler connects to, so that `doctor --targets` can try the server.
    pub fn connects_to(&mut self, host: &str, port: u16) {
        let host = host.trim_matches(['[', ']']);
        self.servers.push(match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        });
    }
}

/// Why a handler cannot be built: what is wrong, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(pub String);

/// The default of `connect_timeout`.
const fn connect_timeout() -> Duration {
    Duration::from_secs(5)
}

/// The text of `error` with those of its causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Some errors include their cause.
        if !text.ends_with(&cause.to_string()) {
            text += &format!(": {cause}");
        }
        source = cause.source();
    }
    text
}

entries! {
    /// Every kind in this build.
    pub const KINDS: [Kind of Settings];

    /// Every kind that is not in this build. A kind has the name of its feature.
    pub const LEFT_OUT: [left out];

    mod log;
    mod file;
    mod http;
    mod exec;
    #[cfg(feature = "amqp")] mod amqp;
    #[cfg(feature = "kafka")] mod kafka;
    #[cfg(feature = "mqtt")] mod mqtt;
    #[cfg(feature = "nats")] mod nats;
    #[cfg(feature = "redis")] mod redis;
    #[cfg(feature = "sql")] mod sql;
    #[cfg(feature = "sqs")] mod sqs;
}

/// A [`Handler`] with its type erased.
pub struct AnyHandler(Box<dyn Erased>);

impl AnyHandler {
    /// Erases the type of `handler`.
    pub fn new<H: Handler>(handler: H) -> Self {
        Self(Box::new(Typed(handler, PhantomData::<H::Event>)))
    }

    /// Parses the event and passes it to the handler. A body that does not have the handler's shape is parked.
    /// A panic is a retry with the reason [`Panicked`].
    pub async fn handle(&self, notification: &Notification, context: &DeliveryContext) -> Outcome {
        // After a panic only the handler itself is used again. Its author keeps it consistent across panics,
        // as across cancellation.
        let attempt = AssertUnwindSafe(self.0.handle(notification, context));
        match catch_unwind(attempt).await {
            Ok(outcome) => outcome,
            Err(panicked) => Outcome::retry(panicked),
        }
    }
}

impl fmt::Debug for AnyHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.type_name())
    }
}

/// The one place where a handler's future loses its type.
trait Erased: Send + Sync {
    fn handle<'a>(
        &'a self,
        notification: &'a Notification,
        context: &'a DeliveryContext,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

    fn type_name(&self) -> &'static str;
}

struct Typed<H, E>(H, PhantomData<E>);

impl<H: Handler<Event = E>, E: Event> Erased for Typed<H, E> {
    fn handle<'a>(
        &'a self,
        notification: &'a Notification,
        context: &'a DeliveryContext,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>> {
        Box::pin(async move {
            match E::read(&notification.body) {
                Ok(event) => {
                    let delivery = Delivery {
                        event,
                        notification,
                        context,
                    };
                    self.0.handle(delivery).await
                }
                Err(unreadable) => Outcome::park(unreadable),
            }
        })
    }

    fn type_name(&self) -> &'static str {
        type_name::<H>()
    }
}

/// A handler panicked.
#[derive(Debug, thiserror::Error)]
#[error("the handler panicked: {0}")]
pub struct Panicked(pub(crate) String);

/// Polls `future`, and turns a panic into an error.
async fn catch_unwind<T>(
    mut future: AssertUnwindSafe<Pin<Box<dyn Future<Output = T> + Send + '_>>>,
) -> Result<T, Panicked> {
    std::future::poll_fn(move |cx| {
        let poll = AssertUnwindSafe(|| future.0.as_mut().poll(cx));
        match std::panic::catch_unwind(poll) {
            Ok(poll) => poll.map(Ok),
            Err(payload) => {
                let text = payload
                    .downcast_ref::<&str>()
                    .map(ToString::to_string)
                    .or_else(|| payload.downcast_ref::<String>().cloned());
                let text = text.unwrap_or_else(|| "with no message".to_owned());
                std::task::Poll::Ready(Err(Panicked(text)))
            }
        }
    })
    .await
}
