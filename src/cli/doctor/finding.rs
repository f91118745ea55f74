//! A finding: one row of the table.

use serde::Serialize;

/// How bad a finding is, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Severity {
    /// Events are refused or lost, or the service cannot start.
    Blocker,
    /// Something will go wrong, or may be wrong.
    Warning,
    Fine,
}

impl Severity {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Blocker => "blocker",
            Self::Warning => "warning",
            Self::Fine => "fine",
        }
    }
}

/// The result of one check.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    /// What was checked.
    pub(super) check: &'static str,
    /// What was found.
    pub(super) message: String,
    /// What to do.
    pub(super) help: Option<String>,
}

impl Finding {
    pub(super) fn fine(check: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Fine,
            check,
            message: message.into(),
            help: None,
        }
    }

    pub(super) fn warning(
        check: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            help: Some(help.into()),
            ..Self::fine(check, message)
        }
    }

    pub(super) fn blocker(
        check: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Blocker,
            ..Self::warning(check, message, help)
        }
    }

    /// What was found, and after a semicolon what to do.
    pub(super) fn text(&self) -> String {
        match &self.help {
            Some(help) => format!("{}; {help}", self.message),
            None => self.message.clone(),
        }
    }

    /// A blocker with the text of an error, which says after its last semicolon what to do.
    pub(super) fn of_error(check: &'static str, text: &str) -> Self {
        let (message, help) = match text.rsplit_once("; ") {
            Some((message, help)) => (message, Some(help.to_owned())),
            None => (text, None),
        };
        Self {
            severity: Severity::Blocker,
            help,
            ..Self::fine(check, message)
        }
    }
}
