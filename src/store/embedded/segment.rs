//! The format of the journal's segments, version 2. Pure: bytes in, bytes out.
//!
//! # Constraints
//!
//! Nothing is changed in place but zeros, and the personal part of a record, which may become zeros. A
//! record is written once, at the end, and is whole or was never acknowledged. What can happen to it:
//! the last write before a crash arrives in part and out of order; a disk returns other bytes than it was
//! given; a file loses its end. Each of these must be noticed, must cost only the records it touches, and
//! must never bring a wrong record back.
//!
//! # Segments
//!
//! The journal is a directory of segments, numbered upwards from 1; a number is never used twice.
//! Only the segment with the highest number is written to. The file of segment 7 is
//! `0000000007.segment`. Values are written as [`codec`](super::codec) says.
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
//!
//! Magic, version and checksum stay at their places in every version to come. A segment of version 1
//! differs in its records alone. Nothing is added to one: a service begins a segment of version 2 first.
//!
//! # Records
//!
//! The header is followed by [records](super::record) without gaps. After the last record of the last
//! segment there may be zeros to the end of the file, which wait to be overwritten: they are neither
//! records nor damage. A segment loses them when the next one is begun, so that the length which that
//! one's header gives is the end of the last record, and zeros before it are damage.
//!
//! # Recovery
//!
//! Only the last segment can have a torn end. Where there are only zeros up to the end of its file,
//! its records end, and the next one is written there. Where else no valid record begins, the next
//! one is searched by its marker. If there is one, the bytes between are damage: reported, skipped,
//! never cut. If there is none, they are a torn tail: cut, with the zeros after them, and kept in a
//! file beside the segment, without those. Records at the end whose personal part did not arrive belong to
//! the torn tail. Records that were written but not acknowledged may
//! survive; that is harmless, since they are authentic.
//!
//! # Not promised
//!
//! Nothing is encrypted yet: a segment with the number of a key is refused. Damage is found when it is
//! read, not before. A disk that returns zeros for the last records of the last segment is noticed only
//! if the ledger had read them.

use bytes::Buf;
use jiff::Timestamp;

use super::codec::{put_time, take, take_integer, take_time, take_u32};

/// The version of the format that is written here, and the highest that can be read.
pub(super) const VERSION: u32 = 2;

/// Size of a segment's header, and the offset of its first record.
pub(super) const HEADER_BYTES: usize = 64;

const MAGIC: [u8; 8] = *b"hookswch";

/// A place in the journal. Later records have greater ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Position(u64);

impl Position {
    /// Behind all others.
    pub(super) const LAST: Self = Self(u64::MAX);

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

    /// The next one: nothing is between the two.
    pub(super) const fn next(self) -> Self {
        Self(self.0 + 1)
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
    /// The version of its format.
    pub(super) version: u32,
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
    /// Its records are encrypted under the key of this number.
    Encrypted(u32),
}

impl Header {
    /// Its 64 bytes.
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

    /// Reads it.
    ///
    /// # Errors
    ///
    /// When it is damaged, of a later version, or its records are encrypted.
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
