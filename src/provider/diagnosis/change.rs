//! The changes that proxies and tools are known to make to a body, undone.

use std::iter;

use base64::{Engine, prelude::BASE64_STANDARD};

use super::json_text::{self, JsonText};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A body as it may have been sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) body: Vec<u8>,
    /// What made the received body of it.
    pub(super) changes: Vec<String>,
}

/// The largest body of which combinations of changes are tried, in bytes. A provider's events have a few
/// thousand.
const COMBINED: usize = 64 << 10;

/// The bodies that may have been sent where `received` arrived. Those with fewer changes come first.
pub(super) fn candidates(received: &[u8]) -> impl Iterator<Item = Candidate> {
    let unchanged = Candidate {
        body: received.to_vec(),
        changes: Vec::new(),
    };
    let once: Vec<_> = undone(&unchanged, byte_changes(received)).collect();
    let combined = match received.len() {
        0..=COMBINED => once.clone(),
        _ => Vec::new(),
    };
    let both = combined.clone().into_iter();
    let both = both.flat_map(|candidate| json_texts(&candidate));
    let twice = combined.into_iter().flat_map(|candidate| {
        let changes = byte_changes(&candidate.body);
        undone(&candidate, changes).collect::<Vec<_>>()
    });
    let once = once.into_iter().chain(json_texts(&unchanged));
    once.chain(both).chain(twice)
}

/// `candidate` with one more change undone.
fn undone(
    candidate: &Candidate,
    changes: Vec<(&'static str, Vec<u8>)>,
) -> impl Iterator<Item = Candidate> {
    changes.into_iter().map(|(what, body)| Candidate {
        body,
        changes: iter::once(what.to_owned())
            .chain(candidate.changes.iter().cloned())
            .collect(),
    })
}

/// The JSON of `candidate` in other forms.
fn json_texts(candidate: &Candidate) -> Vec<Candidate> {
    let text = str::from_utf8(&candidate.body).unwrap_or_default();
    let forms = JsonText::parse(text).map_or_else(Vec::new, |json| json.forms());
    let rewritten = forms.into_iter().map(|form| Candidate {
        changes: iter::once(json_text::difference(&form, text))
            .chain(candidate.changes.iter().cloned())
            .collect(),
        body: form.into_bytes(),
    });
    rewritten.collect()
}

/// The bodies that became `received` by one change of bytes, each with that change.
fn byte_changes(received: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut changes = Vec::new();
    for end in [&b"\n"[..], b"\r\n"] {
        if let Some(rest) = received.strip_suffix(end) {
            changes.push(("a line end was added at its end", rest.to_vec()));
        }
        let whole = [received, end].concat();
        changes.push(("the line end at its end was taken away", whole));
    }
    let lf = replaced(received, b"\r\n", b"\n");
    changes.push(("line ends were changed from LF to CRLF", lf.clone()));
    let crlf = replaced(&lf, b"\n", b"\r\n");
    changes.push(("line ends were changed from CRLF to LF", crlf));
    match received.strip_prefix(BYTE_ORDER_MARK) {
        Some(rest) => changes.push(("a byte order mark was added", rest.to_vec())),
        None => {
            let marked = [BYTE_ORDER_MARK, received].concat();
            changes.push(("a byte order mark was taken away", marked));
        }
    }
    let trimmed = received.trim_ascii().to_vec();
    changes.push(("white space was added around it", trimmed));
    changes.extend(transcodings(received));
    if let Ok(decoded) = BASE64_STANDARD.decode(received.trim_ascii()) {
        changes.push(("it was encoded as base64", decoded));
    }
    changes.retain(|(_, body)| body != received);
    changes
}

/// The bodies that became `received` by a change of its character encoding.
fn transcodings(received: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut changes = Vec::new();
    match str::from_utf8(received) {
        Ok(text) => {
            let bytes = text.chars().map(|c| u8::try_from(u32::from(c)));
            if let Ok(bytes) = bytes.collect::<Result<Vec<_>, _>>() {
                let what = "its UTF-8 was taken for Latin-1 and encoded as UTF-8 again";
                changes.push((what, bytes));
            }
        }
        Err(_) => {
            let text: String = received.iter().copied().map(char::from).collect();
            changes.push(("its UTF-8 was changed to Latin-1", text.into_bytes()));
        }
    }
    let (pairs, rest) = received.as_chunks::<2>();
    let decoders: [fn([u8; 2]) -> u16; 2] = [u16::from_le_bytes, u16::from_be_bytes];
    for decode in decoders.into_iter().filter(|_| rest.is_empty()) {
        let units: Vec<_> = pairs.iter().copied().map(decode).collect();
        if let Ok(text) = String::from_utf16(&units) {
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            changes.push(("its UTF-8 was changed to UTF-16", text.into()));
        }
    }
    changes
}

/// `bytes` with each `from` replaced by `to`.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, others)) = rest.split_first() {
        match rest.strip_prefix(from) {
            Some(after) => {
                result.extend_from_slice(to);
                rest = after;
            }
            None => {
                result.push(*first);
                rest = others;
            }
        }
    }
    result
}
