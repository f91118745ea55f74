//! The ledger: a SQLite database of events and deliveries behind one thread. It is a view of the
//! journal.
//!
//! **Invariant:** an append never waits for the ledger.
//!
//! **Invariant:** a transaction that adds events also advances the watermark, so that each event is
//! added once.
//!
//! **Invariant:** only the [queue](super::queue) knows which deliveries can be attempted, and which
//! are in flight. The store's lock makes sure that one process has a queue.

mod consistency;
mod delivery;
mod export;
mod fill;
mod ingest;
mod listing;
mod operator;
mod ordering;
mod outbox;
mod parked;
mod progress;
mod replay;
mod retention;
pub(super) mod sqlite;
mod statistics;
mod subscriptions;
mod terms;
#[cfg(test)]
mod tests;
mod topics;

use std::{
    mem,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use jiff::Timestamp;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use self::{delivery::Tally, ingest::Ingested, subscriptions::ActiveHandler};
use super::{
    Core,
    journal::Journal,
    progress::Progress,
    queue::Queue,
    reader::EventReader,
    segment::{Position, Watermark},
};
use crate::{
    store::{Follower, StoreError, terms::TermHasher},
    telemetry::Metrics,
};

pub(super) use self::{operator::OperatorConnection, sqlite::copy, topics::TopicReader};

/// The most jobs in one transaction, and the most that wait.
const JOBS: usize = 64;

/// A handle to the ledger's thread.
pub(super) struct Ledger {
    /// The thread and the channel to it. Taken when the ledger is closed: the thread ends when the
    /// channel is closed.
    running: Mutex<Option<(mpsc::Sender<Job>, JoinHandle<()>)>>,
    path: PathBuf,
    /// Whether the ledger was not closed in order the last time.
    is_suspect: bool,
}

/// A job in a transaction.
struct Job {
    access: Access,
    work: Work,
}

/// Whether a job changes the database.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// The work of a job. It gets `None` if the transaction has failed already: then it only replies.
type Work = Box<dyn FnOnce(Option<&mut LedgerDatabase>) -> (rusqlite::Result<()>, Reply) + Send>;

/// Reports the end of the transaction, with its error if there was one.
type Reply = Box<dyn FnOnce(Option<String>) + Send>;

/// The state of the ledger's thread.
pub(super) struct LedgerDatabase {
    core: Arc<Core>,
    path: PathBuf,
    is_suspect: bool,
    /// Reports the thread's progress.
    follower: Follower,
    db: Connection,
    event_reader: EventReader,
    metrics: Arc<Metrics>,
    /// Notified when the ledger is reset.
    journal_progress: Arc<Progress>,
    subscriptions: Vec<ActiveHandler>,
    /// Computes what events are looked up by.
    hasher: TermHasher,
    /// The queue that dispatch works from.
    queue: Arc<Queue>,
    /// What the present transaction has ingested.
    ingested: Ingested,
    tally: Tally,
    /// Whether a damaged ledger was set aside, and no new one could be created yet.
    lost: bool,
    /// The channel for states of deliveries that go to the journal.
    journal: Journal,
    /// The position up to which the journal must be indexed before the queue hands out deliveries:
    /// a record there may say that one of them is done.
    awaited: Option<Position>,
}

impl Ledger {
    /// Starts the thread that owns `database`.
    pub(super) fn start(database: LedgerDatabase) -> Result<Self, StoreError> {
        let (sender, inbox) = mpsc::channel(JOBS);
        let (path, is_suspect) = (database.path.clone(), database.is_suspect);
        let health = database.core.health.clone();
        let thread = health.supervised("ledger", move || database.run(inbox));
        let thread = super::start("ledger", thread)?;
        Ok(Self {
            running: Mutex::new(Some((sender, thread))),
            path,
            is_suspect,
        })
    }

    /// Runs `job` in a transaction, and returns after its commit.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        job: impl FnOnce(&mut LedgerDatabase) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.submit(Access::Write, what, job).await
    }

    /// Runs `job`, which changes nothing in the database, before all waiting jobs that do.
    pub(super) async fn read(
        &self,
        what: &'static str,
        job: impl FnOnce(&mut LedgerDatabase) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<(), StoreError> {
        self.submit(Access::Read, what, job).await
    }

    async fn submit<T: Send + 'static>(
        &self,
        access: Access,
        what: &'static str,
        job: impl FnOnce(&mut LedgerDatabase) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (job, answer) = with_reply(access, what, job);
        let sent = self.sender()?.send(job).await;
        sent.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Runs a job like [`read`](Self::read) later, unless too many jobs wait.
    pub(super) fn read_ahead(
        &self,
        job: impl FnOnce(&mut LedgerDatabase) -> rusqlite::Result<()> + Send + 'static,
    ) {
        if let Ok(sender) = self.sender() {
            sender.try_send(with_reply(Access::Read, "", job).0).ok();
        }
    }

    /// The same as [`run`](Self::run), for the engine's own threads.
    pub(super) fn run_blocking<T: Send + 'static>(
        &self,
        what: &'static str,
        job: impl FnOnce(&mut LedgerDatabase) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (job, answer) = with_reply(Access::Write, what, job);
        let sent = self.sender()?.blocking_send(job);
        sent.map_err(|_| StoreError::Closed)?;
        answer.blocking_recv().map_err(|_| StoreError::Closed)?
    }

    /// The ledger's watermark, after the ledger has ingested what the queue has for it. Blocks.
    pub(super) fn watermark(&self) -> Result<Watermark, StoreError> {
        self.run_blocking("updating the ledger", |database| database.watermark())
    }

    /// Checks the whole database if it was not closed in order, and resets it if it is
    /// inconsistent: its files may have been copied one by one while a service ran. Deliveries go
    /// on meanwhile. Blocks.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        if self.is_suspect && !sqlite::is_sound(&self.path)? {
            // The same error that any other job would meet sooner or later.
            self.run_blocking("checking the ledger", |_| Err::<(), _>(sqlite::damage()))
                .ok();
        }
        Ok(())
    }

    fn sender(&self) -> Result<mpsc::Sender<Job>, StoreError> {
        let running = self.running();
        let sender = running.as_ref().map(|(sender, _)| sender.clone());
        sender.ok_or(StoreError::Closed)
    }

    /// Runs the waiting jobs, and ends the thread. Blocks.
    pub(super) fn close(&self) {
        let running = self.running().take();
        if let Some((sender, thread)) = running {
            drop(sender);
            thread.join().ok();
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<(mpsc::Sender<Job>, JoinHandle<()>)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `job` with a channel for its result.
fn with_reply<T: Send + 'static>(
    access: Access,
    what: &'static str,
    job: impl FnOnce(&mut LedgerDatabase) -> rusqlite::Result<T> + Send + 'static,
) -> (Job, oneshot::Receiver<Result<T, StoreError>>) {
    let (sender, answer) = oneshot::channel();
    let work = move |database: Option<&mut LedgerDatabase>| {
        let (done, outcome) = match database.map(job).transpose() {
            Ok(done) => (done, Ok(())),
            Err(error) => (None, Err(error)),
        };
        let reply = move |problem: Option<String>| {
            let answer = match (done, problem) {
                (Some(done), None) => Ok(done),
                (_, problem) => Err(StoreError::database(what)(problem.unwrap_or_default())),
            };
            // The caller may have gone. What was done stays done.
            sender.send(answer).ok();
        };
        (outcome, Box::new(reply) as Reply)
    };
    let work = Box::new(work);
    (Job { access, work }, answer)
}

impl LedgerDatabase {
    /// Opens the ledger, whose thread sends records to `journal` and fills `queue`.
    ///
    /// # Errors
    ///
    /// When the ledger cannot be read or written, or is of a later version.
    pub(super) fn open(
        core: Arc<Core>,
        journal: Journal,
        queue: Arc<Queue>,
    ) -> Result<Self, StoreError> {
        let path = core.settings.ledger();
        let followers = core.health.followers();
        let db = sqlite::open(&path, true)?;
        Ok(Self {
            hasher: hasher(&db)?,
            is_suspect: sqlite::is_suspect(&path),
            follower: followers.critical("ledger", "writing the ledger"),
            db,
            path,
            event_reader: EventReader::new(core.directory.clone()),
            metrics: core.context.metrics.clone(),
            journal_progress: core.progress.clone(),
            subscriptions: Vec::new(),
            queue,
            ingested: Ingested::default(),
            tally: Tally::default(),
            lost: false,
            journal,
            awaited: None,
            core,
        })
    }

    fn run(mut self, mut inbox: mpsc::Receiver<Job>) {
        super::lower_priority();
        let mut jobs = Vec::with_capacity(JOBS);
        while inbox.blocking_recv_many(&mut jobs, JOBS) > 0 {
            // Handlers wait for reads, and no read needs a write that waits.
            let reads = jobs.extract_if(.., |job| job.access == Access::Read);
            let reads = reads.collect();
            self.transact(Access::Read, reads);
            self.transact(Access::Write, mem::take(&mut jobs));
        }
        // SQLite merges the write-ahead log into the database when the last connection is closed.
        if let Err((_, error)) = self.db.close() {
            tracing::warn!("the ledger was not closed cleanly: {error}");
        }
    }

    /// Runs all of `jobs` in one transaction, or none of them.
    fn transact(&mut self, access: Access, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        self.follower.started();
        let mut replies = Vec::new();
        let outcome = self.attempt(access, jobs, &mut replies);
        self.tally.clear();
        let ingested = mem::take(&mut self.ingested);
        let problem = match outcome {
            Ok(()) => {
                self.follower.progressed();
                self.finish_ingest(ingested);
                None
            }
            Err(error) => {
                self.queue.give_back(ingested.batch, ingested.updates);
                self.recover(&error);
                Some(error.to_string())
            }
        };
        for reply in replies {
            reply(problem.clone());
        }
    }

    fn attempt(
        &mut self,
        access: Access,
        jobs: Vec<Job>,
        replies: &mut Vec<Reply>,
    ) -> rusqlite::Result<()> {
        let mut outcome = match access {
            Access::Read => self.db.execute_batch("BEGIN"),
            Access::Write => self.db.execute_batch("BEGIN IMMEDIATE"),
        };
        if access == Access::Write {
            outcome = outcome.and_then(|()| self.ingest());
        }
        for job in jobs {
            let (own, reply) = (job.work)(outcome.is_ok().then_some(self));
            outcome = outcome.and(own);
            replies.push(reply);
        }
        outcome?;
        if access == Access::Write {
            self.tally.write(&self.db)?;
            self.flush_outbox()?;
        }
        self.db.execute_batch("COMMIT")
    }

    /// Rolls a failed transaction back, and resets the ledger if it is damaged.
    fn recover(&mut self, error: &rusqlite::Error) {
        if !self.db.is_autocommit()
            && let Err(error) = self.db.execute_batch("ROLLBACK")
        {
            tracing::warn!("a transaction of the ledger could not be rolled back: {error}");
        }
        let is_broken = sqlite::is_corruption(error)
            || self.is_suspect && sqlite::is_constraint_violation(error);
        if !is_broken && !self.lost {
            if self.follower.failed(error) {
                tracing::warn!("the ledger could not be written: {error}");
            }
            return;
        }
        self.lost = true;
        match self.reset("it is damaged") {
            // A new ledger is consistent. The next failure must not reset it again.
            Ok(()) => (self.lost, self.is_suspect) = (false, false),
            Err(error) if self.follower.failed(&error) => {
                tracing::error!("no new ledger could be created: {error}");
            }
            Err(_) => {}
        }
    }

    /// Sets the ledger aside because of `why`, and creates a new one.
    pub(super) fn reset(&mut self, why: &str) -> Result<(), StoreError> {
        let memory = Connection::open_in_memory()
            .map_err(StoreError::database("setting the ledger aside"))?;
        // A database must not be renamed under an open connection.
        drop(mem::replace(&mut self.db, memory));
        sqlite::set_aside(&self.path, why)?;
        self.db = sqlite::open(&self.path, true)?;
        self.hasher = hasher(&self.db)?;
        self.queue.begin(Watermark::default(), None);
        self.awaited = Some(self.journal_progress.end());
        self.journal_progress.ledger_was_reset();
        let configured = self
            .subscriptions
            .iter()
            .map(|active| active.subscription.clone());
        let subscriptions = configured.collect();
        self.subscribe(subscriptions)
            .map_err(StoreError::database("writing the new ledger"))
    }
}

fn hasher(db: &Connection) -> Result<TermHasher, StoreError> {
    terms::hasher(db).map_err(StoreError::database("reading the ledger"))
}

/// The time in microseconds since 1970, as the tables have it.
fn micros(time: Timestamp) -> i64 {
    time.as_microsecond()
}

/// Reverses [`micros`].
fn time(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH)
}
