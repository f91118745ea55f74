//! Signatures and tokens: HMAC-SHA256, comparison in constant time, freshness.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::secret::{Secret, Secrets};

/// A key for HMAC, with its state computed once.
#[derive(Clone)]
pub(super) struct SigningKey(Hmac<Sha256>);

impl SigningKey {
    pub(super) fn new(secret: &Secret) -> Self {
        let key = secret.expose().as_bytes();
        #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
        Self(Hmac::new_from_slice(key).expect("HMAC takes a key of any length"))
    }

    /// The MAC of the concatenated `parts`.
    pub(super) fn sign(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.over(parts).finalize().into_bytes().into()
    }

    /// Whether `mac` is the MAC of the concatenated `parts`, in constant time.
    pub(super) fn verifies(&self, parts: &[&[u8]], mac: &[u8; 32]) -> bool {
        self.over(parts).verify_slice(mac).is_ok()
    }

    fn over(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        for part in parts {
            mac.update(part);
        }
        mac
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey")
    }
}

/// Shared tokens, each of which proves the sender. They are kept as digests, so that the time of a comparison
/// depends neither on the content nor on the length of a token.
#[derive(Clone)]
pub(super) struct Tokens(Vec<[u8; 32]>);

impl Tokens {
    pub(super) fn new(secrets: &Secrets) -> Self {
        Self(
            secrets
                .iter()
                .map(|secret| digest(secret.expose().as_bytes()))
                .collect(),
        )
    }

    /// The index of the token that `candidate` is, if it is one. Compares all of them, each in constant time.
    pub(super) fn position(&self, candidate: &[u8]) -> Option<usize> {
        let candidate = digest(candidate);
        let tokens = self.0.iter().enumerate();
        tokens.fold(None, |found, (index, token)| {
            let is_equal = bool::from(token.ct_eq(&candidate));
            found.or(is_equal.then_some(index))
        })
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({})", self.0.len())
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Whether `signed_at` is within `window` of `now`, either way.
pub(super) fn is_fresh(signed_at: Timestamp, now: Timestamp, window: SignedDuration) -> bool {
    now.duration_since(signed_at).abs() <= window
}

/// Parses exactly 64 hexadecimal digits, of either case.
pub(super) fn from_hex(text: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let (pairs, rest) = text.as_chunks::<2>();
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let high = char::from(*high).to_digit(16)?;
        let low = char::from(*low).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}

/// Formats `bytes` as lower-case hexadecimal digits.
pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
