//! Redaction: a report shows the file, and never a secret in it.
//!
//! A secret may stand in the file where secrets are allowed, or by mistake. Three rules find the
//! secrets of a file, since each rule alone has a gap. A value that was read as a secret is one. A
//! value whose key has the name of a secret is one. A value that nothing has read may be one: the
//! key above the value may be mistyped.

use std::iter;

use toml::de::{DeTable, DeValue};

use super::{report::Span, section::Value};
use crate::secret::Secret;

/// Parts of the names of keys that hold secrets.
const WORDS: &[&str] = &[
    "secret",
    "token",
    "password",
    "passwd",
    "credential",
    "authorization",
    "cookie",
    "api_key",
    "api-key",
    "apikey",
    "bearer",
];

/// Whether a key called `name`, or a line that holds such a key, may hold a secret. A mistyped key
/// counts too.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let mut parts = name.split(|c: char| !c.is_ascii_alphanumeric());
    WORDS.iter().any(|word| name.contains(word))
        || parts.any(|part| {
            let near = |word: &&str| strsim::damerau_levenshtein(word, part) <= 1;
            WORDS.iter().any(near)
        })
}

/// The parts of a file that a report shows as asterisks.
#[derive(Debug, Default)]
pub(super) struct Redaction {
    spans: Vec<Span>,
    texts: Vec<String>,
    /// The spans of URLs. A URL may have a password or a token inside.
    urls: Vec<Span>,
}

impl Redaction {
    /// Redacts every value in `table` whose key has the name of a secret.
    pub(super) fn add_named(&mut self, table: &DeTable<'_>) {
        for (key, value) in table.iter() {
            if is_secret(key.get_ref()) {
                self.add_unread(value);
            } else {
                self.add_named_within(value);
            }
        }
    }

    fn add_named_within(&mut self, value: &Value<'_>) {
        match value.get_ref() {
            DeValue::Table(table) => self.add_named(table),
            DeValue::Array(items) => items.iter().for_each(|item| self.add_named_within(item)),
            DeValue::String(text) if text.contains("://") => self.urls.push(value.span()),
            _ => {}
        }
    }

    /// Redacts every text and number in `value`, except the name of a variable or of a file: that
    /// name refers to a secret and is none.
    pub(super) fn add_unread(&mut self, value: &Value<'_>) {
        match value.get_ref() {
            DeValue::Table(table) => {
                for (key, value) in table.iter() {
                    let refers = matches!(key.get_ref().as_ref(), "env" | "file");
                    if !(refers && value.get_ref().is_str()) {
                        self.add_unread(value);
                    }
                }
            }
            DeValue::Array(items) => items.iter().for_each(|item| self.add_unread(item)),
            DeValue::Boolean(_) => {}
            DeValue::String(text) => self.add(value.span(), text),
            DeValue::Integer(number) => self.add(value.span(), number.as_str()),
            DeValue::Float(number) => self.add(value.span(), number.as_str()),
            DeValue::Datetime(time) => self.add(value.span(), &time.to_string()),
        }
    }

    /// Redacts the texts in `table` that were read as secrets.
    pub(super) fn add_read(&mut self, table: &DeTable<'_>, secrets: &[Secret]) {
        table
            .values()
            .for_each(|value| self.add_read_within(value, secrets));
    }

    fn add_read_within(&mut self, value: &Value<'_>, secrets: &[Secret]) {
        match value.get_ref() {
            DeValue::Table(table) => self.add_read(table, secrets),
            DeValue::Array(items) => {
                items
                    .iter()
                    .for_each(|item| self.add_read_within(item, secrets));
            }
            DeValue::String(text) if secrets.iter().any(|secret| secret.expose() == text) => {
                self.add(value.span(), text);
            }
            _ => {}
        }
    }

    /// Redacts what may be a secret in the line around a syntax error. The parser names no part of
    /// such a line.
    pub(super) fn add_broken(&mut self, source: &str, at: usize) {
        let at = source.floor_char_boundary(at);
        let (before, after) = source.split_at(at);
        let start = before.rfind('\n').map_or(0, |end| end + 1);
        let end = at + after.find('\n').unwrap_or(after.len());
        let line = source.get(start..end).unwrap_or_default();
        if !is_secret(line) {
            return;
        }
        let is_plain = |c: char| c.is_whitespace() || "[]{},=\"'".contains(c);
        // The first word is the key, which helps to find the place.
        let key = line.trim_start().find(is_plain).unwrap_or(line.len());
        let mut from = start + (line.len() - line.trim_start().len()) + key;
        while let Some(rest) = source.get(from..end).filter(|rest| !rest.is_empty()) {
            let length = rest.find(is_plain).unwrap_or(rest.len());
            let word = rest.get(..length).unwrap_or_default();
            if !matches!(word, "" | "env" | "file") {
                self.add(from..from + length, word);
            }
            let gap = rest.get(length..).and_then(|gap| gap.chars().next());
            from += length + gap.map_or(0, char::len_utf8);
        }
    }

    fn add(&mut self, span: Span, text: &str) {
        self.spans.push(span);
        self.texts.push(text.to_owned());
    }

    /// Whether the value at `span` is redacted as a whole.
    pub(super) fn hides(&self, span: &Span) -> bool {
        self.spans.contains(span)
    }

    /// The `text` at `span` without the user, the password and the query of a URL.
    pub(super) fn shown(&self, span: &Span, text: &str) -> String {
        let mut shown = text.to_owned();
        if self.urls.contains(span) {
            // From the end, so that the spans before stay valid.
            for hidden in credentials(text, &(0..text.len())).into_iter().rev() {
                shown.replace_range(hidden, "***");
            }
        }
        shown
    }

    /// `source` with asterisks in place of each redacted byte, so that every span stays valid. The
    /// remark behind a redacted value is redacted too: a remark may repeat the value.
    pub(super) fn redact(&self, source: &str) -> String {
        let mut redacted = source.to_owned();
        for span in &self.spans {
            let behind = source.get(span.end..).and_then(|rest| rest.lines().next());
            let remark = behind.and_then(|rest| {
                let start = span.end + rest.find('#')? + 1;
                Some(start..span.end + rest.len())
            });
            for span in iter::once(span.clone()).chain(remark) {
                redact_one(&mut redacted, span);
            }
        }
        for span in self.urls.iter().flat_map(|url| credentials(source, url)) {
            redact_one(&mut redacted, span);
        }
        redacted
    }

    /// `message` with asterisks in place of the redacted texts that `message` quotes.
    pub(super) fn redact_message(&self, message: &str) -> String {
        let mut message = message.to_owned();
        for text in self.texts.iter().filter(|text| !text.is_empty()) {
            message = message.replace(&format!("{text:?}"), "\"***\"");
            message = message.replace(&format!("`{text}`"), "`***`");
        }
        message
    }
}

/// The spans of the user, with the password, and of the query in the URL at `place`.
fn credentials(source: &str, place: &Span) -> Vec<Span> {
    let url = source.get(place.clone()).unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else {
        return Vec::new();
    };
    let start = place.start + scheme.len() + "://".len();
    let host_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let host = rest.get(..host_end).unwrap_or_default();
    let user = host.rfind('@').map(|end| start..start + end);
    let query = rest.find('?').map(|query| start + query + 1..place.end);
    user.into_iter().chain(query).collect()
}

fn redact_one(redacted: &mut String, place: Span) {
    if let Some(stars) = redacted.get(place.clone()).map(stars) {
        redacted.replace_range(place, &stars);
    }
}

/// Asterisks in place of `text`. Line ends and quotes stay.
fn stars(text: &str) -> String {
    let star = |c: char| match c {
        '\n' | '\r' | '"' | '\'' => c.to_string(),
        c => "*".repeat(c.len_utf8()),
    };
    text.chars().map(star).collect()
}
