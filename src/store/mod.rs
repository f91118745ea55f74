//! Floor 3: stores events durably, and records what became of each delivery.
//!
//! **Invariant:** [`Append::append`] returns `Ok` only when the event would survive the loss of
//! power at that moment.
//!
//! **Invariant:** nothing above this floor knows which engine it has.
//!
//! **Invariant:** of all duplicates of one event, recognized by any of its dedupe keys, one is
//! delivered.
//!
//! **Invariant:** two deliveries conflict if they go to the same ordered handler and their events
//! share an ordering key. Of two conflicting deliveries, the later one can be claimed only when the
//! earlier one is done, skipped or parked. Deliveries without a shared key never wait for each
//! other. A retry keeps its place in the order; a parked delivery leaves the order.
//!
//! # How to add an engine
//!
//! Write one module beside [`embedded`], implement [`Store`], [`Operator`] and [`StoreKind`] in it, and
//! add one line to [`ENGINES`].

mod audit;
mod error;
mod follower;
mod health;
mod operator;
mod pending;
mod replay;
mod statistics;
mod terms;
#[cfg(test)]
mod tests;
mod transfer;

use std::{
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{self, DeserializeOwned};
use tokio::sync::watch;

pub use operator::{
    Attempt, DeliveryDetails, DeliveryState, EventDetails, EventFilter, EventList, EventSummary,
    HandlerSummary, ParkedCursor, ParkedDelivery, ParkedFilter, ParkedList, ParkedReason,
    ReplaySelection, ReplaySummary,
};

pub use audit::{Action, AuditEntry, AuditLog, AuditRecord, Pause};

pub use transfer::{
    Cursor, DeliverySnapshot, EventPage, LatestReport, StoredEvent, TransferPhase, TransferSummary,
    TransferTarget, transfer,
};

pub use error::StoreError;

pub use follower::{CHECK_INTERVAL, Follower, Followers};

use operator::shorten;

use crate::{
    cleartext::CleartextWarning,
    entries::entries,
    event::{EventId, EventName, HandlerName, Notification, Pattern},
    provider::Verified,
    spanned,
    telemetry::Metrics,
};

/// The return type of the store's async methods, which are called through `dyn` traits.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The service's side of a store.
pub trait Store: Append + Deliveries + Monitored {
    /// Writes the appends that wait, and releases all resources. Later appends are refused.
    ///
    /// # Errors
    ///
    /// When waiting appends could not be written.
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Takes events.
pub trait Append: Send + Sync + 'static {
    /// Puts `event` on stable storage. A duplicate of a stored event is accepted too: duplicates
    /// are recognized later, and only one is delivered.
    ///
    /// # Errors
    ///
    /// When the event is not on stable storage, or its state is unknown.
    fn append(&self, event: Verified) -> BoxFuture<'_, Result<(), AppendError>>;
}

/// Hands out deliveries and records their results.
pub trait Deliveries: Send + Sync + 'static {
    /// Replaces the subscriptions: which handlers exist, and which events each of them gets from
    /// now on. Open deliveries of a handler without a subscription are parked.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be written.
    fn subscribe(&self, subscriptions: Vec<Subscription>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Claims up to `at_most` deliveries of `handler` that are due at `now`. A claim belongs to the
    /// caller until the claim is settled or the process ends.
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

    /// Records how claimed deliveries ended. For each settled delivery the engine may return the
    /// next one of its ordering key, already claimed; otherwise that delivery becomes claimable.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be written. The deliveries are made again then.
    fn settle(
        &self,
        settlements: Arc<[Settlement]>,
    ) -> BoxFuture<'_, Result<Vec<Claim>, StoreError>>;

    /// Whether the caller still has the claim, as far as this process knows. To be checked before
    /// an attempt begins.
    fn holds(&self, _lease: Lease) -> bool {
        true
    }

    /// Changes when there may be something new to claim, also after a settlement. The signal is a
    /// hint: work can also come from another process, so callers poll as well.
    fn work(&self) -> watch::Receiver<u64>;
}

/// Reports how the store is doing.
pub trait Monitored: Send + Sync + 'static {
    /// The store's health: whether it accepts appends.
    fn health(&self) -> watch::Receiver<Health>;

    /// The store's background tasks, watched for progress. Dispatch registers its own tasks here.
    fn followers(&self) -> Followers {
        Followers::default()
    }

    /// Sets the store's gauges in `metrics`.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be read.
    fn measure(&self, now: Timestamp) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// The operator's side of a store. It works with and without a running service. Its methods block,
/// so they belong on a thread of their own.
pub trait Operator: AuditLog + Send {
    /// One page of events, newest first. The work of a call is bounded, however many events are
    /// stored: when the bound is reached, the page is short or empty, and says where the list goes
    /// on.
    ///
    /// # Errors
    ///
    /// When the ledger or the journal cannot be read.
    fn events(&self, filter: &EventFilter) -> Result<EventList, StoreError>;

    /// One event with its body and its deliveries; `None` when no event has this id.
    ///
    /// # Errors
    ///
    /// When the ledger or the journal cannot be read.
    fn event(&self, id: crate::event::EventId) -> Result<Option<EventDetails>, StoreError>;

    /// One page of parked deliveries, oldest first. The work of a call is bounded as that of
    /// [`events`](Self::events).
    ///
    /// # Errors
    ///
    /// When the ledger cannot be read.
    fn parked(&self, filter: &ParkedFilter) -> Result<ParkedList, StoreError>;

    /// The reasons of parked deliveries, most frequent first. The work of a call is bounded: of very
    /// many parked deliveries the oldest are counted, and of very many reasons the most frequent are
    /// returned.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be read.
    fn parked_reasons(&self) -> Result<Vec<ParkedReason>, StoreError>;

    /// All handlers with the counts of their deliveries, by name: the configured ones, and those
    /// that the store still knows.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be read.
    fn handlers(&self) -> Result<Vec<HandlerSummary>, StoreError>;

    /// Counts what [`replay`](Self::replay) would select, and changes nothing.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be read.
    fn plan(&self, selection: &ReplaySelection) -> Result<ReplaySummary, StoreError>;

    /// Makes the selected deliveries due again, marked as replays with `reason`. Calls `progress`
    /// with the number of deliveries so far.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be written. Deliveries that were made due before the error stay due.
    fn replay(
        &mut self,
        selection: &ReplaySelection,
        reason: &str,
        now: Timestamp,
        progress: &mut dyn FnMut(u64),
    ) -> Result<ReplaySummary, StoreError>;

    /// Skips parked deliveries for `reason`: they are not attempted again, and retention may delete
    /// their events. Ignores deliveries that are no longer parked. Returns the number of skipped
    /// deliveries.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be written. Deliveries that were skipped before the error stay
    /// skipped.
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
    /// The handler gets events that any of these patterns matches.
    pub patterns: Vec<Pattern>,
    /// Whether events that share an ordering key reach the handler one at a time and in order.
    pub ordered: bool,
}

impl Subscription {
    /// Whether the handler gets events called `name`.
    pub fn takes(&self, name: &EventName) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(name))
    }
}

/// The result of [`Deliveries::claim`].
#[derive(Debug, Default)]
pub struct Claims {
    /// The claims, oldest delivery first.
    pub claims: Vec<Claim>,
    /// The earliest due time of a delivery that is not due yet: when to claim again without a
    /// wake-up.
    pub next_due: Option<Timestamp>,
}

/// A delivery that the caller has claimed and may attempt.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The event.
    pub notification: Arc<Notification>,
    /// The engine's identifier of this claim.
    pub lease: Lease,
    /// The number of the attempt, from 1. A replay starts again at 1.
    pub attempt: u32,
    /// When the delivery first became due. The age limit of retries counts from here.
    pub since: Timestamp,
    /// The reason of the replay, if the delivery is one.
    pub replay: Option<String>,
    /// How often the delivery has been replayed.
    pub replays: u32,
    /// Whether a newer event, by the provider's time, has reported each topic of this one again.
    pub superseded: bool,
}

/// An engine's identifier of one claim. To settle a claim that has passed to another owner changes
/// nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease(pub u64);

/// How a claimed delivery ended.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// The handler.
    pub handler: HandlerName,
    /// The claim.
    pub lease: Lease,
    /// The result.
    pub verdict: Verdict,
    /// When the attempt began.
    pub started_at: Timestamp,
    /// When the attempt ended.
    pub finished_at: Timestamp,
}

/// The result of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The handler accepted the event.
    Done,
    /// The handler declined the event.
    Skipped {
        /// The handler's reason.
        why: String,
    },
    /// The delivery is attempted again.
    Retry {
        /// When.
        due_at: Timestamp,
        /// What went wrong.
        why: String,
    },
    /// The delivery is not attempted again until a person decides.
    Parked {
        /// What went wrong.
        why: String,
    },
    /// The delivery was not attempted, and is claimable again as if it had not been claimed.
    Released,
}

/// Whether a store accepts appends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// The store accepts appends.
    Sound,
    /// The store refuses appends for now.
    Unavailable {
        /// The missing resource, such as disk space or the database.
        why: String,
    },
    /// The store refuses appends until the process is restarted.
    Poisoned {
        /// The failure.
        why: String,
    },
}

/// Why an event is not on stable storage, or not known to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Disk space or the database is missing. The condition may pass.
    #[error("the store accepts no events: {0}")]
    Unavailable(String),
    /// The queue of unwritten events is full.
    #[error("the store is overloaded: too many events wait to be written")]
    Overloaded,
    /// A write or a sync failed. This process trusts its storage no more.
    #[error("the store is poisoned: {0}")]
    Poisoned(String),
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

/// What an engine needs besides its settings.
#[derive(Clone)]
pub struct Context {
    /// The metrics of the service.
    pub metrics: Arc<Metrics>,
    /// The clock. The engine's own threads read it to date segments and parked deliveries, and to
    /// tell which events are old enough to delete.
    pub clock: fn() -> Timestamp,
    /// Called with (done, total) records while a ledger is rebuilt from the journal.
    pub rebuild: Arc<dyn Fn(u64, u64) + Send + Sync>,
}

/// What a backup has.
#[derive(Debug)]
pub struct BackupSummary {
    /// The size of the journal, in bytes.
    pub journal_bytes: u64,
    /// The size of the ledger, in bytes.
    pub ledger_bytes: u64,
}

/// What the files of a store on this machine show from outside.
#[derive(Debug, Default)]
pub struct Inspection {
    /// The directory of the store.
    pub path: PathBuf,
    /// Whether the directory exists.
    pub exists: bool,
    /// Whether the directory belongs to another user than that of this process.
    pub is_of_another_user: bool,
    /// Whether a service has the store open.
    pub is_in_use: bool,
    /// The size of all files, in bytes.
    pub bytes: u64,
    /// The free space on the disk, in bytes.
    pub free: u64,
    /// The free space below which new events are refused, in bytes.
    pub reserve: u64,
    /// How long events are kept.
    pub retain: Duration,
    /// The growth of the journal so far, in bytes a day; `None` when the store is too young to say.
    pub bytes_a_day: Option<u64>,
    /// The files that other users of this machine can read or write.
    pub exposed: Vec<PathBuf>,
}

/// The settings of one engine: the TOML's `[store]` without `kind`.
pub trait Engine: Send + std::fmt::Debug {
    /// The credential that these settings send without TLS.
    fn cleartext_warning(&self) -> Option<CleartextWarning> {
        None
    }

    /// Opens the store for a service, and creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// When the store is in use, cannot be read or written, or was written by a newer version.
    fn open(&self, context: Context) -> Result<Arc<dyn Store>, StoreError>;

    /// Opens the store for an operator. `clock` dates what the operator's commands write.
    ///
    /// # Errors
    ///
    /// When the store does not exist or cannot be read.
    fn operator(&self, clock: fn() -> Timestamp) -> Result<Box<dyn Operator>, StoreError>;

    /// Copies the store to the new directory `to`, which a service can be started on. A service may be using
    /// the store.
    ///
    /// # Errors
    ///
    /// When the store does not exist or cannot be read, `to` exists or cannot be written, or the store is of a
    /// kind with tools of its own for this.
    fn backup(&self, _to: &Path) -> Result<BackupSummary, StoreError> {
        Err(StoreError::BackupUnsupported)
    }

    /// Looks at the files of the store, and writes nothing. `None` when the store has no files on this machine.
    ///
    /// # Errors
    ///
    /// When the files cannot be looked at.
    fn inspect(&self) -> Result<Option<Inspection>, StoreError> {
        Ok(None)
    }

    /// Opens the store as the source of a transfer. `subscriptions` decide who gets the events that
    /// the ledger has not read yet.
    ///
    /// # Errors
    ///
    /// When the store does not exist, is in use, cannot be read, or is of a kind that cannot be a
    /// source.
    fn source(
        &self,
        _context: Context,
        _subscriptions: Vec<Subscription>,
    ) -> Result<embedded::TransferSource, StoreError> {
        Err(StoreError::TransferUnsupported("out of"))
    }

    /// Opens the store as the target of a transfer, and creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// When the store cannot be written, or is of a kind that cannot be a target.
    fn target(&self) -> Result<Box<dyn TransferTarget>, StoreError> {
        Err(StoreError::TransferUnsupported("into"))
    }
}

/// A kind of store: its settings, read from the TOML.
pub trait StoreKind: DeserializeOwned + JsonSchema + Engine + 'static {
    /// Its `kind` in the TOML.
    const KIND: &'static str;

    /// Checks what involves several settings at once.
    ///
    /// # Errors
    ///
    /// Names the settings that contradict each other, and says what to do.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A [`StoreKind`] with its type erased: one line of [`ENGINES`].
#[derive(Debug)]
pub struct Kind {
    /// The value of `kind` in the TOML: [`StoreKind::KIND`].
    pub kind: &'static str,
    /// Reads the engine's settings.
    pub read: fn(spanned::Deserializer<'_>) -> Result<Box<dyn Engine>, spanned::Error>,
    /// The JSON Schema of its settings.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
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
            schema: K::json_schema,
        }
    }

    /// The kind of store called `name`.
    pub fn named(name: &str) -> Option<&'static Self> {
        ENGINES.iter().find(|kind| kind.kind == name)
    }
}

/// The default of `retain`: how long events are kept.
const fn default_retain() -> Duration {
    Duration::from_hours(30 * 24)
}

/// The reason of deliveries that are parked since their handler is no longer configured.
const NO_HANDLER: &str = "no handler of this name is configured";

/// How long an append may take before the server answers 503: well within the 3 seconds that both
/// providers wait.
pub const APPEND_BUDGET: Duration = Duration::from_secs(1);
