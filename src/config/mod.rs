//! The TOML file: read, checked whole, and turned into what the floors are built from.
//!
//! **Invariant:** a [`Config`] in hand can be started: what the file, the environment and the
//! handlers' own settings can tell beforehand has been asked.
//!
//! **Invariant:** everything that is wrong comes out in one [`Report`], each problem at its place,
//! and no secret with it.
//!
//! **Invariant:** the environment is read here and nowhere else.
//!
//! Reading has two phases, so that no error loses its place. The file becomes a table that knows
//! where everything stands; `kind` and `family` are taken out of it and looked up in their tables;
//! what is left goes to the entry that was found, as its own struct.

mod check;
mod fixed;
mod mask;
mod reader;
mod report;
mod section;
mod syntax;
mod way;
mod wording;

#[cfg(test)]
mod tests;

use std::{fs, path::Path};

use serde::Deserialize;

pub use fixed::Fixed;
pub use report::{Problem, Report, Severity};

use crate::{admin, dispatch, handler, http, store, telemetry::LogFormat};

/// Everything that a service is built from.
#[derive(Debug)]
pub struct Config {
    /// What is logged, and how.
    pub log: Log,
    /// The server that providers post to.
    pub server: http::Settings,
    /// The admin server.
    pub admin: admin::Settings,
    /// The store.
    pub store: Box<dyn store::Engine>,
    /// Who may post what where; never empty.
    pub endpoints: Vec<http::Endpoint>,
    /// Who gets what.
    pub handlers: Vec<dispatch::Consumer>,
    /// What cannot change while the service runs.
    pub fixed: Fixed,
    /// What is worth a second look before it is used; empty where there is nothing.
    pub warnings: Report,
}

/// What the TOML's `[log]` says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
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

/// Reads the file at `path`. `kinds` are the kinds of handlers that it may name, and `env` looks
/// environment variables up: [`environment`] everywhere but in tests.
///
/// # Errors
///
/// A report of everything that is wrong with it.
pub fn load(
    path: &Path,
    kinds: &[handler::Kind],
    env: fn(&str) -> Option<String>,
) -> Result<Config, Report> {
    parse(path, &text(path)?, kinds, env)
}

/// Reads `text` as [`load`] reads a file. `path` is only named in the report.
///
/// # Errors
///
/// A report of everything that is wrong with it.
pub fn parse(
    path: &Path,
    text: &str,
    kinds: &[handler::Kind],
    env: fn(&str) -> Option<String>,
) -> Result<Config, Report> {
    let (config, warnings) = part(path, text, kinds, env, |reader| reader.config())?;
    Ok(Config { warnings, ..config })
}

/// Reads only `[store]`, for commands that work where the endpoints' secrets are not at hand.
///
/// # Errors
///
/// A report of what is wrong with that section.
pub fn load_store(path: &Path) -> Result<Box<dyn store::Engine>, Report> {
    let store = |reader: &mut reader::Reader<'_, '_>| reader.store();
    Ok(part(path, &text(path)?, &[], environment, store)?.0)
}

/// Reads only `[admin]`, for commands that ask a running service.
///
/// # Errors
///
/// A report of what is wrong with that section.
pub fn load_admin(path: &Path) -> Result<admin::Settings, Report> {
    let admin = |reader: &mut reader::Reader<'_, '_>| Some(reader.admin()?.0);
    Ok(part(path, &text(path)?, &[], environment, admin)?.0)
}

/// Reads what `part` reads, and what there is to warn of in it.
fn part<T>(
    path: &Path,
    text: &str,
    kinds: &[handler::Kind],
    env: fn(&str) -> Option<String>,
    part: impl FnOnce(&mut reader::Reader<'_, '_>) -> Option<T>,
) -> Result<(T, Report), Report> {
    let (value, findings) = reader::read(text, kinds, env, part);
    let path = path.display().to_string();
    let report = Report::new(path, text, &findings.mask, findings.problems);
    match value {
        Some(value) => Ok((value, report)),
        None => Err(report),
    }
}

/// The text of the file at `path`.
fn text(path: &Path) -> Result<String, Report> {
    let whole = |message: String, help: &str| {
        let problem = Problem::new(message).help(help);
        let path = path.display().to_string();
        Report::new(path, "", &mask::Mask::default(), vec![problem])
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
