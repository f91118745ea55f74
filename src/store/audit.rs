//! What operators have done, and which handlers they have paused.
//!
//! **Invariant:** nothing else has this: it is no view of the journal, and retention does not delete it.
//!
//! **Invariant:** a pause and its entry are stored together.

use jiff::Timestamp;
use serde::Serialize;

use super::StoreError;
use crate::event::HandlerName;

/// What an operator has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Paused a handler.
    Pause,
    /// Resumed a handler.
    Resume,
    /// Made deliveries due again.
    Replay,
    /// Given up parked deliveries.
    Skip,
    /// Looked at what identifies people.
    Unmask,
    /// Read a body.
    ReadBody,
}

impl Action {
    /// The action in a word, as the audit log has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Replay => "replay",
            Self::Skip => "skip",
            Self::Unmask => "unmask",
            Self::ReadBody => "read-body",
        }
    }
}

/// What an operator has done, when and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub at: Timestamp,
    /// Who: the name of a token of the admin server, `local`, or `cli:` and a user of the system.
    pub who: String,
    /// What.
    pub action: Action,
    /// The handler or the event that it was done to.
    pub target: String,
    /// Why, as the operator said; empty for looks.
    pub reason: String,
}

/// A stored [`AuditEntry`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditRecord {
    /// The number of the entry. Later entries have larger numbers.
    pub id: i64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub who: String,
    /// What: an [`Action`], possibly of a later version.
    pub action: String,
    /// The handler or the event that it was done to.
    pub target: String,
    /// Why.
    pub reason: String,
}

/// A handler that an operator has paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pause {
    /// The handler.
    pub handler: HandlerName,
    /// Since when.
    pub since: Timestamp,
    /// Who paused it.
    pub who: String,
    /// Why.
    pub reason: String,
}

/// Keeps what operators have done. Works with and without a running service. Its methods block.
pub trait AuditLog {
    /// Stores `entry` durably.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    fn record(&mut self, entry: &AuditEntry) -> Result<(), StoreError>;

    /// Up to `limit` entries, newest first: those with numbers below `before`.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    fn audit(&self, before: Option<i64>, limit: usize) -> Result<Vec<AuditRecord>, StoreError>;

    /// The paused handlers, by name.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    fn pauses(&self) -> Result<Vec<Pause>, StoreError>;

    /// Pauses `handler`, or resumes it, and stores `entry`, whose action says which. Returns whether
    /// that changed anything; if not, nothing is stored.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    fn set_paused(&mut self, handler: &HandlerName, entry: &AuditEntry)
    -> Result<bool, StoreError>;
}
