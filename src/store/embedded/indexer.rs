//! Reads behind the journal's writer and brings the ledger up to date, in large batches.

use std::{
    fmt::Display,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    copies::Copies,
    ledger::{Batch, Ledger},
    progress::Progress,
    reader::{Damage, Directory, Scan, Step},
    record::{self, Content, Invalid, Personal},
    segment::{HEADER_BYTES, Position},
};
use crate::store::Follower;

/// The most records in one transaction of the ledger: claims wait meanwhile.
const BATCH_RECORDS: usize = 4096;

/// The most bytes of the journal in one transaction.
const BATCH_BYTES: usize = 4 << 20;

/// How often the log says how far a ledger is that is made anew.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// The thread that indexes.
pub(super) struct Indexer {
    pub(super) directory: Directory,
    pub(super) ledger: Arc<Ledger>,
    pub(super) progress: Arc<Progress>,
    pub(super) damage: Damage,
    /// What copies are told by.
    pub(super) copies: Copies,
    /// From where on it is learnt again.
    pub(super) learnt: Position,
    /// Called with (done, total) while a ledger is rebuilt.
    pub(super) rebuild: Arc<dyn Fn(u64, u64) + Send + Sync>,
    /// Where the journal ended when the ledger was opened: the ledger itself has told the journal what
    /// is said of deliveries behind that. Nowhere, once it has been made anew.
    pub(super) own: Option<Position>,
    /// How far the ledger has read the journal.
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
    told: Instant,
}

impl Indexer {
    /// Indexes until told to stop.
    pub(super) fn run(mut self) {
        super::yield_to_the_door();
        self.progress.indexed(self.records);
        self.relearn();
        self.notice_rebuild();
        let mut last = Instant::now();
        while let Some(end) = self
            .progress
            .beyond(self.through, BATCH_RECORDS as u64, last)
        {
            last = Instant::now();
            let before = self.through;
            self.follower.begins();
            match self.advance(end) {
                Ok(()) if self.through == before && before < end => {}
                Ok(()) => self.follower.gets_on(),
                Err(problem) => {
                    if !self.fails("the journal cannot be indexed", &problem) {
                        break;
                    }
                }
            }
        }
        if let Err(problem) = self.copies.sync() {
            tracing::warn!("events will be read again to know their copies: {problem}");
        }
    }

    /// Learns again what copies of the events that the ledger knows would be told by, as far as
    /// that may have been lost with the power.
    fn relearn(&mut self) {
        let (through, records) = (self.through, self.records);
        self.through = self.learnt.min(through);
        while self.through < through {
            self.follower.begins();
            match self.read(through) {
                // A segment may have lost its end since the ledger read it.
                Ok(batch) if batch.through == self.through => break,
                Ok(batch) => {
                    self.through = batch.through;
                    self.follower.gets_on();
                }
                Err(problem) => {
                    self.fails("events cannot be read to know their copies", &problem);
                }
            }
            if self.progress.is_stopped() {
                break;
            }
        }
        self.follower.gets_on();
        (self.through, self.records, self.scan) = (through, records, None);
    }

    /// Notes a failure and waits a little; `false` when indexing is to end.
    fn fails(&mut self, what: &str, problem: &impl Display) -> bool {
        if self.follower.fails(problem) {
            tracing::warn!("{what}: {problem}");
        }
        self.scan = None;
        self.progress.pause()
    }

    /// Brings the ledger up to date with the next batch.
    fn advance(&mut self, end: Position) -> Result<(), super::StoreError> {
        let batch = self
            .read(end)
            .map_err(super::StoreError::io("reading the journal"))?;
        let expected = batch.through;
        let (through, records) = self
            .ledger
            .run_blocking("indexing the journal", move |books| books.index(&batch))?;
        if through != expected {
            self.scan = None;
        }
        let back = through < self.through;
        (self.through, self.records) = (through, records);
        self.progress.indexed(records);
        if back {
            self.own = None;
            self.notice_rebuild();
        }
        self.tell_rebuild();
        Ok(())
    }

    fn read(&mut self, end: Position) -> io::Result<Batch> {
        let mut batch = Batch {
            from: self.through,
            through: self.through,
            records: self.records,
            ..Batch::default()
        };
        let (mut records_read, mut bytes_read) = (0, 0);
        while records_read < BATCH_RECORDS && bytes_read < BATCH_BYTES && batch.through < end {
            match self.step(&mut batch, end)? {
                Some(Step::Record { position, bytes }) => {
                    batch.records += 1;
                    records_read += 1;
                    bytes_read += bytes.len();
                    self.take_in(&mut batch, position, &bytes)?;
                }
                Some(Step::Damage { position, bytes }) => {
                    self.damage
                        .report(position, bytes, "records fail their checksum");
                }
                None => break,
            }
        }
        if self.copies.is_due() {
            self.copies.sync()?;
        }
        Ok(batch)
    }

    /// Adds what a record holds to `batch`, unless the ledger knows it.
    fn take_in(&mut self, batch: &mut Batch, position: Position, bytes: &Bytes) -> io::Result<()> {
        let is_own = self.own.is_some_and(|own| own <= position);
        let content = match record::content(bytes, position) {
            Ok(Content::Deliveries(_) | Content::Inventory(..)) if is_own => return Ok(()),
            Ok(Content::Event(event)) => {
                if event.personal == Personal::Damaged {
                    self.tell_damage(position, bytes, "an event fails its checksum");
                }
                if self.copies.is_copy(position, &event.notification)? {
                    batch.copies += 1;
                    return Ok(());
                }
                Content::Event(event)
            }
            Ok(content) => content,
            Err(Invalid) => {
                self.tell_damage(position, bytes, "a record is not readable");
                return Ok(());
            }
        };
        batch.contents.push((position, content));
        Ok(())
    }

    fn tell_damage(&self, position: Position, bytes: &Bytes, what: &'static str) {
        self.damage.report(position, bytes.len() as u64, what);
    }

    /// The next step at `batch.through`, which it moves. `None` when the batch cannot go on.
    fn step(&mut self, batch: &mut Batch, end: Position) -> io::Result<Option<Step>> {
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
                told: Instant::now(),
            });
        }
    }

    fn tell_rebuild(&mut self) {
        let Some(Rebuilding { base, total, told }) = &mut self.rebuilding else {
            return;
        };
        let all = total.saturating_sub(*base);
        let done = self.records.saturating_sub(*base).min(all);
        (self.rebuild)(done, all);
        if done >= all {
            tracing::info!("the ledger is complete");
            self.rebuilding = None;
        } else if told.elapsed() >= TELL_EVERY {
            tracing::info!(done, all, "the ledger is being made");
            *told = Instant::now();
        }
    }
}

/// Opens the segment in which `batch` goes on: the one it is in, or the first after it that is
/// there.
fn open(directory: &Directory, batch: &mut Batch) -> io::Result<Scan> {
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
