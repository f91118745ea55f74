//! The problems of a file that is no TOML.

use toml::de::{DeTable, DeValue, Error};

use super::{
    report::{Problem, Span},
    section::{Findings, Value},
};

/// Reports the parser's errors. Of several errors in one value or line, the first error is the
/// cause, and the others are left out.
pub(super) fn report(
    text: &str,
    table: &DeTable<'_>,
    mut errors: Vec<Error>,
    findings: &mut Findings,
) {
    errors.sort_by_key(|error| {
        let start = error.span().map(|span| span.start);
        // Of two at one place, a bad value is the cause and an unclosed list the consequence.
        (start, !error.message().starts_with("invalid "))
    });
    let mut broken: Vec<Span> = Vec::new();
    for error in errors {
        let place = error.span().unwrap_or_default();
        findings.redaction.add_broken(text, place.start);
        if broken.last().is_some_and(|broken| place.start < broken.end) {
            continue;
        }
        let start = line_start(text, place.start);
        let rest = text.get(place.start..).unwrap_or_default();
        // What follows a section's second header belongs to nobody.
        let is_header = text.get(start..).is_some_and(|line| line.starts_with('['));
        let end = if is_header { "\n[" } else { "\n" };
        let line_end = place.start + rest.find(end).map_or(rest.len(), |end| end + 1);
        let value_end = values_at(table, place.start).max().unwrap_or_default();
        broken.push(start..line_end.max(value_end));
        let problem = syntax_problem(error.message(), text, place);
        findings.problems.push(problem);
    }
    findings.broken = broken;
}

/// The ends of the values that `at` lies in.
fn values_at<'a>(table: &'a DeTable<'_>, at: usize) -> Box<dyn Iterator<Item = usize> + 'a> {
    Box::new(table.values().flat_map(move |value: &Value<'_>| {
        let span = value.span();
        let own = (span.start <= at && at < span.end).then_some(span.end);
        let inner = match value.get_ref() {
            DeValue::Table(table) => values_at(table, at),
            _ => Box::new(std::iter::empty()),
        };
        own.into_iter().chain(inner)
    }))
}

fn syntax_problem(message: &str, text: &str, place: Span) -> Problem {
    if message == "duplicate key" {
        return duplicate(text, place);
    }
    let starts = |starts: &[&str]| starts.iter().any(|start| message.starts_with(start));
    let (what, help) = if starts(&["string values must be", "invalid float", "invalid integer"]) {
        let help = "texts, such as addresses and paths, stand in quotes: `key = \"text\"`";
        ("neither a text in quotes nor a number", Some(help))
    } else if message.contains("string, expected `") {
        let help = "it ends with the same quote that it begins with";
        ("a text in quotes has no end", Some(help))
    } else if starts(&["key with no value"]) {
        let help = "a line is `key = value`, `[section]` or `# a remark`";
        ("a key without a value", Some(help))
    } else {
        (message.trim_end_matches(", expected nothing"), None)
    };
    let problem = Problem::new(format!("this is no TOML: {what}")).at(place);
    match help {
        Some(help) => problem.help(help),
        None => problem,
    }
}

/// The problem that a key or a section is there twice. The problem shows the first one if the text
/// has it.
fn duplicate(text: &str, place: Span) -> Problem {
    let key = text.get(place.clone()).unwrap_or_default();
    let problem = Problem::new(format!("`{key}` is there twice"))
        .at(place.clone())
        .help("a key or section stands once; rename one of the two or take it out");
    let line_start = line_start(text, place.start);
    let line = text.get(line_start..).and_then(|rest| rest.lines().next());
    let line = line.unwrap_or_default().trim();
    let starts = |other: &str| match line.starts_with('[') {
        true => other.trim() == line,
        false => other
            .trim_start()
            .strip_prefix(key)
            .is_some_and(|rest| rest.trim_start().starts_with('=')),
    };
    let mut at = 0;
    let mut first = None;
    for other in text
        .get(..line_start)
        .unwrap_or_default()
        .split_inclusive('\n')
    {
        // A key's first one is in the same section, a section's is anywhere.
        if starts(other) && (first.is_none() || !line.starts_with('[')) {
            let indent = other.len() - other.trim_start().len();
            first = Some(at + indent..at + other.trim_end().len());
        }
        at += other.len();
    }
    match first {
        Some(first) => problem.and(first, "the first one is here"),
        None => problem,
    }
}

fn line_start(text: &str, at: usize) -> usize {
    let before = text.get(..at).unwrap_or_default();
    before.rfind('\n').map_or(0, |end| end + 1)
}
