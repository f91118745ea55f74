//! Times on a command line.

use jiff::Timestamp;

use crate::{app, quantity::moment};

/// Parses a time (`2026-01-31T08:00:00Z`) or an age (`2h`, `30d`).
///
/// # Errors
///
/// When it is neither.
pub(super) fn parse(text: &str) -> Result<Timestamp, String> {
    moment::parse(text, app::now())
}
