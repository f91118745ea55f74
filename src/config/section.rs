//! One table of the file with the places of everything in it, and how it is read whole in spite of
//! mistakes.
//!
//! Serde stops at the first mistake in a table. So a table is read again and again, each time
//! without the entry that was found to be wrong, until what is left can be read or lacks something.
//! What is missed only because it was taken out is not reported.

use toml::de::{DeString, DeTable, DeValue, Error, ValueDeserializer};

use super::{
    diagnostics::{self, Complaint},
    redaction::Redaction,
    report::{Problem, Span},
    way::{self, Fault, Removed, Step},
};

/// A value with its place.
pub(super) type Value<'i> = toml::Spanned<DeValue<'i>>;

/// What has been found so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What a report must not show.
    pub redaction: Redaction,
    /// Where the syntax is broken.
    pub broken: Vec<Span>,
}

impl Findings {
    /// Adds a problem, unless broken syntax is its cause.
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

    /// Adds the problem that something is not there. Where the syntax is broken, it may be.
    pub(super) fn add_missing(&mut self, problem: Problem) {
        if self.broken.is_empty() {
            self.add(problem);
        }
    }
}

/// One table.
#[derive(Clone, Debug)]
pub(super) struct Section<'i> {
    /// Its name as it stands in brackets.
    pub name: String,
    /// The place of its header; `None` when it is not in the file.
    pub place: Option<Span>,
    /// What stands in it.
    pub table: DeTable<'i>,
    /// Keys that have been found mistyped, by what they were meant to be: not missing.
    mistyped: Vec<String>,
}

/// What to tell somebody whose table cannot be read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hints<'a> {
    /// Keys that may stand in the table but are read elsewhere.
    pub keys: &'a [&'a str],
    /// The table as it could look.
    pub example: &'a str,
}

impl<'i> Section<'i> {
    /// A table that is not in the file, as if it were there and empty.
    pub(super) fn absent(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            place: None,
            table: DeTable::new(),
            mistyped: Vec::new(),
        }
    }

    /// The table `value`, unless it is something else.
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

    /// Takes the text at `key` out, which must be there.
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

    /// A key that seems to be a mistyped `key`.
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

    /// Does not miss what was mistyped in `other`, a part of the same table.
    pub(super) fn excuse(&mut self, other: &Self) {
        self.mistyped.extend_from_slice(&other.mistyped);
    }

    /// The place of the value at `path`, if it is there.
    pub(super) fn place_at(&self, path: &[&str]) -> Option<Span> {
        let (last, around) = path.split_last()?;
        let mut table = &self.table;
        for key in around {
            table = table.get(*key)?.get_ref().as_table()?;
        }
        table.get(*last).map(toml::Spanned::span)
    }

    /// The place of the value at `path`, or of the nearest table around it.
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

    /// Reads it, reporting all that is wrong with it.
    pub(super) fn read<T>(
        &mut self,
        hints: Hints<'_>,
        findings: &mut Findings,
        read: impl Fn(ValueDeserializer<'i>) -> Result<T, Error>,
    ) -> Option<T> {
        let root = self.place.clone().unwrap_or(0..0);
        let mut rest = toml::Spanned::new(root, DeValue::Table(self.table.clone()));
        let mut removed = Vec::new();
        loop {
            let error = match read(ValueDeserializer::from(rest.clone())) {
                Ok(value) => return removed.is_empty().then_some(value),
                Err(error) => error,
            };
            let fault = Fault::find(&rest, &error, &read);
            let complaint = Complaint::new(&findings.redaction.redact_message(error.message()));
            let is_consequence = match &complaint {
                Complaint::MissingKey(key) => {
                    removed.contains(&Removed::key(&fault.place, key))
                        || (fault.steps.is_empty() && self.mistyped.contains(key))
                }
                _ => removed.iter().any(|removed| removed.from == fault.place),
            };
            if !is_consequence {
                removed.extend(self.mistyping(&complaint, &fault, &rest, hints));
                if fault.is_key || complaint.is_of_unread() {
                    let unread = way::at(&rest, &fault.steps).into_iter();
                    unread.for_each(|value| findings.redaction.add_unread(value));
                }
                self.report(complaint, fault.clone(), hints, findings);
            }
            // What is wrong with the whole table cannot be taken out of it.
            removed.push(way::remove(&mut rest, &fault.steps)?);
        }
    }

    /// The key that a mistyped one was meant to be, which is then not missing. Where it belongs to
    /// another reader of this table, that one is told through `mistyped`.
    fn mistyping(
        &mut self,
        complaint: &Complaint,
        fault: &Fault,
        rest: &Value<'_>,
        hints: Hints<'_>,
    ) -> Option<Removed> {
        let Complaint::UnknownKey { key, known } = complaint else {
            return None;
        };
        let is_root = fault.around().is_empty();
        let meant = diagnostics::nearest(key, diagnostics::candidates(known, is_root, hints))?;
        if is_root {
            self.mistyped.push(meant.to_owned());
        }
        let around = way::at(rest, fault.around())?;
        Some(Removed::key(&around.span(), meant))
    }

    fn report(
        &self,
        complaint: Complaint,
        fault: Fault,
        hints: Hints<'_>,
        findings: &mut Findings,
    ) {
        let is_missing = matches!(complaint, Complaint::MissingKey(_));
        let table = self.name_of(if is_missing {
            &fault.steps
        } else {
            fault.around()
        });
        let is_root = table == self.name;
        // An example and other readers' keys are those of the table itself, not of one inside it.
        let hints = if is_root { hints } else { Hints::default() };
        let is_word = matches!(complaint, Complaint::UnknownWord { .. });
        let key = match is_word && fault.is_key {
            true => diagnostics::path(fault.around()),
            false => diagnostics::path(&fault.steps),
        };
        let problem = complaint.into_problem(&table, &key, hints).at(fault.place);
        if is_missing {
            findings.add_missing(problem);
        } else {
            findings.add(problem);
        }
    }

    /// The name of the table that `steps` lead to.
    fn name_of(&self, steps: &[Step]) -> String {
        match diagnostics::path(steps) {
            path if path.is_empty() => self.name.clone(),
            path => format!("{}.{path}", self.name),
        }
    }
}
