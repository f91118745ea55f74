//! Times on a command line.

use jiff::{SignedDuration, Timestamp};

/// Parses a time (`2026-01-31T08:00:00Z`) or an age (`2h`, `30d`).
///
/// # Errors
///
/// When it is neither.
pub(super) fn parse(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago = humantime::parse_duration(text)
        .ok()
        .and_then(|ago| SignedDuration::try_from(ago).ok())
        .and_then(|ago| crate::app::now().checked_sub(ago).ok());
    ago.ok_or_else(|| {
        "give a time such as 2026-01-31T08:00:00Z, or an age such as 2h or 7d".to_owned()
    })
}
