//! `/audit`: what operators have done.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Context, Problem, events::limit};
use crate::store::{Action, AuditEntry, AuditRecord};

/// Which entries to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(in super::super) struct Filter {
    /// The `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<i64>,
    /// The most entries of a page.
    #[schemars(range(min = 1, max = 200))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// One page of the audit log, newest first.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Page {
    pub entries: Vec<Entry>,
    /// The `before` of the next page; null when there is nothing older.
    pub next: Option<i64>,
}

/// What an operator has done.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(in super::super) struct Entry {
    pub id: i64,
    pub at: Timestamp,
    /// The name of a token, `local`, or `cli:` and a user of the system.
    pub who: String,
    /// `pause`, `resume`, `unmask` or `read-body`; later versions have more.
    pub action: String,
    /// The handler or the event that it was done to.
    pub target: String,
    /// Why, as the operator said; empty for looks.
    pub reason: String,
}

/// One page of the audit log.
pub(in super::super) async fn list(context: Context, filter: Filter) -> Result<Page, Problem> {
    let limit = limit(filter.limit)?;
    let before = filter.before;
    let asked = context
        .console
        .ask(move |operator| operator.audit(before, limit + 1));
    let mut entries: Vec<_> = asked.await?.into_iter().map(Entry::from).collect();
    let has_more = entries.len() > limit;
    entries.truncate(limit);
    let next = entries.last().map(|entry| entry.id).filter(|_| has_more);
    Ok(Page { entries, next })
}

impl Context {
    /// What the caller does to `target`, for the audit log.
    pub(super) fn entry(&self, action: Action, target: String, reason: String) -> AuditEntry {
        AuditEntry {
            at: self.console.now(),
            who: self.caller.name.to_string(),
            action,
            target,
            reason,
        }
    }
}

impl From<AuditRecord> for Entry {
    fn from(record: AuditRecord) -> Self {
        Self {
            id: record.id,
            at: record.at,
            who: record.who,
            action: record.action,
            target: record.target,
            reason: record.reason,
        }
    }
}
