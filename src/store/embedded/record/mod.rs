//! The records of the journal, version 2. Pure: bytes in, bytes out.
//!
//! # Frame
//!
//! ```text
//!    0  4  sync marker: FF 68 6B FD
//!    4  4  length in bytes of the public part
//!    8  4  length in bytes of the personal part; both parts together have at most 32 MiB
//!   12  2  type: 2 event, 3 deliveries, 4 subscriptions, 5 inventory
//!   14  2  zero
//!   16  4  CRC32C of bytes 0 to 15 and the public part, XOR CRC32C of the record's position
//!   20  4  CRC32C of the personal part as it is on disk, XOR CRC32C of the record's position
//!   24  .  public part
//!    .  .  personal part
//! ```
//!
//! The checksums include the position (segment number << 32 | offset), so that a record is valid in
//! its own place only. A block of an older file, or a copy of a record inside a body, is never
//! mistaken for a record. The marker cannot occur in UTF-8, and so in no JSON body. So the search
//! for the next record after damage rarely has to look twice.
//!
//! All personal data is in the personal part. That part can be zeroed in place, with the checksum
//! of the zeros, or encrypted under the key that the segment's header names. The record stays valid
//! then, and its public part readable. Zeros with another checksum are damage: a crash leaves them
//! when a record did not arrive whole.
//!
//! [`codec`](super::codec) specifies the encoding of values. A reader ignores bytes after the last
//! value of a part, and records of unknown types. So a later version may add what older readers do
//! not need. Any other change needs a new version of the format.
//!
//! # Event
//!
//! ```text
//! public   16  id
//!          12  time it was received
//!           .  optional time it occurred
//!           1  origin: 1 received; 2 recovered and 3 reconciled are reserved
//!           .  optional trace context (W3C): 16 trace id, 8 parent id, 1 flags; reserved
//!           .  endpoint, text
//!           .  name, text
//!           .  list of dedupe keys, 16 bytes each
//! personal  .  optional partition key, text
//!           .  list of subjects, texts
//!           .  list of topics, texts
//!           .  optional ordering keys: 8 scope, list of keys, 8 each
//!           .  body: 4 bytes of length, and the body
//! ```
//!
//! # Deliveries
//!
//! The states of deliveries, each after its latest change. Of two records of one delivery, the
//! valid one has more replays, or else more attempts, or else the later state: open, parked,
//! finished. So the order of reading does not matter.
//!
//! ```text
//! public    .  handler, text
//!           .  list of
//!              8  position of the event
//!              1  state: 1 open, 2 parked, 3 done, 4 skipped
//!              4  replays
//!              4  attempts that have ended
//!              8  when it is due or, where it is not open, when it ended: microseconds since 1970
//!              .  optional time its first attempt began: 8, microseconds
//!              .  list of attempts that did not end well: 8 begin, microseconds; 8 duration,
//!                 milliseconds
//! personal  .  for each delivery, in the same order:
//!              .  optional reason of its last replay, text
//!              .  optional reason why it is parked or was skipped, text
//!              .  list of what went wrong at those attempts, texts
//! ```
//!
//! # Subscriptions
//!
//! The subscriptions that are in force from here on. Events before the first such record go to the
//! handlers that are configured when they are read. Open deliveries of handlers without a
//! subscription are parked. A segment that is begun while a service runs starts with such a record.
//!
//! ```text
//! public   12  time
//!           .  list of
//!              .  handler, text
//!              1  whether it is ordered
//!              .  list of patterns, texts
//! ```
//!
//! # Inventory
//!
//! From here on, records of type 3 describe all deliveries of the events between two positions.
//! Earlier records of them may be missing.
//!
//! ```text
//! public    8  position of the first event
//!           8  position behind the last one
//! ```
//!
//! Records of [version 1](version_1), in segments of version 1, can still be read.

mod deliveries;
mod event;
mod frame;
mod version_1;

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use self::{
    deliveries::{put_delivery, put_reasons, take_deliveries},
    frame::{Builder, FRAME_BYTES, Frame, position_checksum},
};
use super::{
    codec::{put_integer, put_list, put_text, put_time, take_integer, take_time},
    segment::Position,
};
use crate::{
    event::{HandlerName, Notification, OrderingKeys},
    store::{DeliverySnapshot, Subscription},
};

pub(super) use self::{
    deliveries::{put_subscriptions, take_subscriptions},
    frame::{LENGTH_BYTES, MARKER_BEGIN, PARTS_LIMIT},
};

/// The types of records.
const EVENT: u32 = 2;
const DELIVERIES: u32 = 3;
const SUBSCRIPTIONS: u32 = 4;
const INVENTORY: u32 = 5;

/// A value that is too large for a record, with the size of its parts in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLarge(pub(super) usize);

/// An encoded record without a position.
#[derive(Debug)]
pub(super) struct Record(Vec<u8>);

/// The content of a record.
#[derive(Debug)]
pub(super) enum Content {
    /// An event.
    Event(Box<Event>),
    /// The states of deliveries to one handler.
    Deliveries(Vec<(Position, DeliverySnapshot)>),
    /// The subscriptions from this record on, and their time.
    Subscriptions(Timestamp, Vec<Subscription>),
    /// Only later records are valid for the deliveries of the events between these positions.
    Inventory(Position, Position),
    /// The record has a type of a later version.
    Other,
}

/// An event of the journal.
#[derive(Debug)]
pub(super) struct Event {
    /// The event. Without a readable personal part it has no keys, topics or body.
    pub(super) notification: Arc<Notification>,
    /// The event's ordering keys.
    pub(super) keys: Option<OrderingKeys>,
    /// The state of the personal part.
    pub(super) personal: Personal,
}

/// The state of a record's personal part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Personal {
    /// The part is as it was written.
    Whole,
    /// The part was zeroed on purpose.
    Erased,
    /// The part is damaged.
    Damaged,
}

impl Record {
    /// Encodes an event with its ordering `keys`. Callers of an append encode, so that the single
    /// writer only copies.
    ///
    /// # Errors
    ///
    /// When the event is too large for a record.
    pub(super) fn event(
        notification: &Notification,
        keys: Option<&OrderingKeys>,
    ) -> Result<Self, TooLarge> {
        let mut record = Builder::new(notification.body.len() + 512);
        event::put_public(&mut record.0, notification);
        let personal = |out: &mut Vec<u8>| event::put_personal(out, notification, keys);
        record.finish(EVENT, personal).checked()
    }

    /// Encodes the states of `deliveries` to one handler, in as few records as possible.
    pub(super) fn of_deliveries(deliveries: &[(Position, DeliverySnapshot)]) -> Vec<Self> {
        let Some((_, first)) = deliveries.first() else {
            return Vec::new();
        };
        match Self::deliveries(&first.handler, deliveries) {
            Ok(record) => vec![record],
            // Reasons are short, so a single delivery always fits.
            Err(TooLarge(_)) => {
                let (some, others) = deliveries.split_at(deliveries.len() / 2);
                let mut records = Self::of_deliveries(some);
                records.append(&mut Self::of_deliveries(others));
                records
            }
        }
    }

    /// Encodes the states of deliveries to one handler.
    ///
    /// # Errors
    ///
    /// When the deliveries do not fit into one record.
    fn deliveries(
        handler: &HandlerName,
        deliveries: &[(Position, DeliverySnapshot)],
    ) -> Result<Self, TooLarge> {
        let mut record = Builder::new(64 * deliveries.len());
        put_text(&mut record.0, handler.as_str());
        put_list(&mut record.0, deliveries, put_delivery);
        let reasons = |out: &mut Vec<u8>| {
            for (_, delivery) in deliveries {
                put_reasons(out, delivery);
            }
        };
        record.finish(DELIVERIES, reasons).checked()
    }

    /// Encodes the subscriptions that are in force from `now` on.
    ///
    /// # Errors
    ///
    /// When the subscriptions do not fit into one record.
    pub(super) fn subscriptions(
        now: Timestamp,
        subscriptions: &[Subscription],
    ) -> Result<Self, TooLarge> {
        let mut record = Builder::new(64 * subscriptions.len());
        put_time(&mut record.0, now);
        put_subscriptions(&mut record.0, subscriptions);
        record.finish(SUBSCRIPTIONS, |_| {}).checked()
    }

    /// Encodes an inventory of the events from `from` to `to`.
    pub(super) fn inventory(from: Position, to: Position) -> Self {
        let mut record = Builder::new(16);
        put_integer(&mut record.0, from.to_sql());
        put_integer(&mut record.0, to.to_sql());
        record.finish(INVENTORY, |_| {})
    }

    fn checked(self) -> Result<Self, TooLarge> {
        let parts = self.0.len() - FRAME_BYTES;
        if parts > PARTS_LIMIT {
            return Err(TooLarge(parts));
        }
        Ok(self)
    }

    /// The record's size in bytes.
    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// Appends the record to `out`, with its checksums made valid for `position`.
    pub(super) fn write_to(&self, out: &mut Vec<u8>, position: Position) {
        let from = out.len();
        out.extend_from_slice(&self.0);
        let place = position_checksum(position);
        for checksum in [16, 20] {
            if let Some(stored) = out.get_mut(from + checksum..from + checksum + 4)
                && let Ok(bytes) = <[u8; 4]>::try_from(&*stored)
            {
                stored.copy_from_slice(&(u32::from_le_bytes(bytes) ^ place).to_le_bytes());
            }
        }
    }
}

/// The size in bytes of the record at the beginning of `bytes`, which has at least
/// [`LENGTH_BYTES`]; `None` if no record begins there.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    Frame::read(bytes).map(|frame| frame.len())
}

/// Whether the record `bytes` at `position` is valid. The personal part is not verified.
pub(super) fn is_valid(bytes: &[u8], position: Position) -> bool {
    Frame::read(bytes).is_some_and(|frame| frame.is_valid(bytes, position) == Some(true))
}

/// Whether the [valid](is_valid) record `bytes` at `position` is intact, with a personal part that
/// is whole or erased.
pub(super) fn is_whole(bytes: &[u8], position: Position) -> bool {
    let state = Frame::read(bytes).and_then(|frame| frame.state(bytes, position));
    state.is_some_and(|state| state != Personal::Damaged)
}

/// Decodes the [valid](is_valid) record `bytes` at `position`; `None` if the content does not match
/// the type. An event's body shares the memory of `bytes`.
pub(super) fn content(bytes: &Bytes, position: Position) -> Option<Content> {
    let frame = Frame::read(bytes)?;
    let (mut public, mut personal) = (frame.public(bytes)?, frame.personal(bytes)?);
    let state = frame.state(bytes, position)?;
    if state != Personal::Whole {
        personal = &[];
    }
    let (public, personal) = (&mut public, &mut personal);
    let share = |body: &[u8]| bytes.slice_ref(body);
    Some(match frame.kind {
        version_1::EVENT => Content::Event(Box::new(version_1::take_event(public, share)?)),
        EVENT => Content::Event(Box::new(event::take_event(public, personal, state, share)?)),
        DELIVERIES => Content::Deliveries(take_deliveries(public, personal, state)?),
        SUBSCRIPTIONS => Content::Subscriptions(take_time(public)?, take_subscriptions(public)?),
        INVENTORY => {
            let mut position = || take_integer(public).map(Position::from_sql);
            Content::Inventory(position()?, position()?)
        }
        _ => Content::Other,
    })
}
