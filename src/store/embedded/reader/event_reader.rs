//! Reads single events at known positions.

use std::{collections::HashMap, fs::File, io, mem, os::unix::fs::FileExt};

use bytes::Bytes;

use super::Directory;
use crate::store::embedded::{
    record::{self, Content, Event, LENGTH_BYTES, Personal},
    segment::Position,
};

/// The size of one read, in bytes. Handlers get events in nearly the order of the journal, so the
/// next events are mostly in the same read.
const READ_AHEAD_BYTES: usize = 32 << 10;

/// The most files that a reader keeps open.
const OPEN_FILES: usize = 16;

/// Reads events by position.
#[derive(Debug)]
pub(in super::super) struct EventReader {
    directory: Directory,
    open: HashMap<u32, File>,
    /// The bytes of the last read, and their position. An event that is not whole in them is read again: it
    /// may have been written since.
    ahead: Vec<u8>,
    ahead_at: Position,
}

/// Why no event could be read at a position.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum ReadError {
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
    pub(in super::super) fn new(directory: Directory) -> Self {
        Self {
            directory,
            open: HashMap::new(),
            ahead: Vec::new(),
            ahead_at: Position::default(),
        }
    }

    /// The event at `position`, verified completely.
    pub(in super::super) fn read(&mut self, position: Position) -> Result<Event, ReadError> {
        let event = self.read_public(position)?;
        match event.personal {
            Personal::Whole => Ok(event),
            Personal::Erased => Err(ReadError::Erased),
            Personal::Damaged => Err(ReadError::Damaged),
        }
    }

    /// The event at `position`, with a verified public part.
    pub(in super::super) fn read_public(&mut self, position: Position) -> Result<Event, ReadError> {
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
    pub(in super::super) fn close(&mut self, number: u32) {
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
