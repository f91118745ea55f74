//! Zoom's signature, as the receivers that hookswitch is compared with verify it.

use hmac::{Hmac, Mac};
use http::HeaderMap;
use sha2::Sha256;

/// Whether `body` is signed with `key`: `None` where it is not.
pub(crate) fn is_signed(key: &Hmac<Sha256>, headers: &HeaderMap, body: &[u8]) -> Option<()> {
    let timestamp = headers.get("x-zm-request-timestamp")?;
    let signature = headers
        .get("x-zm-signature")?
        .as_bytes()
        .strip_prefix(b"v0=")?;
    let mut mac = key.clone();
    mac.update(b"v0:");
    mac.update(timestamp.as_bytes());
    mac.update(b":");
    mac.update(body);
    let wanted: String = mac
        .finalize()
        .into_bytes()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    (wanted.as_bytes() == signature).then_some(())
}
