//! Floor 3: remember it. What a 200 stands for, and the record of who has had what.
//!
//! **Invariant:** [`Append::append`] returns `Ok` only when the event would survive the loss of
//! power at that moment.
//!
//! **Invariant:** nothing above this floor knows which engine it has.
//!
//! **Invariant:** of all copies of one event, known by any of its dedupe keys, one is delivered.
//!
//! **Invariant:** of two deliveries to one ordered handler whose events share an ordering key, the later
//! one can be claimed only when the earlier one is done, skipped or parked; deliveries that share none
//! never wait for each other. A retry keeps its place; a parked delivery leaves it.
//!
//! # How to add an engine
//!
//! Write one module beside [`embedded`], implement [`Store`], [`Operator`] and [`StoreKind`] in it, and
//! add one line to [`ENGINES`].

mod follower;
mod health;
mod operator;
mod pending;
mod replay;
mod statistics;
#[cfg(test)]
mod tests;
mod transfer;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::de::{self, DeserializeOwned};
use tokio::sync::watch;

pub use operator::{
    Attempt, DeliveryDetails, DeliveryState, EventDetails, EventFilter, EventSummary,
    ParkedDelivery, ParkedFilter, ReplaySelection, ReplaySummary,
};

pub use transfer::{
    Cursor, DeliverySnapshot, EventPage, LatestReport, StoredEvent, TransferPhase, TransferSummary,
    TransferTarget, transfer,
};

pub use follower::{Follower, Followers, LOOK_EVERY};

use operator::shorten;

use crate::{
    cleartext::CleartextWarning,
    entries::entries,
    event::{EventId, EventName, HandlerName, Notification, Pattern},
    provider::Verified,
    spanned,
    telemetry::Metrics,
};

/// What the methods of a store that is not known by type return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The service's side of a store, whole.
pub trait Store: Append + Deliveries + Monitored {
    /// Writes what is waiting and lets go of everything. Appends after this are refused.
    ///
    /// # Errors
    ///
    /// When what was waiting could not be written.
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Where events go.
pub trait Append: Send + Sync + 'static {
    /// Puts `event` on stable storage. A second copy of a stored event is taken as readily as the
    /// first: copies are told apart later, and only one is delivered.
    ///
    /// # Errors
    ///
    /// When it is not on stable storage, or not known to be.
    fn append(&self, event: Verified) -> BoxFuture<'_, Result<(), AppendError>>;
}

/// Who gets the events, and how that goes.
pub trait Deliveries: Send + Sync + 'static {
    /// Says which handlers exist, and which events each one gets from now on. Open deliveries of a
    /// handler that is no longer named are parked.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be written.
    fn subscribe(&self, subscriptions: Vec<Subscription>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Takes up to `at_most` deliveries of `handler` that are due at `now`. Each is this caller's
    /// until it is settled, or until this process ends.
    ///
    /// # Errors
    ///
    /// When the ledger or the journal cannot be read.
    fn claim(
        &self,
        handler: &HandlerName,
        at_most: usize,
        now: Timestamp,
    ) -> BoxFuture<'_, Result<Claims, StoreError>>;

    /// Records how claimed deliveries went. For each settled delivery the engine may return the next one
    /// of its ordering key, already claimed; otherwise what waited for the delivery becomes claimable.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be written; the deliveries are then made again.
    fn settle(
        &self,
        settlements: Arc<[Settlement]>,
    ) -> BoxFuture<'_, Result<Vec<Claim>, StoreError>>;

    /// Whether a claim is still the caller's, as far as can be told without asking: to be looked at
    /// before its attempt begins.
    fn holds(&self, _lease: Lease) -> bool {
        true
    }

    /// Changes whenever there may be something new to claim, after a settlement too. A hint: a
    /// caller looks now and then without one as well, since work may also come from another process.
    fn work(&self) -> watch::Receiver<u64>;
}

/// How a store is.
pub trait Monitored: Send + Sync + 'static {
    /// Whether the store takes appends.
    fn health(&self) -> watch::Receiver<Health>;

    /// Those who work behind what is stored. Whoever works on deliveries joins them.
    fn followers(&self) -> Followers {
        Followers::default()
    }

    /// Brings the gauges of the store in `metrics` up to date.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be read.
    fn measure(&self, now: Timestamp) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// The operator's side of a store: usable while a service runs on it, and while none does.
/// Blocking: it belongs on a thread of its own.
pub trait Operator: Send {
    /// Events, newest first.
    ///
    /// # Errors
    ///
    /// When the ledger or the journal cannot be read.
    fn events(&self, filter: &EventFilter) -> Result<Vec<EventSummary>, StoreError>;

    /// One event with its body and its deliveries; `None` when there is none of that id.
    ///
    /// # Errors
    ///
    /// When the ledger or the journal cannot be read.
    fn event(&self, id: crate::event::EventId) -> Result<Option<EventDetails>, StoreError>;

    /// Parked deliveries, oldest first.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be read.
    fn parked(&self, filter: &ParkedFilter) -> Result<Vec<ParkedDelivery>, StoreError>;

    /// What [`replay`](Self::replay) would do, without doing it.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be read.
    fn plan(&self, selection: &ReplaySelection) -> Result<ReplaySummary, StoreError>;

    /// Makes the selected deliveries due again, marked as replays with `reason`; calls `progress`
    /// with the number made due so far.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be written; what was made due by then stays so.
    fn replay(
        &mut self,
        selection: &ReplaySelection,
        reason: &str,
        now: Timestamp,
        progress: &mut dyn FnMut(u64),
    ) -> Result<ReplaySummary, StoreError>;

    /// Does without parked deliveries, for `reason`: they are skipped from now on, and no longer keep
    /// their events from being deleted. Passes over those that are not parked any more; returns how
    /// many were.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be written; what was skipped by then stays so.
    fn skip(
        &mut self,
        parked: &[(EventId, HandlerName)],
        reason: &str,
        now: Timestamp,
    ) -> Result<u64, StoreError>;
}

/// Which events a handler gets.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// The handler.
    pub handler: HandlerName,
    /// It gets what any of these takes.
    pub patterns: Vec<Pattern>,
    /// Whether events that share an ordering key reach it one at a time and in order.
    pub ordered: bool,
}

impl Subscription {
    /// Whether it takes events called `name`.
    pub fn takes(&self, name: &EventName) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(name))
    }
}

/// The answer to [`Deliveries::claim`].
#[derive(Debug, Default)]
pub struct Claims {
    /// What was claimed, oldest first.
    pub claims: Vec<Claim>,
    /// When to ask again though nothing new arrives: the earliest time at which a delivery that
    /// waits becomes due.
    pub next_due: Option<Timestamp>,
}

/// One delivery that is the caller's to attempt.
#[derive(Clone, Debug)]
pub struct Claim {
    /// What is delivered.
    pub notification: Arc<Notification>,
    /// The engine's own name for this claim.
    pub lease: Lease,
    /// Which try this is, from 1; a replay starts again at 1.
    pub attempt: u32,
    /// When the delivery became due for the first time, for the age limit of its retries.
    pub since: Timestamp,
    /// Why this is a replay, if it is one.
    pub replay: Option<String>,
    /// How often the delivery has been replayed.
    pub replays: u32,
    /// Whether each topic of the event has been reported again, with a later provider time.
    pub superseded: bool,
}

/// An engine's name for one claim. Settling a claim that has since become somebody else's changes
/// nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease(pub u64);

/// How a claimed delivery went.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// The handler.
    pub handler: HandlerName,
    /// The claim.
    pub lease: Lease,
    /// How it went.
    pub verdict: Verdict,
    /// When the attempt began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// How one attempt at a delivery ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The handler has it.
    Done,
    /// The handler chose to do without it.
    Skipped {
        /// Its reason.
        why: String,
    },
    /// It is to be tried again.
    Retry {
        /// When.
        due_at: Timestamp,
        /// What went wrong.
        why: String,
    },
    /// It waits for a person.
    Parked {
        /// What went wrong.
        why: String,
    },
    /// It was not attempted after all: as if it had not been claimed.
    Released,
}

/// Whether a store takes appends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Sound,
    /// Not now; it may again.
    Unavailable {
        /// What there is too little of, or who is not there.
        why: String,
    },
    /// Never again in this process.
    Poisoned {
        /// The failure.
        why: String,
    },
}

/// Why an event is not on stable storage, or not known to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// There is too little room, or nobody who would store it; that may pass.
    #[error("the store takes no events: {0}")]
    Unavailable(String),
    /// More is waiting to be written than the store takes on.
    #[error("the store is behind: too many events wait to be written")]
    Overloaded,
    /// A write or a sync failed, and nothing more is trusted to this process.
    #[error("the store is poisoned: {0}")]
    Poisoned(String),
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

/// Why the record of who has had what could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the store open.
    #[error("the store at {0} is in use by another process; stop that one first")]
    Locked(String),
    /// There is no store where one was looked for.
    #[error("there is no store at {0}; has `hookswitch serve` run with this configuration?")]
    Absent(String),
    /// A handler was named that is not configured.
    #[error("no handler called {0:?} is configured; start the service with it first")]
    UnknownHandler(HandlerName),
    /// It was written by a newer version.
    #[error("{0}; it was written by a newer hookswitch, so run that one")]
    TooNew(String),
    /// It was written by an older version, and no service of this one has run on it yet.
    #[error(
        "{0}; it was written by an older hookswitch: start the service of this one on it first"
    )]
    TooOld(String),
    /// Stores of this kind have no such way.
    #[error("events cannot be moved {0} a store of that kind")]
    TransferUnsupported(&'static str),
    /// What was moved is not what is there now.
    #[error(
        "of {events} events that were moved, {missing} are not there and {altered} are there \
         otherwise; that is as it should be where a service has run on the new store since, and \
         elsewhere the new store has to be emptied and the move made again"
    )]
    TransferMismatch {
        /// How many were moved, now or before.
        events: u64,
        /// How many of them are not there.
        missing: u64,
        /// How many are not what they were.
        altered: u64,
    },
    /// A file could not be read or written.
    #[error("{what}: {error}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The database could not be read or written.
    #[error("{what}: {error}")]
    Database {
        /// What was being done.
        what: String,
        /// What the database said.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    fn io(what: &str) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::Io {
            what: what.to_owned(),
            error,
        }
    }

    fn database<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        what: &str,
    ) -> impl FnOnce(E) -> Self {
        move |error| Self::Database {
            what: what.to_owned(),
            error: error.into(),
        }
    }
}

/// What an engine needs besides its settings.
#[derive(Clone)]
pub struct Context {
    /// Where to count.
    pub metrics: Arc<Metrics>,
    /// The clock, read by the engine's own threads only: to date segments, what is parked with its
    /// handler gone, and what is old enough to be deleted.
    pub clock: fn() -> Timestamp,
    /// Called with (done, total) while a ledger is rebuilt from the journal.
    pub rebuild: Arc<dyn Fn(u64, u64) + Send + Sync>,
}

/// The settings of one engine: what the TOML's `[store]` says besides `kind`.
pub trait Engine: Send + std::fmt::Debug {
    /// The credential that these settings send without TLS.
    fn cleartext_warning(&self) -> Option<CleartextWarning> {
        None
    }

    /// Opens the store for a service, creating it where there is none.
    ///
    /// # Errors
    ///
    /// When it is in use, cannot be read or written, or is of a newer version.
    fn open(&self, context: Context) -> Result<Arc<dyn Store>, StoreError>;

    /// Opens the store for an operator. `clock` is for what has to be written of it.
    ///
    /// # Errors
    ///
    /// When there is none, or it cannot be read.
    fn operator(&self, clock: fn() -> Timestamp) -> Result<Box<dyn Operator>, StoreError>;

    /// Opens the store for moving its events into another one. `subscriptions` say who gets what of
    /// events that have not been given to anybody yet.
    ///
    /// # Errors
    ///
    /// When there is none, it is in use or cannot be read, or events do not move out of its kind.
    fn source(
        &self,
        _context: Context,
        _subscriptions: Vec<Subscription>,
    ) -> Result<embedded::TransferSource, StoreError> {
        Err(StoreError::TransferUnsupported("out of"))
    }

    /// Opens the store for moving events in, creating it where there is none.
    ///
    /// # Errors
    ///
    /// When it cannot be written, or events do not move into its kind.
    fn target(&self) -> Result<Box<dyn TransferTarget>, StoreError> {
        Err(StoreError::TransferUnsupported("into"))
    }
}

/// A kind of store: its settings, read from the TOML.
pub trait StoreKind: DeserializeOwned + Engine + 'static {
    /// Its `kind` in the TOML.
    const KIND: &'static str;

    /// Looks for what no setting can tell by itself.
    ///
    /// # Errors
    ///
    /// Says which settings go ill together, and what to do.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A [`StoreKind`] with its type erased: one line of [`ENGINES`].
#[derive(Debug)]
pub struct Kind {
    /// [`StoreKind::KIND`].
    pub kind: &'static str,
    /// Reads its settings.
    pub read: fn(spanned::Deserializer<'_>) -> Result<Box<dyn Engine>, spanned::Error>,
}

entries! {
    /// Every kind of store.
    pub const ENGINES: [Kind of Settings];

    /// Every kind of store that this build leaves out. A kind has the name of its feature.
    pub const LEFT_OUT: [left out];

    pub mod embedded;
    #[cfg(feature = "postgres")] pub mod postgres;
}

impl Kind {
    const fn of<K: StoreKind>() -> Self {
        Self {
            kind: K::KIND,
            read: |settings| {
                let settings = K::deserialize(settings)?;
                settings.check().map_err(de::Error::custom)?;
                Ok(Box::new(settings))
            },
        }
    }

    /// The kind of store called `name`.
    pub fn named(name: &str) -> Option<&'static Self> {
        ENGINES.iter().find(|kind| kind.kind == name)
    }
}

/// How long events are kept where the TOML does not say.
const fn default_retain() -> Duration {
    Duration::from_hours(30 * 24)
}

/// Why deliveries of a handler that is gone are parked.
const NO_HANDLER: &str = "no handler of this name is configured";

/// How long an append may take before the server answers 503: well inside the 3 seconds that both
/// providers wait.
pub const APPEND_BUDGET: Duration = Duration::from_secs(1);
