//! The audit log: a SQLite database beside the ledger. It is no view, so it is synced with every
//! change, and never set aside.

use std::{fs, path::Path, time::Duration};

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, Result, Row, Transaction, TransactionBehavior, params};

use super::disk;
use crate::{
    event::HandlerName,
    store::{Action, AuditEntry, AuditRecord, Pause, StoreError},
};

/// The version of `audit.sql`.
const VERSION: i64 = 1;

/// How long to wait for another process that writes.
const PATIENCE: Duration = Duration::from_secs(4);

/// A connection to the audit log.
pub(super) struct AuditDatabase(Connection);

impl AuditDatabase {
    /// Opens the audit log at `path`, and creates it if there is none.
    ///
    /// # Errors
    ///
    /// When it cannot be read or written, or is of a later version.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        // To open and close a file that SQLite has open would release its locks.
        if !path.exists() {
            disk::ensure_file(path).map_err(StoreError::writing(path))?;
        }
        let opened = connect(path).map_err(StoreError::database("opening the audit log"))?;
        opened.map(Self).map_err(|version| {
            StoreError::TooNew(format!("{} is of version {version}", path.display()))
        })
    }

    pub(super) fn record(&self, entry: &AuditEntry) -> Result<()> {
        let mut insert = self.0.prepare_cached(
            "INSERT INTO audit (at, who, action, target, reason) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        insert.execute(params![
            entry.at.as_microsecond(),
            entry.who,
            entry.action.as_str(),
            entry.target,
            entry.reason,
        ])?;
        Ok(())
    }

    pub(super) fn list(&self, before: Option<i64>, limit: usize) -> Result<Vec<AuditRecord>> {
        let mut list = self.0.prepare_cached(
            "SELECT id, at, who, action, target, reason FROM audit
             WHERE id < ?1 ORDER BY id DESC LIMIT ?2",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = list.query_map((before.unwrap_or(i64::MAX), limit), |row| {
            Ok(AuditRecord {
                id: row.get(0)?,
                at: time(row, 1)?,
                who: row.get(2)?,
                action: row.get(3)?,
                target: row.get(4)?,
                reason: row.get(5)?,
            })
        })?;
        rows.collect()
    }

    pub(super) fn pauses(&self) -> Result<Vec<Pause>> {
        let mut list = self
            .0
            .prepare_cached("SELECT handler, since, who, reason FROM pauses ORDER BY handler")?;
        let rows = list.query_map([], |row| {
            Ok(Pause {
                handler: HandlerName::new(row.get::<_, String>(0)?),
                since: time(row, 1)?,
                who: row.get(2)?,
                reason: row.get(3)?,
            })
        })?;
        rows.collect()
    }

    pub(super) fn set_paused(&self, handler: &HandlerName, entry: &AuditEntry) -> Result<bool> {
        let change = Transaction::new_unchecked(&self.0, TransactionBehavior::Immediate)?;
        let changed = match entry.action {
            Action::Pause => change.execute(
                "INSERT INTO pauses (handler, since, who, reason) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO NOTHING",
                params![
                    handler.as_str(),
                    entry.at.as_microsecond(),
                    entry.who,
                    entry.reason
                ],
            )?,
            _ => change.execute("DELETE FROM pauses WHERE handler = ?1", [handler.as_str()])?,
        };
        if changed > 0 {
            self.record(entry)?;
        }
        change.commit()?;
        Ok(changed > 0)
    }
}

/// Copies the audit log at `from`, as of one moment, to stable storage, if there is one.
///
/// # Errors
///
/// When it cannot be read, or `to` exists or cannot be written.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    if !from.exists() {
        return Ok(());
    }
    disk::ensure_file(to).map_err(StoreError::writing(to))?;
    let copied = AuditDatabase::open(from)?
        .0
        .execute("VACUUM INTO ?1", [to.to_string_lossy()]);
    copied.map_err(StoreError::database("copying the audit log"))?;
    let sync = || fs::File::open(to)?.sync_all();
    sync().map_err(StoreError::writing(to))
}

/// A connection to the database at `path`, or its version if this program cannot use it.
fn connect(path: &Path) -> Result<Result<Connection, i64>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(PATIENCE)?;
    db.pragma_update(None, "synchronous", "full")?;
    let version = |db: &Connection| db.pragma_query_value(None, "user_version", |row| row.get(0));
    if version(&db)? == 0 {
        let change = Transaction::new_unchecked(&db, TransactionBehavior::Immediate)?;
        // Another process may have been quicker.
        if version(&db)? == 0 {
            change.execute_batch(include_str!("audit.sql"))?;
        }
        change.commit()?;
    }
    match version(&db)? {
        VERSION => Ok(Ok(db)),
        other => Ok(Err(other)),
    }
}

fn time(row: &Row<'_>, column: usize) -> Result<Timestamp> {
    let micros = row.get(column)?;
    Ok(Timestamp::from_microsecond(micros).unwrap_or(Timestamp::UNIX_EPOCH))
}
