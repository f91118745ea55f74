//! The format of the journal, version 1. Pure: bytes in, bytes out.
//!
//! # Constraints
//!
//! Nothing but zeros is ever changed in place. A record is written once, at the end, and is whole or was
//! never acknowledged. What can happen to it: the last write before a crash arrives in part and
//! out of order; a disk returns other bytes than it was given; a file loses its end. Each of these
//! must be noticed, must cost only the records it touches, and must never bring a wrong record
//! back.
//!
//! # Segments
//!
//! The journal is a directory of segments, numbered upwards from 1; a number is never used twice.
//! Only the segment with the highest number is written to. The file of segment 7 is
//! `0000000007.segment`. All integers are little-endian; a time is 8 bytes of seconds since 1970,
//! signed, and 4 bytes of nanoseconds of the same sign.
//!
//! ```text
//! header, 64 bytes
//!    0  8  magic: the letters "hookswch"
//!    8  4  version of the format: 1
//!   12  4  number of this segment
//!   16  4  number of the segment before it; 0 for none
//!   20  4  zero
//!   24  8  final length in bytes of the segment before it, so that a lost end is noticed
//!   32  8  records in all the segments before it, so that records can be counted without reading
//!   40 12  time at which this segment was begun: all earlier segments are older
//!   52  8  zero
//!   60  4  CRC32C of bytes 0 to 59
//! ```
//!
//! Magic, version and checksum stay at their places in every version to come.
//!
//! # Records
//!
//! The header is followed by records without gaps. After the last record of the last segment there
//! may be zeros to the end of the file, which wait to be overwritten: they are neither records nor
//! damage. A segment loses them when the next one is begun, so that the length which that one's
//! header gives is the end of the last record, and zeros before it are damage.
//!
//! ```text
//!    0  4  sync marker: FF 68 6B FE
//!    4  4  length of the payload in bytes, at most 32 MiB
//!    8  4  type of the payload: 1 is a notification
//!   12  4  CRC32C of bytes 0 to 11 and the payload, XOR CRC32C of the record's position
//!   16  .  payload
//! ```
//!
//! The position, segment number << 32 | offset, takes part in the checksum so that a record is
//! valid in its own place only: blocks of an older file, or a copy of a record inside another
//! record's body, are never taken for one. The marker cannot occur in UTF-8, hence in no JSON body,
//! so that a search for the next record after damage rarely looks twice.
//!
//! # Payload of a notification
//!
//! A text is 4 bytes of length and UTF-8. An optional value is one byte, 0 or 1, and then, after a
//! 1, the value. A list is 4 bytes of count and its elements.
//!
//! ```text
//! 16  id
//! 12  time it was received
//!  .  optional time it occurred
//!  .  endpoint, text
//!  .  name, text
//!  .  optional key, text
//!  .  optional subject, text
//!  .  list of topics, texts
//!  .  list of dedupe keys, 16 bytes each
//!  .  body: all the rest
//! ```
//!
//! # Recovery
//!
//! Only the last segment can have a torn end. Where there are only zeros up to the end of its file,
//! its records end, and the next one is written there. Where else no valid record begins, the next
//! one is searched by its marker. If there is one, the bytes between are damage: reported, skipped,
//! never cut. If there is none, they are a torn tail: cut, with the zeros after them, and kept in a
//! file beside the segment, without those. Records that were written but not acknowledged may
//! survive; that is harmless, since they are authentic.
//!
//! # Not promised
//!
//! Nothing is encrypted. Damage is found when it is read, not before. A disk that returns zeros for
//! the last records of the last segment is noticed only if the ledger had read them.

use bytes::{Buf, Bytes};
use jiff::Timestamp;

use crate::event::{DedupeKey, EndpointName, EventId, EventName, Key, Notification, Topic};

/// The version of the format that is written here, and the highest that can be read.
pub(super) const VERSION: u32 = 1;

/// Size of a segment's header, and the offset of its first record.
pub(super) const HEADER_BYTES: usize = 64;

/// Size of what stands before a record's payload.
pub(super) const PREFIX_BYTES: usize = 16;

/// The largest payload: far above any body that the door lets in, and small enough to be held in
/// memory while a damaged length is followed.
pub(super) const PAYLOAD_LIMIT: usize = 32 << 20;

/// What every record begins with.
pub(super) const MARKER: [u8; 4] = [0xff, b'h', b'k', 0xfe];

const MAGIC: [u8; 8] = *b"hookswch";

/// The type of a record that holds a notification.
const NOTIFICATION: u32 = 1;

/// A place in the journal. Later records have greater ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Position(u64);

impl Position {
    /// `offset` bytes into segment `number`. Segments are far smaller than 4 GiB.
    pub(super) const fn new(number: u32, offset: u64) -> Self {
        Self(((number as u64) << 32) | (offset & 0xffff_ffff))
    }

    /// The number of the segment.
    pub(super) const fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The offset in the segment, in bytes.
    pub(super) const fn offset(self) -> u64 {
        self.0 & 0xffff_ffff
    }

    /// The form in which the ledger holds it. Ordered as positions are, since segment numbers stay
    /// below 2^31.
    pub(super) const fn to_sql(self) -> i64 {
        self.0.cast_signed()
    }

    /// Takes the ledger's form back.
    pub(super) const fn from_sql(value: i64) -> Self {
        Self(value.cast_unsigned())
    }
}

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Its number.
    pub(super) number: u32,
    /// Number and final length, in bytes, of the segment before it.
    pub(super) previous: Option<(u32, u64)>,
    /// Records in all the segments before it.
    pub(super) records_before: u64,
    /// When it was begun.
    pub(super) begun_at: Timestamp,
}

/// Why a header could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// Its checksum is wrong, or it is not one at all.
    Damaged,
    /// It is of this later version.
    TooNew(u32),
}

impl Header {
    /// Its 64 bytes.
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let (previous, length) = self.previous.unwrap_or((0, 0));
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&previous.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&self.records_before.to_le_bytes());
        put_time(&mut out, self.begun_at);
        out.extend_from_slice(&[0; 8]);
        let checksum = crc32c::crc32c(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(&out);
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    ///
    /// When it is damaged, or of a later version.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, BadHeader> {
        let (covered, mut checksum) = bytes.split_at(HEADER_BYTES - 4);
        if crc32c::crc32c(covered) != checksum.get_u32_le() {
            return Err(BadHeader::Damaged);
        }
        Self::fields(covered).unwrap_or(Err(BadHeader::Damaged))
    }

    fn fields(mut bytes: &[u8]) -> Option<Result<Self, BadHeader>> {
        let bytes = &mut bytes;
        if take(bytes, MAGIC.len())? != MAGIC {
            return None;
        }
        let version = take_u32(bytes)?;
        if version > VERSION {
            return Some(Err(BadHeader::TooNew(version)));
        }
        let number = take_u32(bytes)?;
        let previous = take_u32(bytes)?;
        take(bytes, 4)?;
        let length = bytes.try_get_u64_le().ok()?;
        Some(Ok(Self {
            number,
            previous: (previous != 0).then_some((previous, length)),
            records_before: bytes.try_get_u64_le().ok()?,
            begun_at: take_time(bytes)?,
        }))
    }
}

/// A record that has not been given its place yet.
#[derive(Debug)]
pub(super) struct Record(Vec<u8>);

/// A notification that is too large for a record: the size of its payload in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLarge(pub(super) usize);

impl Record {
    /// Encodes `notification`. Done by the caller of an append, so that the one writer only
    /// copies.
    ///
    /// # Errors
    ///
    /// When it is larger than a record may be.
    pub(super) fn new(notification: &Notification) -> Result<Self, TooLarge> {
        let mut out = Vec::with_capacity(PREFIX_BYTES + size_hint(notification));
        out.extend_from_slice(&[0; PREFIX_BYTES]);
        put_notification(&mut out, notification);
        let length = out.len() - PREFIX_BYTES;
        if length > PAYLOAD_LIMIT {
            return Err(TooLarge(length));
        }
        let prefix = prefix(length as u32, NOTIFICATION);
        let mut record = Self(out);
        record.put(0, &prefix);
        let covered = checksum(&prefix, record.0.get(PREFIX_BYTES..).unwrap_or_default());
        record.put(12, &covered.to_le_bytes());
        Ok(record)
    }

    /// Its size in bytes.
    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds it to `out`, made valid for `position`. To be done once.
    pub(super) fn write_to(&mut self, out: &mut Vec<u8>, position: Position) {
        if let Some(mut stored) = self.0.get(12..PREFIX_BYTES) {
            let placed = stored.get_u32_le() ^ place(position);
            self.put(12, &placed.to_le_bytes());
        }
        out.extend_from_slice(&self.0);
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(target) = self.0.get_mut(at..at + bytes.len()) {
            target.copy_from_slice(bytes);
        }
    }
}

/// What [`length`] and [`payload`] say of bytes that are no valid record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Invalid;

/// The size in bytes of the whole record that begins with `prefix`, if one does.
///
/// # Errors
///
/// When none begins there.
pub(super) fn length(mut prefix: &[u8]) -> Result<usize, Invalid> {
    let prefix = &mut prefix;
    if take(prefix, MARKER.len()) != Some(&MARKER) {
        return Err(Invalid);
    }
    match take_u32(prefix) {
        Some(length) if length as usize <= PAYLOAD_LIMIT => Ok(PREFIX_BYTES + length as usize),
        _ => Err(Invalid),
    }
}

/// The payload of the whole record `bytes` at `position`.
///
/// # Errors
///
/// When its checksum is wrong.
pub(super) fn payload(bytes: &[u8], position: Position) -> Result<&[u8], Invalid> {
    let (prefix, payload) = bytes.split_at_checked(PREFIX_BYTES).ok_or(Invalid)?;
    let (covered, mut stored) = prefix.split_at_checked(12).ok_or(Invalid)?;
    let expected = checksum(covered, payload) ^ place(position);
    if length(prefix)? != bytes.len() || stored.get_u32_le() != expected {
        return Err(Invalid);
    }
    Ok(payload)
}

/// Reads the whole record `bytes` at `position`. The body shares the memory of `bytes`.
///
/// # Errors
///
/// When its checksum is wrong, or it does not hold a notification.
pub(super) fn notification(bytes: &Bytes, position: Position) -> Result<Notification, Invalid> {
    let payload = payload(bytes, position)?;
    let mut kind = bytes.get(8..12).ok_or(Invalid)?;
    if kind.get_u32_le() != NOTIFICATION {
        return Err(Invalid);
    }
    take_notification(payload, |body| bytes.slice_ref(body)).ok_or(Invalid)
}

fn prefix(length: u32, kind: u32) -> [u8; 12] {
    let mut prefix = [0; 12];
    let fields = MARKER
        .into_iter()
        .chain(length.to_le_bytes())
        .chain(kind.to_le_bytes());
    for (to, from) in prefix.iter_mut().zip(fields) {
        *to = from;
    }
    prefix
}

fn checksum(prefix: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(prefix), payload)
}

fn place(position: Position) -> u32 {
    crc32c::crc32c(&position.0.to_le_bytes())
}

fn size_hint(notification: &Notification) -> usize {
    let topics: usize = notification.topics.iter().map(|t| t.as_str().len()).sum();
    let texts = notification.endpoint.as_str().len()
        + notification.name.as_str().len()
        + notification.key.as_ref().map_or(0, |k| k.as_str().len())
        + notification.subject.as_ref().map_or(0, String::len);
    let fixed = 80 + 4 * notification.topics.len() + 16 * notification.dedupe.len();
    fixed + texts + topics + notification.body.len()
}

fn put_notification(out: &mut Vec<u8>, notification: &Notification) {
    out.extend_from_slice(notification.id.as_bytes());
    put_time(out, notification.received_at);
    put_option(out, notification.occurred_at, put_time);
    put_text(out, notification.endpoint.as_str());
    put_text(out, notification.name.as_str());
    put_option(out, notification.key.as_ref().map(Key::as_str), put_text);
    put_option(out, notification.subject.as_deref(), put_text);
    put_count(out, notification.topics.len());
    for topic in &notification.topics {
        put_text(out, topic.as_str());
    }
    put_count(out, notification.dedupe.len());
    for key in &notification.dedupe {
        out.extend_from_slice(key.as_bytes());
    }
    out.extend_from_slice(&notification.body);
}

fn take_notification(mut bytes: &[u8], share: impl FnOnce(&[u8]) -> Bytes) -> Option<Notification> {
    let bytes = &mut bytes;
    let id = EventId::from_bytes(take_array(bytes)?);
    let received_at = take_time(bytes)?;
    let occurred_at = take_option(bytes, take_time)?;
    let endpoint = EndpointName::from(take_text(bytes)?);
    let name = EventName::from(take_text(bytes)?);
    let key = take_option(bytes, take_text)?.map(Key::from);
    let subject = take_option(bytes, take_text)?.map(str::to_owned);
    let topics = (0..take_u32(bytes)?)
        .map(|_| take_text(bytes).map(Topic::from))
        .collect::<Option<_>>()?;
    let dedupe = (0..take_u32(bytes)?)
        .map(|_| take_array(bytes).map(DedupeKey::from_bytes))
        .collect::<Option<_>>()?;
    Some(Notification {
        id,
        endpoint,
        name,
        key,
        subject,
        occurred_at,
        received_at,
        topics,
        dedupe,
        body: share(bytes),
    })
}

fn put_time(out: &mut Vec<u8>, time: Timestamp) {
    out.extend_from_slice(&time.as_second().to_le_bytes());
    out.extend_from_slice(&time.subsec_nanosecond().to_le_bytes());
}

/// Texts and lists end before the payload limit, which is checked after writing.
fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&(count as u32).to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn put_option<T>(out: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    bytes.split_off(..count)
}

fn take_array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    take(bytes, N)?.try_into().ok()
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    take_array(bytes).map(u32::from_le_bytes)
}

fn take_text<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    let length = take_u32(bytes)? as usize;
    std::str::from_utf8(take(bytes, length)?).ok()
}

fn take_time(bytes: &mut &[u8]) -> Option<Timestamp> {
    let seconds = i64::from_le_bytes(take_array(bytes)?);
    let nanoseconds = i32::from_le_bytes(take_array(bytes)?);
    Timestamp::new(seconds, nanoseconds).ok()
}

fn take_option<'a, T>(
    bytes: &mut &'a [u8],
    take_value: impl FnOnce(&mut &'a [u8]) -> Option<T>,
) -> Option<Option<T>> {
    match take_array(bytes)? {
        [0] => Some(None),
        [1] => take_value(bytes).map(Some),
        _ => None,
    }
}
