//! Bodies, parsed as JSON.

use serde::Deserialize;

/// Parses the whole of `body`.
///
/// A UTF-8 body, as the providers send it, is checked once, which is faster than string by string. Another
/// body can still be parsed if `T` ignores the strings that are not UTF-8.
pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> serde_json::Result<T> {
    match str::from_utf8(body) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(body),
    }
}
