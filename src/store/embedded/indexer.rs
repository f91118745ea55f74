//! Indexes the journal: reads what the writer has synced, and passes it to the queue at once and to
//! the ledger in large batches.

use std::{
    fmt::Display,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    Core,
    deduplicator::Deduplicator,
    journal::JournalBatch,
    ledger::{Ledger, TopicReader},
    queue::{Queue, TopicTime},
    reader::{Directory, Scan, ScanItem},
    record::{self, Content, Personal},
    segment::{HEADER_BYTES, Position, Watermark},
};
use crate::store::{Follower, StoreError};

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
    core: Arc<Core>,
    ledger: Arc<Ledger>,
    queue: Arc<Queue>,
    topic_reader: TopicReader,
    deduplicator: Deduplicator,
    /// The end of the journal when the ledger was opened. The ledger already has the states of
    /// deliveries behind it, since this process has written them. `None` after the ledger was
    /// reset.
    own: Option<Position>,
    /// How far the journal has been read.
    watermark: Watermark,
    /// The segment that is being read.
    scan: Option<Scan>,
    /// The rebuild in progress.
    rebuilding: Option<Rebuilding>,
    /// Reports the thread's progress.
    follower: Follower,
}

/// The rebuild of a ledger.
struct Rebuilding {
    /// The number of records before the oldest segment.
    base: u64,
    /// The number of records in the journal when the rebuild began.
    total: u64,
    /// The time of the last log line.
    logged_at: Instant,
}

impl Indexer {
    /// An indexer that continues at `watermark`. `recovered` is the end of the recovered journal.
    pub(super) fn new(
        core: Arc<Core>,
        ledger: Arc<Ledger>,
        queue: Arc<Queue>,
        recovered: Position,
        watermark: Watermark,
    ) -> Result<Self, StoreError> {
        let index = core.settings.path.join("seen.table");
        let deduplicator = Deduplicator::open(&index, &core.directory);
        let followers = core.health.followers();
        Ok(Self {
            topic_reader: TopicReader::new(core.settings.ledger()),
            deduplicator: deduplicator.map_err(StoreError::reading(&index))?,
            own: Some(recovered),
            watermark,
            scan: None,
            rebuilding: None,
            follower: followers.critical("indexer", "indexing the journal"),
            core,
            ledger,
            queue,
        })
    }

    /// Indexes until the store is closed.
    pub(super) fn run(mut self) {
        super::lower_priority();
        self.core.progress.indexed(self.watermark.records);
        self.rebuild_deduplicator();
        self.notice_rebuild();
        let mut looked = Instant::now();
        loop {
            let due = self.queue.is_due_at();
            let until = due.unwrap_or_else(|| looked + LOOK_EVERY);
            let end = self.core.progress.beyond(self.watermark, until);
            self.follower.started();
            let done = self.advance(end).and_then(|()| {
                if end.is_none() || self.queue.is_due_at().unwrap_or(until) <= Instant::now() {
                    looked = Instant::now();
                    let ingested = self.ledger.watermark()?;
                    self.report_rebuild(ingested.records);
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
        let watermark = self.watermark;
        while let Some(gap) = self.deduplicator.take_gap() {
            self.watermark.through = gap.min(watermark.through);
            self.scan = None;
            self.index_until(watermark.through);
        }
        self.follower.progressed();
        (self.watermark, self.scan) = (watermark, None);
    }

    /// Reads the journal up to `through`, unless the store closes or the index is damaged again.
    fn index_until(&mut self, through: Position) {
        let mut logged_at = Instant::now();
        while self.watermark.through < through && !self.core.progress.is_stopped() {
            self.follower.started();
            let batch = self.read(through);
            match batch.and_then(|batch| self.without_duplicates(batch)) {
                // A segment may have lost its end since the ledger read it.
                Ok(batch) if batch.through == self.watermark.through => break,
                Ok(batch) => {
                    self.watermark.through = batch.through;
                    self.follower.progressed();
                }
                Err(_) if self.deduplicator.has_gap() => break,
                Err(problem) => {
                    self.failed("the deduplication index cannot be completed", &problem);
                }
            }
            if logged_at.elapsed() >= LOG_INTERVAL {
                tracing::info!(
                    journal.segment = self.watermark.through.segment(),
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
        self.core.progress.pause()
    }

    /// Indexes the next batch before `end`, if there is one.
    fn advance(&mut self, end: Option<Position>) -> Result<(), StoreError> {
        let before = self.watermark.through;
        let mut expected = before;
        if let Some(end) = end.filter(|end| before < *end) {
            let batch = self.next(end);
            let batch = batch.and_then(|batch| self.without_duplicates(batch));
            let batch = batch.map_err(StoreError::io("reading the journal"))?;
            expected = batch.through;
            if batch.through > batch.from {
                let topic_times = self.topic_times(&batch);
                self.queue.ingest(batch, &topic_times);
            }
        }
        self.watermark = self.queue.watermark();
        if self.watermark.through != expected {
            self.scan = None;
        }
        if self.watermark.through < before {
            // The ledger has been reset.
            self.own = None;
            self.topic_reader.close();
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
        self.topic_reader.read(unknown).unwrap_or_else(|error| {
            tracing::debug!("topics cannot be looked up: {error}");
            Vec::new()
        })
    }

    /// The next batch, as it waits in memory, or else from the disk.
    fn next(&mut self, end: Position) -> io::Result<JournalBatch> {
        // The writer passes events only. The ledger has this process's own states of deliveries
        // already.
        let from = self.watermark.through;
        if self.own.is_none_or(|own| from < own) {
            return self.read(end);
        }
        match self.core.progress.take_from(from) {
            Ok(batch) => {
                self.scan = None;
                Ok(batch)
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
        if self.deduplicator.is_due() {
            self.deduplicator.sync()?;
        }
        Ok(batch)
    }

    fn read(&mut self, end: Position) -> io::Result<JournalBatch> {
        let mut batch = JournalBatch {
            records: self.watermark.records,
            ..JournalBatch::behind(self.watermark.through)
        };
        let (mut records_read, mut bytes_read) = (0, 0);
        while records_read < BATCH_RECORDS && bytes_read < BATCH_BYTES && batch.through < end {
            match self.step(&mut batch, end)? {
                Some(ScanItem::Record { position, bytes }) => {
                    batch.records += 1;
                    records_read += 1;
                    bytes_read += bytes.len();
                    let content = self.content(position, &bytes);
                    batch
                        .contents
                        .extend(content.map(|content| (position, content)));
                }
                Some(ScanItem::Damage { position, bytes }) => {
                    let damage = &self.core.damage;
                    damage.report(position, bytes, "records fail their checksum");
                }
                None => break,
            }
        }
        Ok(batch)
    }

    /// The content of a record, unless it is unreadable, or the ledger has it.
    fn content(&self, position: Position, bytes: &Bytes) -> Option<Content> {
        let content = record::content(bytes, position);
        let damage = match &content {
            Some(Content::Deliveries(_) | Content::Inventory(..)) => {
                let is_own = self.own.is_some_and(|own| own <= position);
                return content.filter(|_| !is_own);
            }
            Some(Content::Event(event)) if event.personal == Personal::Damaged => {
                "an event fails its checksum"
            }
            Some(_) => return content,
            None => "a record is not readable",
        };
        self.core
            .damage
            .report(position, bytes.len() as u64, damage);
        content
    }

    /// The next step of the scan, which moves `batch.through`. `None` when the batch is complete.
    fn step(&mut self, batch: &mut JournalBatch, end: Position) -> io::Result<Option<ScanItem>> {
        loop {
            let scan = match &mut self.scan {
                Some(scan) => scan,
                closed => closed.insert(open(&self.core.directory, batch)?),
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
        let total = self.core.progress.records();
        if self.watermark.through == Position::default() && total > 0 {
            let directory = &self.core.directory;
            let first = directory.first_from(0).ok().flatten();
            let header = first.and_then(|number| directory.header(number).ok().flatten());
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
        (self.core.context.rebuild)(done, all);
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
    let number = directory.first_from(wanted)?;
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
