//! Appends whole lines to a file that is renamed now and then.
//!
//! **Invariant:** no line is ever overwritten or cut: a rotated file takes a name that was free, and what
//! a crash left of a line gets a line end and is left standing. Lines go with the rotated files that
//! are no longer kept, and in no other way.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    parent,
    rotation::{Period, Rotate, Size, next_number, rotated_name},
};

/// Events hold phone numbers and addresses, so a file of them is not for everyone to read.
const MODE: u32 = 0o640;

#[derive(Debug)]
pub(super) struct Writer {
    path: Arc<Path>,
    sync: bool,
    rotate: Rotate,
    /// The file, once something has been written, unless the last write failed.
    open: Option<Open>,
    /// When a rotated file will be too old.
    prune_at: Option<Timestamp>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Which file it is, whatever it is called by now.
    identity: (u64, u64),
    size: u64,
    /// The day of its last line, in days since 1970.
    day: i64,
}

impl Writer {
    pub(super) const fn new(path: Arc<Path>, sync: bool, rotate: Rotate) -> Self {
        Self {
            path,
            sync,
            rotate,
            open: None,
            prune_at: None,
        }
    }

    /// Appends `text`, which consists of whole lines, at the time `now`. After a failure, the next
    /// call opens the file anew and mends its end.
    pub(super) fn append(&mut self, text: &[u8], now: Timestamp) -> io::Result<()> {
        let mut open = match self.open.take() {
            Some(open) if open.is_still_at(&self.path) => open,
            _ => {
                // Also after a failure: the disk may be full.
                self.prune(now);
                self.open()?
            }
        };
        if self.is_due(&open, text, now) {
            self.set_aside(now)?;
            self.prune(now);
            open = self.open()?;
        } else if self.prune_at.is_some_and(|at| now >= at) {
            self.prune(now);
        }
        open.file.write_all(text)?;
        if self.sync {
            open.file.sync_data()?;
        }
        open.size = open.size.saturating_add(text.len() as u64);
        open.day = open.day.max(day(now));
        self.open = Some(open);
        Ok(())
    }

    /// Opens the file, and creates it where there is none.
    fn open(&self) -> io::Result<Open> {
        let directory = parent(&self.path);
        create_directory(directory)?;
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(MODE)
            .open(&self.path)?;
        if self.sync {
            // Also for a file that was there: whoever created it may have ended before this.
            sync_directory(directory)?;
        }
        let metadata = file.metadata()?;
        let mut size = metadata.len();
        if size > 0 && !ends_a_line(&mut file)? {
            file.write_all(b"\n")?;
            size += 1;
        }
        Ok(Open {
            file,
            identity: (metadata.dev(), metadata.ino()),
            size,
            day: day(Timestamp::try_from(metadata.modified()?).unwrap_or_default()),
        })
    }

    /// Whether a new file is to be begun before `text` is written.
    fn is_due(&self, open: &Open, text: &[u8], now: Timestamp) -> bool {
        if open.size == 0 {
            return false;
        }
        let is_large = |Size(limit)| open.size.saturating_add(text.len() as u64) > limit;
        let is_over = |Period::Day| day(now) > open.day;
        self.rotate.size.is_some_and(is_large) || self.rotate.every.is_some_and(is_over)
    }

    /// Removes the rotated files that are no longer kept.
    fn prune(&mut self, now: Timestamp) {
        self.prune_at = self
            .rotate
            .keep
            .and_then(|keep| keep.prune(&self.path, now));
    }

    /// Renames the file to a name that is free.
    fn set_aside(&self, now: Timestamp) -> io::Result<()> {
        let mut number = next_number(&self.path, now)?;
        loop {
            let name = rotated_name(&self.path, now, number);
            // A rename would replace a file of that name, so the name is taken first. A crash
            // between the two leaves an empty file, and the events where they were.
            match OpenOptions::new().write(true).create_new(true).open(&name) {
                Ok(_) => return fs::rename(&self.path, name),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Open {
    /// Whether the file has not been renamed or removed by somebody else.
    fn is_still_at(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity)
    }
}

fn ends_a_line(file: &mut File) -> io::Result<bool> {
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// Creates a directory and those above it, each one's name on stable storage before it is used.
fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    create_directory(parent(path))?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => sync_directory(parent(path)),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn day(time: Timestamp) -> i64 {
    time.as_second().div_euclid(24 * 3600)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, time::Duration};

    use tempfile::TempDir;

    use super::*;
    use crate::handler::file::rotation::{Age, Keep};

    const UP_TO_4_BYTES: Rotate = Rotate {
        size: Some(Size(4)),
        every: None,
        keep: None,
    };
    const DAILY: Rotate = Rotate {
        size: None,
        every: Some(Period::Day),
        keep: None,
    };
    const NOON: Timestamp = Timestamp::constant(1_772_625_600, 0); // 2026-03-04T12:00:00Z

    /// A directory with a writer for `events.ndjson` in it.
    fn writer(rotate: Rotate) -> (TempDir, Writer) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.ndjson");
        (directory, Writer::new(path.into(), true, rotate))
    }

    /// The files of `directory` by name, with what is in them.
    fn files(directory: &TempDir) -> Vec<(String, String)> {
        let mut files: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                (name, fs::read_to_string(entry.path()).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    fn file(name: &str, text: &str) -> (String, String) {
        (name.to_owned(), text.to_owned())
    }

    #[test]
    fn a_torn_last_line_is_ended_and_left_standing() {
        let (directory, mut writer) = writer(Rotate::default());
        fs::write(&writer.path, "1\n2\n{\"to").unwrap();
        writer.append(b"3\n", NOON).unwrap();
        writer.append(b"4\n", NOON).unwrap();
        assert_eq!(
            files(&directory),
            [file("events.ndjson", "1\n2\n{\"to\n3\n4\n")]
        );
    }

    #[test]
    fn a_whole_last_line_is_left_as_it_is() {
        let (directory, mut writer) = writer(Rotate::default());
        fs::write(&writer.path, "1\n").unwrap();
        writer.append(b"2\n", NOON).unwrap();
        assert_eq!(files(&directory), [file("events.ndjson", "1\n2\n")]);
    }

    #[test]
    fn a_file_is_set_aside_before_it_grows_too_large_and_replaces_no_other() {
        let (directory, mut writer) = writer(UP_TO_4_BYTES);
        for text in ["1\n", "2\n", "3\n", "4 is larger than allowed\n", "5\n"] {
            writer.append(text.as_bytes(), NOON).unwrap();
        }
        let expected = [
            file("events-20260304T120000Z-1.ndjson", "3\n"),
            file(
                "events-20260304T120000Z-2.ndjson",
                "4 is larger than allowed\n",
            ),
            file("events-20260304T120000Z.ndjson", "1\n2\n"),
            file("events.ndjson", "5\n"),
        ];
        assert_eq!(files(&directory), expected);
    }

    #[test]
    fn a_restarted_writer_knows_how_large_its_file_is() {
        let (directory, mut writer) = writer(UP_TO_4_BYTES);
        fs::write(&writer.path, "1\n2\n").unwrap();
        writer.append(b"3\n", NOON).unwrap();
        assert_eq!(files(&directory).len(), 2);
        assert_eq!(fs::read(&writer.path).unwrap(), b"3\n");
    }

    #[test]
    fn a_file_of_yesterday_is_set_aside_also_by_a_restarted_writer() {
        let at = |hours: i64| NOON + jiff::SignedDuration::from_hours(hours);
        let (directory, mut writer) = writer(DAILY);
        // A file's own time is today's at the earliest: it is set into the past.
        let past = File::create(&writer.path).unwrap();
        (&past).write_all(b"1\n").unwrap();
        past.set_modified(NOON.into()).unwrap();
        writer.append(b"2\n", at(11)).unwrap();
        writer.append(b"3\n", at(12)).unwrap();
        writer.append(b"4\n", at(11)).unwrap();
        writer.append(b"5\n", at(35)).unwrap();
        let expected = [
            file("events-20260305T000000Z.ndjson", "1\n2\n"),
            file("events.ndjson", "3\n4\n5\n"),
        ];
        assert_eq!(files(&directory), expected);
    }

    #[test]
    fn a_rotated_file_is_removed_once_it_is_too_old_though_no_other_is_rotated() {
        let at = |minutes: i64| NOON + jiff::SignedDuration::from_mins(minutes);
        let keep = Keep {
            files: None,
            age: Some(Age(Duration::from_secs(600))),
            size: None,
        };
        let (directory, mut writer) = writer(Rotate {
            keep: Some(keep),
            ..UP_TO_4_BYTES
        });
        writer.append(b"1\n2\n", at(0)).unwrap();
        writer.append(b"3\n", at(1)).unwrap();
        writer.append(b"4\n", at(10)).unwrap();
        assert_eq!(files(&directory).len(), 2);
        writer.rotate.size = None;
        writer.append(b"5\n", at(11)).unwrap();
        assert_eq!(files(&directory), [file("events.ndjson", "3\n4\n5\n")]);
    }

    #[test]
    fn a_file_that_somebody_else_moved_is_begun_anew() {
        let (directory, mut writer) = writer(Rotate::default());
        writer.append(b"1\n", NOON).unwrap();
        fs::rename(&writer.path, directory.path().join("moved")).unwrap();
        writer.append(b"2\n", NOON).unwrap();
        fs::remove_file(&writer.path).unwrap();
        writer.append(b"3\n", NOON).unwrap();
        assert_eq!(
            files(&directory),
            [file("events.ndjson", "3\n"), file("moved", "1\n")]
        );
    }

    #[test]
    fn not_everyone_may_read_a_new_file() {
        let (_directory, mut writer) = writer(Rotate::default());
        writer.append(b"1\n", NOON).unwrap();
        let mode = fs::metadata(&writer.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o007, 0, "{mode:o}");
    }
}
