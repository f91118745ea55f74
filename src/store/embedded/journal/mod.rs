//! The journal's single writer. It writes the waiting records with one write and one sync, and then
//! acknowledges them.
//!
//! Besides events the journal contains internal records of the engine, above all the states of
//! deliveries. Nobody waits for most of them. They are written with the next batch, and synced
//! within [`SYNC_INTERVAL`](writer::SYNC_INTERVAL). So the loss of power loses the internal records of that time at most,
//! and the end of the process only those that have not been written. The reserve of free space has
//! room for them.
//!
//! The writer passes synced records to the [indexer](super::indexer), so that they need not be read
//! back.
//!
//! It overwrites the zeros of a preallocated segment if there is one, since that is faster.
//! Otherwise the file grows.
//!
//! **Invariant:** no record is acknowledged before its sync has returned.
//!
//! **Invariant:** nothing is written after a failed sync. The state of the file is unknown then,
//! and a later successful sync would prove nothing.

mod batch;
mod writer;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::oneshot;

pub(super) use self::batch::JournalBatch;
use self::writer::Writer;
use super::{
    disk::Disk,
    progress::Progress,
    reader::Directory,
    record::{Event, Personal, Record, TooLarge},
    recovery::Tail,
};
use crate::{
    event::Notification,
    provider::Verified,
    store::{
        AppendError, StoreError,
        health::HealthReporter,
        pending::{Ack, AckSender, PendingBytes, WAITING},
    },
    telemetry::Metrics,
};

/// The configuration of the writer.
#[derive(Clone)]
pub(super) struct JournalConfig {
    /// The directory of the segments.
    pub(super) directory: Directory,
    /// The size in bytes at which a segment is sealed.
    pub(super) segment_bytes: u64,
    /// The free space in bytes below which appends are refused.
    pub(super) reserve_bytes: u64,
    /// The disk.
    pub(super) disk: Arc<dyn Disk>,
    /// The clock.
    pub(super) clock: fn() -> Timestamp,
    /// The metrics of the service.
    pub(super) metrics: Arc<Metrics>,
    /// Reports whether appends are accepted.
    pub(super) health: HealthReporter,
    /// Passes what was written to the indexer.
    pub(super) progress: Arc<Progress>,
}

/// A handle to the writer.
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

/// A record that has not been written.
struct PendingRecord {
    record: Record,
    /// The event, if the record is one.
    event: Option<Box<Event>>,
    kind: RecordKind,
}

enum RecordKind {
    Event(AckSender),
    /// A record of the engine, with the receiver of its acknowledgement, if there is one.
    Internal(Option<oneshot::Sender<Result<(), AppendError>>>),
    /// A record of the engine that is repeated at the beginning of each later segment.
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

/// A channel to a writer that has not been started.
pub(super) fn channel() -> (JournalSender, JournalReceiver) {
    let (sender, receiver) = sync_channel(WAITING);
    (JournalSender(sender), JournalReceiver(receiver))
}

/// The receiving end of the channel to the writer.
pub(super) struct JournalReceiver(Receiver<Command>);

impl Journal {
    /// Starts the writer at the end of `tail`.
    pub(super) fn start(
        config: JournalConfig,
        tail: Tail,
        (sender, JournalReceiver(receiver)): (JournalSender, JournalReceiver),
    ) -> Result<Self, StoreError> {
        let JournalSender(sender) = sender;
        let pending = PendingBytes::default();
        let health = config.health.clone();
        let writer = Writer::new(config, receiver, pending.clone(), tail)?;
        let writer = health.supervised("journal", move || writer.run());
        let writer = super::start("journal", writer)?;
        Ok(Self {
            sender,
            pending,
            health,
            writer: Mutex::new(Some(writer)),
        })
    }

    /// Queues `event`. The acknowledgement follows when the event is on stable storage, or could
    /// not be written.
    pub(super) fn append(&self, event: Verified) -> Result<Ack, AppendError> {
        let (reply, ack) = AckSender::new();
        let (notification, keys) = event.into_parts();
        let record = Record::event(&notification, keys.as_ref()).map_err(|TooLarge(bytes)| {
            AppendError::Unavailable(format!("an event of {bytes} bytes is too large to store"))
        })?;
        // The body may be a slice of a connection's read buffer, which would stay in memory as a
        // whole.
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
        Ok(ack)
    }

    fn gone(&self) -> AppendError {
        match self.health.check() {
            Err(poisoned @ AppendError::Poisoned(_)) => poisoned,
            _ => AppendError::Closed,
        }
    }

    /// Writes waiting records and ends the writer. Blocks.
    pub(super) fn close(&self) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = writer.take() {
            // Sending fails only if the writer has ended.
            self.sender.send(Command::Close).ok();
            writer.join().ok();
        }
    }
}

/// Queues internal records. Blocks while the queue is full. Records are dropped after the writer
/// has ended, since the store is not trusted then.
#[derive(Clone)]
pub(super) struct JournalSender(SyncSender<Command>);

impl JournalSender {
    /// Queues `record`. Nobody waits for it.
    pub(super) fn put(&self, record: Record) {
        self.send(record, RecordKind::Internal(None));
    }

    /// Queues `record` if there is room, and returns it otherwise.
    pub(super) fn try_put(&self, record: Record) -> Option<Record> {
        match self
            .0
            .try_send(PendingRecord::internal(record, RecordKind::Internal(None)))
        {
            Err(TrySendError::Full(Command::Write(pending))) => Some(pending.record),
            _ => None,
        }
    }

    /// Queues `record`, which is repeated at the beginning of each later segment.
    pub(super) fn head(&self, record: Record) {
        self.send(record, RecordKind::Heading);
    }

    /// Queues `record`. The acknowledgement follows when it and all earlier records are on stable
    /// storage.
    pub(super) fn put_durably(&self, record: Record) -> Ack {
        let (reply, ack) = oneshot::channel();
        self.send(record, RecordKind::Internal(Some(reply)));
        ack
    }

    fn send(&self, record: Record, kind: RecordKind) {
        self.0.send(PendingRecord::internal(record, kind)).ok();
    }
}
