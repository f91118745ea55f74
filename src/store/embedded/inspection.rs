//! What the files of a store show from outside, whether or not a service uses the store.

use std::{
    fs::{self, File, Metadata, TryLockError},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp};

use super::{
    Settings,
    disk::{Disk, SystemDisk},
    reader::Directory,
};
use crate::store::{Inspection, StoreError};

/// What everyone but the owner may not do with a file of the store.
const OTHERS: u32 = 0o077;

/// A shorter time says nothing of the growth of a store.
const SHORTEST: SignedDuration = SignedDuration::from_hours(1);

/// Looks at the store of `settings`, and writes nothing.
pub(super) fn inspect(settings: &Settings) -> Result<Inspection, StoreError> {
    let path = &settings.path;
    let mut inspection = Inspection {
        path: path.clone(),
        reserve: settings.reserve,
        retain: settings.retain,
        ..Inspection::default()
    };
    let there = path.ancestors().find(|path| path.is_dir());
    let there = there.unwrap_or(Path::new("."));
    inspection.free = SystemDisk.free(there).map_err(StoreError::reading(there))?;
    let Some(folder) = found(path).map_err(StoreError::reading(path))? else {
        return Ok(inspection);
    };
    inspection.exists = true;
    inspection.is_of_another_user = folder.uid() != rustix::process::geteuid().as_raw();
    let files = files(path).map_err(StoreError::reading(path))?;
    let is_closed = folder.permissions().mode() & OTHERS == 0;
    for (file, metadata) in files {
        inspection.bytes += metadata.len();
        if !is_closed && metadata.permissions().mode() & OTHERS != 0 {
            inspection.exposed.push(file);
        }
    }
    inspection.is_in_use = is_locked(&path.join("lock")).map_err(StoreError::reading(path))?;
    inspection.bytes_a_day = bytes_a_day(&settings.journal())?;
    Ok(inspection)
}

/// What is at `path`, if there is something.
fn found(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The files of the store. A file that is removed meanwhile is left out.
fn files(path: &Path) -> io::Result<Vec<(PathBuf, Metadata)>> {
    let mut files = Vec::new();
    for folder in [path.to_owned(), path.join("journal")] {
        if found(&folder)?.is_none() {
            continue;
        }
        for entry in fs::read_dir(&folder)? {
            let file = entry?.path();
            let metadata = found(&file)?.filter(Metadata::is_file);
            files.extend(metadata.map(|metadata| (file, metadata)));
        }
    }
    Ok(files)
}

/// Whether a service has locked the store. The shared lock is held for a moment only.
fn is_locked(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    match file.try_lock_shared() {
        Ok(()) => file.unlock().map(|()| false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// How fast the journal has grown, from the times at which its segments were begun; `None` when it is too
/// young to say.
fn bytes_a_day(journal: &Directory) -> Result<Option<u64>, StoreError> {
    let segments = journal.segments();
    let segments = match segments {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        segments => segments.map_err(StoreError::reading(journal.path()))?,
    };
    let Some(((first, last), complete)) = ends(&segments) else {
        return Ok(None);
    };
    let begun = |number| -> Result<Option<Timestamp>, StoreError> {
        Ok(journal.header(number)?.map(|header| header.begun_at))
    };
    let (Some(first), Some(last)) = (begun(first)?, begun(last)?) else {
        return Ok(None);
    };
    let time = last.duration_since(first);
    if time < SHORTEST {
        return Ok(None);
    }
    let sizes = complete
        .iter()
        .map(|number| fs::metadata(journal.segment(*number)));
    // Retention may have deleted a segment meanwhile.
    let bytes: u64 = sizes.flatten().map(|metadata| metadata.len()).sum();
    let seconds = time.as_secs().unsigned_abs().max(1);
    let bytes = u128::from(bytes) * 86_400 / u128::from(seconds);
    Ok(u64::try_from(bytes).ok())
}

/// The first and the last of `numbers`, and all but the last; `None` when there are fewer than two.
fn ends(numbers: &[u32]) -> Option<((u32, u32), &[u32])> {
    let (last, complete) = numbers.split_last()?;
    Some(((*complete.first()?, *last), complete))
}
