//! The format of the journal's segments, version 2. Pure: bytes in, bytes out.
//!
//! # Constraints
//!
//! Two things are overwritten in place: preallocated zeros, and the personal part of a record, with
//! zeros. A record is appended once, and is whole or was never acknowledged. Three failures can
//! occur: the last write before a crash arrives in part and out of order; a disk returns other
//! bytes than were written; a file loses its end. Each failure must be noticed, must affect only
//! the records it touches, and must never produce a wrong record.
//!
//! # Segments
//!
//! The journal is a directory of segments, numbered from 1. A number is never used twice. Records
//! are appended only to the segment with the highest number. The file of segment 7 is
//! `0000000007.segment`. [`codec`](super::codec) specifies the encoding of values.
//!
//! ```text
//! header, 64 bytes
//!    0  8  magic: the letters "hookswch"
//!    8  4  version of the format: 2, or 1
//!   12  4  number of this segment
//!   16  4  number of the segment before it; 0 for none
//!   20  4  number of the key that the personal parts of its records are encrypted under; 0 for none
//!   24  8  final length in bytes of the segment before it, so that a lost end is noticed
//!   32  8  records in all the segments before it, so that records can be counted without reading
//!   40 12  time at which this segment was begun: all earlier segments are older
//!   52  8  zero
//!   60  4  CRC32C of bytes 0 to 59
//! ```
//! Magic, version and checksum have these offsets in every later version. A segment of version 1
//! differs in its records only. No record is appended to it: a service begins a segment of version
//! 2 first.
//!
//! # Records
//!
//! [Records](super::record) follow the header without gaps. In the last segment, preallocated zeros
//! may follow the last record, up to the end of the file. They are neither records nor damage. They
//! are removed before the next segment begins. So the length in the next segment's header is the
//! end of the last record, and zeros before that end are damage.
//!
//! # Recovery
//!
//! Only the last segment can have a torn tail. If only zeros follow up to the end of the file, the
//! segment ends there, and the next record is written there. Where no valid record begins
//! otherwise, the next one is searched by its marker. If there is one, the bytes in between are
//! damage: they are reported, skipped, and never cut. If there is none, the bytes are a torn tail:
//! it is cut, together with zeros after it, and kept in a file beside the segment. Records at the
//! end with an incomplete personal part belong to the torn tail. Records that were written and not
//! acknowledged may survive, which is harmless, since they are authentic.
//!
//! # Not promised
//!
//! Encryption is not implemented: a segment with the number of a key is refused. Damage is found
//! when it is read. If a disk returns zeros for the last records of the last segment, this is
//! noticed only if the ledger had read them.

use bytes::Buf;
use jiff::Timestamp;

use super::codec::{put_time, take, take_integer, take_time, take_u32};

/// The version of the format that this program writes, and the highest that it reads.
pub(super) const VERSION: u32 = 2;

/// The size of a segment's header, and the offset of its first record.
pub(super) const HEADER_BYTES: usize = 64;

const MAGIC: [u8; 8] = *b"hookswch";

/// A position in the journal. Later records have greater positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Position(u64);

impl Position {
    /// Greater than the position of any record.
    pub(super) const LAST: Self = Self(u64::MAX);

    /// `offset` bytes into segment `number`. Segments are far smaller than 4 GiB.
    pub(super) const fn new(number: u32, offset: u64) -> Self {
        Self(((number as u64) << 32) | (offset & 0xffff_ffff))
    }

    /// The segment's number.
    pub(super) const fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The offset in the segment, in bytes.
    pub(super) const fn offset(self) -> u64 {
        self.0 & 0xffff_ffff
    }

    /// The following position: no position is between the two.
    pub(super) const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The position as SQL integer. The order is kept, since segment numbers stay below 2^31.
    pub(super) const fn to_sql(self) -> i64 {
        self.0.cast_signed()
    }

    /// Reverses [`to_sql`](Self::to_sql).
    pub(super) const fn from_sql(value: i64) -> Self {
        Self(value.cast_unsigned())
    }
}

/// How far the journal has been read or written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watermark {
    /// The position behind the last record.
    pub(super) through: Position,
    /// The number of records up to there.
    pub(super) records: u64,
}

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The version of the segment's format.
    pub(super) version: u32,
    /// The segment's number.
    pub(super) number: u32,
    /// The number and the final length, in bytes, of the segment before it.
    pub(super) previous: Option<(u32, u64)>,
    /// The number of records in all earlier segments.
    pub(super) records_before: u64,
    /// When the segment was begun.
    pub(super) begun_at: Timestamp,
}

/// Why a header could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// The checksum is wrong, or the bytes are not a header.
    Damaged,
    /// The segment has this later version.
    TooNew(u32),
    /// The records are encrypted under the key with this number.
    Encrypted(u32),
}

impl Header {
    /// The header of segment `number` if there is none before it.
    pub(super) const fn first(number: u32, begun_at: Timestamp) -> Self {
        Self {
            version: VERSION,
            number,
            previous: None,
            records_before: 0,
            begun_at,
        }
    }

    /// Encodes the header.
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let (previous, length) = self.previous.unwrap_or((0, 0));
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.version.to_le_bytes());
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

    /// Decodes a header.
    ///
    /// # Errors
    ///
    /// When the header is damaged or of a later version, or when the records are encrypted.
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
        let key = take_u32(bytes)?;
        if key != 0 {
            return Some(Err(BadHeader::Encrypted(key)));
        }
        let length = take_integer(bytes)?.cast_unsigned();
        Some(Ok(Self {
            version,
            number,
            previous: (previous != 0).then_some((previous, length)),
            records_before: take_integer(bytes)?.cast_unsigned(),
            begun_at: take_time(bytes)?,
        }))
    }
}
