//! The database file: opened, created, upgraded, or set aside if it is damaged.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};

use crate::store::{
    StoreError,
    embedded::{disk, segment::Position},
};

/// The version of `schema.sql`.
const VERSION: i64 = 5;

/// How long to wait for the other process that writes: the service, or a command. Less than the
/// time after which a task counts as stalled, so that the log has the reason by then.
const PATIENCE: Duration = Duration::from_secs(4);

/// Opens the ledger at `path`. `create` allows to create a missing one, to replace a damaged one,
/// and to upgrade an older one.
///
/// # Errors
///
/// When the ledger cannot be read or written, or is of another version.
pub(in super::super) fn open(path: &Path, create: bool) -> Result<Connection, StoreError> {
    if create {
        // SQLite gives its other files the same permissions.
        disk::ensure_file(path).map_err(StoreError::writing(path))?;
    }
    match try_open(path, create) {
        Err(error) if create && is_corruption(&error) => {
            set_aside(path, "it is damaged")?;
            disk::ensure_file(path).map_err(StoreError::writing(path))?;
            try_open(path, create)
        }
        opened => opened,
    }
    .map_err(StoreError::database("opening the ledger"))?
    .map_err(|version| {
        let text = format!("{} is of ledger version {version}", path.display());
        match version < VERSION {
            true => StoreError::TooOld(text),
            false => StoreError::TooNew(text),
        }
    })
}

/// Copies the ledger at `from`, as of one moment, to stable storage. Returns the position of its watermark.
///
/// # Errors
///
/// When the ledger cannot be read, or `to` exists or cannot be written.
pub(in super::super) fn copy(from: &Path, to: &Path) -> Result<Position, StoreError> {
    disk::ensure_file(to).map_err(StoreError::writing(to))?;
    let from = open(from, false)?;
    let copy = || -> rusqlite::Result<i64> {
        from.execute("VACUUM INTO ?1", [to.to_string_lossy()])?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let copied = Connection::open_with_flags(to, flags)?;
        copied.query_row("SELECT through FROM progress", [], |row| row.get(0))
    };
    let through = copy().map_err(StoreError::database("copying the ledger"))?;
    let sync = || fs::File::open(to)?.sync_all();
    sync().map_err(StoreError::writing(to))?;
    Ok(Position::from_sql(through))
}

/// Whether the database is corrupt, and must be replaced.
pub(super) fn is_corruption(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

/// Whether a constraint failed, which also happens if the database's pages are of different times.
pub(super) fn is_constraint_violation(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation)
}

/// Whether the ledger at `path` was not closed in order, so that its files may be of different
/// times.
pub(super) fn is_suspect(path: &Path) -> bool {
    fs::metadata(with_suffix(path, "-wal")).is_ok_and(|wal| wal.len() > 0)
}

/// Whether the whole ledger at `path` is intact.
pub(super) fn is_sound(path: &Path) -> Result<bool, StoreError> {
    look_through(path).map_err(StoreError::database("checking the ledger"))
}

fn look_through(path: &Path) -> rusqlite::Result<bool> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    match db.pragma_query_value(None, "integrity_check", |row| row.get::<_, String>(0)) {
        Err(error) if is_corruption(&error) => Ok(false),
        found => Ok(found? == "ok" && db.query_row(TALLIES_HOLD, [], |row| row.get(0))?),
    }
}

/// Whether the counts of handlers match their deliveries. Both change in one transaction, so that
/// pages of different times show here, even if each of them is intact.
const TALLIES_HOLD: &str = "SELECT NOT EXISTS (SELECT 1 FROM handlers h
    WHERE open <> (SELECT count(*) FROM deliveries INDEXED BY unfinished
            WHERE handler = h.id AND state = 0 AND state < 3)
        OR parked <> (SELECT count(*) FROM deliveries INDEXED BY unfinished
            WHERE handler = h.id AND state = 2 AND state < 3))";

/// The error of a corrupt database.
pub(super) const fn damage() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error {
            code: ErrorCode::DatabaseCorrupt,
            extended_code: rusqlite::ffi::SQLITE_CORRUPT,
        },
        None,
    )
}

/// Renames an unusable ledger because of `why`, and keeps it for inspection.
pub(super) fn set_aside(path: &Path, why: &str) -> Result<(), StoreError> {
    let kept = disk::kept_path(path, "damaged");
    for suffix in ["", "-wal", "-shm"] {
        match fs::rename(with_suffix(path, suffix), with_suffix(&kept, suffix)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed.map_err(StoreError::writing(path))?,
        }
    }
    tracing::error!(
        kept = %kept.display(),
        "the ledger was set aside, since {why}; a new one is created from the journal, which has the \
         state of each delivery except for the last moments"
    );
    Ok(())
}

/// The upgrades from each version to the next, from version 1 on.
const UPGRADES: &[&str] = &[
    include_str!("from_1.sql"),
    include_str!("from_2.sql"),
    include_str!("from_3.sql"),
    include_str!("from_4.sql"),
];

/// The ledger at `path`, or its version if this program cannot use it.
fn try_open(path: &Path, upgrade: bool) -> rusqlite::Result<Result<Connection, i64>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(PATIENCE)?;
    db.set_prepared_statement_cache_capacity(64);
    // A statement keeps its plan for all parameters. Otherwise many would be planned again.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    db.pragma_update(None, "journal_mode", "wal")?;
    // A loss of power may lose the last transactions. They are made again from the journal.
    db.pragma_update(None, "synchronous", "normal")?;
    db.pragma_update(None, "cache_size", -8192)?; // KiB
    db.pragma_update(None, "journal_size_limit", 64 << 20)?;
    // In pages of 4 KiB. A larger number would cost less in total, and stall the journal on the
    // same disk for longer.
    db.pragma_update(None, "wal_autocheckpoint", 400)?;
    let change = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    match change.pragma_query_value(None, "user_version", |row| row.get(0))? {
        0 => change.execute_batch(include_str!("schema.sql"))?,
        VERSION => {}
        from @ 1..VERSION if upgrade => {
            for step in UPGRADES.iter().skip(from as usize - 1) {
                change.execute_batch(step)?;
            }
        }
        version => return Ok(Err(version)),
    }
    // Reads a few pages that are always needed, so that coarse damage shows now.
    change.query_row("SELECT through FROM progress", [], |_| Ok(()))?;
    change.query_row("SELECT count(*) FROM handlers", [], |_| Ok(()))?;
    change.commit()?;
    Ok(Ok(db))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}
