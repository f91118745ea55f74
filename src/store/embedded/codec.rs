//! The encoding of values in the journal. Integers are little-endian. A time is 8 bytes of seconds
//! since 1970, signed, and 4 bytes of nanoseconds with the same sign. A text is 4 bytes of length,
//! and UTF-8. An optional value is one byte, 0 or 1, followed by the value after a 1. A list is 4
//! bytes of count, and its elements.

use jiff::Timestamp;

pub(super) fn put_time(out: &mut Vec<u8>, time: Timestamp) {
    out.extend_from_slice(&time.as_second().to_le_bytes());
    out.extend_from_slice(&time.subsec_nanosecond().to_le_bytes());
}

/// The size limit of records, which is checked after encoding, keeps counts below 2^32.
pub(super) fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&(count as u32).to_le_bytes());
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.extend_from_slice(bytes);
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

pub(super) fn put_integer(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_option<T>(
    out: &mut Vec<u8>,
    value: Option<T>,
    put: impl FnOnce(&mut Vec<u8>, T),
) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

pub(super) fn put_list<T>(out: &mut Vec<u8>, list: &[T], mut put: impl FnMut(&mut Vec<u8>, &T)) {
    put_count(out, list.len());
    for element in list {
        put(out, element);
    }
}

pub(super) fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    bytes.split_off(..count)
}

pub(super) fn take_array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    take(bytes, N)?.try_into().ok()
}

pub(super) fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    take_array(bytes).map(u32::from_le_bytes)
}

pub(super) fn take_integer(bytes: &mut &[u8]) -> Option<i64> {
    take_array(bytes).map(i64::from_le_bytes)
}

pub(super) fn take_bytes<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_u32(bytes)? as usize;
    take(bytes, length)
}

pub(super) fn take_text<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(take_bytes(bytes)?).ok()
}

pub(super) fn take_time(bytes: &mut &[u8]) -> Option<Timestamp> {
    let seconds = take_integer(bytes)?;
    let nanoseconds = i32::from_le_bytes(take_array(bytes)?);
    Timestamp::new(seconds, nanoseconds).ok()
}

pub(super) fn take_option<'a, T>(
    bytes: &mut &'a [u8],
    take_value: impl FnOnce(&mut &'a [u8]) -> Option<T>,
) -> Option<Option<T>> {
    match take_array(bytes)? {
        [0] => Some(None),
        [1] => take_value(bytes).map(Some),
        _ => None,
    }
}

pub(super) fn take_list<'a, T>(
    bytes: &mut &'a [u8],
    mut take_value: impl FnMut(&mut &'a [u8]) -> Option<T>,
) -> Option<Vec<T>> {
    (0..take_u32(bytes)?).map(|_| take_value(bytes)).collect()
}
