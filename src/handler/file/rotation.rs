//! When a file is rotated, what it is called then, and how long it is kept.
//!
//! **Invariant:** nothing is removed but a regular file in the folder of `path`, with a name that
//! [`rotated_name`] gives.

use std::{
    cmp::Reverse,
    ffi::OsStr,
    fs::{self, DirEntry},
    io,
    num::NonZeroUsize,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::{Timestamp, civil, tz::TimeZone};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

use super::parent;
use crate::quantity;

/// The format of the time in the name of a rotated file, in UTC.
const TIME: &str = "%Y%m%dT%H%M%SZ";

/// When a file is rotated, and how long rotated files are kept.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotate {
    /// The largest size of a file: it is rotated before it would become larger.
    #[schemars(with = "Option<quantity::Size>")]
    pub(super) size: Option<Size>,
    /// The period after which the file is rotated: `"day"`, from midnight to midnight in UTC.
    pub(super) every: Option<Period>,
    /// The limits within which rotated files are kept, at least one. Files beyond a limit are removed,
    /// the oldest first. Without it, all are kept.
    pub(super) keep: Option<Keep>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Period {
    Day,
}

/// Which rotated files are kept: those within every limit.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Keep {
    /// The largest number of rotated files.
    pub(super) files: Option<NonZeroUsize>,
    /// The greatest age of a rotated file, since its rotation.
    #[schemars(with = "Option<quantity::Time>")]
    pub(super) age: Option<Age>,
    /// The largest size of the rotated files together.
    #[schemars(with = "Option<quantity::Size>")]
    pub(super) size: Option<Size>,
}

/// A number of bytes, at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "AnySize")]
pub(super) struct Size(pub(super) u64);

#[derive(Deserialize)]
struct AnySize(#[serde(deserialize_with = "quantity::bytes::deserialize")] u64);

impl TryFrom<AnySize> for Size {
    type Error = &'static str;

    fn try_from(AnySize(bytes): AnySize) -> Result<Self, Self::Error> {
        match bytes {
            0 => Err("a size of 0 holds no event; choose a size such as \"64MiB\""),
            bytes => Ok(Self(bytes)),
        }
    }
}

/// A length of time, longer than nothing.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "AnyAge")]
pub(super) struct Age(pub(super) Duration);

#[derive(Deserialize)]
struct AnyAge(#[serde(deserialize_with = "quantity::duration::deserialize")] Duration);

impl TryFrom<AnyAge> for Age {
    type Error = &'static str;

    fn try_from(AnyAge(age): AnyAge) -> Result<Self, Self::Error> {
        match age {
            Duration::ZERO => Err("an age of 0 keeps no file; choose an age such as \"30d\""),
            age => Ok(Self(age)),
        }
    }
}

/// Reads the setting `rotate`.
///
/// # Errors
///
/// When nothing would ever be rotated or kept.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Rotate, D::Error> {
    let rotate = Rotate::deserialize(deserializer)?;
    match rotate.problem() {
        Some(problem) => Err(de::Error::custom(problem)),
        None => Ok(rotate),
    }
}

impl Rotate {
    fn problem(&self) -> Option<&'static str> {
        if self.size.is_none() && self.every.is_none() {
            return Some(
                "`rotate` does not say when; add `size = \"64MiB\"`, `every = \"day\"` or both",
            );
        }
        let keep = self.keep?;
        if keep.files.is_none() && keep.age.is_none() && keep.size.is_none() {
            return Some(
                "`keep` sets no limit; add `files = 10`, `age = \"30d\"` or `size = \"1GiB\"`",
            );
        }
        if keep.size.is_some_and(|kept| Some(kept) < self.size) {
            return Some(
                "a file of the `size` in `rotate` is larger than the `size` in `keep`, so that no \
                 file would be kept; keep several times the size of a file",
            );
        }
        None
    }
}

/// The name of the file at `path` after its rotation at `at`: `events-20260304T060000Z.ndjson` for
/// `events.ndjson`. A `number` above 0 is in the name of a file that was not the first of its second.
pub(super) fn rotated_name(path: &Path, at: Timestamp, number: u32) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push("-");
    name.push(at.strftime(TIME).to_string());
    if number > 0 {
        name.push(format!("-{number}"));
    }
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// The lowest number for a rotation of `path` at `at` that is above those of the same second, so that
/// the number tells which file is newer. A lower one may be free, where a file was removed.
pub(super) fn next_number(path: &Path, at: Timestamp) -> io::Result<u32> {
    let orders = list(path)?.into_iter().map(|file| file.order);
    let same_second = orders.filter(|(time, _)| time.as_second() == at.as_second());
    let highest = same_second.map(|(_, number)| number).max();
    Ok(highest.map_or(0, |number| number.saturating_add(1)))
}

/// A file that was rotated.
#[derive(Debug)]
struct Rotated {
    /// When, and its number in that second: the order of rotated files.
    order: (Timestamp, u32),
    size: u64,
    path: PathBuf,
}

impl Rotated {
    /// The file of `entry`, if it is the file at `path`, rotated.
    fn of(path: &Path, entry: &DirEntry) -> Option<Self> {
        let order = rotated_at(path, &entry.file_name())?;
        // Of a link, this is about the link itself.
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some(Self {
            order,
            size: metadata.len(),
            path: entry.path(),
        })
    }
}

/// When the file at `path` got the name `name`, and its number, if a rotation gives that name.
fn rotated_at(path: &Path, name: &OsStr) -> Option<(Timestamp, u32)> {
    let stem = path.file_stem()?.as_bytes();
    let rest = name.as_bytes().strip_prefix(stem)?.strip_prefix(b"-")?;
    let rest = str::from_utf8(rest).ok()?;
    let (time, rest) = rest.split_at_checked("20260304T060000Z".len())?;
    let number = rest.split('.').next()?.strip_prefix('-');
    let number = number.map_or(Some(0), |number| number.parse().ok())?;
    let time = civil::DateTime::strptime(TIME, time).ok()?;
    let at = TimeZone::UTC.to_timestamp(time).ok()?;
    // There are other ways to write this time and number, and other endings.
    let is_name = rotated_name(path, at, number).file_name() == Some(name);
    is_name.then_some((at, number))
}

impl Keep {
    /// Removes the rotated files of `path` that are beyond a limit at `now`. Returns when the next one
    /// will be too old.
    ///
    /// Events go on being written where a file cannot be removed: the log says so.
    pub(super) fn prune(&self, path: &Path, now: Timestamp) -> Option<Timestamp> {
        let (kept, excess) = match list(path) {
            Ok(files) => self.divide(files, now),
            Err(error) => {
                let folder = parent(path).display();
                tracing::warn!("cannot look for rotated files in {folder}: {error}");
                return None;
            }
        };
        for Rotated { path, .. } in excess {
            match fs::remove_file(&path) {
                Ok(()) => tracing::info!("removed the rotated file {}", path.display()),
                Err(error) => {
                    tracing::warn!("cannot remove the rotated file {}: {error}", path.display());
                }
            }
        }
        let oldest = kept.last()?;
        self.end_of(oldest)
    }

    /// The files that are kept, and the others, each with the newest first.
    fn divide(&self, mut files: Vec<Rotated>, now: Timestamp) -> (Vec<Rotated>, Vec<Rotated>) {
        files.sort_by_key(|file| Reverse(file.order));
        let mut sum = 0_u64;
        let is_kept = |(index, file): (usize, &Rotated)| {
            sum = sum.saturating_add(file.size);
            self.files.is_none_or(|files| index < files.get())
                && self.size.is_none_or(|Size(limit)| sum <= limit)
                && self.end_of(file).is_none_or(|end| now < end)
        };
        let kept = files
            .iter()
            .enumerate()
            .map(is_kept)
            .take_while(|kept| *kept)
            .count();
        let excess = files.split_off(kept);
        (files, excess)
    }

    /// When `file` will be too old.
    fn end_of(&self, file: &Rotated) -> Option<Timestamp> {
        let Age(age) = self.age?;
        file.order.0.checked_add(age).ok()
    }
}

/// The rotated files of `path`.
fn list(path: &Path) -> io::Result<Vec<Rotated>> {
    let entries = match fs::read_dir(parent(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        files.extend(Rotated::of(path, &entry?));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_file_is_known_by_its_name_and_by_no_other() {
        let at = Timestamp::constant(1_772_604_000, 0); // 2026-03-04T06:00:00Z
        for path in ["data/events.ndjson", "events", ".events", "a.b.c"] {
            let path = Path::new(path);
            for number in [0, 1, 12] {
                let name = rotated_name(path, at, number);
                let known = rotated_at(path, name.file_name().unwrap());
                assert_eq!(known, Some((at, number)), "{name:?}");
            }
        }
        for name in [
            "events.ndjson",
            "events-.ndjson",
            "events-old.ndjson",
            "events-20260304.ndjson",
            "events-20260304T060000.ndjson",
            "events-20261304T060000Z.ndjson",
            "events-20260304T060000Z",
            "events-20260304T060000Z.ndjson.gz",
            "events-20260304T060000Z.json",
            "events-20260304T060000Z-0.ndjson",
            "events-20260304T060000Z-01.ndjson",
            "events-20260304T060000Z-copy.ndjson",
            "events-20260304T060000Z-1-1.ndjson",
            "events-20260304T060000Z copy.ndjson",
            "other-20260304T060000Z.ndjson",
            "my-events-20260304T060000Z.ndjson",
        ] {
            let known = rotated_at(Path::new("events.ndjson"), OsStr::new(name));
            assert_eq!(known, None, "{name}");
        }
    }
}
