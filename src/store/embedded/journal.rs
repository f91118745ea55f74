//! The journal's one writer. What is waiting goes out in one write and one sync; then, and only
//! then, everyone who waited is told.
//!
//! Besides events the engine has its own records written, its notes: what has become of deliveries above
//! all. Nobody waits for most of them. They go out with the events of their moment, or are synced within
//! [`UNSYNCED_FOR`]: the loss of power takes away the notes of that time at most, the end of the process
//! those that have not been handed over yet. There is room for notes in the reserve.
//!
//! What is on stable storage is handed to the [indexer](super::indexer) as well, so that it need not be read
//! back.
//!
//! It writes over the zeros of a segment that was made ahead where there is one, since that is
//! faster, and lets the file grow where there is none.
//!
//! **Invariant:** nobody is told before the sync has returned.
//!
//! **Invariant:** after a failed sync nothing is written any more. What the system then holds of
//! the file is unknown, and a second sync that succeeds would prove nothing.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;

use super::{
    disk::{self, Disk},
    ledger::JournalBatch,
    preallocator::Preallocator,
    progress::Progress,
    reader::Directory,
    record::{Content, Event, Personal, Record, TooLarge},
    recovery::Tail,
    segment::Position,
};
use crate::{
    event::Notification,
    provider::Verified,
    store::{
        AppendError, Health, StoreError,
        health::HealthReporter,
        pending::{Ack, AckSender, BATCH, BATCH_BYTES, PendingBytes, WAITING},
    },
    telemetry::Metrics,
};

/// The part of a segment that is written when a spare is ordered for the next one: early enough for
/// it to be made in time, and not for a service that gets few events, which has no use for one.
const PREALLOCATE_AT: u64 = 16;

/// How often free space is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long notes that nobody waits for may stay without a sync.
const UNSYNCED_FOR: Duration = Duration::from_secs(1);

/// The age at which a segment is sealed though it is small, so that retention, which deletes whole
/// segments, works for those who get few events as well.
const SEGMENT_AGE: SignedDuration = SignedDuration::from_hours(24);

/// What the writer is told when it starts.
#[derive(Clone)]
pub(super) struct JournalConfig {
    /// Where the segments are.
    pub(super) directory: Directory,
    /// The size in bytes at which a segment is sealed.
    pub(super) segment_bytes: u64,
    /// Free space in bytes under which nothing more is taken.
    pub(super) reserve_bytes: u64,
    /// The system.
    pub(super) disk: Arc<dyn Disk>,
    /// The clock.
    pub(super) clock: fn() -> Timestamp,
    /// Where to count.
    pub(super) metrics: Arc<Metrics>,
    /// Where to say whether appends are taken.
    pub(super) health: HealthReporter,
    /// Whom to tell of what was written.
    pub(super) progress: Arc<Progress>,
}

/// The way to the writer.
pub(super) struct Journal {
    sender: SyncSender<Command>,
    pending: PendingBytes,
    health: HealthReporter,
    writer: Mutex<Option<JoinHandle<()>>>,
}

enum Command {
    Write(PendingRecord),
    Close,
}

/// One record that has not been written.
struct PendingRecord {
    record: Record,
    /// What it holds, if that is an event.
    event: Option<Box<Event>>,
    kind: RecordKind,
}

enum RecordKind {
    Event(AckSender),
    /// With who waits for the sync, if anybody does.
    Internal(Option<oneshot::Sender<Result<(), AppendError>>>),
    /// A note that each segment begins with from now on.
    Heading,
}

impl PendingRecord {
    const fn internal(record: Record, kind: RecordKind) -> Command {
        Command::Write(Self {
            record,
            event: None,
            kind,
        })
    }

    const fn is_event(&self) -> bool {
        matches!(self.kind, RecordKind::Event(_))
    }
}

/// A way to a writer that has not been started yet, and its other end.
pub(super) fn channel() -> (JournalSender, JournalReceiver) {
    let (sender, receiver) = sync_channel(WAITING);
    (JournalSender(sender), JournalReceiver(receiver))
}

/// What waits for the writer.
pub(super) struct JournalReceiver(Receiver<Command>);

impl Journal {
    /// Starts the writer behind `tail`.
    pub(super) fn start(
        config: JournalConfig,
        tail: Tail,
        (sender, JournalReceiver(receiver)): (JournalSender, JournalReceiver),
    ) -> Result<Self, StoreError> {
        let JournalSender(sender) = sender;
        let pending = PendingBytes::default();
        let health = config.health.clone();
        let preallocator = Preallocator::start(config.clone())?;
        let mut writer = Writer {
            written: JournalBatch::behind(tail.end()),
            is_all: true,
            receiver,
            pending: pending.clone(),
            tail,
            preallocator,
            looked_at: None,
            room: 0,
            batch: Vec::with_capacity(BATCH),
            buffer: Vec::new(),
            heading: None,
            unsynced: None,
            config,
        };
        writer.look();
        let writer = health.supervised("journal", move || writer.run());
        let writer = super::start("journal", writer)?;
        Ok(Self {
            sender,
            pending,
            health,
            writer: Mutex::new(Some(writer)),
        })
    }

    /// Has `event` put on stable storage. The answer comes when it has been, or was not.
    pub(super) fn append(&self, event: Verified) -> Result<Ack, AppendError> {
        let (reply, answer) = AckSender::new();
        let (notification, keys) = event.into_parts();
        let record = Record::event(&notification, keys.as_ref()).map_err(|TooLarge(bytes)| {
            AppendError::Unavailable(format!("an event of {bytes} bytes is too large to store"))
        })?;
        // Where the body is a part of what was read from a connection, it would keep all of that.
        let body = Bytes::copy_from_slice(&notification.body);
        let event = Event {
            notification: Arc::new(Notification {
                body,
                ..notification
            }),
            keys,
            personal: Personal::Whole,
        };
        self.pending.add(record.len(), || {
            let append = Command::Write(PendingRecord {
                record,
                event: Some(Box::new(event)),
                kind: RecordKind::Event(reply),
            });
            self.sender.try_send(append).map_err(|error| match error {
                TrySendError::Full(_) => AppendError::Overloaded,
                TrySendError::Disconnected(_) => self.gone(),
            })
        })?;
        Ok(answer)
    }

    fn gone(&self) -> AppendError {
        match self.health.check() {
            Err(poisoned @ AppendError::Poisoned(_)) => poisoned,
            _ => AppendError::Closed,
        }
    }

    /// Writes what is waiting and ends the writer. Blocks.
    pub(super) fn close(&self) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = writer.take() {
            // It fails only when the writer is gone already.
            self.sender.send(Command::Close).ok();
            writer.join().ok();
        }
    }
}

/// The way to the writer for the engine's own records. Blocks while too many wait. Once the writer has
/// ended, notes are lost: nothing is trusted to it then.
#[derive(Clone)]
pub(super) struct JournalSender(SyncSender<Command>);

impl JournalSender {
    /// Has `record` written, sooner or later.
    pub(super) fn put(&self, record: Record) {
        self.send(record, RecordKind::Internal(None));
    }

    /// Has `record` written, sooner or later, if there is room for it now: gives it back otherwise.
    pub(super) fn try_put(&self, record: Record) -> Option<Record> {
        match self
            .0
            .try_send(PendingRecord::internal(record, RecordKind::Internal(None)))
        {
            Err(TrySendError::Full(Command::Write(waiting))) => Some(waiting.record),
            _ => None,
        }
    }

    /// Has `record` written, and at the beginning of every segment from now on.
    pub(super) fn head(&self, record: Record) {
        self.send(record, RecordKind::Heading);
    }

    /// Has `record` written. The answer comes when it and all before it are on stable storage.
    pub(super) fn put_durably(&self, record: Record) -> Ack {
        let (reply, answer) = oneshot::channel();
        self.send(record, RecordKind::Internal(Some(reply)));
        answer
    }

    fn send(&self, record: Record, kind: RecordKind) {
        self.0.send(PendingRecord::internal(record, kind)).ok();
    }
}

/// The thread that writes.
struct Writer {
    config: JournalConfig,
    receiver: Receiver<Command>,
    pending: PendingBytes,
    tail: Tail,
    preallocator: Preallocator,
    /// When free space was looked at.
    looked_at: Option<Instant>,
    /// How many bytes may be written until it is looked at again.
    room: u64,
    batch: Vec<PendingRecord>,
    buffer: Vec<u8>,
    /// What each segment begins with.
    heading: Option<Record>,
    /// Since when something is written that has not been synced.
    unsynced: Option<Instant>,
    /// What is written and was not handed to the indexer.
    written: JournalBatch,
    /// Whether that is all that the indexer has to know of it.
    is_all: bool,
}

/// Why a batch was not written.
enum Failure {
    /// There is no room, and nothing of the batch is left in the file.
    Full(String),
    /// Nothing is known of the file any more.
    Poisoned(String),
}

impl Writer {
    fn run(mut self) {
        let mut open = true;
        while open {
            match self.receiver.recv_timeout(self.patience()) {
                Ok(Command::Write(waiting)) => {
                    open = self.gather(waiting);
                    self.commit();
                }
                Ok(Command::Close) | Err(RecvTimeoutError::Disconnected) => open = false,
                // Notes for which there was no room.
                Err(RecvTimeoutError::Timeout) if !self.batch.is_empty() => self.commit(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self
                .unsynced
                .is_some_and(|since| since.elapsed() >= UNSYNCED_FOR)
                || !open
            {
                self.sync_internal();
            }
            if self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
                self.look();
            }
        }
    }

    fn patience(&self) -> Duration {
        let left = |since: Instant| UNSYNCED_FOR.saturating_sub(since.elapsed());
        self.unsynced.map_or(LOOK_EVERY, left)
    }

    /// Takes what else is waiting. `false` when the journal is to be closed after it.
    fn gather(&mut self, first: PendingRecord) -> bool {
        let mut bytes = first.record.len();
        self.batch.push(first);
        while self.batch.len() < BATCH && bytes < BATCH_BYTES {
            match self.receiver.try_recv() {
                Ok(Command::Write(waiting)) => {
                    bytes += waiting.record.len();
                    self.batch.push(waiting);
                }
                Ok(Command::Close) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => break,
            }
        }
        true
    }

    /// Writes the batch and answers everyone in it who waits.
    fn commit(&mut self) {
        let events = self.events();
        let bytes: usize = events.clone().map(|event| event.record.len()).sum();
        let count = events.count();
        self.pending.remove(bytes);
        if let Err(error) = self.admit(bytes) {
            self.answer(&Err(error), PendingRecord::is_event);
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
                    self.config.metrics.journal_batch.observe(count as f64);
                }
                self.answer(&Ok(()), |_| true);
            }
            Err(Failure::Full(why)) => {
                self.config
                    .health
                    .set(Health::Unavailable { why: why.clone() });
                let refused = Err(AppendError::Unavailable(why));
                self.answer(&refused, PendingRecord::is_event);
            }
            Err(Failure::Poisoned(why)) => {
                self.poison(&why);
                self.answer(&Err(AppendError::Poisoned(why)), |_| true);
            }
        }
        self.buffer.clear();
        self.buffer.shrink_to(BATCH_BYTES);
    }

    fn events(&self) -> impl Iterator<Item = &PendingRecord> + Clone {
        self.batch.iter().filter(|waiting| waiting.is_event())
    }

    /// Whether `bytes` of events may be written now.
    fn admit(&mut self, bytes: usize) -> Result<(), AppendError> {
        self.config.health.check()?;
        if bytes as u64 > self.room {
            self.room = 0;
            let why = self.too_little_room();
            self.config.health.set(Health::Unavailable { why });
        }
        self.config.health.check()
    }

    /// Answers those of the batch that `whom` takes, and lets go of them.
    fn answer(&mut self, answer: &Result<(), AppendError>, whom: impl Fn(&PendingRecord) -> bool) {
        for waiting in self.batch.extract_if(.., |waiting| whom(waiting)) {
            match waiting.kind {
                RecordKind::Event(reply) => reply.send(answer.clone(), &self.config.metrics),
                RecordKind::Internal(Some(reply)) => drop(reply.send(answer.clone())),
                RecordKind::Heading if answer.is_ok() => self.heading = Some(waiting.record),
                RecordKind::Internal(None) | RecordKind::Heading => {}
            }
        }
    }

    fn poison(&self, why: &str) {
        let why = why.to_owned();
        self.config.health.set(Health::Poisoned { why });
    }

    fn write(&mut self) -> Result<(), Failure> {
        if let Health::Poisoned { why } = self.config.health.get() {
            return Err(Failure::Poisoned(why));
        }
        let mut records = self.batch.len();
        if self.tail_is_done() {
            self.roll()?;
        }
        if self.tail.records == 0
            && let Some(heading) = &self.heading
        {
            heading.write_to(&mut self.buffer, self.tail.end());
            records += 1;
            self.is_all = false;
        }
        let (number, end) = (self.tail.header.number, self.tail.length);
        let mut events = Vec::with_capacity(self.batch.len());
        for waiting in &mut self.batch {
            let position = Position::new(number, end + self.buffer.len() as u64);
            waiting.record.write_to(&mut self.buffer, position);
            self.is_all &= !matches!(waiting.kind, RecordKind::Heading);
            let event = waiting.event.take();
            events.extend(event.map(|event| (position, Content::Event(event))));
        }
        self.write_buffer()?;
        self.written.contents.append(&mut events);
        let bytes = self.buffer.len() as u64;
        self.tail.length += bytes;
        self.tail.records += records as u64;
        self.room = self.room.saturating_sub(bytes);
        self.unsynced.get_or_insert_with(Instant::now);
        if self.tail.length >= self.config.segment_bytes / PREALLOCATE_AT {
            self.preallocator.request();
        }
        Ok(())
    }

    /// Syncs what nobody waits for.
    fn sync_internal(&mut self) {
        if let Err(Failure::Full(why) | Failure::Poisoned(why)) = self.sync() {
            self.poison(&why);
        }
    }

    /// Puts all that is written on stable storage, and says so.
    fn sync(&mut self) -> Result<(), Failure> {
        // What a failed sync leaves behind is never synced again.
        if self.unsynced.take().is_none() {
            return Ok(());
        }
        let began = Instant::now();
        let synced = self.config.disk.sync(&self.tail.file);
        synced
            .map_err(|error| Failure::Poisoned(format!("a sync of the journal failed: {error}")))?;
        let took = began.elapsed().as_secs_f64();
        self.config.metrics.sync_seconds.observe(took);
        self.hand_over();
        Ok(())
    }

    /// Hands what is on stable storage to the indexer, which reads it where that is not all there is.
    fn hand_over(&mut self) {
        let (end, records) = (self.tail.end(), self.tail.records_through());
        let mut written = std::mem::replace(&mut self.written, JournalBatch::behind(end));
        (written.through, written.records) = (end, records);
        let is_all = std::mem::replace(&mut self.is_all, true);
        self.config
            .progress
            .written(end, records, is_all.then_some(written));
    }

    fn write_buffer(&mut self) -> Result<(), Failure> {
        let Tail {
            file,
            length,
            file_bytes,
            ..
        } = &mut self.tail;
        let disk = &self.config.disk;
        if let Err(error) = disk.write(file, &self.buffer, *length) {
            let problem = format!("a write to the journal failed: {error}");
            // A file whose end is unknown must not be written to again.
            *file_bytes = *length;
            return match disk.truncate(file, *length) {
                Ok(()) if is_full(&error) => Err(Failure::Full(problem)),
                Ok(()) => Err(Failure::Poisoned(problem)),
                Err(truncate) => Err(Failure::Poisoned(format!(
                    "{problem}; and it could not be undone: {truncate}"
                ))),
            };
        }
        Ok(())
    }

    fn tail_is_done(&mut self) -> bool {
        let age = (self.config.clock)().duration_since(self.tail.header.begun_at);
        self.tail.length >= self.config.segment_bytes
            || (self.tail.records > 0 && age >= SEGMENT_AGE)
            // A busy service need not fill a segment that grows when there is a better one.
            || (self.tail.grows() && self.preallocator.is_ready())
    }

    /// Begins the next segment, in the spare if it is ready.
    fn roll(&mut self) -> Result<(), Failure> {
        self.sync()?;
        let number = self.tail.header.number + 1;
        let header = self.tail.successor(number, (self.config.clock)());
        let directory = &self.config.directory;
        let problem = |error| format!("a new segment of the journal could not be begun: {error}");
        self.tail
            .seal()
            .map_err(|error| Failure::Poisoned(problem(error)))?;
        let ahead = self.preallocator.take().and_then(|preallocated| {
            Tail::begin_preallocated(preallocated, directory, header)
                .inspect_err(|error| tracing::warn!("a spare segment is not used: {error}"))
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
        // Without its name on stable storage, a segment's synced records could not be found again.
        disk::sync_dir(directory.path()).map_err(|error| Failure::Poisoned(problem(error)))
    }

    /// Looks at the free space and decides whether appends are taken.
    fn look(&mut self) {
        self.looked_at = Some(Instant::now());
        let path = self.config.directory.path();
        let free = match self.config.disk.free(path) {
            Ok(free) => free,
            Err(error) => {
                tracing::warn!("free space cannot be told: {error}");
                return;
            }
        };
        self.room = free.saturating_sub(self.config.reserve_bytes);
        self.config.metrics.disk_free_bytes.set(free.cast_signed());
        let health = if self.room > 0 {
            Health::Sound
        } else {
            let why = self.too_little_room();
            Health::Unavailable { why }
        };
        if self.room == 0 {
            self.preallocator.give_up();
        }
        self.config.health.set(health);
    }

    fn too_little_room(&self) -> String {
        let reserve = self.config.reserve_bytes;
        format!("less than the reserve of {reserve} bytes is free on the store's disk")
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
