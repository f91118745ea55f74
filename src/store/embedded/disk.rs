//! The system calls whose failures decide what the store may promise. Only tests replace them, by
//! failing ones.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The disk, as the journal's writer uses it.
pub(super) trait Disk: Send + Sync {
    /// Writes all of `bytes` at `offset`.
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    /// Returns when written data would survive the loss of power.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Removes everything from offset `length` on.
    fn truncate(&self, file: &File, length: u64) -> io::Result<()> {
        file.set_len(length)
    }

    /// The free space in bytes that this user may use.
    fn free(&self, path: &Path) -> io::Result<u64> {
        let system = rustix::fs::statvfs(path)?;
        Ok(system.f_bavail.saturating_mul(system.f_frsize))
    }
}

/// The machine's disk.
#[derive(Debug)]
pub(super) struct SystemDisk;

impl Disk for SystemDisk {}

/// Creates a directory and its parents, accessible to the owner only: the directory will hold
/// personal data.
pub(super) fn create_dir(path: &Path) -> io::Result<()> {
    let Some(parent) = parent(path) else {
        return Ok(());
    };
    if !path.is_dir() {
        create_dir(parent)?;
        DirBuilder::new().mode(0o700).create(path)?;
    }
    // The directory's name is an entry of its parent.
    sync_dir(parent)
}

/// The directory that `path` is in; `None` for the root.
pub(super) fn parent(path: &Path) -> Option<&Path> {
    match path.parent()? {
        parent if parent.as_os_str().is_empty() => Some(Path::new(".")),
        parent => Some(parent),
    }
}

/// Creates the file if it does not exist, readable by the owner only.
pub(super) fn ensure_file(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    options.open(path).map(drop)
}

/// Creates or empties a file, readable by the owner only.
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

/// The first free path of the form `path.<word>-<n>`, for a file that is kept for inspection.
pub(super) fn kept_path(path: &Path, word: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    (1_u32..)
        .map(|n| path.with_file_name(format!("{name}.{word}-{n}")))
        .find(|kept| !fs::exists(kept).unwrap_or(false))
        .unwrap_or_else(|| path.with_file_name(format!("{name}.{word}")))
}
