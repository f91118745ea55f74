//! Opens the journal: keeps whole records, cuts a torn tail, reports damage, and keeps preallocated
//! zeros for later records.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use jiff::Timestamp;

use super::{
    disk,
    reader::{DamageLog, Directory, Scan, ScanItem},
    record::{self, Record},
    segment::{HEADER_BYTES, Header, Position, VERSION, Watermark},
};
use crate::store::{StoreError, pending::BATCH_BYTES};

/// The segment that records are appended to.
#[derive(Debug)]
pub(super) struct Tail {
    /// The segment's file.
    pub(super) file: File,
    /// The segment's header.
    pub(super) header: Header,
    /// The segment's length in bytes: the offset of the next record.
    pub(super) length: u64,
    /// The number of records in the segment.
    pub(super) records: u64,
    /// The size of the file in bytes. A file that is longer than the segment has preallocated zeros
    /// at its end.
    pub(super) file_bytes: u64,
}

impl Tail {
    /// The position of the next record.
    pub(super) const fn end(&self) -> Position {
        Position::new(self.header.number, self.length)
    }

    /// The position of the next record, and the number of records in this and all earlier segments.
    pub(super) const fn watermark(&self) -> Watermark {
        Watermark {
            through: self.end(),
            records: self.header.records_before + self.records,
        }
    }

    /// A segment in `file`, without its header and its name.
    pub(super) const fn new(file: File, header: Header) -> Self {
        Self {
            file,
            header,
            length: HEADER_BYTES as u64,
            records: 0,
            file_bytes: 0,
        }
    }

    /// Begins a segment.
    pub(super) fn begin(directory: &Directory, header: Header) -> io::Result<Self> {
        let unnamed = directory.segment(header.number).with_extension("new");
        Self::new(disk::create_file(&unnamed)?, header).name(&unnamed, directory)
    }

    /// Begins a segment with the records that `fill` [adds](Self::add). The segment exists with all
    /// of them, or not at all.
    pub(super) fn begin_with(
        directory: &Directory,
        header: Header,
        fill: impl FnOnce(&mut Self) -> Result<(), StoreError>,
    ) -> Result<Self, StoreError> {
        let unnamed = directory.segment(header.number).with_extension("new");
        let file = disk::create_file(&unnamed).map_err(StoreError::writing(&unnamed))?;
        let mut tail = Self::new(file, header);
        fill(&mut tail)?;
        let named = tail.name(&unnamed, directory);
        named.map_err(StoreError::writing(&unnamed))
    }

    /// Writes the header, and gives the file at `unnamed` the segment's name when all of it is on
    /// stable storage. So a segment without a header is always damage and never the result of a
    /// crash.
    pub(super) fn name(mut self, unnamed: &Path, directory: &Directory) -> io::Result<Self> {
        self.file.write_all_at(&self.header.encode(), 0)?;
        self.file.sync_all()?;
        fs::rename(unnamed, directory.segment(self.header.number))?;
        self.file_bytes = self.file.metadata()?.len();
        Ok(self)
    }

    /// Adds a record to an unnamed segment.
    pub(super) fn add(&mut self, record: &Record) -> io::Result<()> {
        let mut bytes = Vec::new();
        record.write_to(&mut bytes, self.end());
        self.file.write_all_at(&bytes, self.length)?;
        self.length += bytes.len() as u64;
        self.records += 1;
        Ok(())
    }

    /// Whether the next record makes the file grow.
    pub(super) const fn grows(&self) -> bool {
        self.length >= self.file_bytes
    }

    /// Removes the unused end of the file, before another segment follows.
    pub(super) fn seal(&mut self) -> io::Result<()> {
        if self.grows() {
            return Ok(());
        }
        self.file.set_len(self.length)?;
        self.file_bytes = self.length;
        self.file.sync_all()
    }

    /// The header of the next segment.
    pub(super) const fn successor(&self, number: u32, begun_at: Timestamp) -> Header {
        Header {
            version: VERSION,
            number,
            previous: Some((self.header.number, self.length)),
            records_before: self.watermark().records,
            begun_at,
        }
    }
}

/// Opens the journal in `directory`, and creates it if it does not exist. `known` is the position
/// up to which the ledger has read.
///
/// # Errors
///
/// When the journal cannot be read or written, or has a newer version.
pub(super) fn recover(
    directory: &Directory,
    known: Position,
    now: Timestamp,
    damage: &DamageLog,
) -> Result<Tail, StoreError> {
    let path = directory.path();
    disk::create_dir(path).map_err(StoreError::writing(path))?;
    let numbers = directory.segments().map_err(StoreError::reading(path))?;
    check_headers(directory, &numbers, known, damage)?;
    let tail = match numbers.last() {
        Some(&last) => reopen(directory, last, now, damage)?,
        None => {
            let begun = Tail::begin(directory, Header::first(1, now));
            begun.map_err(StoreError::writing(path))?
        }
    };
    disk::sync_dir(path).map_err(StoreError::writing(path))?;
    Ok(tail)
}

/// Compares each header's statement on the segment before it with that segment.
fn check_headers(
    directory: &Directory,
    numbers: &[u32],
    known: Position,
    damage: &DamageLog,
) -> Result<(), StoreError> {
    let mut before: Option<(u32, u64)> = None;
    for &number in numbers {
        let path = directory.segment(number);
        let length = fs::metadata(&path)
            .map_err(StoreError::reading(&path))?
            .len();
        match directory.header(number)? {
            None => {
                let bytes = length.min(HEADER_BYTES as u64);
                damage.report(Position::new(number, 0), bytes, "a segment's header");
            }
            Some(header) => {
                if let (Some(said), Some(found)) = (header.previous, before) {
                    check_end(said, found, known, damage);
                }
            }
        }
        before = Some((number, length));
    }
    Ok(())
}

fn check_end(said: (u32, u64), found: (u32, u64), known: Position, damage: &DamageLog) {
    let (number, length) = found;
    let (said_number, said_length) = said;
    if said_number != number {
        // Retention may have deleted any segment that the ledger has read.
        if known == Position::default() {
            tracing::warn!(
                segment = said_number,
                "a segment of the journal is missing; retention may have deleted it"
            );
        } else if said_number >= known.segment() {
            let position = Position::new(said_number, 0);
            damage.report(position, said_length, "a segment is missing");
        }
    } else if length < said_length {
        let lost = said_length - length;
        damage.report(
            Position::new(number, length),
            lost,
            "a segment has lost its end",
        );
    }
}

/// Opens the last segment for appending.
fn reopen(
    directory: &Directory,
    number: u32,
    now: Timestamp,
    damage: &DamageLog,
) -> Result<Tail, StoreError> {
    let path = directory.segment(number);
    let header = directory.header(number)?;
    let scanned = scan(directory, number, damage).map_err(StoreError::reading(&path))?;
    let write = || -> io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        cut_torn_tail(&file, &path, &scanned)?;
        rewrite_last_batch(&file, scanned.last, scanned.end)?;
        file.sync_all()?;
        Ok(file)
    };
    let file = write().map_err(StoreError::writing(&path))?;
    let file_bytes = file.metadata().map_err(StoreError::reading(&path))?.len();
    let tail = Tail {
        file,
        file_bytes,
        header: header.unwrap_or(Header::first(number, now)),
        length: scanned.end.max(HEADER_BYTES as u64),
        records: scanned.records,
    };
    if header.is_some() {
        return Ok(tail);
    }
    // No record is appended under a damaged header.
    follow(directory, tail, number + 1, now).map_err(StoreError::writing(directory.path()))
}

/// Begins segment `number` after `tail`.
pub(super) fn follow(
    directory: &Directory,
    mut tail: Tail,
    number: u32,
    now: Timestamp,
) -> io::Result<Tail> {
    tail.seal()?;
    Tail::begin(directory, tail.successor(number, now))
}

struct Scanned {
    /// The end of the last whole record.
    end: u64,
    /// The begin of the last whole record.
    last: u64,
    /// The number of bytes after the last whole record that are not preallocated zeros.
    torn: u64,
    records: u64,
}

fn scan(directory: &Directory, number: u32, damage: &DamageLog) -> io::Result<Scanned> {
    let mut scan = Scan::open(directory, Position::new(number, 0))?;
    let mut found = Scanned {
        end: scan.position().offset(),
        last: scan.position().offset(),
        torn: 0,
        records: 0,
    };
    let (mut damaged, mut broken) = (None, 0);
    while let Some(step) = scan.next()? {
        match step {
            // A crash may have left any part of the last write.
            ScanItem::Record { position, bytes } if !record::is_whole(&bytes, position) => {
                let (begin, before) = damaged.unwrap_or((position, 0));
                damaged = Some((begin, before + bytes.len() as u64));
                broken += 1;
            }
            ScanItem::Record { position, .. } => {
                if let Some((position, bytes)) = damaged.take() {
                    damage.report(position, bytes, "records fail their checksum");
                }
                found.records += 1 + std::mem::take(&mut broken);
                found.last = position.offset();
                found.end = scan.position().offset();
            }
            // Damage without a valid record after it is a torn tail, and not a loss.
            ScanItem::Damage { position, bytes } => {
                let (begin, before) = damaged.unwrap_or((position, 0));
                damaged = Some((begin, before + bytes));
            }
        }
    }
    found.torn = damaged.map_or(0, |(_, bytes)| bytes);
    Ok(found)
}

/// Cuts the segment after its last record, and keeps the torn bytes in a file beside it. They were
/// not acknowledged, unless the disk has lied. A segment without a torn tail keeps its preallocated
/// zeros.
fn cut_torn_tail(file: &File, path: &Path, scanned: &Scanned) -> io::Result<()> {
    let &Scanned { end, torn, .. } = scanned;
    if torn == 0 {
        return Ok(());
    }
    let kept = disk::kept_path(path, "torn");
    let mut source = File::open(path)?;
    io::Seek::seek(&mut source, io::SeekFrom::Start(end))?;
    let mut copy = disk::create_file(&kept)?;
    io::copy(&mut io::Read::take(source, torn), &mut copy)?;
    copy.sync_all()?;
    file.set_len(end)?;
    tracing::warn!(
        bytes = torn,
        kept = %kept.display(),
        "a crash left an incomplete write at the end of the journal; it was moved to a file of its own"
    );
    Ok(())
}

/// Writes the last batch again. After a failed sync the system may consider pages clean that never
/// reached the disk, and a sync of unchanged pages would prove nothing.
fn rewrite_last_batch(file: &File, last: u64, end: u64) -> io::Result<()> {
    let mut at = last
        .saturating_sub(BATCH_BYTES as u64)
        .max(HEADER_BYTES as u64);
    let mut chunk = vec![0; 1 << 20];
    while at < end {
        let size = chunk.len().min((end - at) as usize);
        let part = chunk.get_mut(..size).unwrap_or_default();
        file.read_exact_at(part, at)?;
        file.write_all_at(part, at)?;
        at += size as u64;
    }
    Ok(())
}

/// Makes sure that no position is used twice, even if the journal has lost its end: the next record
/// goes beyond `known`, the position up to which the ledger has read. Returns where the journal
/// ended, if that is before `known`, at this start or an interrupted earlier one.
pub(super) fn skip_used_positions(
    directory: &Directory,
    tail: Tail,
    known: Position,
    now: Timestamp,
) -> io::Result<(Tail, Option<Position>)> {
    let end = tail.end();
    if end < known {
        let number = known.segment().max(tail.header.number) + 1;
        let tail = follow(directory, tail, number, now)?;
        disk::sync_dir(directory.path())?;
        return Ok((tail, Some(end)));
    }
    let after = directory.first_from(known.segment() + 1)?;
    let after = after.and_then(|number| directory.header(number).ok().flatten());
    let before = after.and_then(|after| after.previous);
    let before = before.map(|(number, length)| Position::new(number, length));
    Ok((tail, before.filter(|before| *before < known)))
}
