//! Reads the journal: segments sequentially, across damage and up to preallocated zeros, or one
//! record at a known position.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io, mem,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

use super::{
    record::{self, Content, Event, LENGTH_BYTES, MARKER_BEGIN, Personal},
    segment::{BadHeader, HEADER_BYTES, Header, Position},
};
use crate::{store::StoreError, telemetry::Metrics};

/// The size of one read of a segment, in bytes. A larger record is read as a whole.
const WINDOW_BYTES: usize = 256 << 10;

/// The size of one read, in bytes, in the search for the zeros at the end of a segment.
const CHUNK_BYTES: usize = 1 << 20;

/// Zeros that are compared at once, which is far faster than byte by byte.
const ZEROS: [u8; 4096] = [0; 4096];

/// The size of one read of [`EventReader::read`], in bytes. Handlers get events in nearly the order of the
/// journal, so the next events are mostly in the same read.
const READ_AHEAD_BYTES: usize = 32 << 10;

/// The most files that [`EventReader::read`] keeps open.
const OPEN_FILES: usize = 16;

const EXTENSION: &str = "segment";

/// The directory of the journal.
#[derive(Clone, Debug)]
pub(super) struct Directory(Arc<Path>);

impl Directory {
    /// The directory at `path`.
    pub(super) fn new(path: &Path) -> Self {
        Self(path.into())
    }

    /// The directory's path.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The path of segment `number`.
    pub(super) fn segment(&self, number: u32) -> PathBuf {
        self.0.join(format!("{number:010}.{EXTENSION}"))
    }

    /// The numbers of all segments, ascending.
    pub(super) fn segments(&self) -> io::Result<Vec<u32>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let path = PathBuf::from(entry?.file_name());
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            if path.extension().is_some_and(|ext| ext == EXTENSION) {
                numbers.extend(stem.and_then(|stem| stem.parse::<u32>().ok()));
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The first segment whose number is at least `number`.
    pub(super) fn first_from(&self, number: u32) -> io::Result<Option<u32>> {
        let mut numbers = self.segments()?.into_iter();
        Ok(numbers.find(|found| *found >= number))
    }

    /// The size in bytes of all segments up to `end`, without preallocated zeros.
    pub(super) fn bytes(&self, end: Position) -> io::Result<u64> {
        let mut bytes = 0;
        for number in self.segments()? {
            if number == end.segment() {
                bytes += end.offset();
                continue;
            }
            match fs::metadata(self.segment(number)) {
                Ok(metadata) => bytes += metadata.len(),
                // Retention may have deleted the file meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }

    /// The final length of segment `number` in bytes, from the next segment's header; `None` if
    /// there is no next segment, or it does not say.
    fn final_length(&self, number: u32) -> io::Result<Option<u64>> {
        let Some(next) = self.first_from(number + 1)? else {
            return Ok(None);
        };
        let header = match self.header(next) {
            Ok(header) => header,
            Err(StoreError::Io { error, .. }) => return Err(error),
            Err(error) => return Err(io::Error::other(error)),
        };
        let previous = header.and_then(|header| header.previous);
        Ok(previous.and_then(|(said, length)| (said == number).then_some(length)))
    }

    /// The header of segment `number`; `None` if it is damaged.
    pub(super) fn header(&self, number: u32) -> Result<Option<Header>, StoreError> {
        let path = self.segment(number);
        let mut bytes = [0; HEADER_BYTES];
        let read = File::open(&path).and_then(|file| file.read_exact_at(&mut bytes, 0));
        match read {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read.map_err(StoreError::reading(&path))?,
        }
        match Header::decode(&bytes) {
            Ok(header) if header.number == number => Ok(Some(header)),
            Ok(_) | Err(BadHeader::Damaged) => Ok(None),
            Err(BadHeader::TooNew(version)) => Err(StoreError::TooNew(format!(
                "{} is of journal version {version}",
                path.display()
            ))),
            Err(BadHeader::Encrypted(key)) => Err(StoreError::TooNew(format!(
                "{} is encrypted under key {key}",
                path.display()
            ))),
        }
    }
}

/// Reads events by position.
#[derive(Debug)]
pub(super) struct EventReader {
    directory: Directory,
    open: HashMap<u32, File>,
    /// The bytes of the last read, and their position. An event that is not whole in them is read again: it
    /// may have been written since.
    ahead: Vec<u8>,
    ahead_at: Position,
}

/// Why no event could be read at a position.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The segment does not exist.
    #[error("the event's segment of the journal is missing")]
    Missing,
    /// The record is damaged.
    #[error("the event fails its checksum in the journal")]
    Damaged,
    /// The record's personal part was erased on purpose.
    #[error("the event has been erased")]
    Erased,
    /// The system reported an error.
    #[error("the journal cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl EventReader {
    /// A reader of the journal in `directory`.
    pub(super) fn new(directory: Directory) -> Self {
        Self {
            directory,
            open: HashMap::new(),
            ahead: Vec::new(),
            ahead_at: Position::default(),
        }
    }

    /// The event at `position`, verified completely.
    pub(super) fn read(&mut self, position: Position) -> Result<Event, ReadError> {
        let event = self.read_public(position)?;
        match event.personal {
            Personal::Whole => Ok(event),
            Personal::Erased => Err(ReadError::Erased),
            Personal::Damaged => Err(ReadError::Damaged),
        }
    }

    /// The event at `position`, with a verified public part.
    pub(super) fn read_public(&mut self, position: Position) -> Result<Event, ReadError> {
        let event = self.read_from_memory(position);
        if let Some(event) = event.filter(|event| event.personal == Personal::Whole) {
            return Ok(event);
        }
        self.read_ahead(position)?;
        self.read_from_memory(position).ok_or(ReadError::Damaged)
    }

    fn read_from_memory(&self, position: Position) -> Option<Event> {
        if self.ahead_at.segment() != position.segment() {
            return None;
        }
        let skip = position.offset().checked_sub(self.ahead_at.offset())?;
        let bytes = self.ahead.get(skip as usize..)?;
        let bytes = bytes.get(..record::length(bytes.get(..LENGTH_BYTES)?)?)?;
        if !record::is_valid(bytes, position) {
            return None;
        }
        match record::content(&Bytes::copy_from_slice(bytes), position)? {
            Content::Event(event) => Some(*event),
            _ => None,
        }
    }

    /// Reads the record at `position` and some of the records behind it.
    fn read_ahead(&mut self, position: Position) -> Result<(), ReadError> {
        let mut bytes = mem::take(&mut self.ahead);
        let file = self.file(position.segment())?;
        bytes.resize(READ_AHEAD_BYTES, 0);
        let read = read_up_to(file, &mut bytes, position.offset())?;
        bytes.truncate(read);
        if let Some(length) = bytes.get(..LENGTH_BYTES).and_then(record::length)
            && length > read
        {
            bytes.resize(length, 0);
            let read = read_up_to(file, &mut bytes, position.offset())?;
            bytes.truncate(read);
        }
        (self.ahead, self.ahead_at) = (bytes, position);
        Ok(())
    }

    /// Closes the file of segment `number`, which has been deleted.
    pub(super) fn close(&mut self, number: u32) {
        self.open.remove(&number);
    }

    fn file(&mut self, number: u32) -> Result<&File, ReadError> {
        if !self.open.contains_key(&number) {
            if self.open.len() >= OPEN_FILES {
                self.open.clear();
            }
            match File::open(self.directory.segment(number)) {
                Ok(file) => self.open.insert(number, file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(ReadError::Missing);
                }
                Err(error) => return Err(error.into()),
            };
        }
        self.open.get(&number).ok_or(ReadError::Missing)
    }
}

/// Fills `bytes` as far as the file goes. Returns how many were read.
fn read_up_to(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// One step of [`Scan::next`].
#[derive(Debug)]
pub(super) enum ScanItem {
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
pub(super) struct Scan {
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
    pub(super) fn open(directory: &Directory, from: Position) -> io::Result<Self> {
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
    pub(super) const fn position(&self) -> Position {
        Position::new(self.number, self.at)
    }

    /// Limits the scan to `end`, the offset of the end of a record, or to the size of a file that
    /// has lost its end.
    pub(super) fn set_end(&mut self, end: u64) -> io::Result<()> {
        if end > self.end {
            self.end = end.min(self.file.metadata()?.len());
        } else {
            self.end = end;
        }
        self.zeros = Some(self.end);
        Ok(())
    }

    /// Extends the scan to the present end of the segment. Returns whether there is more to read.
    pub(super) fn extend(&mut self) -> io::Result<bool> {
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
    pub(super) fn next(&mut self) -> io::Result<Option<ScanItem>> {
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

/// The damage that has been found. All readers of the journal share it, so that none is reported or
/// counted twice.
#[derive(Clone)]
pub(super) struct DamageLog {
    found: Arc<Mutex<BTreeMap<Position, u64>>>,
    metrics: Arc<Metrics>,
}

impl DamageLog {
    /// No damage yet.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            found: Arc::default(),
            metrics,
        }
    }

    /// Reports damage of `bytes` at `position`, unless it has been reported.
    pub(super) fn report(&self, position: Position, bytes: u64, what: &'static str) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.insert(position, bytes).is_none() {
            tracing::error!(
                segment = position.segment(),
                offset = position.offset(),
                bytes,
                "the journal is damaged: {what}"
            );
        }
        let sum: u64 = found.values().sum();
        self.metrics.journal_damaged_bytes.set(sum.cast_signed());
    }
}
