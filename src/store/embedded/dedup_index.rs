//! The deduplication index: a hash table in a file, from dedupe keys to events.
//!
//! Each event is looked up and added at a few random places. A database would read, log and write a
//! page for each of them. This table needs 16 bytes in the system's cache.
//!
//! # Format, version 2
//!
//! Integers are little-endian.
//!
//! ```text
//! header, 4096 bytes
//!    0  8  magic: the letters "hookseen"
//!    8  4  version of the format: 2
//!   12  4  n: there are 2^n slots, and [`OVERFLOW`] more, up to the end of the file
//!   16  8  watermark: the table has all events up to and with this position; 0 for none
//!   24  4  check: CRC32C of bytes 0 to 23
//!   28  .  not used
//! slots, 16 bytes each
//!    0  4  check: CRC32C of the lower 4 bytes of the slot's number, and of bytes 4 to 15
//!    4 12  one integer: in the lower 60 bits the position of the event in the journal, and in the upper
//!          36 the hash, which are the upper bits of the first 8 bytes of a dedupe key;
//!          in a free slot only ones
//! ```
//!
//! The upper n bits of a hash are the number of its slot. If that slot is taken, the next free one
//! is used. Slots are never freed individually: an entry of a deleted event is dropped when the
//! table is rebuilt, which happens when an entry is too far from its slot.
//!
//! Magic and version have these offsets in every later version. A table of another version is
//! rebuilt, not converted.
//!
//! # Constraints
//!
//! A matching hash is a hint: the caller reads the event in the journal and compares its keys. So
//! neither two keys with one hash nor a slot that a loss of power has lost can make an event
//! disappear. Lost entries are restored from the journal, from the watermark on.
//!
//! The watermark is in the table itself, so that it fits in every copy of the file. It is written
//! after a sync of all entries that it covers. A new table gets its name when all of it is on
//! stable storage.
//!
//! 36 bits of hash suffice to find the slot in a table of any size. With a billion entries, one
//! lookup in 64 reads an event in vain. 60 bits of position suffice for 2^28 segments, which are
//! 256 TiB of segments of 1 MiB. The table refuses positions beyond.
//!
//! # Damage
//!
//! A damaged slot fails its check: random bytes in all but one of 2^32 cases, zeros always, since a
//! free slot is not zero, and a block of slots of another place always. A slot lies within one
//! sector, so that neither a crash nor a loss of power can leave half of one. A read error and a
//! file of the wrong length are damage too.
//!
//! Damage is noticed when it is read: by the lookup of a key, when the table is rebuilt, or in the
//! header when the table is opened. The lookup of an existing key reads each slot from the hash's
//! own slot to the entry's, so no duplicate gets past damage. The table is then
//! [rebuilt](super::deduplicator).
//!
//! Damage is not noticed if a block returns to an earlier state of its own, since its checks are
//! right. Entries that were added since are lost, and duplicates of their events are delivered. The
//! next start restores what is behind the watermark, which covers a loss of power. What is lost
//! before the watermark stays lost until the table is rebuilt.
//!
//! # Costs
//!
//! A lookup mostly takes one read of [`WINDOW`] slots, and a new key one write of its slot.
//! Checking a slot takes some nanoseconds. To create or rebuild a table is to write and sync all of
//! it: 1 MiB at first.

use std::{
    fmt::Display,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    ops::RangeInclusive,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{
    codec::{take, take_integer, take_u32},
    disk,
    segment::Position,
};
use crate::event::DedupeKey;

const MAGIC: [u8; 8] = *b"hookseen";
const VERSION: u32 = 2;
const HEADER_BYTES: u64 = 4096;
const SLOT_BYTES: u64 = 16;

/// The used bytes of the header.
const USED_BYTES: usize = 28;

/// The bits of a slot: its check, the position, the hash.
const CHECK_BITS: u32 = 32;
const POSITION_BITS: u32 = 60;
const HASH_BITS: u32 = 36;

/// The content of a free slot. No position has only ones, since segments are far smaller than 4
/// GiB.
const FREE: u128 = (1 << (POSITION_BITS + HASH_BITS)) - 1;

/// The number of segments whose positions fit into the bits.
const SEGMENTS: u32 = 1 << (POSITION_BITS - u32::BITS);

/// The number of slots after the last one that a hash can point to.
const OVERFLOW: u64 = 4096;

/// The size of a new table: 2^16 slots, 1 MiB, for some 20,000 events.
const FIRST_BITS: u32 = 16;

/// The possible sizes of a table, as powers of two.
const SIZES: RangeInclusive<u32> = FIRST_BITS..=HASH_BITS;

/// The distance from an entry to its slot at which the table is crowded. With evenly distributed
/// hashes, the table is about three quarters full then.
const FARTHEST: u64 = 128;

/// The buffer for creating or rebuilding the table, in bytes.
const CHUNK_BYTES: usize = 1 << 20;

/// The number of slots in one read: mostly enough to find a free one.
const WINDOW: usize = 16;

/// The deduplication index.
#[derive(Debug)]
pub(super) struct DedupIndex {
    file: File,
    path: PathBuf,
    /// The number of slots that hashes can point to, as a power of two.
    bits: u32,
    /// The watermark in the header.
    watermark: Position,
}

/// The number of a slot.
pub(super) type Slot = u64;

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum IndexError {
    /// The table is damaged or of another version, and must be rebuilt. The text continues a
    /// sentence after "since".
    #[error("{0}")]
    Damaged(String),
    /// Another error of the system.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl IndexError {
    fn unread(error: impl Display) -> Self {
        Self::Damaged(format!("it cannot be read ({error})"))
    }
}

/// The result of [`DedupIndex::find`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The position of an accepted entry.
    Known(Position),
    /// No entry was accepted. The key can be added in this slot.
    Free(Slot),
}

impl DedupIndex {
    /// Opens the table at `path`; `None` if it does not exist.
    ///
    /// # Errors
    ///
    /// When the table is damaged or of another version, or cannot be opened.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, IndexError> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut bytes = [0; USED_BYTES];
        file.read_exact_at(&mut bytes, 0)
            .map_err(IndexError::unread)?;
        let (bits, watermark) = read_header(&bytes)?;
        let length = file.metadata()?.len();
        let path = path.to_owned();
        let index = Self {
            file,
            path,
            bits,
            watermark,
        };
        if length != offset(index.slots()) {
            return Err(IndexError::Damaged(format!("it has {length} bytes")));
        }
        Ok(Some(index))
    }

    /// Creates an empty table at `path`, and replaces any other.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Builder::begin(path, FIRST_BITS, Position::default())?.finish()
    }

    /// Searches an entry of `key` that `accept` confirms.
    pub(super) fn find(
        &self,
        key: &DedupeKey,
        mut accept: impl FnMut(Position) -> bool,
    ) -> Result<Found, IndexError> {
        let hash = hash(key);
        let mut slot = home(hash, self.bits);
        let mut window = [0; WINDOW * SLOT_BYTES as usize];
        loop {
            let left = self.slots().saturating_sub(slot).min(WINDOW as u64);
            let bytes = window.split_at_mut((left * SLOT_BYTES) as usize).0;
            if bytes.is_empty() {
                return Err(io::Error::other("the deduplication index is full").into());
            }
            let read = self.file.read_exact_at(bytes, offset(slot));
            read.map_err(IndexError::unread)?;
            for bytes in bytes.chunks_exact(SLOT_BYTES as usize) {
                match Entry::read(bytes, slot)? {
                    None => return Ok(Found::Free(slot)),
                    Some(entry) if entry.hash == hash && accept(entry.position) => {
                        return Ok(Found::Known(entry.position));
                    }
                    Some(_) => slot += 1,
                }
            }
        }
    }

    /// Adds an entry for `key` in its free slot. Returns whether the table has become crowded.
    pub(super) fn add(&self, key: &DedupeKey, slot: Slot, position: Position) -> io::Result<bool> {
        if position.segment() >= SEGMENTS {
            return Err(io::Error::other(
                "the deduplication index cannot refer to segments of such high numbers",
            ));
        }
        let hash = hash(key);
        let entry = Entry { hash, position };
        self.file
            .write_all_at(&sealed(entry.content(), slot), offset(slot))?;
        Ok(slot - home(hash, self.bits) >= FARTHEST)
    }

    /// Syncs all entries, and then writes the watermark: the position of the last event that is in
    /// the table.
    pub(super) fn sync(&mut self, watermark: Position) -> io::Result<()> {
        self.file.sync_data()?;
        self.watermark = watermark;
        self.file.write_all_at(&header(self.bits, watermark), 0)
    }

    /// The watermark in the header. The caller must verify it by reading the event there.
    pub(super) const fn watermark(&self) -> Position {
        self.watermark
    }

    const fn slots(&self) -> u64 {
        (1 << self.bits) + OVERFLOW
    }

    /// Moves the entries from `oldest` on to a new table with enough slots. Entries are ordered by
    /// hash in both tables, except within runs, so that both are processed sequentially.
    pub(super) fn rebuild(&mut self, oldest: Position) -> Result<(), IndexError> {
        let mut live = 0;
        self.each_run(oldest, |run| {
            live += run.len() as u64;
            Ok(())
        })?;
        let mut target = Builder::begin(&self.path, bits_for(live), self.watermark)?;
        self.each_run(oldest, |run| target.add(run))?;
        *self = target.finish()?;
        Ok(())
    }

    /// Passes the entries from `oldest` on to `take`, by runs of occupied slots.
    fn each_run(
        &self,
        oldest: Position,
        mut take: impl FnMut(&mut Vec<Entry>) -> io::Result<()>,
    ) -> Result<(), IndexError> {
        let mut source = BufReader::with_capacity(CHUNK_BYTES, &self.file);
        source.seek(SeekFrom::Start(HEADER_BYTES))?;
        let mut bytes = [0; SLOT_BYTES as usize];
        let mut run = Vec::new();
        for slot in 0..self.slots() {
            source.read_exact(&mut bytes).map_err(IndexError::unread)?;
            match Entry::read(&bytes, slot)? {
                Some(entry) if entry.position >= oldest => run.push(entry),
                Some(_) => {}
                None => {
                    take(&mut run)?;
                    run.clear();
                }
            }
        }
        Ok(take(&mut run)?)
    }
}

/// The content of an occupied slot.
#[derive(Clone, Copy)]
struct Entry {
    hash: u64,
    position: Position,
}

impl Entry {
    /// Decodes slot number `slot`; `None` if it is free.
    fn read(bytes: &[u8], slot: Slot) -> Result<Option<Self>, IndexError> {
        let bytes = bytes.first_chunk().copied().unwrap_or_default();
        let content = u128::from_le_bytes(bytes) >> CHECK_BITS;
        // In one of 2^32 slots zeros would pass the check.
        if content == 0 || bytes != sealed(content, slot) {
            return Err(IndexError::Damaged(format!("slot {slot} fails its check")));
        }
        let position = content as u64 & ((1 << POSITION_BITS) - 1);
        let entry = Self {
            hash: (content >> POSITION_BITS) as u64,
            position: Position::from_sql(position.cast_signed()),
        };
        Ok((content != FREE).then_some(entry))
    }

    fn content(self) -> u128 {
        let position = self.position.to_sql().cast_unsigned();
        u128::from(self.hash) << POSITION_BITS | u128::from(position)
    }
}

/// Encodes `content` with the check of slot number `slot`.
fn sealed(content: u128, slot: Slot) -> [u8; SLOT_BYTES as usize] {
    let with = |lower: u32| (content << CHECK_BITS | u128::from(lower)).to_le_bytes();
    with(crc32c::crc32c(&with(slot as u32)))
}

/// The used part of the header of a table of 2^`bits` slots.
fn header(bits: u32, watermark: Position) -> Vec<u8> {
    let mut header = Vec::with_capacity(USED_BYTES);
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend(bits.to_le_bytes());
    header.extend(watermark.to_sql().to_le_bytes());
    let check = crc32c::crc32c(&header);
    header.extend(check.to_le_bytes());
    header
}

/// Decodes a header: the size as a power of two, and the watermark.
fn read_header(bytes: &[u8; USED_BYTES]) -> Result<(u32, Position), IndexError> {
    let problem = match fields(bytes) {
        Some((VERSION, bits, watermark))
            if SIZES.contains(&bits) && header(bits, watermark) == bytes =>
        {
            return Ok((bits, watermark));
        }
        Some((version, ..)) if version != VERSION => format!("it is of version {version}"),
        _ => "its header fails its check".to_owned(),
    };
    Err(IndexError::Damaged(problem))
}

/// Version, size and watermark, if the bytes begin as a header.
fn fields(mut bytes: &[u8]) -> Option<(u32, u32, Position)> {
    let bytes = &mut bytes;
    let is_ours = take(bytes, MAGIC.len())? == MAGIC;
    let (version, bits) = (take_u32(bytes)?, take_u32(bytes)?);
    let watermark = Position::from_sql(take_integer(bytes)?);
    is_ours.then_some((version, bits, watermark))
}

/// Writes a new table sequentially, beside the one that it replaces.
struct Builder {
    file: BufWriter<File>,
    path: PathBuf,
    bits: u32,
    watermark: Position,
    /// The number of the next slot.
    next: Slot,
}

impl Builder {
    /// Begins a table for `path`.
    fn begin(path: &Path, bits: u32, watermark: Position) -> io::Result<Self> {
        let file = disk::create_file(&beside(path))?;
        file.write_all_at(&header(bits, watermark), 0)?;
        let mut file = BufWriter::with_capacity(CHUNK_BYTES, file);
        file.seek(SeekFrom::Start(HEADER_BYTES))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            bits,
            watermark,
            next: 0,
        })
    }

    /// Adds a run of entries. Only within a run are entries out of order.
    fn add(&mut self, run: &mut [Entry]) -> io::Result<()> {
        run.sort_unstable_by_key(|entry| entry.hash);
        for entry in run {
            self.pad(home(entry.hash, self.bits))?;
            self.put(entry.content())?;
        }
        Ok(())
    }

    fn pad(&mut self, slot: Slot) -> io::Result<()> {
        while self.next < slot {
            self.put(FREE)?;
        }
        Ok(())
    }

    fn put(&mut self, content: u128) -> io::Result<()> {
        self.file.write_all(&sealed(content, self.next))?;
        self.next += 1;
        Ok(())
    }

    /// Syncs the table, and moves it to its path.
    fn finish(mut self) -> io::Result<DedupIndex> {
        let slots = (1 << self.bits) + OVERFLOW;
        if self.next > slots {
            return Err(io::Error::other(
                "the hashes of the deduplication index are not evenly distributed",
            ));
        }
        self.pad(slots)?;
        let file = self.file.into_inner()?;
        file.sync_data()?;
        fs::rename(beside(&self.path), &self.path)?;
        disk::sync_dir(self.path.parent().unwrap_or(&self.path))?;
        Ok(DedupIndex {
            file,
            path: self.path,
            bits: self.bits,
            watermark: self.watermark,
        })
    }
}

/// The path of a new table, until it replaces the one at `path`.
fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// The size at which `entries` take at most three eighths of the slots.
fn bits_for(entries: u64) -> u32 {
    let slots = (entries * 8 / 3).max(1 << FIRST_BITS);
    slots.next_power_of_two().ilog2().min(HASH_BITS)
}

fn hash(key: &DedupeKey) -> u64 {
    let first = key.as_bytes().first_chunk();
    u64::from_le_bytes(first.copied().unwrap_or_default()) >> (u64::BITS - HASH_BITS)
}

/// The slot that a hash points to in a table of 2^`bits` slots.
const fn home(hash: u64, bits: u32) -> Slot {
    hash >> (HASH_BITS - bits)
}

/// The offset of a slot in the file, in bytes.
const fn offset(slot: Slot) -> u64 {
    HEADER_BYTES + slot * SLOT_BYTES
}
