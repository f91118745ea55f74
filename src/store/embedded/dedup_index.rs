//! By what copies of events are known: a hash table in a file.
//!
//! Each event is looked up and added at a few places that are random by nature. A database page
//! would be read, logged and written for each of them; here it is 16 bytes in the system's cache.
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
//!   16  8  mark: the position of an event up to which, with it, all are in the table; 0 for none
//!   24  4  check: CRC32C of bytes 0 to 23
//!   28  .  not used
//! slots, 16 bytes each
//!    0  4  check: CRC32C of the lower 4 bytes of the slot's number, and of bytes 4 to 15
//!    4 12  one integer: in the lower 60 bits the position of the event in the journal, and in the upper
//!          36 the hash, which are the upper bits of the first 8 bytes of a dedupe key;
//!          in a free slot only ones
//! ```
//!
//! The upper n bits of a hash are the number of its slot, and where that is taken, the next free
//! one is its own. Slots are never freed one by one: an entry whose event has been deleted is
//! dropped when the table is renewed, which it is once some slot is too far from where it should be.
//!
//! Magic and version stay at their places in every version to come. A table of any other version is made
//! anew, and none is converted.
//!
//! # Constraints
//!
//! A hash that is found is a hint: whoever asks reads the event in the journal and compares. So
//! neither a hash that two keys share nor a slot that was lost with the power can make an event
//! disappear. What was lost is learnt again from the journal, from the mark on.
//!
//! The mark is in the table itself, so that it is right in whatever copy of the file there is. It is
//! written after a sync of all that it speaks for. A table gets its name when all of it is on stable
//! storage.
//!
//! 36 bits of hash are enough to tell the slot in a table of any size, and let one lookup in 64 read one
//! event in vain where there are a billion entries. 60 bits of position are enough for 2^28 segments,
//! which are 256 TiB where a segment has 1 MiB; behind these the table refuses to learn.
//!
//! # Damage
//!
//! A slot with other bytes than it was given fails its check: noise all but once in 2^32 slots, zeros always,
//! since a free slot is not zero, and so does a block of slots that belongs elsewhere. A slot lies
//! within one sector, so that neither a crash nor the loss of power leaves half of one. What cannot be read
//! is damage too, and so is a file that has lost its end.
//!
//! Damage is noticed when it is come upon, not before: while a key is looked up, while the table is renewed,
//! or in the header when the table is opened. The lookup of a key that was added goes over each slot from the
//! hash's own to the entry's, so no copy gets past damage. The table is then
//! [made anew](super::deduplicator).
//!
//! Not noticed is a block that is back in an older state of its own: its checks are right. What was added
//! there since is forgotten, and copies of these events are taken for new. The next start learns again what is
//! behind the mark, which is what the loss of power takes; what is forgotten from before the mark stays
//! forgotten until the table is made anew.
//!
//! # Costs
//!
//! For each key one read of [`WINDOW`] slots, mostly, and for a new key one write of its slot; a check
//! for each slot up to the first free one, some nanoseconds each. To make or renew a table is to write and
//! sync all of it: 1 MiB at first.

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

/// What is used of the header.
const USED_BYTES: usize = 28;

/// The bits of a slot's content: its check, and then what that is of.
const CHECK_BITS: u32 = 32;
const POSITION_BITS: u32 = 60;
const HASH_BITS: u32 = 36;

/// What a free slot holds. No position is all ones, since segments are far smaller than 4 GiB.
const FREE: u128 = (1 << (POSITION_BITS + HASH_BITS)) - 1;

/// Segments with lower numbers have positions of so many bits.
const SEGMENTS: u32 = 1 << (POSITION_BITS - u32::BITS);

/// Slots behind the last one that a hash can be the number of.
const OVERFLOW: u64 = 4096;

/// The size of a new table: 2^16 slots, 1 MiB, for some 20,000 events.
const FIRST_BITS: u32 = 16;

/// The sizes that a table can have, as powers of two.
const SIZES: RangeInclusive<u32> = FIRST_BITS..=HASH_BITS;

/// How far from its own slot an entry may be before the table is crowded. With hashes that are
/// spread evenly it is so when it is about three quarters full.
const FARTHEST: u64 = 128;

/// How much is read or written at once when the table is made or renewed.
const CHUNK_BYTES: usize = 1 << 20;

/// How many slots are read at once: mostly enough to come upon a free one.
const WINDOW: usize = 16;

/// The table.
#[derive(Debug)]
pub(super) struct DedupIndex {
    file: File,
    path: PathBuf,
    /// The number of slots that hashes can be the number of, as a power of two.
    bits: u32,
    /// Up to which event all are in the table, as its header says.
    watermark: Position,
}

/// The number of a slot.
pub(super) type Slot = u64;

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum IndexError {
    /// It is not what was written, or of another version: only a new one helps. The message goes on from
    /// "since".
    #[error("{0}")]
    Damaged(String),
    /// The system refused something else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl IndexError {
    fn unread(error: impl Display) -> Self {
        Self::Damaged(format!("it is not readable ({error})"))
    }
}

/// What [`DedupIndex::find`] came upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// An entry that was accepted.
    Known(Position),
    /// Where there is none such, the slot that is free for one.
    Free(Slot),
}

impl DedupIndex {
    /// Opens the table at `path`; `None` where there is none.
    ///
    /// # Errors
    ///
    /// When it is damaged, of another version, or cannot be opened.
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

    /// Makes an empty table at `path`, in place of any that is there.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Builder::begin(path, FIRST_BITS, Position::default())?.finish()
    }

    /// Looks for an entry of `key` that `accept` takes for one.
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
                return Err(io::Error::other("the table of copies is full").into());
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

    /// Adds an entry for `key` in the slot that is free for it, and says whether the table has become
    /// crowded.
    pub(super) fn add(&self, key: &DedupeKey, slot: Slot, position: Position) -> io::Result<bool> {
        if position.segment() >= SEGMENTS {
            return Err(io::Error::other(
                "the table of copies has no room for so many segments",
            ));
        }
        let hash = hash(key);
        let entry = Entry { hash, position };
        self.file
            .write_all_at(&sealed(entry.content(), slot), offset(slot))?;
        Ok(slot - home(hash, self.bits) >= FARTHEST)
    }

    /// Puts all that was added on stable storage, and then says so in the table: `watermark` is the last
    /// event that it holds for.
    pub(super) fn sync(&mut self, watermark: Position) -> io::Result<()> {
        self.file.sync_data()?;
        self.watermark = watermark;
        self.file.write_all_at(&header(self.bits, watermark), 0)
    }

    /// What the table says of itself: up to which event all are in it. It is believed only once that
    /// event has been looked at.
    pub(super) const fn watermark(&self) -> Position {
        self.watermark
    }

    const fn slots(&self) -> u64 {
        (1 << self.bits) + OVERFLOW
    }

    /// Moves to a table that has room, without what is before `oldest`. Entries are in the order of
    /// their hashes in both, all but, so that both are gone through from end to end.
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

    /// Goes through the entries from `oldest` on, by the runs in which they stand together.
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

/// What is in a slot that is taken.
#[derive(Clone, Copy)]
struct Entry {
    hash: u64,
    position: Position,
}

impl Entry {
    /// What slot number `slot` has; `None` if it is free.
    fn read(bytes: &[u8], slot: Slot) -> Result<Option<Self>, IndexError> {
        let bytes = bytes.first_chunk().copied().unwrap_or_default();
        let content = u128::from_le_bytes(bytes) >> CHECK_BITS;
        // In one slot of 2^32 zeros would be their own check.
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

/// What slot number `slot` is with `content`, and with its check.
fn sealed(content: u128, slot: Slot) -> [u8; SLOT_BYTES as usize] {
    let with = |lower: u32| (content << CHECK_BITS | u128::from(lower)).to_le_bytes();
    with(crc32c::crc32c(&with(slot as u32)))
}

/// The header of a table of 2^`bits` slots, as far as it is used.
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

/// The size that a header tells, as a power of two, and the mark.
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

/// Version, size and mark, where a header begins as one.
fn fields(mut bytes: &[u8]) -> Option<(u32, u32, Position)> {
    let bytes = &mut bytes;
    let is_ours = take(bytes, MAGIC.len())? == MAGIC;
    let (version, bits) = (take_u32(bytes)?, take_u32(bytes)?);
    let watermark = Position::from_sql(take_integer(bytes)?);
    is_ours.then_some((version, bits, watermark))
}

/// Writes a table from its first slot to its last, beside the one that it takes the place of.
struct Builder {
    file: BufWriter<File>,
    path: PathBuf,
    bits: u32,
    watermark: Position,
    /// The next slot to be written.
    next: Slot,
}

impl Builder {
    /// Begins the table that is to be at `path`.
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

    /// Adds entries that stood together. Only within such a run are they out of order.
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

    /// Puts the table on stable storage, and then at its place.
    fn finish(mut self) -> io::Result<DedupIndex> {
        let slots = (1 << self.bits) + OVERFLOW;
        if self.next > slots {
            return Err(io::Error::other("its hashes are not spread evenly"));
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

/// Where the table is made that is to be at `path`.
fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// The size of a table in which `entries` take at most three eighths of the slots.
fn bits_for(entries: u64) -> u32 {
    let slots = (entries * 8 / 3).max(1 << FIRST_BITS);
    slots.next_power_of_two().ilog2().min(HASH_BITS)
}

fn hash(key: &DedupeKey) -> u64 {
    let first = key.as_bytes().first_chunk();
    u64::from_le_bytes(first.copied().unwrap_or_default()) >> (u64::BITS - HASH_BITS)
}

/// The number of the slot that is a hash's own, in a table of 2^`bits`.
const fn home(hash: u64, bits: u32) -> Slot {
    hash >> (HASH_BITS - bits)
}

/// Where slot number `slot` is in the file, in bytes.
const fn offset(slot: Slot) -> u64 {
    HEADER_BYTES + slot * SLOT_BYTES
}
