//! Everything that there is to say of one file, each with its place, a caret and what to do.

use std::{fmt, ops::Range};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use super::redaction::Redaction;

/// A run of bytes in the file.
pub(super) type Span = Range<usize>;

/// What a problem comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The file is no configuration.
    Error,
    /// It is one, and may do what nobody wants.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What it comes to.
    pub severity: Severity,
    /// What is wrong, readable alone.
    pub message: String,
    /// Where, in bytes from the start of the file; `None` when it is wrong as a whole.
    pub place: Option<Range<usize>>,
    /// A second place that has to do with it, and how.
    pub other: Option<(Range<usize>, String)>,
    /// What to do.
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
    /// In one line, for those who do not have the file before them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

/// Why a file is no configuration, or what of it is worth a second look before it is used: all of it at
/// once, in the order of the file.
///
/// **Invariant:** no text in it, the file's own included, shows a secret.
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

    /// What is wrong, in the order of the file.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
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
