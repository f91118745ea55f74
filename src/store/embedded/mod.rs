//! The embedded store: a journal and a ledger in one directory, for one service on one machine.
//!
//! The [`journal`] is the source of truth: an append-only log whose sync is what a 200 stands for.
//! It contains the events, the subscriptions, and the states of deliveries. The [`queue`] that
//! dispatch works from, the [`ledger`] and the deduplication index are views of the journal. The
//! [`indexer`] keeps them up to date with what the journal's writer passes on. So a view may lag,
//! may lose its last moments, and may be deleted. If the ledger and the journal disagree when the
//! store is opened, the journal decides.
//!
//! The state of a delivery goes to the journal's writer at once, and is on stable storage within a
//! second (see [`journal`]). So deliveries are repeated only if they ended in the last moments
//! before the process was killed, or in the last second before a loss of power.
//!
//! ```text
//! <path>/lock                            locked by the running service
//! <path>/journal/0000000001.segment      see `segment`
//! <path>/journal/<segment>.torn-<n>      a torn tail that recovery has cut
//! <path>/journal/spare.new               see `preallocator`
//! <path>/ledger.db                       see `ledger/schema.sql`
//! <path>/audit.db                        see `audit`; it is no view
//! <path>/ledger.db.damaged-<n>           a damaged ledger
//! <path>/seen.table                      see `dedup_index`
//! <path>/seen.new                        the index while it is rebuilt
//! ```
//!
//! **Invariant:** an append never waits for the ledger.
//!
//! **Invariant:** blocking work is done on the engine's own threads.

mod audit;
mod backfill;
mod backup;
mod codec;
mod dedup_index;
mod deduplicator;
mod disk;
mod indexer;
mod inspection;
mod journal;
mod ledger;
mod opening;
mod preallocator;
mod progress;
mod queue;
mod reader;
mod record;
mod recovery;
mod retention;
mod segment;
mod source;
mod term_backfill;
#[cfg(test)]
pub(super) mod tests;
mod user;

use std::{
    fs::File,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use jiff::Timestamp;
use rustix::fs::Access;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::{oneshot, watch};

pub use self::source::TransferSource;
use self::{
    disk::{Disk, SystemDisk},
    journal::Journal,
    ledger::{Ledger, LedgerDatabase, OperatorConnection},
    progress::Progress,
    queue::Queue,
    reader::{DamageLog, Directory},
    record::{Record, TooLarge},
};
use super::{
    Append, AppendError, BackupSummary, BoxFuture, Claim, Claims, Context, Deliveries, Engine,
    Followers, Health, Inspection, Monitored, Operator, Settlement, Store, StoreError, StoreKind,
    Subscription, health::HealthReporter, pending,
};
use crate::{event::HandlerName, provider::Verified, quantity, secret};

/// The settings of an embedded store.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The directory of the store.
    #[serde(deserialize_with = "directory")]
    pub path: PathBuf,
    /// How long events are kept after their last delivery is finished. Duplicates are recognized
    /// for as long.
    #[serde(default = "super::default_retain", with = "quantity::duration")]
    #[schemars(with = "quantity::Time")]
    pub retain: Duration,
    /// The free space in bytes below which new events are refused, so that deliveries of stored
    /// events can go on.
    #[serde(default = "default_reserve", with = "quantity::bytes")]
    #[schemars(with = "quantity::Size")]
    pub reserve: u64,
    /// The size of a journal segment in bytes: 1 MiB to 1 GiB. Segments are deleted as a whole.
    #[serde(
        default = "default_segment",
        deserialize_with = "segment_size",
        serialize_with = "quantity::bytes::serialize"
    )]
    #[schemars(with = "quantity::Size")]
    pub segment: u64,
}

fn default_reserve() -> u64 {
    512 << 20
}

fn default_segment() -> u64 {
    64 << 20
}

/// Reads the path of a directory, which may not exist yet.
fn directory<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    let there = path.ancestors().find(|path| path.exists());
    match there.filter(|there| !there.is_dir() && !secret::is_unread()) {
        None => Ok(path),
        Some(file) => Err(serde::de::Error::custom(format!(
            "the store cannot be at {}, since {} is no folder; name a folder, which need not exist",
            path.display(),
            file.display()
        ))),
    }
}

fn segment_size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let bytes = quantity::bytes::deserialize(deserializer)?;
    if (1 << 20..=1 << 30).contains(&bytes) {
        return Ok(bytes);
    }
    Err(serde::de::Error::custom(format!(
        "a segment of {bytes} bytes is out of range; 1MiB to 1GiB is allowed"
    )))
}

impl StoreKind for Settings {
    const KIND: &'static str = "embedded";
}

impl Engine for Settings {
    fn open(&self, context: Context) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::new(Embedded::open(
            self,
            context,
            Arc::new(SystemDisk),
        )?))
    }

    fn operator(&self, clock: fn() -> Timestamp) -> Result<Box<dyn Operator>, StoreError> {
        Ok(Box::new(OperatorConnection::open(self, clock)?))
    }

    fn backup(&self, to: &Path) -> Result<BackupSummary, StoreError> {
        backup::backup(self, to)
    }

    fn inspect(&self) -> Result<Option<Inspection>, StoreError> {
        inspection::inspect(self).map(Some)
    }

    fn source(
        &self,
        context: Context,
        subscriptions: Vec<Subscription>,
    ) -> Result<TransferSource, StoreError> {
        TransferSource::open(self, context, subscriptions)
    }
}

impl Settings {
    fn journal(&self) -> Directory {
        Directory::new(&self.path.join("journal"))
    }

    fn ledger(&self) -> PathBuf {
        self.path.join("ledger.db")
    }

    fn audit(&self) -> PathBuf {
        self.path.join("audit.db")
    }

    /// Checks that the store exists, and that this user may use it. The ledger is not opened: to
    /// close it again would release the locks that this process has on it.
    fn require_ledger(&self) -> Result<(), StoreError> {
        let access = Access::READ_OK | Access::WRITE_OK;
        let path = || self.path.display().to_string();
        let read = StoreError::reading(&self.path);
        match rustix::fs::access(self.ledger(), access).map_err(io::Error::from) {
            Ok(()) => Ok(()),
            Err(error) => Err(match error.kind() {
                ErrorKind::NotFound | ErrorKind::NotADirectory => StoreError::Absent(path()),
                ErrorKind::PermissionDenied => StoreError::Foreign {
                    path: path(),
                    user: user::name(),
                },
                _ => read(error),
            }),
        }
    }
}

/// An open store. Dropping it ends its threads.
struct Embedded {
    shared: Arc<Shared>,
}

struct Shared {
    core: Arc<Core>,
    journal: Journal,
    ledger: Arc<Ledger>,
    queue: Arc<Queue>,
    threads: Mutex<Option<Threads>>,
}

/// What the threads of a store have in common.
struct Core {
    settings: Settings,
    context: Context,
    disk: Arc<dyn Disk>,
    /// The directory of the journal.
    directory: Directory,
    health: HealthReporter,
    damage: DamageLog,
    progress: Arc<Progress>,
}

/// The threads, besides the ledger's.
struct Threads {
    indexer: JoinHandle<()>,
    retention: JoinHandle<()>,
    stop_retention: mpsc::Sender<()>,
    journal: JoinHandle<()>,
    term_backfill: JoinHandle<()>,
    stop_term_backfill: mpsc::Sender<()>,
    /// Unlocked last.
    lock: File,
}

impl Embedded {
    /// Writes the changes of commands to the journal, while no service runs on the store.
    ///
    /// # Errors
    ///
    /// When a service runs, or the store cannot be read or written.
    fn flush_outbox(settings: &Settings, clock: fn() -> Timestamp) -> Result<(), StoreError> {
        let context = Context {
            metrics: Arc::default(),
            clock,
            rebuild: Arc::new(|_, _| {}),
        };
        let store = Self::open(settings, context, Arc::new(SystemDisk))?;
        // Each transaction of the ledger flushes the outbox.
        let ledger = &store.shared.ledger;
        ledger.run_blocking("writing changes to the journal", |_| Ok(()))
    }
}

impl Store for Embedded {
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        let shared = self.shared.clone();
        Box::pin(async move {
            let (sender, closed) = oneshot::channel();
            // Joining threads would block the caller's thread.
            start("close", move || {
                shared.close();
                sender.send(()).ok();
            })?;
            closed.await.map_err(|_| StoreError::Closed)
        })
    }
}

impl Append for Embedded {
    fn append(&self, event: Verified) -> BoxFuture<'_, Result<(), AppendError>> {
        Box::pin(pending::acknowledged(self.shared.journal.append(event)))
    }
}

impl Deliveries for Embedded {
    fn subscribe(&self, subscriptions: Vec<Subscription>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.shared.announce(&subscriptions)?;
            let subscribe = || {
                let asked = subscriptions.clone();
                let ledger = &self.shared.ledger;
                ledger.run("subscribing", |database| database.subscribe(asked))
            };
            // The first error may be damage, after which the ledger is rebuilt: then the second
            // attempt succeeds.
            match subscribe().await {
                Err(StoreError::Database { .. }) => subscribe().await?,
                subscribed => subscribed?,
            }
            self.shared.core.progress.subscribed();
            Ok(())
        })
    }

    fn claim(
        &self,
        handler: &HandlerName,
        at_most: usize,
        now: Timestamp,
    ) -> BoxFuture<'_, Result<Claims, StoreError>> {
        let handler = handler.clone();
        Box::pin(async move {
            let Shared { queue, ledger, .. } = &*self.shared;
            let fill = |handler: &HandlerName| {
                let handler = handler.clone();
                move |database: &mut LedgerDatabase| database.fill(&handler, now)
            };
            if queue.needs_fill(&handler, at_most, now) {
                ledger.read("reading deliveries", fill(&handler)).await?;
            }
            let claims = queue.claim(&handler, at_most, now);
            if queue.needs_prefetch(&handler) {
                ledger.read_ahead(fill(&handler));
            }
            Ok(claims)
        })
    }

    fn settle(
        &self,
        settlements: Arc<[Settlement]>,
    ) -> BoxFuture<'_, Result<Vec<Claim>, StoreError>> {
        Box::pin(async move {
            self.shared.queue.settle(&settlements);
            // The next delivery of a key is claimed like any other: claims are cheap in this
            // engine.
            Ok(Vec::new())
        })
    }

    fn work(&self) -> watch::Receiver<u64> {
        self.shared.queue.work()
    }
}

impl Monitored for Embedded {
    fn health(&self) -> watch::Receiver<Health> {
        self.shared.core.health.subscribe()
    }

    fn followers(&self) -> Followers {
        self.shared.core.health.followers().clone()
    }

    fn measure(&self, now: Timestamp) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let shared = self.shared.clone();
            let job = move |database: &mut LedgerDatabase| {
                let statistics = database.statistics()?;
                Ok((statistics, shared.space()))
            };
            let (statistics, space) = self.shared.ledger.run("measuring", job).await?;
            let metrics = &self.shared.core.context.metrics;
            for statistics in statistics {
                statistics.export(metrics, now);
            }
            metrics
                .ledger_lag
                .set(self.shared.core.progress.lag().cast_signed());
            let (journal, free) = space.map_err(StoreError::io("measuring the journal"))?;
            metrics.journal_bytes.set(journal.cast_signed());
            metrics.disk_free_bytes.set(free.cast_signed());
            Ok(())
        })
    }
}

impl Drop for Embedded {
    /// Waits for work in progress, so that the store can be opened again at once.
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    /// Ends the threads in the order of their dependencies. Blocks.
    fn close(&self) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(threads) = threads.take() {
            self.core.progress.stop();
            drop(threads.stop_retention);
            drop(threads.stop_term_backfill);
            threads.indexer.join().ok();
            threads.retention.join().ok();
            threads.term_backfill.join().ok();
            self.ledger.close();
            // After the ledger, whose last transaction writes to the journal.
            self.journal.close();
            threads.journal.join().ok();
            // Closing the file would not suffice: a process that is being spawned inherits it until
            // its `exec`.
            if let Err(error) = threads.lock.unlock() {
                tracing::warn!(%error, "the store's lock could not be released explicitly");
            }
        }
    }

    /// Writes the subscriptions that are in force from here on to the journal.
    fn announce(&self, subscriptions: &[Subscription]) -> Result<(), StoreError> {
        let now = (self.core.context.clock)();
        let record = Record::subscriptions(now, subscriptions);
        let record = record.map_err(|TooLarge(bytes)| {
            let what = format!("the subscriptions take {bytes} bytes, more than a record can have");
            StoreError::io(&what)(io::ErrorKind::FileTooLarge.into())
        })?;
        self.journal.head(record);
        Ok(())
    }

    /// The size of the journal and the free space on its disk, in bytes.
    fn space(&self) -> io::Result<(u64, u64)> {
        let core = &self.core;
        let free = core.disk.free(core.directory.path())?;
        Ok((core.directory.bytes(core.progress.end())?, free))
    }
}

/// Starts a thread.
fn start<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, StoreError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(StoreError::io("starting a thread of the store"))
}

/// Lowers the priority of the calling thread, so that under overload events are still accepted, and
/// deliveries take longer. On Linux each thread has a priority. Elsewhere the priority may be the
/// process's, and this does nothing.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(19) {
        tracing::debug!("the priority of a thread could not be lowered: {error}");
    }
}

impl StoreError {
    fn reading(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io {
            what: format!("reading {}", path.display()),
            error,
        }
    }

    fn writing(path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::writing_or(path, "")
    }

    /// The error of a store whose directory cannot be written.
    fn opening(path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::writing_or(
            path,
            "; give that user the folder of [store] path, or name another one",
        )
    }

    /// `help` is for a user who may not write.
    fn writing_or(path: &Path, help: &str) -> impl FnOnce(io::Error) -> Self {
        move |error| {
            let path = path.display();
            let what = match error.kind() {
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                    format!("the user {} cannot write {path}{help}", user::name())
                }
                _ => format!("writing {path}"),
            };
            Self::Io { what, error }
        }
    }
}
