//! What engines keep in place of a key.

use crate::event::Key;

/// A hash of a key. Two keys that share a lane wait for each other, which is harmless.
pub(super) type Lane = i64;

/// The lane of `key`: FNV-1a, because it must be the same in every version.
pub(super) fn of(key: &Key) -> Lane {
    let hash = key
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    hash.cast_signed()
}
