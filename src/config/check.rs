//! The rules that no single setting can check: rules between keys, between sections, and of names.

use std::{iter, net::SocketAddr, path::PathBuf, time::Duration};

use super::{
    Log, diagnostics,
    report::{Problem, Span},
    section::{Findings, Section},
};
use crate::{
    admin,
    cleartext::CleartextWarning,
    dispatch,
    event::{self, EventName, Pattern, TenseGap},
    http, secret,
};

/// Checks the name of an endpoint or handler, which becomes a metric label and a log field.
pub(super) fn name(section: &str, name: &str, place: Span, findings: &mut Findings) {
    /// In characters: enough for words, short enough for a label.
    const LONGEST: usize = 64;
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=LONGEST).contains(&name.len()) && name.chars().all(is_plain) {
        return;
    }
    let plain = name.to_ascii_lowercase();
    let plain = plain.replace(|c| !is_plain(c), "-");
    let plain = plain.trim_matches('-');
    let help = "a name is 1 to 64 characters of a-z, 0-9 and -";
    let help = match plain.len() {
        1..=LONGEST => format!("{help}, such as `{plain}`"),
        _ => help.to_owned(),
    };
    let problem = Problem::new(format!("{name:?} cannot be a name in [{section}]"));
    findings.add(problem.at(place).help(help));
}

/// The things that only one entry can have, each with the place of its owner.
#[derive(Debug, Default)]
pub(super) struct Taken<T>(Vec<(T, Span)>);

impl<T: PartialEq> Taken<T> {
    /// Gives `thing` to the entry at `place`. Reports `problem` when another entry has `thing`.
    fn take(&mut self, thing: T, place: Span, problem: Problem, findings: &mut Findings) {
        match self.0.iter().find(|(other, _)| *other == thing) {
            Some((_, first)) => {
                let problem = problem.at(place);
                findings.add(problem.and(first.clone(), "the first one is here"));
            }
            None => self.0.push((thing, place)),
        }
    }
}

/// Checks the path of an endpoint.
pub(super) fn path(path: &str, place: Span, taken: &mut Taken<String>, findings: &mut Findings) {
    match path_problem(path) {
        Some(problem) => findings.add(problem.at(place)),
        None => {
            let problem = Problem::new(format!("two endpoints have the path {path:?}"));
            let problem = problem.help("give each endpoint a path of its own");
            taken.take(path.to_owned(), place, problem, findings);
        }
    }
}

/// Checks that one handler alone writes to the file at `path`, which the setting `key` names. Two
/// paths that lead to one file by a link or by `..` count as two files.
pub(super) fn own_file(
    (key, path): &(&str, PathBuf),
    section: &Section<'_>,
    taken: &mut Taken<PathBuf>,
    findings: &mut Findings,
) {
    // A path that cannot be made whole cannot be opened either: that is for the handler to say.
    let (Ok(whole), Some(place)) = (std::path::absolute(path), section.place_of(&[*key])) else {
        return;
    };
    let problem = Problem::new(format!("two handlers write to {}", whole.display()));
    let problem = problem.help("give each handler a file of its own");
    taken.take(whole, place, problem, findings);
}

fn path_problem(path: &str) -> Option<Problem> {
    if !path.starts_with('/') {
        let problem = Problem::new(format!("the path {path:?} does not begin with a slash"));
        let path = path.find("://").and_then(|scheme| {
            let rest = path.get(scheme + 3..)?;
            rest.get(rest.find('/')?..)
        });
        return Some(problem.help(match path {
            Some(path) => format!("write only what follows the host: {path:?}"),
            None => "write it as the provider posts to it, after the host".to_owned(),
        }));
    }
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "/-._~!$&'()*+,;=:@%".contains(c);
    if let Some(odd) = path.chars().find(|c| !is_allowed(*c)) {
        let problem = Problem::new(format!(
            "the path {path:?} has {odd:?}, which no URL's path has"
        ));
        return Some(problem.help(match odd {
            '?' | '#' => "a query or fragment is no part of the path; take it away",
            _ => "write it with percent signs, as it travels: a space is `%20`",
        }));
    }
    let mut escapes = path.split('%').skip(1);
    let is_escape = |text: &str| {
        let digits = text.get(..2);
        digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    if !escapes.all(is_escape) {
        let problem = Problem::new(format!(
            "the path {path:?} has a `%` without two hex digits"
        ));
        return Some(problem.help("a percent sign itself is `%25`"));
    }
    if path.split('/').any(|part| part == "." || part == "..") {
        let problem = Problem::new(format!("the path {path:?} has a `.` or `..` in it"));
        return Some(problem.help("senders take these out before they post; write what is left"));
    }
    None
}

/// Checks `[log]`.
pub(super) fn log(log: &Log, section: &Section<'_>, findings: &mut Findings) {
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&log.filter) {
        let problem = Problem::new(format!("`filter` cannot be read: {error}"));
        let problem = problem.help("for example \"info\", or \"warn,hookswitch=debug\"");
        add(section, &["filter"], problem, findings);
        return;
    }
    for word in log.filter.split(',').map(str::trim) {
        if let Some(level) = meant_level(word) {
            let problem = Problem::new(format!(
                "`filter` takes {word:?} for the name of a target, since it is no level"
            ));
            let problem = problem.help(format!("did you mean `{level}`?"));
            add(section, &["filter"], problem, findings);
        }
    }
}

/// The level that a part of a filter was meant to be. A lone word that is no level is the name of a
/// target, which silences all others.
fn meant_level(word: &str) -> Option<&'static str> {
    /// What other programs call the levels.
    const OTHERS: &[(&str, &str)] = &[
        ("warning", "warn"),
        ("err", "error"),
        ("fatal", "error"),
        ("critical", "error"),
        ("notice", "info"),
        ("verbose", "debug"),
        ("all", "trace"),
        ("none", "off"),
        ("silent", "off"),
    ];
    const LEVELS: [&str; 6] = ["trace", "debug", "info", "warn", "error", "off"];
    let word = word.to_ascii_lowercase();
    if LEVELS.contains(&word.as_str()) {
        return None;
    }
    let other = OTHERS.iter().find(|(other, _)| *other == word);
    let other = other.map(|(_, level)| *level);
    let near = |level: &&str| word.len() > 2 && strsim::damerau_levenshtein(level, &word) == 1;
    other.or_else(|| LEVELS.into_iter().find(near))
}

/// The largest `max_body`: half of what the embedded store takes as one record.
const LARGEST_BODY: u64 = 16 << 20;

/// Checks `[server]`.
pub(super) fn server(server: &http::Settings, section: &Section<'_>, findings: &mut Findings) {
    for (key, is_zero) in [
        ("max_connections", server.max_connections == 0),
        ("max_in_flight", server.max_in_flight == 0),
        ("max_body", server.max_body == 0),
        ("body_memory", server.body_memory == 0),
        ("first_byte_timeout", server.first_byte_timeout.is_zero()),
        ("head_timeout", server.head_timeout.is_zero()),
        ("body_timeout", server.body_timeout.is_zero()),
    ] {
        if is_zero {
            let problem = Problem::new(format!("`{key}` is zero, so nothing would get in"));
            add(
                section,
                &[key],
                problem.help("take the line out for the default"),
                findings,
            );
        }
    }
    if server.max_body > LARGEST_BODY {
        let problem = Problem::new("`max_body` is more than 16 MiB, which a store need not take");
        let help = "a provider's events have a few kilobytes; `max_body = \"1MiB\"` is plenty";
        add(section, &["max_body"], problem.help(help), findings);
    }
    if let Some(tls) = server.tls.as_ref().filter(|_| !secret::is_unread()) {
        for (key, problem) in tls.problems() {
            let path: Vec<_> = iter::once("tls").chain(key).collect();
            add(section, &path, diagnostics::problem(&problem), findings);
        }
    }
    if server.body_memory < server.max_body {
        let problem = Problem::new(
            "`body_memory` is less than `max_body`, so the largest bodies would never get in",
        );
        let key = match section.table.contains_key("body_memory") {
            true => "body_memory",
            false => "max_body",
        };
        add(
            section,
            &[key],
            problem.help("give it room for several bodies, 16 times `max_body` for example"),
            findings,
        );
    }
}

/// Checks `[admin]`.
pub(super) fn admin(admin: &admin::Settings, section: &Section<'_>, findings: &mut Findings) {
    for (name, token) in &admin.tokens {
        if token.roles.is_empty() {
            let problem = Problem::new(format!("the token {name:?} has no role"));
            let help = "`roles = [\"read\"]` is the least";
            add(
                section,
                &["tokens", name, "roles"],
                problem.help(help),
                findings,
            );
        }
        if !name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        {
            let problem = Problem::new(format!("{name:?} cannot be the name of a token"));
            let help = "use letters, digits, `-` and `_`: it stands in cookies and in logs";
            add(section, &["tokens", name], problem.help(help), findings);
        }
    }
    if !is_loopback(admin.listen) && admin.token.is_none() && admin.tokens.is_empty() {
        let listen = admin.listen;
        let problem = Problem::new(format!(
            "[admin] listens on {listen}, beyond loopback, without a token"
        ));
        let help = "add `token = { env = \"HOOKSWITCH_ADMIN_TOKEN\" }`, or listen on 127.0.0.1";
        add(section, &["listen"], problem.help(help), findings);
    }
}

/// Checks that both listeners can listen at the same time.
pub(super) fn listeners(
    (server_section, server): (&Section<'_>, SocketAddr),
    (admin_section, admin): (&Section<'_>, SocketAddr),
    findings: &mut Findings,
) {
    let overlaps =
        server.ip() == admin.ip() || server.ip().is_unspecified() || admin.ip().is_unspecified();
    if server.port() == 0 || server.port() != admin.port() || !overlaps {
        return;
    }
    let problem = Problem::new(format!(
        "[server] and [admin] both listen on port {}",
        admin.port()
    ));
    let problem = problem.help("give [admin] a port of its own, 9090 for example");
    let places = (
        server_section.place_of(&["listen"]),
        admin_section.place_of(&["listen"]),
    );
    findings.add(match places {
        (Some(server), Some(admin)) => problem.at(admin).and(server, "[server] listens here"),
        (Some(place), None) | (None, Some(place)) => problem.at(place),
        (None, None) => problem,
    });
}

/// Whether only this machine can reach `address`.
pub(super) fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Checks the settings that every handler has.
pub(super) fn dispatch(
    settings: &dispatch::Settings,
    section: &Section<'_>,
    findings: &mut Findings,
) {
    if settings.events.is_empty() {
        let problem = Problem::new("`events` is empty, so the handler would never get anything");
        add(
            section,
            &["events"],
            problem.help("`events = [\"*\"]` takes everything"),
            findings,
        );
    }
    let retry = &settings.retry;
    let zero = |time: Duration| time.is_zero();
    for (path, is_zero, why) in [
        (
            &["retry", "first"][..],
            zero(retry.first),
            "failed deliveries would be tried without a pause",
        ),
        (
            &["retry", "age"],
            zero(retry.age),
            "the first failure would park",
        ),
    ] {
        if is_zero {
            let problem = Problem::new(format!("`{}` is zero, so {why}", path.join(".")));
            add(
                section,
                path,
                problem.help("take it out for the default"),
                findings,
            );
        }
    }
    if retry.first > retry.ceiling {
        let problem = Problem::new(format!(
            "`retry.first` is longer than `retry.ceiling`, {} against {}",
            humantime::format_duration(retry.first),
            humantime::format_duration(retry.ceiling)
        ));
        let problem = problem.help(
            "the pause grows from `first` up to `ceiling`; without one of them, it is 1s and 1h",
        );
        let problem = match (
            section.place_at(&["retry", "first"]),
            section.place_at(&["retry", "ceiling"]),
        ) {
            (Some(first), Some(ceiling)) => problem.at(first).and(ceiling, "the ceiling"),
            (Some(place), _) | (None, Some(place)) => problem.at(place),
            (None, None) => problem,
        };
        findings.add(problem);
    }
}

/// Warns of patterns that take the changes of one family and miss the same changes of another.
pub(super) fn tenses(patterns: &[Pattern], section: &Section<'_>, findings: &mut Findings) {
    for TenseGap {
        pattern,
        missed,
        other,
    } in event::tense_gaps(patterns)
    {
        let missed = diagnostics::list(missed.iter().map(EventName::as_str));
        let what = format!("the pattern \"{pattern}\" does not take {missed}");
        let help = format!("add \"{other}\" to take them, or name the events that are meant");
        let warning = Problem::new(what).help(help).warning();
        add(section, &["events"], warning, findings);
    }
}

/// Warns of credentials that are sent without TLS.
pub(super) fn cleartext_warnings(
    warnings: impl IntoIterator<Item = CleartextWarning>,
    section: &Section<'_>,
    findings: &mut Findings,
) {
    for CleartextWarning { key, message } in warnings {
        let warning = diagnostics::problem(&format!("[{}] {message}", section.name)).warning();
        add(section, &[key], warning, findings);
    }
}

/// Adds a problem at the value at `path`, or at the section when the file leaves the value out.
pub(super) fn add(section: &Section<'_>, path: &[&str], problem: Problem, findings: &mut Findings) {
    findings.add(match section.place_of(path) {
        Some(place) => problem.at(place),
        None => problem,
    });
}
