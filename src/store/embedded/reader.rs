//! Reading segments: from the beginning on, over damage, up to the zeros that nothing was written
//! over yet, or one record at a known position.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;

use super::{
    record::{self, Content, Event, Invalid, LENGTH_BYTES, MARKER_BEGIN, Personal},
    segment::{BadHeader, HEADER_BYTES, Header, Position},
};
use crate::{store::StoreError, telemetry::Metrics};

/// How much of a segment is read at once, in bytes. A larger record is read whole.
const WINDOW_BYTES: usize = 256 << 10;

/// How much is read at once, in bytes, in search of where the zeros at the end of a segment begin.
const CHUNK_BYTES: usize = 1 << 20;

/// What is compared at once there: far faster than byte by byte.
const ZEROS: [u8; 4096] = [0; 4096];

/// How many segments are kept open for [`EventReader::read`].
const OPEN_FILES: usize = 16;

const EXTENSION: &str = "segment";

/// The directory in which the journal lives.
#[derive(Clone, Debug)]
pub(super) struct Directory(Arc<Path>);

impl Directory {
    /// The one at `path`.
    pub(super) fn new(path: &Path) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The file of segment `number`.
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

    /// The size in bytes of all segments up to `end`, behind which the last one may hold zeros that
    /// wait to be overwritten.
    pub(super) fn bytes(&self, end: Position) -> io::Result<u64> {
        let mut bytes = 0;
        for number in self.segments()? {
            if number == end.segment() {
                bytes += end.offset();
                continue;
            }
            match fs::metadata(self.segment(number)) {
                Ok(metadata) => bytes += metadata.len(),
                // Retention may have been faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }

    /// The final length of segment `number` in bytes, as the one after it says; `None` while there
    /// is none, or if it cannot tell.
    fn final_length(&self, number: u32) -> io::Result<Option<u64>> {
        let Some(next) = self.segments()?.into_iter().find(|next| *next > number) else {
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

    /// The header of segment `number`; `None` for a damaged one.
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

/// Records by position.
#[derive(Debug)]
pub(super) struct EventReader {
    directory: Directory,
    open: HashMap<u32, File>,
}

/// Why no record could be read at a position.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// Its segment is not there.
    #[error("the event's segment of the journal is missing")]
    Missing,
    /// What is there is not the record that was written.
    #[error("the event fails its checksum in the journal")]
    Damaged,
    /// What it said was erased on purpose.
    #[error("the event has been erased")]
    Erased,
    /// The system could not read it.
    #[error("the journal cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl EventReader {
    /// Those in `directory`.
    pub(super) fn new(directory: Directory) -> Self {
        Self {
            directory,
            open: HashMap::new(),
        }
    }

    /// The event at `position`, verified, all of it.
    pub(super) fn read(&mut self, position: Position) -> Result<Event, ReadError> {
        let event = self.read_public(position)?;
        match event.personal {
            Personal::Whole => Ok(event),
            Personal::Erased => Err(ReadError::Erased),
            Personal::Damaged => Err(ReadError::Damaged),
        }
    }

    /// The event at `position`, with its public part verified.
    pub(super) fn read_public(&mut self, position: Position) -> Result<Event, ReadError> {
        let file = self.file(position.segment())?;
        let mut begin = [0; LENGTH_BYTES];
        read_exact(file, &mut begin, position.offset())?;
        let length = record::length(&begin).map_err(|Invalid| ReadError::Damaged)?;
        let mut bytes = vec![0; length];
        read_exact(file, &mut bytes, position.offset())?;
        record::check(&bytes, position).map_err(|Invalid| ReadError::Damaged)?;
        match record::content(&bytes.into(), position) {
            Ok(Content::Event(event)) => Ok(*event),
            Ok(_) | Err(Invalid) => Err(ReadError::Damaged),
        }
    }

    /// Lets go of segment `number`, which has been deleted.
    pub(super) fn forget(&mut self, number: u32) {
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

fn read_exact(file: &File, bytes: &mut [u8], offset: u64) -> Result<(), ReadError> {
    match file.read_exact_at(bytes, offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(ReadError::Damaged),
        read => Ok(read?),
    }
}

/// What [`Scan::next`] came upon.
#[derive(Debug)]
pub(super) enum ScanItem {
    /// A valid record, whole but for its personal part, which is not checked.
    Record {
        /// Where.
        position: Position,
        /// All of it.
        bytes: Bytes,
    },
    /// Bytes that are no valid record. The next step is a record or the end.
    Damage {
        /// Where they begin.
        position: Position,
        /// How many.
        bytes: u64,
    },
}

/// Reads one segment from some offset on, over damage.
///
/// Zeros are damage where a record must be, that is before an end that is known. Where no more is
/// known than the size of the file, zeros up to there are the end.
#[derive(Debug)]
pub(super) struct Scan {
    directory: Directory,
    file: File,
    number: u32,
    at: u64,
    end: u64,
    /// From where on there are only zeros, once that is known; `end` if that is one at which a
    /// record ends.
    zeros: Option<u64>,
    window: Vec<u8>,
    window_at: u64,
}

impl Scan {
    /// Begins at `from`, which is where a record begins, or 0 for the first one.
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

    /// Where the next step begins.
    pub(super) const fn position(&self) -> Position {
        Position::new(self.number, self.at)
    }

    /// Reads as far as `end`, an offset in bytes at which a record ends, or as far as the file goes if
    /// it has lost its end.
    pub(super) fn set_end(&mut self, end: u64) -> io::Result<()> {
        if end > self.end {
            self.end = end.min(self.file.metadata()?.len());
        } else {
            self.end = end;
        }
        self.zeros = Some(self.end);
        Ok(())
    }

    /// Reads as far as the segment goes by now. Whether that is further than before.
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

    /// The offset of the first valid record at or after `at` and before `end`, or `end`.
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
                // A marker may stand across the edge of the window.
                None => at += (window.len().saturating_sub(MARKER_BEGIN.len() - 1)).max(1) as u64,
            }
        }
        Ok(end)
    }

    /// The offset, not before `self.at`, from which on there are only zeros. It is looked for from
    /// the end, in large chunks, since a segment that was made ahead is mostly zeros at first. A
    /// record may reach beyond it, with zeros of its own.
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
            Ok(length) if length <= left => length,
            _ => return Ok(None),
        };
        let bytes = self.window(at, length)?.get(..length).unwrap_or_default();
        let is_valid = record::check(bytes, position).is_ok();
        Ok(is_valid.then(|| Bytes::copy_from_slice(bytes)))
    }

    /// What the segment holds from `at` on: at least `least` bytes, which must not go beyond its
    /// end.
    fn window(&mut self, at: u64, least: usize) -> io::Result<&[u8]> {
        let held = at
            .checked_sub(self.window_at)
            .is_some_and(|skip| skip as usize + least <= self.window.len());
        if !held {
            let left = (self.end - at) as usize;
            self.window.resize(left.min(least.max(WINDOW_BYTES)), 0);
            // What an earlier read left is not taken for the segment's if this one fails.
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

/// The damage that has been found so far. Shared by all who read the journal, so that none of it
/// is reported or counted twice.
#[derive(Clone)]
pub(super) struct DamageLog {
    found: Arc<Mutex<BTreeMap<Position, u64>>>,
    metrics: Arc<Metrics>,
}

impl DamageLog {
    /// None so far.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            found: Arc::default(),
            metrics,
        }
    }

    /// Reports `bytes` at `position`, unless that has been done.
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
