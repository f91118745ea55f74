//! Diagnostics: an error becomes a problem. Problems speak to somebody who writes TOML and no Rust.

use super::{
    redaction::Redaction,
    report::{Problem, Span},
    section::Hints,
};
use crate::{
    client_tls::ClientTls,
    spanned::{Found, Kind, Path, Place, TEXT_OR_TABLE},
};

const TABLE: &str = "a table";

/// The name that serde gives to the type of an IP address with a port.
const SOCKET_ADDRESS: &str = "socket address";

/// Whether the value at `place` may be a secret, since nothing has read the value.
pub(super) fn is_of_unread(error: &Kind, place: &Place) -> bool {
    place.is_key
        || match error {
            Kind::InvalidType { found, expected } => {
                matches!(found, Found::Array | Found::Table) || wants_table(expected)
            }
            Kind::UnknownVariant { variant, expected } => !is_word(variant, expected),
            _ => false,
        }
}

/// Whether the type that serde calls `expected` is a table. A text in place of a table may be the
/// secret that the table should refer to.
fn wants_table(expected: &str) -> bool {
    matches!(expected_name(expected), TABLE | TEXT_OR_TABLE)
}

/// Whether `text` looks like a choice. A text that does not may be the secret of a table.
fn is_word(text: &str, choices: &[&str]) -> bool {
    text.chars().all(|c| c.is_ascii_lowercase() || c == '-')
        || nearest(&text.to_lowercase(), choices.iter().copied()).is_some()
}

/// Writes an error as a problem of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Writer<'a> {
    /// The name of the table that was read.
    pub section: &'a str,
    /// The other keys of the table, and an example.
    pub hints: Hints<'a>,
    /// The texts that the problem must not quote.
    pub redaction: &'a Redaction,
}

impl Writer<'_> {
    /// The problem at the place of the error.
    pub(super) fn problem(self, error: &Kind, place: &Place) -> Problem {
        let around = place.path.parent();
        let problem = match error {
            Kind::UnknownField { field, expected } => self.unknown_field(&around, field, expected),
            Kind::MissingField(field) => self.missing_field(&place.path, field),
            Kind::DuplicateField(field) => Problem::new(format!("`{field}` is there twice")),
            Kind::UnknownVariant { variant, expected } => {
                let key = if place.is_key { &around } else { &place.path };
                self.unknown_variant(key, variant, expected)
            }
            Kind::InvalidType { found, expected } | Kind::InvalidValue { found, expected } => {
                self.invalid(&place.path, found, expected)
            }
            Kind::InvalidLength { length, expected } => {
                let (key, expected) = (&place.path, expected_name(expected));
                Problem::new(format!("`{key}` must be {expected}, and has {length}"))
            }
            Kind::Message { message, expected } => match expected.as_deref() {
                Some(SOCKET_ADDRESS) => no_socket_address(&place.path),
                _ => problem(&self.redaction.redact_message(message)),
            },
        };
        problem.at(place.span.clone())
    }

    /// The name of the table at `path`, as its header would have it.
    fn table(self, path: &Path) -> String {
        match path.to_string() {
            path if path.is_empty() => self.section.to_owned(),
            path => format!("{}.{path}", self.section),
        }
    }

    fn quote(self, text: &str) -> String {
        self.redaction.redact_message(&format!("`{text}`"))
    }

    fn unknown_field(
        self,
        table: &Path,
        field: &str,
        expected: &'static [&'static str],
    ) -> Problem {
        let known: Vec<_> = self.hints.keys_of(table, expected).collect();
        let help = match nearest(field, known.iter().copied()) {
            _ if ClientTls::KEYS.contains(&field) && known.contains(&"tls") => {
                format!("it is a key of `tls` now: write `tls = {{ {field} = ... }}`")
            }
            Some(meant) => format!("did you mean `{meant}`?"),
            None if known.is_empty() => "there are no keys here; take it out".to_owned(),
            None => format!("the keys here are {}", list(known)),
        };
        let (field, table) = (self.quote(field), self.table(table));
        Problem::new(format!("unknown key {field} in [{table}]")).help(help)
    }

    fn missing_field(self, table: &Path, field: &str) -> Problem {
        let name = self.table(table);
        let problem = Problem::new(format!("`{field}` is missing from [{name}]"));
        match self.hints.example.trim() {
            example if table.is_root() && !example.is_empty() => {
                problem.help(format!("for example:\n{example}"))
            }
            _ => problem.help(format!("add a line `{field} = ...` there")),
        }
    }

    fn unknown_variant(
        self,
        key: &Path,
        variant: &str,
        expected: &'static [&'static str],
    ) -> Problem {
        let found = match is_word(variant, expected) {
            true => self.quote(variant),
            false => "what stands there".to_owned(),
        };
        let choices = format!("the choices are {}", list(expected.iter().copied()));
        let help = match nearest(&variant.to_lowercase(), expected.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`? {choices}"),
            None => choices,
        };
        Problem::new(format!("`{key}` cannot be {found}")).help(help)
    }

    fn invalid(self, key: &Path, found: &Found, expected: &str) -> Problem {
        let found = match found {
            Found::Text(_) if wants_table(expected) => "a text".to_owned(),
            Found::Number(_) if wants_table(expected) => "a number".to_owned(),
            Found::Text(text) => format!("the text {text:?}"),
            Found::Number(number) => format!("the number `{number}`"),
            Found::Boolean(truth) => format!("`{truth}`"),
            Found::Datetime => "a date or a time".to_owned(),
            Found::Array => "a list".to_owned(),
            Found::Table => TABLE.to_owned(),
            Found::Other(other) => other.clone(),
        };
        let (expected, found) = (
            expected_name(expected),
            self.redaction.redact_message(&found),
        );
        Problem::new(format!("`{key}` must be {expected}, not {found}"))
    }
}

fn no_socket_address(key: &Path) -> Problem {
    Problem::new(format!("`{key}` is not an IP address with a port")).help(
        "write \"127.0.0.1:8080\" for this machine alone, \"0.0.0.0:8080\" for every network; host \
         names are not looked up",
    )
}

/// The problem that `message` is. The text behind its first semicolon is the help.
pub(super) fn problem(message: &str) -> Problem {
    match message.split_once("; ") {
        Some((what, help)) => Problem::new(what).help(help),
        None => Problem::new(message),
    }
}

/// The problem that `name` is none of the `known` names.
pub(super) fn unknown<'a>(
    what: &str,
    name: &str,
    known: impl Iterator<Item = &'a str> + Clone,
    place: Span,
) -> Problem {
    let choices = format!("the choices are {}", list(known.clone()));
    let help = match nearest(name, known) {
        Some(near) => format!("did you mean `{near}`? {choices}"),
        None => choices,
    };
    Problem::new(format!("unknown {what} {name:?}"))
        .at(place)
        .help(help)
}

/// The problem that this hookswitch was built without `what`, such as a kind of handler.
pub(super) fn left_out(what: &str, kind: &str, place: Span) -> Problem {
    Problem::new(format!(
        "this hookswitch was built without the {what} {kind:?}"
    ))
    .at(place)
    .help(format!(
        "build one with `cargo build --release --features {kind}`, or choose another kind; \
         `--features full` has most of them, and so has the image"
    ))
}

/// The one of `all` that `word` was most likely meant to be.
pub(super) fn nearest<'a>(word: &str, all: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |other: &str| match other.contains(word) || word.contains(other) {
        // A word with something added or left out is near, however much that is.
        true if word.len() > 3 && other.len() > 3 => 1,
        _ => strsim::damerau_levenshtein(word, other),
    };
    all.into_iter()
        .map(|other| (distance(other), other))
        .filter(|(distance, other)| *distance <= word.len().max(other.len()).div_ceil(4))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, other)| other)
}

/// `a`, `b` and `c`.
pub(super) fn list<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.into_iter().map(|word| format!("`{word}`")).collect();
    match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

/// The words for a type that serde calls `expected`.
fn expected_name(expected: &str) -> &str {
    match expected {
        "a string" => "a text in quotes",
        "path string" => "a path in quotes",
        SOCKET_ADDRESS => "an IP address with a port in quotes, such as \"127.0.0.1:8080\"",
        "a boolean" => "`true` or `false`",
        "a sequence" => "a list in square brackets",
        "a map" => TABLE,
        "u8" | "u16" | "u32" | "u64" | "usize" => "a positive whole number",
        other if other.starts_with("a nonzero ") => "a positive whole number",
        other if other.starts_with("struct ") => TABLE,
        other => other,
    }
}
