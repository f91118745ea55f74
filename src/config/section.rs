//! One table of the file, and a reading of the table that finds every mistake.
//!
//! Serde stops at the first mistake in a table. A section reads its table again and again, and
//! skips the values that were wrong before, until the rest can be read or the table itself is
//! refused. A skipped value is not reported as missing.

use toml::de::{DeString, DeTable, DeValue};

use super::{
    diagnostics,
    redaction::Redaction,
    report::{Problem, Span},
};
use crate::{
    secret,
    spanned::{Deserializer, Error, Kind, Path, Place},
};

/// A value with its place.
pub(super) type Value<'i> = toml::Spanned<DeValue<'i>>;

/// The findings so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// The problems.
    pub problems: Vec<Problem>,
    /// The secrets, which a report must not show.
    pub redaction: Redaction,
    /// The places where the syntax is broken.
    pub broken: Vec<Span>,
    /// The secrets that were read.
    pub secrets: Vec<secret::Found>,
    /// See [`Config::hash`](super::Config::hash).
    pub hash: i64,
}

impl Findings {
    /// Adds a problem, unless broken syntax is the cause of the problem.
    pub(super) fn add(&mut self, problem: Problem) {
        let place = problem.place.as_ref();
        let is_broken = place.is_some_and(|place| {
            let mut broken = self.broken.iter();
            broken.any(|broken| broken.start <= place.end && place.start < broken.end)
        });
        if !is_broken {
            self.problems.push(problem);
        }
    }

    /// Adds the problem that a key or section is missing, unless the syntax is broken: the parser
    /// may have lost that key or section.
    pub(super) fn add_missing(&mut self, problem: Problem) {
        if self.broken.is_empty() {
            self.add(problem);
        }
    }
}

/// One table of the file.
#[derive(Clone, Debug)]
pub(super) struct Section<'i> {
    /// The name of the table, as its header has it.
    pub name: String,
    /// The place of the header; `None` when the table is not in the file.
    pub place: Option<Span>,
    /// The entries of the table.
    pub table: DeTable<'i>,
    /// The paths that mistyped keys were meant to have. The keys at these paths are not missing.
    mistyped: Vec<Path>,
}

/// What the diagnostics of a table need to know besides the error.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hints<'a> {
    /// The keys of the table that another reader reads.
    pub keys: &'a [&'a str],
    /// An example of the table.
    pub example: &'a str,
}

impl<'a> Hints<'a> {
    /// The keys that `table` can have. `own` are the keys that the present reader reads.
    pub(super) fn keys_of(
        self,
        table: &Path,
        own: &'static [&'static str],
    ) -> impl Iterator<Item = &'a str> {
        let others = if table.is_root() { self.keys } else { &[] };
        own.iter().copied().chain(others.iter().copied())
    }
}

impl<'i> Section<'i> {
    /// An empty table, in place of a table that is not in the file.
    pub(super) fn absent(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            place: None,
            table: DeTable::new(),
            mistyped: Vec::new(),
        }
    }

    /// The table `value`. Reports a `value` that is no table.
    pub(super) fn new(name: &str, value: Value<'i>, findings: &mut Findings) -> Option<Self> {
        let place = value.span();
        match value.into_inner() {
            DeValue::Table(table) => Some(Self {
                place: Some(place),
                table,
                ..Self::absent(name)
            }),
            DeValue::Array(_) => {
                let problem = Problem::new(format!("[{name}] is a list; it must be a table"));
                let help = match name {
                    "endpoints" | "handlers" => {
                        format!("give each one a name: `[{name}.a-name]` in place of `[[{name}]]`")
                    }
                    _ => format!("it stands once, under `[{name}]`"),
                };
                findings.add(problem.at(place).help(help));
                None
            }
            _ => {
                let problem = Problem::new(format!("`{name}` must be a table"));
                findings.add(problem.at(place).help(format!("write it as `[{name}]`")));
                None
            }
        }
    }

    /// Takes `key` out.
    pub(super) fn take(&mut self, key: &str) -> Option<Value<'i>> {
        self.table.remove(key)
    }

    /// Takes the text at `key` out. Reports a text that is missing.
    pub(super) fn take_text(
        &mut self,
        key: &str,
        hints: Hints<'_>,
        findings: &mut Findings,
    ) -> Option<toml::Spanned<DeString<'i>>> {
        let Some(value) = self.take(key) else {
            match self.mistyped(key, hints.keys) {
                Some(typed) => self.report_mistyped(&typed, key, findings),
                None => findings.add_missing(self.missing(key, hints.example)),
            }
            return None;
        };
        let place = value.span();
        match value.into_inner() {
            DeValue::String(text) => Some(toml::Spanned::new(place, text)),
            _ => {
                let problem = Problem::new(format!("`{key}` must be a text in quotes"));
                findings.add(problem.at(place));
                None
            }
        }
    }

    /// The key of the table that is most likely a mistyped `key`.
    fn mistyped(&self, key: &str, known: &[&str]) -> Option<String> {
        let keys = self.table.keys().map(|key| key.get_ref().as_ref());
        let unknown = keys.filter(|typed| !known.contains(typed));
        diagnostics::nearest(key, unknown).map(str::to_owned)
    }

    fn report_mistyped(&mut self, typed: &str, key: &str, findings: &mut Findings) {
        if let Some((typed, value)) = self.table.remove_entry(typed) {
            findings.redaction.add_unread(&value);
            let name = typed.get_ref();
            let problem = Problem::new(format!("unknown key `{name}` in [{}]", self.name));
            let help = format!("did you mean `{key}`?");
            findings.add(problem.at(typed.span()).help(help));
        }
    }

    fn missing(&self, key: &str, example: &str) -> Problem {
        let problem = Problem::new(format!("`{key}` is missing from [{}]", self.name));
        let problem = problem.help(format!("for example:\n{}", example.trim()));
        match &self.place {
            Some(place) => problem.at(place.clone()),
            None => problem,
        }
    }

    /// Moves the entries called `keys` to a table of their own.
    pub(super) fn split_off(&mut self, keys: &[&str]) -> Self {
        let mut other = Self {
            table: DeTable::new(),
            ..self.clone()
        };
        for key in keys {
            if let Some((key, value)) = self.table.remove_entry(*key) {
                other.table.insert(key, value);
            }
        }
        other
    }

    /// Does not report a key as missing that was mistyped in `other`, a part of the same table.
    pub(super) fn excuse(&mut self, other: &Self) {
        self.mistyped.extend_from_slice(&other.mistyped);
    }

    /// The place of the value at `path`, if the file has the value.
    pub(super) fn place_at(&self, path: &[&str]) -> Option<Span> {
        let (last, around) = path.split_last()?;
        let mut table = &self.table;
        for key in around {
            table = table.get(*key)?.get_ref().as_table()?;
        }
        table.get(*last).map(toml::Spanned::span)
    }

    /// The place of the value at `path`, or of the nearest table around that place.
    pub(super) fn place_of(&self, path: &[&str]) -> Option<Span> {
        let mut place = self.place.clone();
        let mut table = &self.table;
        for key in path {
            let Some(value) = table.get(*key) else { break };
            place = Some(value.span());
            match value.get_ref() {
                DeValue::Table(inner) => table = inner,
                _ => break,
            }
        }
        place
    }

    /// Redacts every value of the table: nothing has read the table.
    pub(super) fn redact(&self, findings: &mut Findings) {
        let values = self.table.values();
        values.for_each(|value| findings.redaction.add_unread(value));
    }

    /// Reads the table with `read`, and reports everything that is wrong with the table.
    pub(super) fn read<T>(
        &mut self,
        hints: Hints<'_>,
        findings: &mut Findings,
        read: impl Fn(Deserializer<'_>) -> Result<T, Error>,
    ) -> Option<T> {
        let span = self.place.clone().unwrap_or(0..0);
        let root = toml::Spanned::new(span.clone(), DeValue::Table(self.table.clone()));
        let mut wrong: Vec<Path> = Vec::new();
        loop {
            let error = match read(Deserializer::skipping(&root, &wrong)) {
                Ok(value) => return wrong.is_empty().then_some(value),
                Err(error) => error,
            };
            let place = error.place.unwrap_or_else(|| Place {
                path: Path::default(),
                span: span.clone(),
                is_key: false,
            });
            if !is_unread(&error.kind) && !self.explains(&wrong, &error.kind, &place) {
                self.report(&error.kind, &place, hints, findings);
                self.mistyped.extend(meant(&error.kind, &place, hints));
                if diagnostics::is_of_unread(&error.kind, &place) {
                    let unread = place.path.find(&root).into_iter();
                    unread.for_each(|value| findings.redaction.add_unread(value));
                }
            }
            // The root cannot be skipped, and a skipped value cannot be wrong again.
            if place.path.is_root() || wrong.contains(&place.path) {
                return None;
            }
            wrong.push(place.path);
        }
    }

    /// Whether an earlier mistake is the cause of `error`. The values at `wrong` were skipped.
    fn explains(&self, wrong: &[Path], error: &Kind, place: &Place) -> bool {
        match error {
            Kind::MissingField(field) => {
                let missing = place.path.key(field);
                wrong.contains(&missing) || self.mistyped.contains(&missing)
            }
            // A table or a list that lacks a skipped entry may be refused for that reason alone.
            _ => !place.is_key && wrong.iter().any(|wrong| wrong.parent() == place.path),
        }
    }

    fn report(&self, error: &Kind, place: &Place, hints: Hints<'_>, findings: &mut Findings) {
        let writer = diagnostics::Writer {
            section: &self.name,
            hints,
            redaction: &findings.redaction,
        };
        let problem = writer.problem(error, place);
        match error {
            Kind::MissingField(_) => findings.add_missing(problem),
            _ => findings.add(problem),
        }
    }
}

/// Whether the value has the right form, and a reference in it was not followed.
fn is_unread(error: &Kind) -> bool {
    matches!(error, Kind::Message { message, .. } if message == secret::NOT_READ)
}

/// The path that a mistyped key was most likely meant to have.
fn meant(error: &Kind, place: &Place, hints: Hints<'_>) -> Option<Path> {
    let Kind::UnknownField { field, expected } = error else {
        return None;
    };
    let table = place.path.parent();
    let meant = diagnostics::nearest(field, hints.keys_of(&table, expected))?;
    Some(table.key(meant))
}
