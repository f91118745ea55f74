//! The thread that writes and syncs the journal.

use std::{
    io, mem,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use jiff::SignedDuration;

use super::{Command, JournalBatch, PendingRecord, RecordKind};
use crate::store::{
    AppendError, Health,
    embedded::{
        Core, disk,
        preallocator::Preallocator,
        record::{Content, Record},
        recovery::Tail,
        segment::Position,
    },
    pending::{BATCH, BATCH_BYTES, PendingBytes},
};

/// The fraction of a segment, as its divisor, at which the next segment is preallocated: early
/// enough to be ready in time, and not for a service with few events.
const PREALLOCATE_AT: u64 = 16;

/// The interval of checks of the free space.
const SPACE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How long an internal record may stay unsynced if nobody waits for it.
pub(super) const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// The age at which a small segment is sealed. Retention deletes whole segments, and must work for
/// services with few events too.
const SEGMENT_AGE: SignedDuration = SignedDuration::from_hours(24);

/// The writer's thread.
pub(super) struct Writer {
    core: Arc<Core>,
    receiver: Receiver<Command>,
    pending: PendingBytes,
    tail: Tail,
    preallocator: Preallocator,
    /// The time of the last check of the free space.
    space_checked_at: Option<Instant>,
    /// The number of bytes that may be written before the next check.
    writable_bytes: u64,
    batch: Vec<PendingRecord>,
    buffer: Vec<u8>,
    /// The record that each segment begins with.
    heading: Option<Record>,
    /// The time of the first unsynced write.
    unsynced: Option<Instant>,
    /// The written records that have not been passed to the indexer.
    written: JournalBatch,
    /// Whether `written` has all records that the indexer needs.
    is_complete: bool,
}

/// Why a batch was not written.
enum Failure {
    /// There is no space, and the file has nothing of the batch.
    Full(String),
    /// The state of the file is unknown.
    Poisoned(String),
}

impl Writer {
    pub(super) fn new(
        core: Arc<Core>,
        receiver: Receiver<Command>,
        pending: PendingBytes,
        tail: Tail,
    ) -> Self {
        let mut writer = Self {
            preallocator: Preallocator::new(core.clone()),
            receiver,
            pending,
            written: JournalBatch::behind(tail.end()),
            is_complete: true,
            tail,
            space_checked_at: None,
            writable_bytes: 0,
            batch: Vec::with_capacity(BATCH),
            buffer: Vec::new(),
            heading: None,
            unsynced: None,
            core,
        };
        let core = &writer.core;
        let reserve = core.settings.reserve.cast_signed();
        core.context.metrics.disk_reserve_bytes.set(reserve);
        writer.check_space();
        writer
    }

    /// Writes records until the journal is closed.
    pub(super) fn run(mut self) {
        let mut open = true;
        while open {
            match self.receiver.recv_timeout(self.wait_limit()) {
                Ok(Command::Write(pending)) => {
                    open = self.collect(pending);
                    self.commit();
                }
                Ok(Command::Close) | Err(RecvTimeoutError::Disconnected) => open = false,
                // Internal records for which there was no space.
                Err(RecvTimeoutError::Timeout) if !self.batch.is_empty() => self.commit(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self
                .unsynced
                .is_some_and(|since| since.elapsed() >= SYNC_INTERVAL)
                || !open
            {
                self.sync_internal();
            }
            if self
                .space_checked_at
                .is_none_or(|at| at.elapsed() >= SPACE_CHECK_INTERVAL)
            {
                self.check_space();
            }
        }
    }

    fn wait_limit(&self) -> Duration {
        let left = |since: Instant| SYNC_INTERVAL.saturating_sub(since.elapsed());
        self.unsynced.map_or(SPACE_CHECK_INTERVAL, left)
    }

    /// Takes more waiting records. Returns `false` if the journal is to be closed after them.
    fn collect(&mut self, first: PendingRecord) -> bool {
        let mut bytes = first.record.len();
        self.batch.push(first);
        while self.batch.len() < BATCH && bytes < BATCH_BYTES {
            match self.receiver.try_recv() {
                Ok(Command::Write(pending)) => {
                    bytes += pending.record.len();
                    self.batch.push(pending);
                }
                Ok(Command::Close) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => break,
            }
        }
        true
    }

    /// Writes the batch, and acknowledges its records.
    fn commit(&mut self) {
        let events = self.events();
        let bytes: usize = events.clone().map(|event| event.record.len()).sum();
        let count = events.count();
        self.pending.remove(bytes);
        if let Err(error) = self.check_writable(bytes) {
            self.acknowledge(&Err(error), PendingRecord::is_event);
        }
        if self.batch.is_empty() {
            return;
        }
        let is_awaited = |one: &PendingRecord| {
            !matches!(one.kind, RecordKind::Internal(None) | RecordKind::Heading)
        };
        let is_awaited = self.batch.iter().any(is_awaited);
        let synced = |writer: &mut Self| match is_awaited {
            true => writer.sync(),
            false => Ok(()),
        };
        match self.write().and_then(|()| synced(self)) {
            Ok(()) => {
                if count > 0 {
                    let metrics = &self.core.context.metrics;
                    metrics.journal_batch.observe(count as f64);
                    metrics.journal_batch_bytes.observe(bytes as f64);
                }
                self.acknowledge(&Ok(()), |_| true);
            }
            Err(Failure::Full(why)) => {
                self.core
                    .health
                    .set(Health::Unavailable { why: why.clone() });
                let refused = Err(AppendError::Unavailable(why));
                self.acknowledge(&refused, PendingRecord::is_event);
            }
            Err(Failure::Poisoned(why)) => {
                self.poison(&why);
                self.acknowledge(&Err(AppendError::Poisoned(why)), |_| true);
            }
        }
        self.buffer.clear();
        self.buffer.shrink_to(BATCH_BYTES);
    }

    fn events(&self) -> impl Iterator<Item = &PendingRecord> + Clone {
        self.batch.iter().filter(|pending| pending.is_event())
    }

    /// Checks that `bytes` of events may be written now.
    fn check_writable(&mut self, bytes: usize) -> Result<(), AppendError> {
        self.core.health.check()?;
        if bytes as u64 > self.writable_bytes {
            self.writable_bytes = 0;
            let why = self.reserve_reached();
            self.core.health.set(Health::Unavailable { why });
        }
        self.core.health.check()
    }

    /// Sends `ack` to the selected records of the batch, and removes them.
    fn acknowledge(
        &mut self,
        ack: &Result<(), AppendError>,
        whom: impl Fn(&PendingRecord) -> bool,
    ) {
        for pending in self.batch.extract_if(.., |pending| whom(pending)) {
            match pending.kind {
                RecordKind::Event(reply) => reply.send(ack.clone(), &self.core.context.metrics),
                RecordKind::Internal(Some(reply)) => drop(reply.send(ack.clone())),
                RecordKind::Heading if ack.is_ok() => self.heading = Some(pending.record),
                RecordKind::Internal(None) | RecordKind::Heading => {}
            }
        }
    }

    fn poison(&self, why: &str) {
        let why = why.to_owned();
        self.core.health.set(Health::Poisoned { why });
    }

    fn write(&mut self) -> Result<(), Failure> {
        if let Health::Poisoned { why } = self.core.health.get() {
            return Err(Failure::Poisoned(why));
        }
        let mut records = self.batch.len();
        if self.is_segment_complete() {
            self.roll()?;
        }
        if self.tail.records == 0
            && let Some(heading) = &self.heading
        {
            heading.write_to(&mut self.buffer, self.tail.end());
            records += 1;
            self.is_complete = false;
        }
        let (number, end) = (self.tail.header.number, self.tail.length);
        let mut events = Vec::with_capacity(self.batch.len());
        for pending in &mut self.batch {
            let position = Position::new(number, end + self.buffer.len() as u64);
            pending.record.write_to(&mut self.buffer, position);
            self.is_complete &= !matches!(pending.kind, RecordKind::Heading);
            let event = pending.event.take();
            events.extend(event.map(|event| (position, Content::Event(event))));
        }
        self.write_buffer()?;
        self.written.contents.append(&mut events);
        let bytes = self.buffer.len() as u64;
        self.tail.length += bytes;
        self.tail.records += records as u64;
        self.writable_bytes = self.writable_bytes.saturating_sub(bytes);
        self.unsynced.get_or_insert_with(Instant::now);
        if self.tail.length >= self.core.settings.segment / PREALLOCATE_AT {
            self.preallocator.request();
        }
        Ok(())
    }

    /// Syncs the records that nobody waits for.
    fn sync_internal(&mut self) {
        if let Err(Failure::Full(why) | Failure::Poisoned(why)) = self.sync() {
            self.poison(&why);
        }
    }

    /// Syncs everything that was written, and passes it to the indexer.
    fn sync(&mut self) -> Result<(), Failure> {
        // Data of a failed sync is never synced again.
        if self.unsynced.take().is_none() {
            return Ok(());
        }
        let began = Instant::now();
        let synced = self.core.disk.sync(&self.tail.file);
        synced
            .map_err(|error| Failure::Poisoned(format!("a sync of the journal failed: {error}")))?;
        let took = began.elapsed().as_secs_f64();
        self.core.context.metrics.sync_seconds.observe(took);
        self.pass_on();
        Ok(())
    }

    /// Passes synced records to the indexer, which reads the journal itself if some are missing.
    fn pass_on(&mut self) {
        let end = self.tail.watermark();
        let next = JournalBatch::behind(end.through);
        let mut written = mem::replace(&mut self.written, next);
        (written.through, written.records) = (end.through, end.records);
        let is_complete = mem::replace(&mut self.is_complete, true);
        self.core
            .progress
            .written(end, is_complete.then_some(written));
    }

    fn write_buffer(&mut self) -> Result<(), Failure> {
        let Tail {
            file,
            length,
            file_bytes,
            ..
        } = &mut self.tail;
        let disk = &self.core.disk;
        if let Err(error) = disk.write(file, &self.buffer, *length) {
            let problem = format!("a write to the journal failed: {error}");
            // A file whose end is unknown must not be written to again.
            *file_bytes = *length;
            return match disk.truncate(file, *length) {
                Ok(()) if is_full(&error) => Err(Failure::Full(problem)),
                Ok(()) => Err(Failure::Poisoned(problem)),
                Err(truncate) => Err(Failure::Poisoned(format!(
                    "{problem}; removing the incomplete write failed too: {truncate}"
                ))),
            };
        }
        Ok(())
    }

    fn is_segment_complete(&mut self) -> bool {
        let age = (self.core.context.clock)().duration_since(self.tail.header.begun_at);
        self.tail.length >= self.core.settings.segment
            || (self.tail.records > 0 && age >= SEGMENT_AGE)
            // A busy service need not fill a growing segment when a preallocated one is ready.
            || (self.tail.grows() && self.preallocator.is_ready())
    }

    /// Begins the next segment, in the preallocated one if it is ready.
    fn roll(&mut self) -> Result<(), Failure> {
        self.sync()?;
        let number = self.tail.header.number + 1;
        let header = self.tail.successor(number, (self.core.context.clock)());
        let directory = &self.core.directory;
        let problem = |error| format!("a new segment of the journal could not be begun: {error}");
        self.tail
            .seal()
            .map_err(|error| Failure::Poisoned(problem(error)))?;
        let ahead = self.preallocator.take().and_then(|file| {
            Tail::new(file, header)
                .name(self.preallocator.path(), directory)
                .inspect_err(|error| {
                    tracing::warn!("a preallocated segment cannot be used: {error}")
                })
                .ok()
        });
        let begun = ahead.map_or_else(|| Tail::begin(directory, header), Ok);
        self.tail = begun.map_err(|error| {
            if is_full(&error) {
                Failure::Full(problem(error))
            } else {
                Failure::Poisoned(problem(error))
            }
        })?;
        // After a crash a segment could not be found without its name on stable storage.
        disk::sync_dir(directory.path()).map_err(|error| Failure::Poisoned(problem(error)))
    }

    /// Checks the free space, and decides whether appends are accepted.
    fn check_space(&mut self) {
        self.space_checked_at = Some(Instant::now());
        let path = self.core.directory.path();
        let free = match self.core.disk.free(path) {
            Ok(free) => free,
            Err(error) => {
                tracing::warn!("the free space of the store's disk is unknown: {error}");
                return;
            }
        };
        self.writable_bytes = free.saturating_sub(self.core.settings.reserve);
        self.core
            .context
            .metrics
            .disk_free_bytes
            .set(free.cast_signed());
        let health = if self.writable_bytes > 0 {
            Health::Sound
        } else {
            let why = self.reserve_reached();
            Health::Unavailable { why }
        };
        if self.writable_bytes == 0 {
            self.preallocator.give_up();
        }
        self.core.health.set(health);
    }

    fn reserve_reached(&self) -> String {
        let reserve = self.core.settings.reserve;
        format!("less than the reserve of {reserve} bytes is free on the store's disk")
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
