//! What references may refer to while a thread reads settings, and the secrets that it has read.

use std::cell::{Cell, RefCell};

use super::Secret;

/// A secret that was read, and where it was.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where it was.
    pub source: Source,
    /// The secret, allowed there or not.
    pub secret: Secret,
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the TOML itself.
    Inline,
    /// In the environment variable of this name.
    Env(String),
    /// In the file at this path.
    File(String),
}

/// What a reference may refer to while [`watch`] runs.
#[derive(Clone, Copy)]
pub struct Sources {
    /// Looks an environment variable up.
    pub env: fn(&str) -> Option<String>,
    /// Whether the text itself may stand in the TOML: only if no other machine can reach the service.
    pub inline: bool,
}

thread_local! {
    static SOURCES: Cell<Sources> = const {
        Cell::new(Sources { env: |_| None, inline: false })
    };

    /// The secrets that were found.
    static FOUND: RefCell<Vec<Found>> = const { RefCell::new(Vec::new()) };
}

/// [`watch`] for tests that print no TOML.
#[cfg(test)]
pub fn with<T>(sources: Sources, read: impl FnOnce() -> T) -> T {
    watch(sources, read).0
}

/// Runs `read` with `sources` in force on this thread. Also returns the secrets that were found. Those
/// in the TOML itself are among them, allowed or not, so that a caller that prints the TOML can redact
/// them.
pub fn watch<T>(sources: Sources, read: impl FnOnce() -> T) -> (T, Vec<Found>) {
    let sources_before = SOURCES.replace(sources);
    let found_before = FOUND.take();
    let value = read();
    SOURCES.set(sources_before);
    (value, FOUND.replace(found_before))
}

thread_local! {
    /// Whether [`unread`] runs.
    static UNREAD: Cell<bool> = const { Cell::new(false) };
}

/// The error in place of a value that is not read while [`unread`] runs. It is no problem of the
/// TOML.
pub const NOT_READ: &str = "this is not read here";

/// Runs `read`, for which no reference to a secret, a certificate or a program leads anywhere: each
/// reference with the right form fails with [`NOT_READ`].
pub fn unread<T>(read: impl FnOnce() -> T) -> T {
    let before = UNREAD.replace(true);
    let value = read();
    UNREAD.set(before);
    value
}

/// Whether [`unread`] runs, so that no reference must be followed.
pub fn is_unread() -> bool {
    UNREAD.get()
}

/// The sources in force.
pub(super) fn sources() -> Sources {
    SOURCES.get()
}

/// Records a secret that was found.
pub(super) fn note(source: Source, text: &str) {
    let secret = Secret::derived(text.to_owned());
    FOUND.with_borrow_mut(|found| found.push(Found { source, secret }));
}
