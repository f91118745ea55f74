//! Floor 4a: what to do with one event.
//!
//! **Invariant:** a handler knows nothing of stores, retries or other handlers: it is given one
//! delivery and says how it went.
//!
//! **Invariant:** what leaves the process is a CloudEvent, its `data` the provider's own bytes.
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

/// What a handler can be given: an event of one family, or [`AnyEvent`].
pub trait Event: Sized + Send + Sync + 'static {
    /// Reads the body.
    ///
    /// # Errors
    ///
    /// When the body is not of this shape; the delivery is then parked.
    fn read(body: &[u8]) -> Result<Self, Unreadable>;
}

impl<F: EventFamily> Event for F {
    fn read(body: &[u8]) -> Result<Self, Unreadable> {
        event::decode(body)
    }
}

/// An event of any family, the unrecognized and the unreadable too. Its body is in
/// [`Delivery::notification`].
#[derive(Clone, Copy, Debug, Default)]
pub struct AnyEvent;

impl Event for AnyEvent {
    fn read(_body: &[u8]) -> Result<Self, Unreadable> {
        Ok(Self)
    }
}

/// What to do with one event.
pub trait Handler: Send + Sync + 'static {
    /// What it takes.
    type Event: Event;

    /// Does it. Dropped at the deadline, which counts as a retry; a panic counts as one too.
    fn handle(&self, delivery: Delivery<'_, Self::Event>) -> impl Future<Output = Outcome> + Send;
}

/// One event on its way to one handler.
#[derive(Debug)]
pub struct Delivery<'a, E> {
    /// The event, read.
    pub event: E,
    /// The event as it arrived.
    pub notification: &'a Notification,
    /// What else there is to know of this attempt.
    pub context: &'a DeliveryContext,
}

/// What there is to know of one attempt besides the event.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeliveryContext {
    /// The handler, as the TOML names it.
    pub handler: HandlerName,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// When the attempt is given up.
    pub deadline: Instant,
    /// When the attempt began.
    pub started_at: Timestamp,
    /// Why this is a replay, if it is one.
    pub replay: Option<String>,
    /// How often the delivery has been replayed: the same for every attempt at one replay, and for
    /// no other replay.
    pub replays: u32,
    /// Whether everything that this event reports on has been reported on again, with a later
    /// provider time. Zoom's retries arrive up to 85 minutes late, so an old emergency address can
    /// come after a newer one.
    pub superseded: bool,
}

impl<E> Delivery<'_, E> {
    /// The same for every attempt at this delivery and every replay of it, and for no other event:
    /// what a receiver can tell copies by.
    pub const fn idempotency_key(&self) -> EventId {
        self.notification.id
    }

    /// What a destination can drop copies by that it has had from us before: the event's id, a slash
    /// and the handler's name, since two handlers may fill one destination; the same in each attempt.
    /// A replay is wanted although the event has been there before, so its number follows, after
    /// another slash.
    pub fn copy_key(&self) -> String {
        let (id, context) = (self.idempotency_key(), self.context);
        match context.replays {
            0 => format!("{id}/{}", context.handler),
            replay => format!("{id}/{}/{replay}", context.handler),
        }
    }
}

/// How an attempt went, in the handler's own view.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// It has the event.
    Done,
    /// It wants the event again.
    Retry {
        /// Not sooner than this, where it knows.
        after: Option<Duration>,
        /// What went wrong.
        why: Error,
    },
    /// It will never be able to take the event: a person has to look.
    Park {
        /// What is wrong.
        why: Error,
    },
    /// It needs nothing of the event.
    Skip {
        /// Why not.
        why: String,
    },
}

impl Outcome {
    /// A retry after the usual time.
    pub fn retry(why: impl Into<Error>) -> Self {
        Self::Retry {
            after: None,
            why: why.into(),
        }
    }

    /// Giving up.
    pub fn park(why: impl Into<Error>) -> Self {
        Self::Park { why: why.into() }
    }
}

/// What went wrong in a handler. Its text is stored and shown to operators, so it must not hold
/// what the event says of people.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A kind of handler: its settings, read from the TOML, are its factory.
pub trait HandlerKind: DeserializeOwned + 'static {
    /// Its `kind` in the TOML.
    const KIND: &'static str;
    /// A handler of this kind as it would stand in a TOML file, for help texts and tests.
    const EXAMPLE: &'static str;
    /// How many deliveries are under way at once where the TOML does not say.
    const CONCURRENCY: NonZeroUsize = NonZeroUsize::new(8).unwrap();
    /// What it builds.
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
    /// The most deliveries that the handler is given at once.
    pub concurrency: usize,
    /// The time limit of one attempt.
    pub timeout: Duration,
    /// The warnings so far.
    pub(crate) warnings: Vec<CleartextWarning>,
    /// The claimed files so far, each with the key of the setting that names the file.
    pub(crate) files: Vec<(&'static str, PathBuf)>,
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
}

/// Why a handler cannot be built: what is wrong, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(pub String);

/// How long a kind's connections may take to be made, where its settings say nothing.
const fn connect_timeout() -> Duration {
    Duration::from_secs(5)
}

/// What went wrong, down to its first cause.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Some errors tell their cause themselves.
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

    /// Every kind that this build leaves out. A kind has the name of its feature.
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

    /// Reads the event and gives it to the handler. A body that is not of the handler's shape is
    /// parked; a panic is a retry with [`Panicked`] as its reason.
    pub async fn handle(&self, notification: &Notification, context: &DeliveryContext) -> Outcome {
        // Nothing of a handler that panicked is looked at afterwards but the handler itself,
        // which its author has to keep sound across panics, as across cancellation.
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

/// Polls `future`, turning a panic inside a poll into an error.
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
