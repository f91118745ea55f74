//! The directory of the journal: its segments, and their headers.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::store::{
    StoreError,
    embedded::segment::{BadHeader, HEADER_BYTES, Header, Position},
};

const EXTENSION: &str = "segment";

/// The directory of the journal.
#[derive(Clone, Debug)]
pub(in super::super) struct Directory(Arc<Path>);

impl Directory {
    /// The directory at `path`.
    pub(in super::super) fn new(path: &Path) -> Self {
        Self(path.into())
    }

    /// The directory's path.
    pub(in super::super) fn path(&self) -> &Path {
        &self.0
    }

    /// The path of segment `number`.
    pub(in super::super) fn segment(&self, number: u32) -> PathBuf {
        self.0.join(format!("{number:010}.{EXTENSION}"))
    }

    /// The numbers of all segments, ascending.
    pub(in super::super) fn segments(&self) -> io::Result<Vec<u32>> {
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
    pub(in super::super) fn first_from(&self, number: u32) -> io::Result<Option<u32>> {
        let mut numbers = self.segments()?.into_iter();
        Ok(numbers.find(|found| *found >= number))
    }

    /// The size in bytes of all segments up to `end`, without preallocated zeros.
    pub(in super::super) fn bytes(&self, end: Position) -> io::Result<u64> {
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
    pub(super) fn final_length(&self, number: u32) -> io::Result<Option<u64>> {
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
    pub(in super::super) fn header(&self, number: u32) -> Result<Option<Header>, StoreError> {
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
