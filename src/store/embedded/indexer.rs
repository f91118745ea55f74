//! Indexes the journal: reads what the writer has synced, and passes it to the queue at once and to
//! the ledger in large batches.

use std::{
    fmt::Display,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    deduplicator::Deduplicator,
    journal::JournalBatch,
    ledger::{Ledger, TopicReader},
    progress::Progress,
    queue::{Queue, TopicTime},
    reader::{DamageLog, Directory, Scan, ScanItem},
    record::{self, Content, Invalid, Personal},
    segment::{HEADER_BYTES, Position},
};
use crate::store::Follower;

/// The most records of one batch.
const BATCH_RECORDS: usize = 4096;

/// The most bytes of one batch, on disk. States of deliveries take some six times as much in memory.
const BATCH_BYTES: usize = 1 << 20;

/// The interval of transactions without new records: the outbox may have changes of commands.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The interval of log lines on the progress of a rebuild.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// The indexer's thread.
pub(super) struct Indexer {
    pub(super) directory: Directory,
    pub(super) ledger: Arc<Ledger>,
    pub(super) queue: Arc<Queue>,
    /// Reads the ledger's topics, while that is possible.
    pub(super) topic_reader: Option<TopicReader>,
    /// The path of the ledger.
    pub(super) path: PathBuf,
    pub(super) progress: Arc<Progress>,
    pub(super) damage: DamageLog,
    /// Recognizes duplicates.
    pub(super) deduplicator: Deduplicator,
    /// Called with (done, total) records while a ledger is rebuilt.
    pub(super) rebuild: Arc<dyn Fn(u64, u64) + Send + Sync>,
    /// The end of the journal when the ledger was opened. The ledger already has the states of
    /// deliveries behind it, since this process has written them. `None` after the ledger was
    /// reset.
    pub(super) own: Option<Position>,
    /// The position up to which the journal has been read.
    pub(super) through: Position,
    /// The number of records up to there.
    pub(super) records: u64,
    /// The segment that is being read.
    pub(super) scan: Option<Scan>,
    /// The rebuild in progress.
    pub(super) rebuilding: Option<Rebuilding>,
    /// Reports the thread's progress.
    pub(super) follower: Follower,
}

/// The rebuild of a ledger.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rebuilding {
    /// The number of records before the oldest segment.
    base: u64,
    /// The number of records in the journal when the rebuild began.
    total: u64,
    /// The time of the last log line.
    logged_at: Instant,
}

impl Indexer {
    /// Indexes until the store is closed.
    pub(super) fn run(mut self) {
        super::lower_priority();
        self.progress.indexed(self.records);
        self.rebuild_deduplicator();
        self.notice_rebuild();
        let mut looked = Instant::now();
        loop {
            let due = self.queue.is_due_at();
            let until = due.unwrap_or_else(|| looked + LOOK_EVERY);
            let end = self.progress.beyond((self.through, self.records), until);
            self.follower.started();
            let done = self.advance(end).and_then(|()| {
                if end.is_none() || self.queue.is_due_at().unwrap_or(until) <= Instant::now() {
                    looked = Instant::now();
                    self.bring_up_to_date()?;
                }
                Ok(())
            });
            match done {
                Ok(()) => self.follower.progressed(),
                // The deduplicator now has an empty index, which has to be rebuilt first.
                Err(_) if self.deduplicator.has_gap() => self.rebuild_deduplicator(),
                Err(problem) => drop(self.failed("the journal cannot be indexed", &problem)),
            }
            if end.is_none() {
                break;
            }
        }
        if let Err(problem) = self.deduplicator.sync() {
            tracing::warn!(
                "the deduplication index could not be synced, and will be completed at the next start: {problem}"
            );
        }
    }

    /// Restores the deduplication index up to the present position, as far as it may lack events
    /// after a loss of power or damage.
    fn rebuild_deduplicator(&mut self) {
        let (through, records) = (self.through, self.records);
        while let Some(gap) = self.deduplicator.take_gap() {
            (self.through, self.scan) = (gap.min(through), None);
            self.index_until(through);
        }
        self.follower.progressed();
        (self.through, self.records, self.scan) = (through, records, None);
    }

    /// Reads the journal up to `through`, unless the store closes or the index is damaged again.
    fn index_until(&mut self, through: Position) {
        let mut logged_at = Instant::now();
        while self.through < through && !self.progress.is_stopped() {
            self.follower.started();
            match self.read(through) {
                // A segment may have lost its end since the ledger read it.
                Ok(batch) if batch.through == self.through => break,
                Ok(batch) => {
                    self.through = batch.through;
                    self.follower.progressed();
                }
                Err(_) if self.deduplicator.has_gap() => break,
                Err(problem) => {
                    self.failed("the deduplication index cannot be completed", &problem);
                }
            }
            if logged_at.elapsed() >= LOG_INTERVAL {
                tracing::info!(
                    journal.segment = self.through.segment(),
                    journal.last = through.segment(),
                    "the deduplication index is being completed"
                );
                logged_at = Instant::now();
            }
        }
    }

    /// Reports a failure, and pauses. Returns `false` when indexing is to end.
    fn failed(&mut self, what: &str, problem: &impl Display) -> bool {
        if self.follower.failed(problem) {
            tracing::warn!("{what}: {problem}");
        }
        self.scan = None;
        self.progress.pause()
    }

    /// Indexes the next batch before `end`, if there is one.
    fn advance(&mut self, end: Option<Position>) -> Result<(), super::StoreError> {
        let mut expected = self.through;
        if let Some(end) = end.filter(|end| self.through < *end) {
            let batch = self.next(end);
            let batch = batch.map_err(super::StoreError::io("reading the journal"))?;
            expected = batch.through;
            if batch.through > batch.from {
                let topic_times = self.topic_times(&batch);
                self.queue.ingest(batch, &topic_times);
            }
        }
        let watermark = self.queue.watermark();
        let is_behind = watermark.through < self.through;
        if watermark.through != expected {
            self.scan = None;
        }
        (self.through, self.records) = (watermark.through, watermark.records);
        if is_behind {
            // The ledger has been reset.
            (self.own, self.topic_reader) = (None, None);
            self.notice_rebuild();
        }
        Ok(())
    }

    /// The ledger's times of topics in `batch` that the queue does not know. Without access to the
    /// ledger the result is empty, and the queue gets the times later.
    fn topic_times(&mut self, batch: &JournalBatch) -> Vec<TopicTime> {
        if !self.queue.is_live() {
            return Vec::new();
        }
        let unknown = self.queue.missing_topics(batch.events());
        if unknown.is_empty() {
            return Vec::new();
        }
        if self.topic_reader.is_none() {
            self.topic_reader = TopicReader::open(&self.path).ok();
        }
        let topic_times = self
            .topic_reader
            .as_ref()
            .map(|topic_reader| topic_reader.topic_times(unknown));
        match topic_times {
            Some(Ok(topic_times)) => topic_times,
            Some(Err(error)) => {
                tracing::debug!("topics cannot be looked up: {error}");
                self.topic_reader = None;
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// Has the ledger ingest what it lacks.
    fn bring_up_to_date(&mut self) -> Result<(), super::StoreError> {
        let watermark = self
            .ledger
            .run_blocking("indexing the journal", |database| database.watermark())?;
        self.report_rebuild(watermark.records);
        Ok(())
    }

    /// The next batch, as it waits in memory, or else from the disk.
    fn next(&mut self, end: Position) -> io::Result<JournalBatch> {
        // The writer passes events only. The ledger has this process's own states of deliveries
        // already.
        if self.own.is_none_or(|own| self.through < own) {
            return self.read(end);
        }
        match self.progress.take_from(self.through) {
            Ok(batch) => {
                self.scan = None;
                self.without_duplicates(batch)
            }
            Err(until) => self.read(until.unwrap_or(end).min(end)),
        }
    }

    fn without_duplicates(&mut self, mut batch: JournalBatch) -> io::Result<JournalBatch> {
        let mut contents = Vec::with_capacity(batch.contents.len());
        for (position, content) in batch.contents {
            match &content {
                Content::Event(event)
                    if self
                        .deduplicator
                        .is_duplicate(position, &event.notification)? =>
                {
                    batch.duplicates += 1;
                }
                _ => contents.push((position, content)),
            }
        }
        batch.contents = contents;
        self.sync_deduplicator()?;
        Ok(batch)
    }

    fn sync_deduplicator(&mut self) -> io::Result<()> {
        match self.deduplicator.is_due() {
            true => self.deduplicator.sync(),
            false => Ok(()),
        }
    }

    fn read(&mut self, end: Position) -> io::Result<JournalBatch> {
        let mut batch = JournalBatch {
            records: self.records,
            ..JournalBatch::behind(self.through)
        };
        let (mut records_read, mut bytes_read) = (0, 0);
        while records_read < BATCH_RECORDS && bytes_read < BATCH_BYTES && batch.through < end {
            match self.step(&mut batch, end)? {
                Some(ScanItem::Record { position, bytes }) => {
                    batch.records += 1;
                    records_read += 1;
                    bytes_read += bytes.len();
                    self.ingest(&mut batch, position, &bytes)?;
                }
                Some(ScanItem::Damage { position, bytes }) => {
                    self.damage
                        .report(position, bytes, "records fail their checksum");
                }
                None => break,
            }
        }
        self.sync_deduplicator()?;
        Ok(batch)
    }

    /// Adds the content of a record to `batch`, unless the ledger has it.
    fn ingest(
        &mut self,
        batch: &mut JournalBatch,
        position: Position,
        bytes: &Bytes,
    ) -> io::Result<()> {
        let is_own = self.own.is_some_and(|own| own <= position);
        let content = match record::content(bytes, position) {
            Ok(Content::Deliveries(_) | Content::Inventory(..)) if is_own => return Ok(()),
            Ok(Content::Event(event)) => {
                if event.personal == Personal::Damaged {
                    self.report_damage(position, bytes, "an event fails its checksum");
                }
                if self
                    .deduplicator
                    .is_duplicate(position, &event.notification)?
                {
                    batch.duplicates += 1;
                    return Ok(());
                }
                Content::Event(event)
            }
            Ok(content) => content,
            Err(Invalid) => {
                self.report_damage(position, bytes, "a record is not readable");
                return Ok(());
            }
        };
        batch.contents.push((position, content));
        Ok(())
    }

    fn report_damage(&self, position: Position, bytes: &Bytes, what: &'static str) {
        self.damage.report(position, bytes.len() as u64, what);
    }

    /// The next step of the scan, which moves `batch.through`. `None` when the batch is complete.
    fn step(&mut self, batch: &mut JournalBatch, end: Position) -> io::Result<Option<ScanItem>> {
        loop {
            let scan = match &mut self.scan {
                Some(scan) => scan,
                closed => closed.insert(open(&self.directory, batch)?),
            };
            if scan.position().segment() == end.segment() {
                scan.set_end(end.offset())?;
            }
            if let Some(step) = scan.next()? {
                batch.through = scan.position();
                return Ok(Some(step));
            }
            if scan.position().segment() >= end.segment() {
                // Behind the header of an empty segment, which need not be read again.
                batch.through = scan.position();
                return Ok(None);
            }
            // The segment may have grown before the next one was begun.
            if scan.extend()? {
                continue;
            }
            let after = scan.position().segment() + 1;
            batch.through = Position::new(after, 0);
            self.scan = None;
        }
    }

    fn notice_rebuild(&mut self) {
        let total = self.progress.records();
        if self.through == Position::default() && total > 0 {
            let first = self.directory.segments().ok();
            let first = first.and_then(|numbers| numbers.first().copied());
            let header = first.and_then(|number| self.directory.header(number).ok().flatten());
            let base = header.map_or(0, |header| header.records_before);
            tracing::info!(
                records = total - base,
                "the ledger is being rebuilt from the journal"
            );
            self.rebuilding = Some(Rebuilding {
                base,
                total,
                logged_at: Instant::now(),
            });
        }
    }

    fn report_rebuild(&mut self, records: u64) {
        let Some(Rebuilding {
            base,
            total,
            logged_at,
        }) = &mut self.rebuilding
        else {
            return;
        };
        let all = total.saturating_sub(*base);
        let done = records.saturating_sub(*base).min(all);
        (self.rebuild)(done, all);
        if done >= all {
            tracing::info!("the ledger has been rebuilt");
            self.rebuilding = None;
        } else if logged_at.elapsed() >= LOG_INTERVAL {
            tracing::info!(done, all, "the ledger is being rebuilt");
            *logged_at = Instant::now();
        }
    }
}

/// Opens the segment in which `batch` continues: the present one, or the first existing one after
/// it.
fn open(directory: &Directory, batch: &mut JournalBatch) -> io::Result<Scan> {
    let wanted = batch.through.segment();
    let numbers = directory.segments()?;
    let number = numbers.into_iter().find(|number| *number >= wanted);
    let number = number.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    if number != wanted {
        batch.through = Position::new(number, 0);
    }
    if batch.through.offset() <= HEADER_BYTES as u64 {
        let header = directory.header(number).map_err(io::Error::other)?;
        batch.records = header.map_or(batch.records, |header| header.records_before);
    }
    Scan::open(directory, batch.through)
}
