//! The frame of a record: markers, lengths, checksums.

use super::{Personal, Record, version_1};
use crate::store::embedded::{
    codec::{put_count, take_array, take_u32},
    segment::Position,
};

/// The bytes at the beginning of a record from which its length is known.
pub(in super::super) const LENGTH_BYTES: usize = 16;

/// The most bytes of both parts: far more than the server accepts as a body, and few enough to keep
/// in memory when a damaged length is followed.
pub(in super::super) const PARTS_LIMIT: usize = 32 << 20;

/// The beginning of the marker in every version.
pub(in super::super) const MARKER_BEGIN: [u8; 3] = [0xff, b'h', b'k'];

const MARKER: [u8; 4] = [0xff, b'h', b'k', 0xfd];

/// The size of the frame before the parts.
pub(super) const FRAME_BYTES: usize = 24;

/// The frame of a record of either version.
pub(super) struct Frame {
    /// The number of bytes before the public part that its checksum covers.
    covered: usize,
    size: usize,
    public: usize,
    personal: usize,
    pub(super) kind: u32,
}

impl Frame {
    pub(super) fn read(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let frame = match take_array(bytes)? {
            MARKER => Self {
                covered: 16,
                size: FRAME_BYTES,
                public: take_u32(bytes)? as usize,
                personal: take_u32(bytes)? as usize,
                kind: take_u32(bytes)?,
            },
            version_1::MARKER => Self {
                covered: 12,
                size: version_1::FRAME_BYTES,
                public: take_u32(bytes)? as usize,
                personal: 0,
                kind: take_u32(bytes)?,
            },
            _ => return None,
        };
        (frame.public + frame.personal <= PARTS_LIMIT).then_some(frame)
    }

    pub(super) const fn len(&self) -> usize {
        self.size + self.public + self.personal
    }

    pub(super) fn public<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        bytes.get(self.size..self.size + self.public)
    }

    pub(super) fn personal<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        bytes.get(self.size + self.public..self.len())
    }

    pub(super) fn is_valid(&self, bytes: &[u8], position: Position) -> Option<bool> {
        let covered = bytes.get(..self.covered)?;
        let mut stored = bytes.get(self.covered..)?;
        let expected = checksum(covered, self.public(bytes)?) ^ position_checksum(position);
        Some(bytes.len() == self.len() && take_u32(&mut stored)? == expected)
    }

    /// The state of the personal part.
    pub(super) fn state(&self, bytes: &[u8], position: Position) -> Option<Personal> {
        if self.size == version_1::FRAME_BYTES {
            return Some(Personal::Whole);
        }
        let personal = self.personal(bytes)?;
        let mut stored = bytes.get(20..FRAME_BYTES)?;
        let expected = crc32c::crc32c(personal) ^ position_checksum(position);
        Some(if take_u32(&mut stored)? != expected {
            Personal::Damaged
        } else if !personal.is_empty() && personal.iter().all(|byte| *byte == 0) {
            Personal::Erased
        } else {
            Personal::Whole
        })
    }
}

/// A record under construction, with its public part.
pub(super) struct Builder(pub(super) Vec<u8>);

impl Builder {
    pub(super) fn new(size_hint: usize) -> Self {
        let mut bytes = Vec::with_capacity(FRAME_BYTES + size_hint);
        bytes.extend_from_slice(&[0; FRAME_BYTES]);
        Self(bytes)
    }

    /// Appends the personal part, and completes the record.
    pub(super) fn finish(self, kind: u32, personal: impl FnOnce(&mut Vec<u8>)) -> Record {
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

pub(super) fn checksum(covered: &[u8], part: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(covered), part)
}

pub(super) fn position_checksum(position: Position) -> u32 {
    crc32c::crc32c(&position.to_sql().to_le_bytes())
}
