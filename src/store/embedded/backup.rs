//! A backup: a store of its own, made while a service may be using the original.
//!
//! A backup has the ledger of one moment, and the journal of that moment or later. The order makes this hold:
//! the ledger is copied first, and the journal only grows. A start on a backup takes what the ledger lacks
//! from the journal, as after a kill. The deduplication index is left out, since a start makes it from the
//! journal.
//!
//! The journal's writer may write a batch while its segment is read. Such a batch came after the command was
//! given; the backup ends before it.
//!
//! Retention may delete a segment that the copied ledger still refers to. Then the backup begins again.
//!
//! **Invariant:** a directory with the name of a backup is a complete backup on stable storage. An incomplete
//! one has the name `<backup>.partial`.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    Settings, audit, disk, ledger,
    reader::{Directory, Scan, ScanItem},
    segment::Position,
};
use crate::store::{BackupSummary, StoreError};

/// How often a backup begins again because of retention.
const ATTEMPTS: usize = 3;

/// Copies the store to the new directory `to`.
///
/// # Errors
///
/// When the store does not exist or cannot be read, or `to` exists and is not empty, or cannot be written.
pub(super) fn backup(settings: &Settings, to: &Path) -> Result<BackupSummary, StoreError> {
    settings.require_ledger()?;
    match fs::read_dir(to).map(|mut entries| entries.next()) {
        Ok(None) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() != io::ErrorKind::NotADirectory => {
            return Err(StoreError::reading(to)(error));
        }
        _ => return Err(StoreError::BackupExists(to.display().to_string())),
    }
    let partial = Settings {
        path: partial(to),
        ..settings.clone()
    };
    let summary = attempt(settings, &partial)?;
    let name = || {
        fs::rename(&partial.path, to)?;
        disk::parent(to).map_or(Ok(()), disk::sync_dir)
    };
    name().map_err(writing(to))?;
    Ok(summary)
}

/// Makes the backup under its temporary name.
fn attempt(settings: &Settings, partial: &Settings) -> Result<BackupSummary, StoreError> {
    for _ in 0..ATTEMPTS {
        begin(&partial.path).map_err(writing(&partial.path))?;
        let through = ledger::copy(&settings.ledger(), &partial.ledger())?;
        let copied = copy_journal(&settings.journal(), &partial.journal(), through)?;
        if let Some(journal_bytes) = copied {
            audit::copy(&settings.audit(), &partial.audit())?;
            let finish = || {
                disk::sync_dir(&partial.path)?;
                fs::metadata(partial.ledger())
            };
            let ledger = finish().map_err(writing(&partial.path))?;
            return Ok(BackupSummary {
                journal_bytes,
                ledger_bytes: ledger.len(),
            });
        }
    }
    Err(StoreError::io("copying the journal")(io::Error::other(
        "retention deletes segments faster than they are copied",
    )))
}

/// Creates the empty directory at `path`, in place of what an interrupted backup has left there.
fn begin(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => disk::create_dir(path),
    }
}

/// Copies the journal up to its present end, which is not before `through`. Returns the number of bytes;
/// `None` if a segment has been deleted meanwhile.
fn copy_journal(
    from: &Directory,
    to: &Directory,
    through: Position,
) -> Result<Option<u64>, StoreError> {
    disk::create_dir(to.path()).map_err(writing(to.path()))?;
    let numbers = from.segments().map_err(StoreError::reading(from.path()))?;
    let end = end(
        from,
        through.max(Position::new(numbers.last().copied().unwrap_or(0), 0)),
    );
    let end = end.map_err(StoreError::reading(from.path()))?;
    let mut bytes = 0;
    for number in numbers {
        let length = match number == end.segment() {
            true => end.offset(),
            false => u64::MAX,
        };
        match copy_file(&from.segment(number), &to.segment(number), length) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            copied => bytes += copied.map_err(writing(&to.segment(number)))?,
        }
    }
    disk::sync_dir(to.path()).map_err(writing(to.path()))?;
    Ok(Some(bytes))
}

/// The end of the records from `from` on, in the last segment. What fails its checksum is read a second time:
/// if it is damage and not a batch that was being written, the records behind it count too.
fn end(directory: &Directory, from: Position) -> io::Result<Position> {
    let end = end_of_records(Scan::open(directory, from)?)?;
    let mut again = Scan::open(directory, end)?;
    match again.next()? {
        Some(ScanItem::Damage { .. }) => end_of_records(again),
        _ => Ok(end),
    }
}

/// The position after the valid records that come next.
fn end_of_records(mut scan: Scan) -> io::Result<Position> {
    let mut end = scan.position();
    while let Some(ScanItem::Record { .. }) = scan.next()? {
        end = scan.position();
    }
    Ok(end)
}

/// Copies the first `length` bytes of a file to stable storage. Returns the number of bytes.
fn copy_file(from: &Path, to: &Path, length: u64) -> io::Result<u64> {
    let (from, mut to) = (File::open(from)?, disk::create_file(to)?);
    let copied = io::copy(&mut from.take(length), &mut to)?;
    to.sync_all()?;
    Ok(copied)
}

fn partial(path: &Path) -> PathBuf {
    let mut name = OsString::from(path.file_name().unwrap_or_default());
    name.push(".partial");
    path.with_file_name(name)
}

/// The error of a backup that cannot be written. The advice for the store's own directory does not apply.
fn writing(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let what = format!("writing {}", path.display());
    move |error| StoreError::io(&what)(error)
}
