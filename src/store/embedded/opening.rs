//! Opening a store: locks it, recovers the journal, makes the ledger consistent, starts the threads.

use std::{
    fs::{File, TryLockError},
    path::Path,
    sync::{Arc, Mutex, mpsc},
};

use jiff::Timestamp;

use super::{
    Core, Embedded, Settings, Shared, Threads, backfill,
    disk::{self, Disk},
    indexer::Indexer,
    journal::Journal,
    ledger::{Ledger, LedgerDatabase},
    queue::Queue,
    reader::{DamageLog, Directory},
    recovery::{self, Tail},
    retention::Retention,
    start,
    term_backfill::TermBackfill,
};
use crate::store::{Context, Health, StoreError, health::HealthReporter};

impl Embedded {
    /// Opens the store, and creates it if it does not exist.
    pub(super) fn open(
        settings: &Settings,
        context: Context,
        disk: Arc<dyn Disk>,
    ) -> Result<Self, StoreError> {
        let path = &settings.path;
        disk::create_dir(path).map_err(StoreError::opening(path))?;
        let lock = lock(path)?;
        let now = (context.clock)();
        let core = Arc::new(Core {
            settings: settings.clone(),
            disk,
            directory: settings.journal(),
            health: HealthReporter::new(Health::Sound, context.metrics.clone()),
            damage: DamageLog::new(context.metrics.clone()),
            progress: Arc::default(),
            context,
        });
        let (journal, receiver) = Journal::new(core.health.clone());
        let queue = Arc::new(Queue::new(journal.clone()));
        let mut database = LedgerDatabase::open(core.clone(), journal.clone(), queue.clone())?;
        let tail = recovery::recover(&core.directory, database.through()?, now, &core.damage)?;
        let tail = reconcile(&mut database, &core.directory, tail, now)?;
        let recovered = tail.end();
        let tail = backfill::backfill(&mut database, &core.directory, tail, now)?;
        let watermark = database.wait_for(tail.end());
        let watermark = watermark.map_err(StoreError::database("reading the ledger"))?;
        let ledger = Arc::new(Ledger::start(database)?);
        core.progress.written(tail.watermark(), None);
        let writer = journal.start(receiver, core.clone(), tail)?;
        let indexer = Indexer::new(
            core.clone(),
            ledger.clone(),
            queue.clone(),
            recovered,
            watermark,
        )?;
        let retention = Retention::new(core.clone(), ledger.clone(), journal.clone());
        let term_backfill = TermBackfill::new(core.clone(), ledger.clone());
        let (stop_retention, stop) = mpsc::channel();
        let (stop_term_backfill, stop_terms) = mpsc::channel();
        let (index, retain) = (move || indexer.run(), move || retention.run(&stop));
        let add_terms = move || term_backfill.run(&stop_terms);
        let threads = Threads {
            term_backfill: start("terms", core.health.supervised("terms", add_terms))?,
            stop_term_backfill,
            indexer: start("indexer", core.health.supervised("indexer", index))?,
            retention: start("retention", core.health.supervised("retention", retain))?,
            stop_retention,
            journal: writer,
            lock,
        };
        Ok(Self {
            shared: Arc::new(Shared {
                core,
                journal,
                ledger,
                queue,
                threads: Mutex::new(Some(threads)),
            }),
        })
    }
}

/// Makes sure that the ledger matches the journal, which ends with `tail`, and that new records get
/// positions that the ledger has not seen. Interrupted at any point, this can be repeated.
fn reconcile(
    database: &mut LedgerDatabase,
    directory: &Directory,
    tail: Tail,
    now: Timestamp,
) -> Result<Tail, StoreError> {
    if !database.is_consistent(directory, tail.end())? {
        database.reset("it does not match the journal, or is inconsistent")?;
    }
    let known = database.through()?;
    let (tail, lost) = recovery::skip_used_positions(directory, tail, known, now)
        .map_err(StoreError::writing(directory.path()))?;
    if let Some(lost) = lost {
        database.truncate(lost, tail.watermark())?;
    }
    Ok(tail)
}

/// Makes sure that no other service runs on the store.
fn lock(path: &Path) -> Result<File, StoreError> {
    let file = disk::create_file(&path.join("lock")).map_err(StoreError::opening(path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(path.display().to_string())),
        Err(TryLockError::Error(error)) => Err(StoreError::writing(path)(error)),
    }
}
