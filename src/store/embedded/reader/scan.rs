//! Reads a segment sequentially, across damage and up to preallocated zeros.

use std::{fs::File, io, os::unix::fs::FileExt};

use bytes::Bytes;

use super::Directory;
use crate::store::embedded::{
    record::{self, LENGTH_BYTES, MARKER_BEGIN},
    segment::{HEADER_BYTES, Position},
};

/// The size of one read of a segment, in bytes. A larger record is read as a whole.
const WINDOW_BYTES: usize = 256 << 10;

/// The size of one read, in bytes, in the search for the zeros at the end of a segment.
const CHUNK_BYTES: usize = 1 << 20;

/// Zeros that are compared at once, which is far faster than byte by byte.
const ZEROS: [u8; 4096] = [0; 4096];

/// One step of [`Scan::next`].
#[derive(Debug)]
pub(in super::super) enum ScanItem {
    /// A valid record. Its personal part is not verified.
    Record {
        /// The record's position.
        position: Position,
        /// The record's bytes.
        bytes: Bytes,
    },
    /// Bytes that are not a valid record. A record or the end follows.
    Damage {
        /// The position of the first of them.
        position: Position,
        /// Their number.
        bytes: u64,
    },
}

/// Reads one segment sequentially, across damage.
///
/// Zeros before a known end of the segment are damage. If only the size of the file is known, zeros
/// up to the end of the file are the end of the segment.
#[derive(Debug)]
pub(in super::super) struct Scan {
    directory: Directory,
    file: File,
    number: u32,
    at: u64,
    end: u64,
    /// The offset after which there are only zeros, once known; equal to `end` if that is the end
    /// of a record.
    zeros: Option<u64>,
    window: Vec<u8>,
    window_at: u64,
}

impl Scan {
    /// Begins at `from`: the position of a record, or offset 0 for the first one.
    pub(in super::super) fn open(directory: &Directory, from: Position) -> io::Result<Self> {
        let mut scan = Self {
            directory: directory.clone(),
            file: File::open(directory.segment(from.segment()))?,
            number: from.segment(),
            at: from.offset().max(HEADER_BYTES as u64),
            end: 0,
            zeros: None,
            window: Vec::new(),
            window_at: 0,
        };
        scan.find_end()?;
        Ok(scan)
    }

    /// The position of the next step.
    pub(in super::super) const fn position(&self) -> Position {
        Position::new(self.number, self.at)
    }

    /// Limits the scan to `end`, the offset of the end of a record, or to the size of a file that
    /// has lost its end.
    pub(in super::super) fn set_end(&mut self, end: u64) -> io::Result<()> {
        if end > self.end {
            self.end = end.min(self.file.metadata()?.len());
        } else {
            self.end = end;
        }
        self.zeros = Some(self.end);
        Ok(())
    }

    /// Extends the scan to the present end of the segment. Returns whether there is more to read.
    pub(in super::super) fn extend(&mut self) -> io::Result<bool> {
        self.find_end()?;
        Ok(self.at < self.zeros()?)
    }

    fn find_end(&mut self) -> io::Result<()> {
        let size = self.file.metadata()?.len();
        let known = self.directory.final_length(self.number)?;
        self.end = known.map_or(size, |length| length.min(size));
        self.zeros = known.and(Some(self.end));
        Ok(())
    }

    /// The next record, or the damage before it; `None` at the end.
    pub(in super::super) fn next(&mut self) -> io::Result<Option<ScanItem>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let position = self.position();
        if let Some(bytes) = self.record_at(self.at)? {
            self.at += bytes.len() as u64;
            return Ok(Some(ScanItem::Record { position, bytes }));
        }
        let zeros = self.zeros()?;
        if self.at >= zeros {
            return Ok(None);
        }
        let next = self.search(self.at + 1, zeros)?;
        let bytes = next - self.at;
        self.at = next;
        Ok(Some(ScanItem::Damage { position, bytes }))
    }

    /// The offset of the first valid record between `at` and `end`; `end` if there is none.
    fn search(&mut self, mut at: u64, end: u64) -> io::Result<u64> {
        while at < end {
            let window = self.window(at, LENGTH_BYTES.min((self.end - at) as usize))?;
            let found = window
                .windows(MARKER_BEGIN.len())
                .position(|bytes| bytes == MARKER_BEGIN);
            match found {
                Some(skipped) => {
                    at += skipped as u64;
                    if self.record_at(at)?.is_some() {
                        return Ok(at);
                    }
                    at += 1;
                }
                // A marker may cross the border of the window.
                None => at += (window.len().saturating_sub(MARKER_BEGIN.len() - 1)).max(1) as u64,
            }
        }
        Ok(end)
    }

    /// The offset, at least `self.at`, after which there are only zeros. The search begins at the
    /// end, in large chunks, since a new preallocated segment is mostly zeros. The last record may
    /// reach beyond the offset, with zeros of its own.
    fn zeros(&mut self) -> io::Result<u64> {
        let mut zeros = self.zeros.unwrap_or(self.end);
        let mut chunk = Vec::new();
        while self.zeros.is_none() && zeros > self.at {
            let size = (zeros - self.at).min(CHUNK_BYTES as u64);
            chunk.resize(size as usize, 0);
            self.file.read_exact_at(&mut chunk, zeros - size)?;
            let used = used(&chunk) as u64;
            zeros -= size - used;
            if used > 0 {
                break;
            }
        }
        self.zeros = Some(zeros);
        Ok(zeros)
    }

    fn record_at(&mut self, at: u64) -> io::Result<Option<Bytes>> {
        let left = (self.end - at) as usize;
        if left < LENGTH_BYTES {
            return Ok(None);
        }
        let position = Position::new(self.number, at);
        let length = match record::length(self.window(at, LENGTH_BYTES)?) {
            Some(length) if length <= left => length,
            _ => return Ok(None),
        };
        let bytes = self.window(at, length)?.get(..length).unwrap_or_default();
        Ok(record::is_valid(bytes, position).then(|| Bytes::copy_from_slice(bytes)))
    }

    /// The segment's bytes from `at` on: at least `least` bytes, which must exist.
    fn window(&mut self, at: u64, least: usize) -> io::Result<&[u8]> {
        let is_in_window = at
            .checked_sub(self.window_at)
            .is_some_and(|skip| skip as usize + least <= self.window.len());
        if !is_in_window {
            let left = (self.end - at) as usize;
            self.window.resize(left.min(least.max(WINDOW_BYTES)), 0);
            // If this read fails, the window must not be taken for the segment's bytes.
            self.window_at = u64::MAX;
            self.file.read_exact_at(&mut self.window, at)?;
            self.window_at = at;
        }
        let skip = (at - self.window_at) as usize;
        Ok(self.window.get(skip..).unwrap_or_default())
    }
}

/// The number of bytes before the zeros at the end of `bytes`.
fn used(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Some((before, last)) = rest.split_last_chunk::<{ ZEROS.len() }>()
        && *last == ZEROS
    {
        rest = before;
    }
    let last = rest.iter().rposition(|byte| *byte != 0);
    last.map_or(0, |last| last + 1)
}
