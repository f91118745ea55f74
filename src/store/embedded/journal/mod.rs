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
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use tokio::sync::oneshot;

pub(super) use self::batch::JournalBatch;
use self::writer::Writer;
use super::{
    Core,
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
};

/// A handle to the writer. Clones send to the same writer.
///
/// Internal records block their sender while the queue is full. They are dropped after the writer
/// has ended, since the store is not trusted then.
#[derive(Clone)]
pub(super) struct Journal {
    sender: SyncSender<Command>,
    pending: PendingBytes,
    health: HealthReporter,
}

/// The receiving end of a [`Journal`], for the writer.
pub(super) struct JournalReceiver(Receiver<Command>);

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

impl Journal {
    /// A handle to a writer that has not been started.
    pub(super) fn new(health: HealthReporter) -> (Self, JournalReceiver) {
        let (sender, receiver) = sync_channel(WAITING);
        let journal = Self {
            sender,
            pending: PendingBytes::default(),
            health,
        };
        (journal, JournalReceiver(receiver))
    }

    /// Starts the writer at the end of `tail`.
    pub(super) fn start(
        &self,
        JournalReceiver(receiver): JournalReceiver,
        core: Arc<Core>,
        tail: Tail,
    ) -> Result<JoinHandle<()>, StoreError> {
        let writer = Writer::new(core, receiver, self.pending.clone(), tail);
        let writer = self.health.supervised("journal", move || writer.run());
        super::start("journal", writer)
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

    /// Ends the writer, after it has written all waiting records.
    pub(super) fn close(&self) {
        // Sending fails only if the writer has ended.
        self.sender.send(Command::Close).ok();
    }

    /// Queues `record`. Nobody waits for it.
    pub(super) fn put(&self, record: Record) {
        self.send(record, RecordKind::Internal(None));
    }

    /// Queues `record` if there is room, and returns it otherwise.
    pub(super) fn try_put(&self, record: Record) -> Option<Record> {
        let command = PendingRecord::internal(record, RecordKind::Internal(None));
        match self.sender.try_send(command) {
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
        let command = PendingRecord::internal(record, kind);
        self.sender.send(command).ok();
    }
}
