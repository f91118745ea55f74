//! The records that the ledger does not have yet.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{OpenDelivery, is_subscribed};
use crate::{
    event::HandlerName,
    store::{
        Subscription,
        embedded::{journal::JournalBatch, record::Content, segment::Position},
    },
};

/// The number of contents that the ledger ingests at once.
pub(super) const RECORDS: usize = 4096;

/// The number of bytes of bodies and deliveries' states that the ledger ingests at once.
pub(super) const BYTES: usize = 4 << 20;

/// How long the first event waits for the ledger: long enough for most deliveries to be done by
/// then, and short enough for operators.
const DELAY: Duration = Duration::from_millis(40);

/// The end of the journal, in memory.
#[derive(Default)]
pub(super) struct Tail {
    batches: VecDeque<JournalBatch>,
    contents: usize,
    bytes: usize,
    /// When the first of them was added.
    since: Option<Instant>,
}

impl Tail {
    /// Adds the batch that follows.
    pub(super) fn push(&mut self, batch: JournalBatch) {
        self.contents += batch.contents.len();
        self.bytes += batch.bytes();
        self.since.get_or_insert_with(Instant::now);
        match self.batches.back_mut() {
            Some(last) if last.contents.len() + batch.contents.len() <= RECORDS => {
                last.append(batch)
            }
            _ => self.batches.push_back(batch),
        }
    }

    /// Takes the first batch.
    pub(super) fn pop(&mut self) -> Option<JournalBatch> {
        let batch = self.batches.pop_front()?;
        self.contents -= batch.contents.len();
        self.bytes -= batch.bytes();
        self.since = (!self.batches.is_empty()).then(Instant::now);
        Some(batch)
    }

    /// Takes back the batch before the first one.
    pub(super) fn give_back(&mut self, batch: JournalBatch) {
        self.contents += batch.contents.len();
        self.bytes += batch.bytes();
        self.since = Some(Instant::now());
        self.batches.push_front(batch);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// The position of the first record.
    pub(super) fn begin(&self) -> Option<Position> {
        self.batches.front().map(|batch| batch.from)
    }

    /// The open deliveries to `handler` of the events from a position on. `subscriptions` are those
    /// before the first record.
    pub(super) fn deliveries<'a>(
        &'a self,
        handler: &HandlerName,
        from: Position,
        mut subscriptions: &'a [Subscription],
    ) -> impl Iterator<Item = (Position, OpenDelivery)> {
        let contents = self.batches.iter().flat_map(|batch| &batch.contents);
        contents.filter_map(move |(position, content)| match content {
            Content::Event(event) if *position >= from => {
                let event_name = &event.notification.name;
                is_subscribed(handler, subscriptions, event_name).then(|| {
                    let due_at = event.notification.received_at;
                    (*position, OpenDelivery::new(event.keys.clone(), due_at))
                })
            }
            Content::Subscriptions(_, recorded) => {
                subscriptions = recorded;
                None
            }
            _ => None,
        })
    }

    /// When the ledger is to ingest the first batch; `None` if there is none.
    pub(super) fn is_due_at(&self) -> Option<Instant> {
        let is_full = self.contents >= RECORDS || self.bytes >= BYTES;
        let delay = if is_full { Duration::ZERO } else { DELAY };
        self.since.map(|since| since + delay)
    }
}
