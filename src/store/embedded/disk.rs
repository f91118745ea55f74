//! The calls to the system whose failures decide what the store may promise. Tests put failing
//! ones in their place; nothing else does.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The disk as the journal's writer sees it.
pub(super) trait Disk: Send + Sync {
    /// Writes all of `bytes` at `offset`.
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    /// Returns when what was written would survive the loss of power.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Gives up everything from `length` on.
    fn truncate(&self, file: &File, length: u64) -> io::Result<()> {
        file.set_len(length)
    }

    /// Free space in bytes, as far as this user may use it.
    fn free(&self, path: &Path) -> io::Result<u64> {
        let system = rustix::fs::statvfs(path)?;
        Ok(system.f_bavail.saturating_mul(system.f_frsize))
    }
}

/// The machine's own.
#[derive(Debug)]
pub(super) struct SystemDisk;

impl Disk for SystemDisk {}

/// Creates a directory that only its owner can enter, since what it will hold is personal data, and
/// the directories above it.
pub(super) fn create_dir(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    if !path.is_dir() {
        create_dir(parent)?;
        DirBuilder::new().mode(0o700).create(path)?;
    }
    // The directory's own name is an entry of its parent.
    sync_dir(parent)
}

/// Makes sure that there is a file, readable by its owner only if it is new.
pub(super) fn ensure_file(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    options.open(path).map(drop)
}

/// Creates a file, or empties it, that only its owner can read.
pub(super) fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// Makes the names in a directory survive the loss of power.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// `path` with `.<word>-<n>` added, for the first `n` that is not taken: where to keep something
/// that a person may want to look at.
pub(super) fn kept_path(path: &Path, word: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    (1_u32..)
        .map(|n| path.with_file_name(format!("{name}.{word}-{n}")))
        .find(|kept| !fs::exists(kept).unwrap_or(false))
        .unwrap_or_else(|| path.with_file_name(format!("{name}.{word}")))
}
