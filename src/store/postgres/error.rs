//! What can go wrong between us and the database, and what to do about each.

use std::{error::Error, io, time::Duration};

use tokio::time::Instant;
use tokio_postgres::error::SqlState;

use crate::store::StoreError;

/// How long something is done again that collides with what others do.
const AGAIN_FOR: Duration = Duration::from_secs(10);

/// Why something was not done, or is not known to be. Its text holds nothing of what was sent: what
/// the database says of rows stays out of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PgError {
    /// Nobody is there who would do it, which may pass.
    #[error("{0}")]
    Unavailable(String),
    /// Another transaction was in the way: to be done again at once.
    #[error("{0}")]
    Conflict(String),
    /// A unique value is there already.
    #[error("{0}")]
    UniqueViolation(String),
    /// There is no partition for a row.
    #[error("{0}")]
    NoPartition(String),
    /// Something in what was sent cannot be stored.
    #[error("{0}")]
    InvalidData(String),
    /// It will not be done until a person changes something.
    #[error("{0}")]
    Fatal(String),
    /// There are no tables.
    #[error("the database has no tables of hookswitch")]
    NoTables,
    /// The tables are of this version, which needs a newer program.
    #[error("the tables of the store are of version {0}")]
    TooNew(i32),
}

impl PgError {
    /// There was no answer by the time that it was waited for.
    pub(super) fn timed_out() -> Self {
        Self::Unavailable("the database does not answer in time".to_owned())
    }

    /// Whether the connection can be used again.
    pub(super) const fn leaves_connection_usable(&self) -> bool {
        matches!(
            self,
            Self::Conflict(_)
                | Self::UniqueViolation(_)
                | Self::NoPartition(_)
                | Self::InvalidData(_)
        )
    }

    /// Whether what was begun at `began` is to be done again.
    pub(super) fn is_retryable(&self, began: Instant) -> bool {
        matches!(self, Self::Conflict(_)) && began.elapsed() < AGAIN_FOR
    }

    /// The one of two that a person should hear of.
    pub(super) fn more_severe(self, other: Self) -> Self {
        if matches!(self, Self::Fatal(_)) {
            self
        } else {
            other
        }
    }

    /// As the error of a command, with what was being done.
    pub(super) fn into_store_error(self, what: &str) -> StoreError {
        match self {
            Self::TooNew(_) => StoreError::TooNew(format!("{what}: {self}")),
            error => StoreError::database(what)(error.to_string()),
        }
    }

    /// Why no connection was made.
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
        // The tables have no other checks than those of their partitions.
        if *code == SqlState::CHECK_VIOLATION {
            return Self::NoPartition(what);
        }
        match code.code().get(..2) {
            // Serialization failure, deadlock; a lock that was not waited for.
            Some("40" | "55") => Self::Conflict(what),
            // Data, and limits of it.
            Some("22" | "54") => Self::InvalidData(what),
            // Who we are, what we may do, which database and what is in it.
            Some("28" | "3D" | "3F" | "42") => Self::Fatal(what),
            _ => Self::Unavailable(what),
        }
    }
}

/// An error in one line, without the details, which quote rows.
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
