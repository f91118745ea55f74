//! The errors of a store, as operators read them.

use std::{error::Error, io};

use crate::event::HandlerName;

/// Why the store could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the store open.
    #[error("the store at {0} is in use by another process; stop that one first")]
    Locked(String),
    /// There is no store at the configured place.
    #[error("there is no store at {0}; has `hookswitch serve` run with this configuration?")]
    Absent(String),
    /// The store belongs to another user.
    #[error(
        "the store at {path} cannot be read by the user {user}; run the command as the user of the \
         service, for example with `sudo -u`"
    )]
    Foreign {
        /// The store.
        path: String,
        /// The user of this process.
        user: String,
    },
    /// A replay names a handler that is not configured.
    #[error("no handler called {0:?} is configured; start the service with this handler first")]
    UnknownHandler(HandlerName),
    /// A newer version wrote the store.
    #[error("{0}, which only a newer hookswitch can read; run that version")]
    TooNew(String),
    /// An older version wrote the store, and no service of this version has run on it.
    #[error("{0}, written by an older hookswitch; start this version's service on it first")]
    TooOld(String),
    /// This kind of store cannot be a source, or a target, of a transfer.
    #[error("events cannot be moved {0} a store of that kind")]
    TransferUnsupported(&'static str),
    /// This kind of store is backed up with tools of its own.
    #[error(
        "a PostgreSQL store is backed up with the tools of PostgreSQL, such as pg_dump or pg_basebackup; \
         docs/operations.md says what to dump"
    )]
    BackupUnsupported,
    /// The directory of a backup is not new.
    #[error("{0} exists already; name a new directory, so that no backup is overwritten")]
    BackupExists(String),
    /// The target differs from the source after a transfer.
    #[error(
        "of {events} transferred events, the new store lacks {missing} and differs in {altered}; if a \
         service has run on the new store since, that is expected, otherwise empty the new store \
         and transfer again"
    )]
    TransferMismatch {
        /// The number of transferred events, in this and earlier runs.
        events: u64,
        /// How many of them the target lacks.
        missing: u64,
        /// How many of them differ in the target.
        altered: u64,
    },
    /// A file could not be read or written.
    #[error("{what}: {error}")]
    Io {
        /// The operation, with the path.
        what: String,
        /// The system's error.
        error: io::Error,
    },
    /// The database could not be read or written.
    #[error("{what}: {error}")]
    Database {
        /// The operation.
        what: String,
        /// The database's error.
        error: Box<dyn Error + Send + Sync>,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    pub(super) fn io(what: &str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io {
            what: what.to_owned(),
            error,
        }
    }

    pub(super) fn database<E: Into<Box<dyn Error + Send + Sync>>>(
        what: &str,
    ) -> impl FnOnce(E) -> Self {
        move |error| Self::Database {
            what: what.to_owned(),
            error: error.into(),
        }
    }
}
