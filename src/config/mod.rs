//! The configuration: a TOML file, or a report of everything that is wrong with the file.
//!
//! **Invariant:** a service can start from a [`Config`]. The file, the environment and the settings
//! of each handler have been checked.
//!
//! **Invariant:** one [`Report`] has every problem of a file. Each problem has its place, and no
//! problem shows a secret.
//!
//! **Invariant:** this floor alone reads the environment.
//!
//! A file is read in two phases, so that each error keeps its place. First, the parser makes a table
//! with spans, and the reader looks `kind` and `family` up. Second, the entry that was found reads
//! the rest of its table through a [`spanned::Deserializer`](crate::spanned::Deserializer). The
//! diagnostics turn the errors of that deserializer into problems.

mod check;
mod content;
mod diagnostics;
mod reader;
mod redaction;
mod report;
mod restart_required;
mod schema;
mod section;
mod syntax;

#[cfg(test)]
mod tests;

use std::{fs, path::Path};

use schemars::JsonSchema;
use serde::Deserialize;

pub use report::{Location, Problem, Report, Severity};
pub use restart_required::RestartRequired;
pub use schema::schema;

use crate::{admin, dispatch, handler, http, secret, store, telemetry::LogFormat};

/// Everything that a service is built from: a TOML file without problems.
#[derive(Debug)]
pub struct Config {
    /// What is logged, and how.
    pub(crate) log: Log,
    /// The server that providers post to.
    pub(crate) server: http::Settings,
    /// The admin server.
    pub(crate) admin: admin::Settings,
    /// The store.
    pub(crate) store: Box<dyn store::Engine>,
    /// Who may post what where; never empty.
    pub(crate) endpoints: Vec<http::Endpoint>,
    /// Who gets what.
    pub(crate) handlers: Vec<dispatch::ConfiguredHandler>,
    /// The secrets that the file refers to.
    pub(crate) secrets: Vec<secret::Found>,
    /// The sections that require a restart when they change.
    pub(crate) restart_required: RestartRequired,
    /// A number of 48 bits for what the file says. A secret has no part in it, wherever it stands.
    pub(crate) hash: i64,
    /// The warnings. Most files have none.
    pub(crate) warnings: Report,
}

/// What the TOML's `[log]` says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// How log lines look.
    pub format: LogFormat,
    /// Which log lines there are, in the form of `RUST_LOG`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::default(),
            filter: "info".to_owned(),
        }
    }
}

/// Reads the file at `path`. The file may name the handlers in `kinds`. `env` looks an environment
/// variable up: it is [`environment`] everywhere but in tests.
///
/// # Errors
///
/// A report of everything that is wrong with the file.
pub fn load(
    path: &Path,
    kinds: &[handler::Kind],
    env: fn(&str) -> Option<String>,
) -> Result<Config, Report> {
    parse(path, &text(path)?, kinds, env)
}

/// Reads `text` as [`load`] reads a file. The report names `path`; nothing opens `path`.
///
/// # Errors
///
/// A report of everything that is wrong with `text`.
pub fn parse(
    path: &Path,
    text: &str,
    kinds: &[handler::Kind],
    env: fn(&str) -> Option<String>,
) -> Result<Config, Report> {
    let (config, mut findings) = reader::read(text, kinds, env, |reader| reader.config());
    let secrets = std::mem::take(&mut findings.secrets);
    let hash = findings.hash;
    let warnings = report(path, text, findings);
    match config {
        Some(config) => Ok(Config {
            secrets,
            hash,
            warnings,
            ..config
        }),
        None => Err(warnings),
    }
}

impl Config {
    /// Whether a secret stands in the file itself.
    pub(crate) fn has_inline_secrets(&self) -> bool {
        let mut secrets = self.secrets.iter();
        secrets.any(|found| found.source == secret::Source::Inline)
    }
}

/// Reads the file at `path` without following its references: no secret, certificate or program has
/// to be there. What depends on the content of a secret is not checked.
pub fn check_form(path: &Path, kinds: &[handler::Kind]) -> Report {
    let read = || -> Result<Report, Report> {
        let text = text(path)?;
        let (_, findings) = reader::read(&text, kinds, |_| None, |reader| reader.config());
        Ok(report(path, &text, findings))
    };
    secret::unread(read).unwrap_or_else(|report| report)
}

/// Reads only `[store]`, for commands that run without the secrets of the endpoints.
///
/// # Errors
///
/// A report of what is wrong with that section.
pub fn load_store(path: &Path) -> Result<Box<dyn store::Engine>, Report> {
    part(path, |reader| reader.store())
}

/// Reads only `[admin]`, for commands that ask a running service.
///
/// # Errors
///
/// A report of what is wrong with that section.
pub fn load_admin(path: &Path) -> Result<admin::Settings, Report> {
    part(path, |reader| Some(reader.admin()?.0))
}

/// Reads the part of the file at `path` that `part` reads.
fn part<T>(
    path: &Path,
    part: impl FnOnce(&mut reader::Reader<'_, '_>) -> Option<T>,
) -> Result<T, Report> {
    let text = text(path)?;
    let (value, findings) = reader::read(&text, &[], environment, part);
    value.ok_or_else(|| report(path, &text, findings))
}

fn report(path: &Path, text: &str, findings: section::Findings) -> Report {
    let path = path.display().to_string();
    Report::new(path, text, &findings.redaction, findings.problems)
}

/// The text of the file at `path`.
fn text(path: &Path) -> Result<String, Report> {
    let whole = |message: String, help: &str| {
        let problem = Problem::new(message).help(help);
        let path = path.display().to_string();
        Report::new(path, "", &redaction::Redaction::default(), vec![problem])
    };
    let bytes = fs::read(path).map_err(|error| {
        let message = format!("the configuration cannot be read: {error}");
        whole(
            message,
            "name a file that exists and that this user may read",
        )
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let message = format!("the configuration is not UTF-8 text: byte {at} is not part of any");
        whole(message, "save the file as UTF-8")
    })
}

/// An environment variable of this process; `None` when it is not set, or is not UTF-8.
pub fn environment(name: &str) -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is where the environment is read"
    )]
    std::env::var(name).ok()
}
