//! Records of the journal on their way to the indexer, the queue and the ledger.

use crate::{
    event::Notification,
    store::embedded::{queue::DeliveryUpdate, record::Content, segment::Position},
};

/// Consecutive records of the journal.
#[derive(Debug, Default)]
pub(in super::super) struct JournalBatch {
    /// The position of the first record.
    pub(in super::super) from: Position,
    /// The position behind the last record.
    pub(in super::super) through: Position,
    /// The number of records in the journal up to there.
    pub(in super::super) records: u64,
    /// The contents, without duplicates.
    pub(in super::super) contents: Vec<(Position, Content)>,
    /// The number of duplicates.
    pub(in super::super) duplicates: u64,
}

impl JournalBatch {
    /// An empty batch that begins at `from`.
    pub(in super::super) fn behind(from: Position) -> Self {
        Self {
            from,
            through: from,
            ..Self::default()
        }
    }

    /// Appends the batch that follows.
    pub(in super::super) fn append(&mut self, mut next: Self) {
        (self.through, self.records) = (next.through, next.records);
        self.contents.append(&mut next.contents);
        self.duplicates += next.duplicates;
    }

    /// The events.
    pub(in super::super) fn events(&self) -> impl Iterator<Item = &Notification> {
        let contents = self.contents.iter();
        contents.filter_map(|(_, content)| match content {
            Content::Event(event) => Some(&*event.notification),
            _ => None,
        })
    }

    /// The memory that the contents take, in bytes: events' bodies and deliveries' states.
    pub(in super::super) fn bytes(&self) -> usize {
        let bytes = |(_, content): &(Position, Content)| match content {
            Content::Event(event) => event.notification.body.len(),
            Content::Deliveries(updates) => updates.len() * size_of::<DeliveryUpdate>(),
            Content::Subscriptions(..) | Content::Inventory(..) | Content::Other => 0,
        };
        self.contents.iter().map(bytes).sum()
    }
}
