//! A report of everything that is wrong with one file: each problem with its place and its help.

use std::{fmt, ops::Range};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::Serialize;

use super::redaction::Redaction;

/// A run of bytes in the file.
pub(super) type Span = Range<usize>;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The service cannot start from the file.
    Error,
    /// The service can start, and may do what nobody wants.
    Warning,
}

/// One problem of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad the problem is.
    pub severity: Severity,
    /// The problem in words, readable without the help.
    pub message: String,
    /// The place in bytes from the start of the file; `None` when the problem is the whole file.
    pub place: Option<Range<usize>>,
    /// A second place that the problem is about, with a label.
    pub other: Option<(Range<usize>, String)>,
    /// How to solve the problem.
    pub help: Option<String>,
}

impl Problem {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            place: None,
            other: None,
            help: None,
        }
    }

    /// Whether the service cannot start because of the problem.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    pub(super) const fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    pub(super) fn at(mut self, place: Span) -> Self {
        self.place = Some(place);
        self
    }

    pub(super) fn and(mut self, place: Span, label: impl Into<String>) -> Self {
        self.other = Some((place, label.into()));
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Problem {
    /// The problem in one line, for a reader without the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

/// A place in the file, in lines and characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Location {
    /// The line, from 1.
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
}

/// Every problem of a file, in the order of the file.
///
/// **Invariant:** no text of a report shows a secret, and the source is such a text.
#[derive(Default)]
pub struct Report {
    path: String,
    source: String,
    problems: Vec<Problem>,
}

impl Report {
    /// Sorts `problems` by place and redacts `source`.
    pub(super) fn new(
        path: String,
        source: &str,
        redaction: &Redaction,
        mut problems: Vec<Problem>,
    ) -> Self {
        // A problem with the whole file is read best after those that may be its cause.
        problems.sort_by_key(|problem| {
            let place = problem.place.as_ref();
            place.map_or((usize::MAX, 0), |place| (place.start, place.end))
        });
        problems.dedup();
        Self {
            path,
            source: redaction.redact(source),
            problems,
        }
    }

    /// The problems, in the order of the file.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The path of the file.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether the service can start from the file.
    pub fn is_sound(&self) -> bool {
        !self.problems.iter().any(Problem::is_error)
    }

    /// The location of the byte `at` of the file.
    pub fn location(&self, at: usize) -> Location {
        let at = self.source.floor_char_boundary(at);
        let before = self.source.get(..at).unwrap_or_default();
        let line = before.rsplit('\n').next().unwrap_or_default();
        Location {
            line: before.matches('\n').count() + 1,
            column: line.chars().count() + 1,
        }
    }

    /// The report as a text for people. `color` belongs on terminals only.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let mut text = String::new();
        for problem in &self.problems {
            text.push_str(&self.render_one(problem, &renderer));
            text.push_str("\n\n");
        }
        let counts = [(Severity::Error, "problem"), (Severity::Warning, "warning")];
        let counts = counts.iter().filter_map(|(severity, name)| {
            let all = self.problems.iter();
            match all.filter(|problem| problem.severity == *severity).count() {
                0 => None,
                1 => Some(format!("1 {name}")),
                many => Some(format!("{many} {name}s")),
            }
        });
        let counts: Vec<_> = counts.collect();
        text.push_str(&format!("{}: {}\n", self.path, counts.join(" and ")));
        text
    }

    fn render_one(&self, problem: &Problem, renderer: &Renderer) -> String {
        let level = match problem.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(problem.message.as_str());
        let mut group = match &problem.place {
            Some(place) => {
                let mut snippet = Snippet::source(self.source.as_str())
                    .path(self.path.as_str())
                    .annotation(AnnotationKind::Primary.span(self.within(place)));
                if let Some((place, label)) = &problem.other {
                    let other = AnnotationKind::Context.span(self.within(place));
                    snippet = snippet.annotation(other.label(label.as_str()));
                }
                title.element(snippet)
            }
            None => title.element(annotate_snippets::Origin::path(self.path.as_str())),
        };
        if let Some(help) = &problem.help {
            // Unlike a title, a message is printed as it is, escape sequences and all.
            let help: Vec<_> = help
                .lines()
                .map(annotate_snippets::normalize_untrusted_str)
                .collect();
            group = group.element(Level::HELP.message(help.join("\n")));
        }
        renderer.render(&[group])
    }

    /// The part of `place` that lies in the source.
    fn within(&self, place: &Span) -> Span {
        let start = self.source.floor_char_boundary(place.start);
        start..self.source.ceil_char_boundary(place.end).max(start)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Report {}
