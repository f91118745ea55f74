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
//! The position, segment number << 32 | offset, takes part in the checksums so that a record is valid in
//! its own place only: blocks of an older file, or a copy of a record inside another record's body, are
//! never taken for one. The marker cannot occur in UTF-8, hence in no JSON body, so that a search for the
//! next record after damage rarely looks twice.
//!
//! Whatever may tell of a person is in the personal part. That part can be zeroed in place, with its
//! checksum made that of the zeros, or be encrypted under the key that the segment's header names: the
//! record stays valid, and its public part can be read. Zeros with another checksum are damage: they are
//! what a crash leaves of a record that did not arrive whole.
//!
//! Values are written as [`codec`](super::codec) says. A reader passes over what follows the last value of
//! a part that it knows, and over types that it does not know: what a later version adds there can do
//! without older readers. Anything else needs a new version of the format.
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
//! What has become of deliveries: how each one stands after the last thing that happened to it. Of two
//! records about one delivery that one holds which has more replays, or else more attempts, or else is
//! further on: open, parked, over. So the order in which they are read does not matter.
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
//! Who gets the events from here on: those before the first such record of the journal are everybody's
//! who is configured when they are read. What is open of a handler that is not among them is parked. A
//! segment that is begun while a service runs begins with such a record.
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
//! The deliveries of the events between two positions are those that records of type 3 tell of behind
//! this one, and no others: what told of them before may be gone.
//!
//! ```text
//! public    8  position of the first event
//!           8  position behind the last one
//! ```
//!
//! # Version 1
//!
//! Records of version 1 are read. They stand in segments of version 1.
//!
//! ```text
//!    0  4  sync marker: FF 68 6B FE
//!    4  4  length of the payload in bytes, at most 32 MiB
//!    8  4  type of the payload: 1 is an event
//!   12  4  CRC32C of bytes 0 to 11 and the payload, XOR CRC32C of the record's position
//!   16  .  payload: id, time it was received, optional time it occurred, endpoint, name, optional
//!          partition key, optional subject, list of topics, list of dedupe keys, body to the end
//! ```

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use super::{
    codec::{
        put_bytes, put_count, put_integer, put_list, put_option, put_text, put_time, take,
        take_array, take_bytes, take_integer, take_list, take_option, take_text, take_time,
        take_u32,
    },
    segment::Position,
};
use crate::{
    event::{
        DedupeKey, EndpointName, EventId, EventName, HandlerName, Key, Notification, OrderingKeys,
        Pattern, Topic,
    },
    store::{Attempt, DeliverySnapshot, DeliveryState, Subscription},
};

/// How many bytes of a record tell its length.
pub(super) const LENGTH_BYTES: usize = 16;

/// The most bytes of both parts: far above any body that the server accepts, and small enough to be held
/// in memory while a damaged length is followed.
pub(super) const PARTS_LIMIT: usize = 32 << 20;

/// What the marker of every version begins with.
pub(super) const MARKER_BEGIN: [u8; 3] = [0xff, b'h', b'k'];

const MARKER: [u8; 4] = [0xff, b'h', b'k', 0xfd];
const MARKER_1: [u8; 4] = [0xff, b'h', b'k', 0xfe];

/// Size of what stands before the parts.
const FRAME_BYTES: usize = 24;
const FRAME_BYTES_1: usize = 16;

/// Types.
const EVENT_1: u32 = 1;
const EVENT: u32 = 2;
const DELIVERIES: u32 = 3;
const SUBSCRIPTIONS: u32 = 4;
const INVENTORY: u32 = 5;

/// The origin of an event that a provider sent.
const RECEIVED: u8 = 1;

/// Bytes that are no valid record, or one that does not hold what its type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Invalid;

/// Something too large for a record: the size of its parts in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLarge(pub(super) usize);

/// A record that has not been given its place yet.
#[derive(Debug)]
pub(super) struct Record(Vec<u8>);

/// What a record holds.
#[derive(Debug)]
pub(super) enum Content {
    /// An event.
    Event(Box<Event>),
    /// What has become of deliveries to one handler.
    Deliveries(Vec<(Position, DeliverySnapshot)>),
    /// Who gets the events from here on, and since when.
    Subscriptions(Timestamp, Vec<Subscription>),
    /// The deliveries of the events between these positions are those told of from here on.
    Inventory(Position, Position),
    /// Something that only a later version knows.
    Other,
}

/// An event as the journal has it.
#[derive(Debug)]
pub(super) struct Event {
    /// It. Where its personal part cannot be read it has none: no keys, topics or body.
    pub(super) notification: Arc<Notification>,
    /// What it keeps its order by.
    pub(super) keys: Option<OrderingKeys>,
    /// How its personal part is.
    pub(super) personal: Personal,
}

/// How the personal part of a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Personal {
    /// As it was written.
    Whole,
    /// All zeros, on purpose.
    Erased,
    /// Otherwise than it was written.
    Damaged,
}

impl Record {
    /// One of an event, which keeps its order by `keys`. Encoded by the caller of an append, so that the one writer only copies.
    ///
    /// # Errors
    ///
    /// When it is larger than a record may be.
    pub(super) fn event(
        notification: &Notification,
        keys: Option<&OrderingKeys>,
    ) -> Result<Self, TooLarge> {
        let mut record = Builder::new(notification.body.len() + 512);
        put_public(&mut record.0, notification);
        let personal = |out: &mut Vec<u8>| put_personal(out, notification, keys);
        record.finish(EVENT, personal).checked()
    }

    /// Those that tell how all of `deliveries` stand, which are to one handler.
    pub(super) fn of_deliveries(deliveries: &[(Position, DeliverySnapshot)]) -> Vec<Self> {
        let Some((_, first)) = deliveries.first() else {
            return Vec::new();
        };
        match Self::deliveries(&first.handler, deliveries) {
            Ok(record) => vec![record],
            // Reasons are short: one alone always fits.
            Err(TooLarge(_)) => {
                let (some, others) = deliveries.split_at(deliveries.len() / 2);
                let mut records = Self::of_deliveries(some);
                records.append(&mut Self::of_deliveries(others));
                records
            }
        }
    }

    /// One of what has become of deliveries to one handler.
    ///
    /// # Errors
    ///
    /// When they are more than fit into a record.
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

    /// One of who gets the events behind it, from `now` on.
    ///
    /// # Errors
    ///
    /// When they are more than fit into a record.
    pub(super) fn subscriptions(
        now: Timestamp,
        subscriptions: &[Subscription],
    ) -> Result<Self, TooLarge> {
        let mut record = Builder::new(64 * subscriptions.len());
        put_time(&mut record.0, now);
        put_subscriptions(&mut record.0, subscriptions);
        record.finish(SUBSCRIPTIONS, |_| {}).checked()
    }

    /// One that says that the deliveries of the events from `from` to `to` are those told of behind it.
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

    /// Its size in bytes.
    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds it to `out`, made valid for `position`.
    pub(super) fn write_to(&self, out: &mut Vec<u8>, position: Position) {
        let from = out.len();
        out.extend_from_slice(&self.0);
        let place = place(position);
        for checksum in [16, 20] {
            if let Some(stored) = out.get_mut(from + checksum..from + checksum + 4)
                && let Ok(bytes) = <[u8; 4]>::try_from(&*stored)
            {
                stored.copy_from_slice(&(u32::from_le_bytes(bytes) ^ place).to_le_bytes());
            }
        }
    }
}

/// A record whose public part is being written.
struct Builder(Vec<u8>);

impl Builder {
    fn new(size_hint: usize) -> Self {
        let mut bytes = Vec::with_capacity(FRAME_BYTES + size_hint);
        bytes.extend_from_slice(&[0; FRAME_BYTES]);
        Self(bytes)
    }

    /// Adds the personal part, and completes the record.
    fn finish(self, kind: u32, personal: impl FnOnce(&mut Vec<u8>)) -> Record {
        let Self(mut bytes) = self;
        let public = bytes.len() - FRAME_BYTES;
        personal(&mut bytes);
        let both = bytes.len() - FRAME_BYTES;
        let mut frame = Vec::with_capacity(FRAME_BYTES);
        frame.extend_from_slice(&MARKER);
        put_count(&mut frame, public);
        put_count(&mut frame, both - public);
        frame.extend_from_slice(&kind.to_le_bytes());
        let parts = bytes.get(FRAME_BYTES..).unwrap_or_default();
        let (public, personal) = parts.split_at_checked(public).unwrap_or_default();
        let checksums = [checksum(&frame, public), crc32c::crc32c(personal)];
        for checksum in checksums {
            frame.extend_from_slice(&checksum.to_le_bytes());
        }
        if let Some(target) = bytes.get_mut(..FRAME_BYTES) {
            target.copy_from_slice(&frame);
        }
        Record(bytes)
    }
}

/// What stands before the parts of a record, of either version.
struct Frame {
    /// How many bytes are covered by the checksum of the public part, which follows them.
    covered: usize,
    size: usize,
    public: usize,
    personal: usize,
    kind: u32,
}

impl Frame {
    fn read(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let frame = match take_array(bytes)? {
            MARKER => Self {
                covered: 16,
                size: FRAME_BYTES,
                public: take_u32(bytes)? as usize,
                personal: take_u32(bytes)? as usize,
                kind: take_u32(bytes)?,
            },
            MARKER_1 => Self {
                covered: 12,
                size: FRAME_BYTES_1,
                public: take_u32(bytes)? as usize,
                personal: 0,
                kind: take_u32(bytes)?,
            },
            _ => return None,
        };
        (frame.public + frame.personal <= PARTS_LIMIT).then_some(frame)
    }

    const fn len(&self) -> usize {
        self.size + self.public + self.personal
    }

    fn public<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        bytes.get(self.size..self.size + self.public)
    }

    fn personal<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        bytes.get(self.size + self.public..self.len())
    }

    fn is_valid(&self, bytes: &[u8], position: Position) -> Option<bool> {
        let covered = bytes.get(..self.covered)?;
        let mut stored = bytes.get(self.covered..)?;
        let expected = checksum(covered, self.public(bytes)?) ^ place(position);
        Some(bytes.len() == self.len() && take_u32(&mut stored)? == expected)
    }

    /// How the personal part is.
    fn state(&self, bytes: &[u8], position: Position) -> Option<Personal> {
        if self.size == FRAME_BYTES_1 {
            return Some(Personal::Whole);
        }
        let personal = self.personal(bytes)?;
        let mut stored = bytes.get(20..FRAME_BYTES)?;
        let expected = crc32c::crc32c(personal) ^ place(position);
        Some(if take_u32(&mut stored)? != expected {
            Personal::Damaged
        } else if !personal.is_empty() && personal.iter().all(|byte| *byte == 0) {
            Personal::Erased
        } else {
            Personal::Whole
        })
    }
}

/// The size in bytes of the whole record that begins with `bytes`, of which there are at least
/// [`LENGTH_BYTES`].
///
/// # Errors
///
/// When none begins there.
pub(super) fn length(bytes: &[u8]) -> Result<usize, Invalid> {
    Frame::read(bytes).map(|frame| frame.len()).ok_or(Invalid)
}

/// Checks the whole record `bytes` at `position`, but for its personal part.
///
/// # Errors
///
/// When its checksum is wrong.
pub(super) fn check(bytes: &[u8], position: Position) -> Result<(), Invalid> {
    let frame = Frame::read(bytes).ok_or(Invalid)?;
    match frame.is_valid(bytes, position) {
        Some(true) => Ok(()),
        _ => Err(Invalid),
    }
}

/// Whether all of the record `bytes` at `position`, which has been [checked](check), is as it was written
/// or erased.
pub(super) fn is_whole(bytes: &[u8], position: Position) -> bool {
    let state = Frame::read(bytes).and_then(|frame| frame.state(bytes, position));
    state.is_some_and(|state| state != Personal::Damaged)
}

/// What the whole record `bytes` at `position` holds, which has been [checked](check). A body shares the
/// memory of `bytes`.
///
/// # Errors
///
/// When it does not hold what its type says.
pub(super) fn content(bytes: &Bytes, position: Position) -> Result<Content, Invalid> {
    let read = || {
        let frame = Frame::read(bytes)?;
        let (mut public, mut personal) = (frame.public(bytes)?, frame.personal(bytes)?);
        let state = frame.state(bytes, position)?;
        if state != Personal::Whole {
            personal = &[];
        }
        let (public, personal) = (&mut public, &mut personal);
        let share = |body: &[u8]| bytes.slice_ref(body);
        Some(match frame.kind {
            EVENT_1 => Content::Event(Box::new(take_event_1(public, share)?)),
            EVENT => Content::Event(Box::new(take_event(public, personal, state, share)?)),
            DELIVERIES => Content::Deliveries(take_deliveries(public, personal, state)?),
            SUBSCRIPTIONS => {
                Content::Subscriptions(take_time(public)?, take_subscriptions(public)?)
            }
            INVENTORY => {
                let mut position = || take_integer(public).map(Position::from_sql);
                Content::Inventory(position()?, position()?)
            }
            _ => Content::Other,
        })
    };
    read().ok_or(Invalid)
}

fn checksum(covered: &[u8], part: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(covered), part)
}

fn place(position: Position) -> u32 {
    crc32c::crc32c(&position.to_sql().to_le_bytes())
}

fn put_public(out: &mut Vec<u8>, notification: &Notification) {
    out.extend_from_slice(notification.id.as_bytes());
    put_time(out, notification.received_at);
    put_option(out, notification.occurred_at, put_time);
    out.push(RECEIVED);
    put_option(out, None::<()>, |_, ()| {});
    put_text(out, notification.endpoint.as_str());
    put_text(out, notification.name.as_str());
    put_list(out, &notification.dedupe, |out, key| {
        out.extend_from_slice(key.as_bytes());
    });
}

fn put_personal(out: &mut Vec<u8>, notification: &Notification, keys: Option<&OrderingKeys>) {
    put_option(out, notification.key.as_ref().map(Key::as_str), put_text);
    let subject = notification.subject.as_deref();
    put_list(out, subject.as_slice(), |out, subject| {
        put_text(out, subject)
    });
    put_list(out, &notification.topics, |out, topic| {
        put_text(out, topic.as_str())
    });
    put_option(out, keys, |out, keys| {
        put_integer(out, keys.scope());
        put_list(out, keys.keys(), |out, key| put_integer(out, *key));
    });
    put_bytes(out, &notification.body);
}

fn take_event(
    public: &mut &[u8],
    personal: &mut &[u8],
    state: Personal,
    share: impl FnOnce(&[u8]) -> Bytes,
) -> Option<Event> {
    let id = EventId::from_bytes(take_array(public)?);
    let received_at = take_time(public)?;
    let occurred_at = take_option(public, take_time)?;
    let [_origin] = take_array(public)?;
    take_option(public, |bytes| take(bytes, 25))?;
    let mut notification = Notification {
        id,
        endpoint: EndpointName::from(take_text(public)?),
        name: EventName::from(take_text(public)?),
        key: None,
        subject: None,
        occurred_at,
        received_at,
        topics: Vec::new(),
        dedupe: take_list(public, |bytes| take_array(bytes).map(DedupeKey::from_bytes))?,
        body: Bytes::new(),
    };
    let mut keys = None;
    if state == Personal::Whole {
        notification.key = take_option(personal, take_text)?.map(Key::from);
        let subjects = take_list(personal, take_text)?;
        notification.subject = subjects.first().map(|subject| (*subject).to_owned());
        notification.topics = take_list(personal, |bytes| take_text(bytes).map(Topic::from))?;
        keys = take_option(personal, |bytes| {
            let scope = take_integer(bytes)?;
            Some(OrderingKeys::from_hashes(
                scope,
                take_list(bytes, take_integer)?,
            ))
        })?;
        notification.body = share(take_bytes(personal)?);
    }
    Some(Event {
        notification: Arc::new(notification),
        keys,
        personal: state,
    })
}

fn take_event_1(bytes: &mut &[u8], share: impl FnOnce(&[u8]) -> Bytes) -> Option<Event> {
    let id = EventId::from_bytes(take_array(bytes)?);
    let received_at = take_time(bytes)?;
    let occurred_at = take_option(bytes, take_time)?;
    let notification = Notification {
        id,
        endpoint: EndpointName::from(take_text(bytes)?),
        name: EventName::from(take_text(bytes)?),
        key: take_option(bytes, take_text)?.map(Key::from),
        subject: take_option(bytes, take_text)?.map(str::to_owned),
        occurred_at,
        received_at,
        topics: take_list(bytes, |bytes| take_text(bytes).map(Topic::from))?,
        dedupe: take_list(bytes, |bytes| take_array(bytes).map(DedupeKey::from_bytes))?,
        body: share(bytes),
    };
    Some(Event {
        keys: notification.ordering_keys(),
        notification: Arc::new(notification),
        personal: Personal::Whole,
    })
}

fn put_delivery(out: &mut Vec<u8>, (position, delivery): &(Position, DeliverySnapshot)) {
    put_integer(out, position.to_sql());
    out.push(match delivery.state {
        DeliveryState::Ready | DeliveryState::Queued => 1,
        DeliveryState::Parked => 2,
        DeliveryState::Done => 3,
        DeliveryState::Skipped => 4,
    });
    out.extend_from_slice(&delivery.replays.to_le_bytes());
    out.extend_from_slice(&delivery.attempts.to_le_bytes());
    put_integer(out, delivery.at.as_microsecond());
    put_option(out, delivery.since, |out, since| {
        put_integer(out, since.as_microsecond());
    });
    put_list(out, &delivery.failures, |out, failure| {
        put_integer(out, failure.started_at.as_microsecond());
        put_integer(out, failure.took_ms.cast_signed());
    });
}

fn put_reasons(out: &mut Vec<u8>, delivery: &DeliverySnapshot) {
    put_option(out, delivery.replay.as_deref(), put_text);
    put_option(out, delivery.why.as_deref(), put_text);
    put_list(out, &delivery.failures, |out, failure| {
        put_text(out, &failure.why)
    });
}

fn take_deliveries(
    public: &mut &[u8],
    personal: &mut &[u8],
    state: Personal,
) -> Option<Vec<(Position, DeliverySnapshot)>> {
    let handler = HandlerName::from(take_text(public)?);
    let mut deliveries = take_list(public, |bytes| take_delivery(bytes, &handler))?;
    if state == Personal::Whole {
        for (_, delivery) in &mut deliveries {
            take_reasons(personal, delivery)?;
        }
    }
    Some(deliveries)
}

fn take_delivery(bytes: &mut &[u8], handler: &HandlerName) -> Option<(Position, DeliverySnapshot)> {
    let position = Position::from_sql(take_integer(bytes)?);
    let state = match take_array(bytes)? {
        [1] => DeliveryState::Ready,
        [2] => DeliveryState::Parked,
        [3] => DeliveryState::Done,
        [4] => DeliveryState::Skipped,
        _ => return None,
    };
    let delivery = DeliverySnapshot {
        handler: handler.clone(),
        ordered: false,
        state,
        replays: take_u32(bytes)?,
        attempts: take_u32(bytes)?,
        at: take_micros(bytes)?,
        since: take_option(bytes, take_micros)?,
        replay: None,
        why: None,
        failures: take_list(bytes, |bytes| {
            Some(Attempt {
                started_at: take_micros(bytes)?,
                took_ms: take_integer(bytes)?.cast_unsigned(),
                why: String::new(),
            })
        })?,
    };
    Some((position, delivery))
}

fn take_reasons(bytes: &mut &[u8], delivery: &mut DeliverySnapshot) -> Option<()> {
    delivery.replay = take_option(bytes, take_text)?.map(str::to_owned);
    delivery.why = take_option(bytes, take_text)?.map(str::to_owned);
    let reasons = take_list(bytes, take_text)?;
    for (failure, why) in delivery.failures.iter_mut().zip(reasons) {
        why.clone_into(&mut failure.why);
    }
    Some(())
}

fn take_micros(bytes: &mut &[u8]) -> Option<Timestamp> {
    Timestamp::from_microsecond(take_integer(bytes)?).ok()
}

/// The form in which subscriptions are kept elsewhere too.
pub(super) fn put_subscriptions(out: &mut Vec<u8>, subscriptions: &[Subscription]) {
    put_list(out, subscriptions, |out, subscription| {
        put_text(out, subscription.handler.as_str());
        out.push(u8::from(subscription.ordered));
        put_list(out, &subscription.patterns, |out, pattern| {
            put_text(out, &pattern.to_string());
        });
    });
}

/// Takes that form back.
pub(super) fn take_subscriptions(bytes: &mut &[u8]) -> Option<Vec<Subscription>> {
    take_list(bytes, |bytes| {
        let handler = HandlerName::from(take_text(bytes)?);
        let [ordered] = take_array(bytes)?;
        // A pattern that no event of this version matches takes nothing.
        let patterns = take_list(bytes, take_text)?.into_iter();
        Some(Subscription {
            handler,
            patterns: patterns
                .filter_map(|text| Pattern::new(text).ok())
                .collect(),
            ordered: ordered == 1,
        })
    })
}
