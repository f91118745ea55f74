//! Errors of the database, by what to do about them.

use std::{error::Error, io, time::Duration};

use tokio::time::Instant;
use tokio_postgres::error::SqlState;

use crate::store::StoreError;

/// How long to repeat an operation that conflicts with others.
const AGAIN_FOR: Duration = Duration::from_secs(10);

/// Why an operation failed, or may have failed. The text contains nothing of what was sent: the
/// database's details, which quote rows, are left out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PgError {
    /// The database cannot be reached or does not answer. The condition may pass.
    #[error("{0}")]
    Unavailable(String),
    /// Another transaction was in the way. The operation can be repeated at once.
    #[error("{0}")]
    Conflict(String),
    /// A unique value exists already.
    #[error("{0}")]
    UniqueViolation(String),
    /// No partition for a row exists.
    #[error("{0}")]
    NoPartition(String),
    /// A value cannot be stored.
    #[error("{0}")]
    InvalidData(String),
    /// The operation fails until a person changes something.
    #[error("{0}")]
    Fatal(String),
    /// The tables do not exist.
    #[error("the database has no tables of hookswitch")]
    NoTables,
    /// The tables have this version, which needs a newer program.
    #[error("the tables of the store are of version {0}")]
    TooNew(i32),
}

impl PgError {
    /// The database did not answer before the deadline.
    pub(super) fn timed_out() -> Self {
        Self::Unavailable("the database does not answer in time".to_owned())
    }

    /// Whether the connection is usable after the error.
    pub(super) const fn leaves_connection_usable(&self) -> bool {
        matches!(
            self,
            Self::Conflict(_)
                | Self::UniqueViolation(_)
                | Self::NoPartition(_)
                | Self::InvalidData(_)
        )
    }

    /// Whether to repeat an operation that began at `began`.
    pub(super) fn is_retryable(&self, began: Instant) -> bool {
        matches!(self, Self::Conflict(_)) && began.elapsed() < AGAIN_FOR
    }

    /// The one of two errors that a person should hear of.
    pub(super) fn more_severe(self, other: Self) -> Self {
        if matches!(self, Self::Fatal(_)) {
            self
        } else {
            other
        }
    }

    /// Converts the error of a command that was doing `what`.
    pub(super) fn into_store_error(self, what: &str) -> StoreError {
        match self {
            Self::TooNew(_) => StoreError::TooNew(format!("{what}: {self}")),
            error => StoreError::database(what)(error.to_string()),
        }
    }

    /// Classifies the error of a connection attempt.
    pub(super) fn connecting(error: &tokio_postgres::Error) -> Self {
        if error.as_db_error().is_some() {
            return Self::from(error);
        }
        let mut because = error.source();
        while let Some(cause) = because {
            if let Some(cause) = cause.downcast_ref::<io::Error>() {
                let is_tls = cause
                    .get_ref()
                    .is_some_and(|inner| inner.is::<rustls::Error>());
                return if is_tls {
                    Self::Fatal(describe(error))
                } else {
                    Self::Unavailable(describe(error))
                };
            }
            because = cause.source();
        }
        Self::Fatal(describe(error))
    }
}

impl From<tokio_postgres::Error> for PgError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::from(&error)
    }
}

impl From<&tokio_postgres::Error> for PgError {
    fn from(error: &tokio_postgres::Error) -> Self {
        let what = describe(error);
        let Some(code) = error.code() else {
            return Self::Unavailable(what);
        };
        if *code == SqlState::UNIQUE_VIOLATION {
            return Self::UniqueViolation(what);
        }
        // Partitions have the only check constraints of the tables.
        if *code == SqlState::CHECK_VIOLATION {
            return Self::NoPartition(what);
        }
        match code.code().get(..2) {
            // Serialization failures, deadlocks and unavailable locks.
            Some("40" | "55") => Self::Conflict(what),
            // Invalid data, and exceeded limits.
            Some("22" | "54") => Self::InvalidData(what),
            // Authentication, privileges, the database's name, and missing objects.
            Some("28" | "3D" | "3F" | "42") => Self::Fatal(what),
            _ => Self::Unavailable(what),
        }
    }
}

/// The error in one line, without the details, which quote rows.
fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", said.message(), said.code().code());
    }
    let mut text = error.to_string();
    let mut because = error.source();
    while let Some(cause) = because {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        because = cause.source();
    }
    text
}
