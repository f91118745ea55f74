//! By what copies of events are known: a hash table in a file.
//!
//! Each event is looked up and added at a few places that are random by nature. A database page
//! would be read, logged and written for each of them; here it is 16 bytes in the system's cache.
//!
//! # Format, version 1
//!
//! Integers are little-endian. The file's size says how many slots there are: 2^n, and
//! [`OVERFLOW`] more.
//!
//! ```text
//! header, 4096 bytes
//!    0  8  magic: the letters "hookseen"
//!    8  4  version of the format: 1
//!   12  4  zero
//!   16  8  mark: the position of an event up to which, with it, all are in the table; 0 for none
//!   24  .  zero
//! slots, 16 bytes each
//!    0  8  hash: the first 8 bytes of a dedupe key
//!    8  8  position of the event in the journal; 0 in a free slot
//! ```
//!
//! The upper n bits of a hash are the number of its slot, and where that is taken, the next free
//! one is its own. Slots are never freed one by one: an entry whose event has been deleted is
//! dropped when the table is made anew, which it is once some slot is too far from where it should be.
//!
//! # Constraints
//!
//! A hash that is found is a hint: whoever asks reads the event in the journal and compares. So
//! neither a hash that two keys share nor a slot that was lost with the power can make an event
//! disappear. What was lost is learnt again from the journal, from the mark on.
//!
//! The mark is in the table itself, so that it is right in whatever copy of the file there is. It is
//! written after a sync of all that it speaks for.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{disk, segment::Position};
use crate::event::DedupeKey;

const MAGIC: [u8; 8] = *b"hookseen";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 4096;
const SLOT_BYTES: u64 = 16;
const MARK_AT: u64 = 16;

/// Slots behind the last one that a hash can be the number of.
const OVERFLOW: u64 = 4096;

/// The size of a new table: 2^16 slots, 1 MiB, for some 20,000 events.
const FIRST_BITS: u32 = 16;

/// How far from its own slot an entry may be before the table is crowded. With hashes that are
/// spread evenly it is so when it is about three quarters full.
const FARTHEST: u64 = 128;

/// How much is read or written at once when the table is made anew.
const CHUNK_BYTES: usize = 1 << 20;

/// How many slots are read at once: mostly enough to come upon a free one.
const WINDOW: usize = 16;

/// The table.
#[derive(Debug)]
pub(super) struct Seen {
    file: File,
    path: PathBuf,
    /// The number of slots that hashes can be the number of, as a power of two.
    bits: u32,
}

/// The number of a slot.
pub(super) type Slot = u64;

/// What [`Seen::find`] came upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// An entry that was accepted.
    Known(Position),
    /// Where there is none such, the slot that is free for one.
    Free(Slot),
}

impl Seen {
    /// Opens the table at `path`; makes a new one where there is none or it is not readable as one.
    /// Also says whether it is new.
    pub(super) fn open(path: &Path) -> io::Result<(Self, bool)> {
        if let Some((file, bits)) = read(path)? {
            return Ok((Self::of(file, path, bits), false));
        }
        let file = create(path, FIRST_BITS)?;
        Ok((Self::of(file, path, FIRST_BITS), true))
    }

    fn of(file: File, path: &Path, bits: u32) -> Self {
        Self {
            file,
            path: path.to_owned(),
            bits,
        }
    }

    /// Looks for an entry of `key` that `accept` takes for one.
    pub(super) fn find(
        &self,
        key: &DedupeKey,
        mut accept: impl FnMut(Position) -> bool,
    ) -> io::Result<Found> {
        let hash = hash(key);
        let mut slot = home(hash, self.bits);
        let mut window = [0; WINDOW * SLOT_BYTES as usize];
        loop {
            let left = self.slots().saturating_sub(slot).min(WINDOW as u64);
            let bytes = window.split_at_mut((left * SLOT_BYTES) as usize).0;
            if bytes.is_empty() {
                return Err(io::Error::other("the table of copies is full"));
            }
            self.file.read_exact_at(bytes, offset(slot))?;
            for entry in bytes.chunks_exact(SLOT_BYTES as usize).map(Entry::read) {
                match entry.position {
                    None => return Ok(Found::Free(slot)),
                    Some(position) if entry.hash == hash && accept(position) => {
                        return Ok(Found::Known(position));
                    }
                    Some(_) => slot += 1,
                }
            }
        }
    }

    /// Adds an entry for `key` in the slot that is free for it, and says whether the table has become
    /// crowded.
    pub(super) fn add(&self, key: &DedupeKey, slot: Slot, position: Position) -> io::Result<bool> {
        let hash = hash(key);
        let entry = Entry {
            hash,
            position: Some(position),
        };
        self.file.write_all_at(&entry.bytes(), offset(slot))?;
        Ok(slot - home(hash, self.bits) >= FARTHEST)
    }

    /// Puts all that was added on stable storage, and then says so in the table: `mark` is the last
    /// event that it holds for.
    pub(super) fn sync(&self, mark: Position) -> io::Result<()> {
        self.file.sync_data()?;
        write_mark(&self.file, mark)
    }

    /// What the table says of itself: up to which event all are in it. It is believed only once that
    /// event has been looked at.
    pub(super) fn mark(&self) -> io::Result<Position> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, MARK_AT)?;
        Ok(Position::from_sql(i64::from_le_bytes(bytes)))
    }

    const fn slots(&self) -> u64 {
        (1 << self.bits) + OVERFLOW
    }

    /// Moves to a table that has room, without what is before `oldest`. Entries are in the order of
    /// their hashes in both, all but, so that both are gone through from end to end.
    pub(super) fn renew(&mut self, oldest: Position) -> io::Result<()> {
        let mut live = 0;
        self.each_run(oldest, |run| {
            live += run.len() as u64;
            Ok(())
        })?;
        let bits = bits_for(live);
        let path = self.path.with_extension("new");
        let file = create(&path, bits)?;
        write_mark(&file, self.mark()?)?;
        let mut target = Builder::new(file, bits)?;
        self.each_run(oldest, |run| target.add(run))?;
        let file = target.finish()?;
        fs::rename(&path, &self.path)?;
        disk::sync_dir(self.path.parent().unwrap_or(&self.path))?;
        (self.file, self.bits) = (file, bits);
        Ok(())
    }

    /// Goes through the entries from `oldest` on, by the runs in which they stand together.
    fn each_run(
        &self,
        oldest: Position,
        mut take: impl FnMut(&mut Vec<Entry>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut source = BufReader::with_capacity(CHUNK_BYTES, File::open(&self.path)?);
        source.seek(SeekFrom::Start(HEADER_BYTES))?;
        let mut bytes = [0; SLOT_BYTES as usize];
        let mut run = Vec::new();
        for _ in 0..self.slots() {
            source.read_exact(&mut bytes)?;
            let entry = Entry::read(&bytes);
            match entry.position {
                Some(position) if position >= oldest => run.push(entry),
                Some(_) => {}
                None => {
                    take(&mut run)?;
                    run.clear();
                }
            }
        }
        take(&mut run)
    }
}

/// One slot's content.
#[derive(Clone, Copy)]
struct Entry {
    hash: u64,
    /// `None` in a free slot.
    position: Option<Position>,
}

impl Entry {
    fn read(bytes: &[u8]) -> Self {
        let mut halves = bytes.chunks_exact(8).map(|half| {
            let half = half.first_chunk().copied();
            u64::from_le_bytes(half.unwrap_or_default())
        });
        let (hash, position) = (halves.next().unwrap_or(0), halves.next().unwrap_or(0));
        Self {
            hash,
            position: (position != 0).then(|| Position::from_sql(position.cast_signed())),
        }
    }

    fn bytes(self) -> [u8; SLOT_BYTES as usize] {
        let position = self.position.map_or(0, Position::to_sql);
        let mut bytes = [0; SLOT_BYTES as usize];
        let (hash, rest) = bytes.split_at_mut(8);
        hash.copy_from_slice(&self.hash.to_le_bytes());
        rest.copy_from_slice(&position.to_le_bytes());
        bytes
    }
}

/// Writes a table from its first slot to its last.
struct Builder {
    file: BufWriter<File>,
    bits: u32,
    /// The next slot to be written.
    next: u64,
}

impl Builder {
    fn new(file: File, bits: u32) -> io::Result<Self> {
        let mut file = BufWriter::with_capacity(CHUNK_BYTES, file);
        file.seek(SeekFrom::Start(HEADER_BYTES))?;
        let next = 0;
        Ok(Self { file, bits, next })
    }

    /// Adds entries that stood together. Only within such a run are they out of order.
    fn add(&mut self, run: &mut [Entry]) -> io::Result<()> {
        run.sort_unstable_by_key(|entry| entry.hash);
        for entry in run {
            self.pad(home(entry.hash, self.bits))?;
            self.file.write_all(&entry.bytes())?;
            self.next += 1;
        }
        Ok(())
    }

    fn pad(&mut self, slot: u64) -> io::Result<()> {
        const FREE: [u8; SLOT_BYTES as usize] = [0; SLOT_BYTES as usize];
        while self.next < slot {
            self.file.write_all(&FREE)?;
            self.next += 1;
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<File> {
        let slots = (1 << self.bits) + OVERFLOW;
        if self.next > slots {
            return Err(io::Error::other("its hashes are not spread evenly"));
        }
        self.pad(slots)?;
        let file = self.file.into_inner()?;
        file.sync_data()?;
        Ok(file)
    }
}

/// The size of a table in which `entries` take at most three eighths of the slots.
fn bits_for(entries: u64) -> u32 {
    let slots = (entries * 8 / 3).max(1 << FIRST_BITS);
    slots.next_power_of_two().ilog2()
}

/// Creates an empty table.
fn create(path: &Path, bits: u32) -> io::Result<File> {
    let file = disk::create_file(path)?;
    let mut header = [0; 12];
    let (magic, version) = header.split_at_mut(8);
    magic.copy_from_slice(&MAGIC);
    version.copy_from_slice(&VERSION.to_le_bytes());
    file.set_len(offset((1 << bits) + OVERFLOW))?;
    file.write_all_at(&header, 0)?;
    Ok(file)
}

fn write_mark(file: &File, mark: Position) -> io::Result<()> {
    file.write_all_at(&mark.to_sql().to_le_bytes(), MARK_AT)
}

/// Opens the table at `path`, if there is one, with its size.
fn read(path: &Path) -> io::Result<Option<(File, u32)>> {
    let mut options = OpenOptions::new();
    let file = match options.read(true).write(true).mode(0o600).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let slots =
        (file.metadata()?.len().saturating_sub(HEADER_BYTES) / SLOT_BYTES).saturating_sub(OVERFLOW);
    let mut header = [0; 12];
    let whole = slots.is_power_of_two()
        && slots >= 1 << FIRST_BITS
        && file.metadata()?.len() == offset(slots + OVERFLOW);
    if whole {
        file.read_exact_at(&mut header, 0)?;
    }
    let is_ours = header.starts_with(&MAGIC) && header.ends_with(&VERSION.to_le_bytes());
    Ok((whole && is_ours).then(|| (file, slots.ilog2())))
}

fn hash(key: &DedupeKey) -> u64 {
    let first = key.as_bytes().first_chunk();
    u64::from_le_bytes(first.copied().unwrap_or_default())
}

/// The number of the slot that is a hash's own, in a table of 2^`bits`.
const fn home(hash: u64, bits: u32) -> u64 {
    hash >> (u64::BITS - bits)
}

/// Where slot number `slot` is in the file, in bytes.
const fn offset(slot: u64) -> u64 {
    HEADER_BYTES + slot * SLOT_BYTES
}
