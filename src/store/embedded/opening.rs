//! Opening a store: locks it, recovers the journal, makes the ledger consistent, starts the threads.

use std::{
    collections::HashMap,
    fs::{File, TryLockError},
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use jiff::Timestamp;

use super::{
    Embedded, Settings, Shared, Threads, backfill,
    deduplicator::Deduplicator,
    disk::{self, Disk},
    indexer::Indexer,
    journal::{self, Journal, JournalConfig},
    ledger::{Ledger, LedgerDatabase, Watermark},
    progress::Progress,
    queue::Queue,
    reader::{DamageLog, Directory},
    recovery::{self, Tail},
    retention::Retention,
    segment::Position,
    start,
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
        let (directory, now) = (settings.journal(), (context.clock)());
        let damage = DamageLog::new(context.metrics.clone());
        let health = HealthReporter::new(Health::Sound, context.metrics.clone());
        let progress = Arc::<Progress>::default();
        let (journal_sender, receiver) = journal::channel();
        let queue = Arc::new(Queue::new(journal_sender.clone()));
        let mut database = LedgerDatabase::open(
            &settings.ledger(),
            directory.clone(),
            &context,
            progress.clone(),
            &health,
            journal_sender.clone(),
            queue.clone(),
        )?;
        let tail = recovery::recover(&directory, database.through()?, now, &damage)?;
        let tail = reconcile(&mut database, &directory, tail, now)?;
        let recovered = tail.end();
        let tail = backfill::backfill(&mut database, &directory, tail, now)?;
        let watermark = database.wait_for(tail.end());
        let watermark = watermark.map_err(StoreError::database("reading the ledger"))?;
        let ledger = Arc::new(Ledger::start(database, &health)?);
        progress.written(tail.end(), tail.records_through(), None);
        let config = JournalConfig {
            directory: directory.clone(),
            segment_bytes: settings.segment,
            reserve_bytes: settings.reserve,
            disk: disk.clone(),
            clock: context.clock,
            metrics: context.metrics.clone(),
            health: health.clone(),
            progress: progress.clone(),
        };
        let mut shared = Shared {
            journal: Journal::start(config, tail, (journal_sender.clone(), receiver))?,
            health,
            journal_sender,
            ledger,
            queue,
            progress,
            directory,
            context,
            disk,
            threads: Mutex::default(),
        };
        let threads = Threads::start(&shared, settings, lock, damage, recovered, watermark)?;
        let running = shared.threads.get_mut();
        *running.unwrap_or_else(PoisonError::into_inner) = Some(threads);
        Ok(Self {
            shared: Arc::new(shared),
        })
    }
}

impl Threads {
    /// Starts the indexer at `watermark`, and retention. `recovered` is the end of the recovered
    /// journal.
    fn start(
        shared: &Shared,
        settings: &Settings,
        lock: File,
        damage: DamageLog,
        recovered: Position,
        watermark: Watermark,
    ) -> Result<Self, StoreError> {
        let followers = shared.health.followers();
        let index = settings.path.join("seen.table");
        let deduplicator = Deduplicator::open(&index, &shared.directory);
        let indexer = Indexer {
            directory: shared.directory.clone(),
            ledger: shared.ledger.clone(),
            queue: shared.queue.clone(),
            topic_reader: None,
            path: settings.ledger(),
            progress: shared.progress.clone(),
            damage,
            rebuild: shared.context.rebuild.clone(),
            deduplicator: deduplicator.map_err(StoreError::reading(&index))?,
            own: Some(recovered),
            through: watermark.through,
            records: watermark.records,
            scan: None,
            rebuilding: None,
            follower: followers.critical("indexer", "indexing the journal"),
        };
        let retention = Retention {
            directory: shared.directory.clone(),
            ledger: shared.ledger.clone(),
            progress: shared.progress.clone(),
            retain: settings.retain,
            follower: followers.background("retention", "deleting old segments"),
            clock: shared.context.clock,
            journal_sender: shared.journal_sender.clone(),
            restated_in: HashMap::new(),
        };
        let (stop_retention, stop) = mpsc::channel();
        let (index, retain) = (move || indexer.run(), move || retention.run(&stop));
        Ok(Self {
            indexer: start("indexer", shared.health.supervised("indexer", index))?,
            retention: start("retention", shared.health.supervised("retention", retain))?,
            stop_retention,
            lock,
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
        let end = Watermark {
            through: tail.end(),
            records: tail.records_through(),
        };
        let truncation = database.truncate(lost, end)?;
        tracing::error!(
            journal.segment = lost.segment(),
            journal.offset = lost.offset(),
            ledger.segment = known.segment(),
            ledger.offset = known.offset(),
            events = truncation.events,
            parked = truncation.parked,
            "the journal ends before the ledger's watermark: stored events are lost, and their \
             unfinished deliveries are parked"
        );
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
