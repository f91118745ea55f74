//! Bodies, read as JSON.

use serde::Deserialize;

/// Reads the whole of `body`.
///
/// A body that is UTF-8 throughout, as each is that a provider sends, is checked once and not text by
/// text. One that is not may still be read, where nobody asks for the texts that are not.
pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> serde_json::Result<T> {
    match str::from_utf8(body) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(body),
    }
}
