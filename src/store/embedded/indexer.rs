//! Reads behind the journal's writer: what it finds goes to the queue at once, and to the ledger in large
//! batches.

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
    ledger::{JournalBatch, Ledger, TopicReader},
    progress::Progress,
    queue::{Queue, TopicTime},
    reader::{DamageLog, Directory, Scan, ScanItem},
    record::{self, Content, Invalid, Personal},
    segment::{HEADER_BYTES, Position},
};
use crate::store::Follower;

/// The most records that are read at one go.
const BATCH_RECORDS: usize = 4096;

/// The most bytes.
const BATCH_BYTES: usize = 4 << 20;

/// How often the ledger is looked at though nothing comes: commands leave word there.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often the log says how far a view is that is made anew.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// The thread that indexes.
pub(super) struct Indexer {
    pub(super) directory: Directory,
    pub(super) ledger: Arc<Ledger>,
    pub(super) queue: Arc<Queue>,
    /// What the ledger knows of topics, while that can be asked.
    pub(super) topic_reader: Option<TopicReader>,
    /// Where the ledger is.
    pub(super) path: PathBuf,
    pub(super) progress: Arc<Progress>,
    pub(super) damage: DamageLog,
    /// What copies are told by.
    pub(super) deduplicator: Deduplicator,
    /// Called with (done, total) while a ledger is rebuilt.
    pub(super) rebuild: Arc<dyn Fn(u64, u64) + Send + Sync>,
    /// Where the journal ended when the ledger was opened: the ledger knows what is said of deliveries behind
    /// that, since this process has said it. Nowhere, once the ledger has been made anew.
    pub(super) own: Option<Position>,
    /// How far the journal has been read.
    pub(super) through: Position,
    /// How many records that was.
    pub(super) records: u64,
    /// The segment that is being read.
    pub(super) scan: Option<Scan>,
    /// The rebuild that is under way.
    pub(super) rebuilding: Option<Rebuilding>,
    /// Who sees whether this gets on.
    pub(super) follower: Follower,
}

/// A ledger that is being made anew.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rebuilding {
    /// Records before the oldest segment that is still there.
    base: u64,
    /// Records in the journal when it began.
    total: u64,
    /// When somebody was told how far it is.
    logged_at: Instant,
}

impl Indexer {
    /// Indexes until told to stop.
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
                // The next attempt has a whole table.
                Err(_) if self.deduplicator.has_gap() => self.rebuild_deduplicator(),
                Err(problem) => drop(self.failed("the journal cannot be indexed", &problem)),
            }
            if end.is_none() {
                break;
            }
        }
        if let Err(problem) = self.deduplicator.sync() {
            tracing::warn!("events will be read again to know their copies: {problem}");
        }
    }

    /// Learns again what copies of the events before this place would be told by, as far as the table of
    /// copies lacks that: it was lost with the power, or the table is new.
    fn rebuild_deduplicator(&mut self) {
        let (through, records) = (self.through, self.records);
        while let Some(gap) = self.deduplicator.take_gap() {
            (self.through, self.scan) = (gap.min(through), None);
            self.index_until(through);
        }
        self.follower.progressed();
        (self.through, self.records, self.scan) = (through, records, None);
    }

    /// Learns up to `through`, unless indexing is to end before, or the table has a gap again.
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
                    self.failed("events cannot be read to know their copies", &problem);
                }
            }
            if logged_at.elapsed() >= LOG_INTERVAL {
                tracing::info!(
                    journal.segment = self.through.segment(),
                    journal.last = through.segment(),
                    "the table of copies is brought up to date"
                );
                logged_at = Instant::now();
            }
        }
    }

    /// Notes a failure and waits a little; `false` when indexing is to end.
    fn failed(&mut self, what: &str, problem: &impl Display) -> bool {
        if self.follower.failed(problem) {
            tracing::warn!("{what}: {problem}");
        }
        self.scan = None;
        self.progress.pause()
    }

    /// Takes in what comes next in the journal before `end`, if there is one.
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
        let back = watermark.through < self.through;
        if watermark.through != expected {
            self.scan = None;
        }
        (self.through, self.records) = (watermark.through, watermark.records);
        if back {
            // The ledger is made anew.
            (self.own, self.topic_reader) = (None, None);
            self.notice_rebuild();
        }
        Ok(())
    }

    /// When topics of `batch` were reported last of which the queue knows nothing, as far as that can be
    /// told: the queue has what it needs of the others read later.
    fn topic_times(&mut self, batch: &JournalBatch) -> Vec<TopicTime> {
        if !self.queue.is_live() {
            return Vec::new();
        }
        let unknown = self.queue.unreported(batch.events());
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

    /// Has the ledger take in what it lacks.
    fn bring_up_to_date(&mut self) -> Result<(), super::StoreError> {
        let watermark = self
            .ledger
            .run_blocking("indexing the journal", |database| database.watermark())?;
        self.report_rebuild(watermark.records);
        Ok(())
    }

    /// What comes next: as the writer has handed it over or, where it has not, from the disk.
    fn next(&mut self, end: Position) -> io::Result<JournalBatch> {
        // What was handed over has only events. Of its own notes the ledger knows.
        if self.own.is_none_or(|own| self.through < own) {
            return self.read(end);
        }
        match self.progress.handed(self.through) {
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

    /// Adds what a record holds to `batch`, unless the ledger knows it.
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

    /// The next step at `batch.through`, which it moves. `None` when the batch cannot go on.
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
                // Past the header of a segment that holds nothing yet: it need not be read again.
                batch.through = scan.position();
                return Ok(None);
            }
            // It may have grown since, before the next one was begun.
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
                "the ledger is made from the journal"
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
            tracing::info!("the ledger is complete");
            self.rebuilding = None;
        } else if logged_at.elapsed() >= LOG_INTERVAL {
            tracing::info!(done, all, "the ledger is being made");
            *logged_at = Instant::now();
        }
    }
}

/// Opens the segment in which `batch` goes on: the one it is in, or the first after it that is
/// there.
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
