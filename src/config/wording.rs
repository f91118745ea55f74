//! What serde says, said to somebody who writes a TOML file and no Rust.

use super::{
    report::{Problem, Span},
    section::Hints,
    way::Step,
};

const TABLE: &str = "a table";

/// What serde complains of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    /// A key that means nothing here.
    UnknownKey { key: String, known: Vec<String> },
    /// A key that has to be there.
    MissingKey(String),
    /// A word that is not one of those allowed.
    UnknownWord { word: String, known: Vec<String> },
    /// A value of another type, or out of range.
    Wrong { found: String, expected: String },
    /// Something that is not said by serde itself: what happened, and after a semicolon what to do.
    Other(String),
}

impl Complaint {
    /// Whether what stands there may be anything, a secret too.
    pub(super) fn is_of_unread(&self) -> bool {
        match self {
            Self::UnknownKey { .. } => true,
            Self::Wrong { expected, .. } => expected == TABLE,
            // A choice is a small word: what looks unlike one may be the secret of a table.
            Self::UnknownWord { word, known } => {
                let known = known.iter().map(String::as_str);
                let is_small = word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
                !is_small && nearest(&word.to_lowercase(), known).is_none()
            }
            Self::MissingKey(_) | Self::Other(_) => false,
        }
    }

    /// Takes serde's message apart. One that it cannot take apart is shown as it is.
    pub(super) fn new(message: &str) -> Self {
        let mut ticked = message.split('`').skip(1).step_by(2).map(str::to_owned);
        if message.starts_with("unknown field `") {
            let key = ticked.next().unwrap_or_default();
            let known = ticked.collect();
            return Self::UnknownKey { key, known };
        }
        // The toml crate's own words for it, where an enum's variant holds the keys.
        let unexpected = message.strip_prefix("unexpected keys in table: ");
        if let Some((keys, known)) =
            unexpected.and_then(|rest| rest.split_once(", available keys: "))
        {
            let key = keys.split(", ").next().unwrap_or_default().to_owned();
            let known = known.split(", ").map(str::to_owned).collect();
            return Self::UnknownKey { key, known };
        }
        if message.starts_with("unknown variant `") {
            let word = ticked.next().unwrap_or_default();
            let known = ticked.collect();
            return Self::UnknownWord { word, known };
        }
        if message.starts_with("missing field `") {
            return Self::MissingKey(ticked.next().unwrap_or_default());
        }
        let wrong = message.strip_prefix("invalid type: ");
        let wrong = wrong.or_else(|| message.strip_prefix("invalid value: "));
        match wrong.and_then(|wrong| wrong.rsplit_once(", expected ")) {
            Some((found, expected)) => {
                let expected = expected_name(expected).to_owned();
                let found = match found_name(found) {
                    // What stands there may be the secret that the table should refer to.
                    found if expected == TABLE && found.starts_with("the text ") => {
                        "a text".to_owned()
                    }
                    found => found,
                };
                Self::Wrong { found, expected }
            }
            None => Self::Other(message.to_owned()),
        }
    }

    /// The problem, still without its place. `table` is the name of the table that `key` stands in.
    pub(super) fn into_problem(self, table: &str, key: &str, hints: Hints<'_>) -> Problem {
        match self {
            Self::UnknownKey { key, known } => {
                let known: Vec<_> = candidates(&known, true, hints).collect();
                let help = match nearest(&key, known.iter().copied()) {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None if known.is_empty() => "there are no keys here; take it out".to_owned(),
                    None => format!("the keys here are {}", list(known)),
                };
                Problem::new(format!("unknown key `{key}` in [{table}]")).help(help)
            }
            Self::MissingKey(missing) => {
                let problem = Problem::new(format!("`{missing}` is missing from [{table}]"));
                match hints.example.trim() {
                    "" => problem.help(format!("add a line `{missing} = ...` there")),
                    example => problem.help(format!("for example:\n{example}")),
                }
            }
            Self::UnknownWord {
                ref word,
                ref known,
            } => {
                let what = match self.is_of_unread() {
                    true => "what stands there".to_owned(),
                    false => format!("`{word}`"),
                };
                let known = known.iter().map(String::as_str);
                let choices = format!("the choices are {}", list(known.clone()));
                let help = match nearest(&word.to_lowercase(), known) {
                    Some(meant) => format!("did you mean `{meant}`? {choices}"),
                    None => choices,
                };
                Problem::new(format!("`{key}` cannot be {what}")).help(help)
            }
            Self::Wrong { found, expected } => {
                Problem::new(format!("`{key}` must be {expected}, not {found}"))
            }
            Self::Other(message) if message == "invalid socket address syntax" => {
                Problem::new(format!("`{key}` is not an IP address with a port")).help(
                    "write \"127.0.0.1:8080\" for this machine alone, \"0.0.0.0:8080\" for every \
                     network; host names are not looked up",
                )
            }
            Self::Other(message) if message.starts_with("wanted ") => {
                Problem::new(format!("`{key}` must be a text in quotes or a table"))
            }
            Self::Other(message) => problem(&message),
        }
    }
}

/// A problem in words of our own: what happened, and after a semicolon what to do.
pub(super) fn problem(message: &str) -> Problem {
    match message.split_once("; ") {
        Some((what, help)) => Problem::new(what).help(help),
        None => Problem::new(message),
    }
}

/// A name that no table knows.
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

/// A kind of something that was not asked for when hookswitch was built.
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

/// The keys that could have been meant.
pub(super) fn candidates<'a>(
    known: &'a [String],
    is_root: bool,
    hints: Hints<'a>,
) -> impl Iterator<Item = &'a str> {
    let others = if is_root { hints.keys } else { &[] };
    let known = known.iter().map(String::as_str);
    known.chain(others.iter().copied())
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

/// `a`, `b` or `c`.
pub(super) fn list<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.into_iter().map(|word| format!("`{word}`")).collect();
    match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

/// The keys on the way, as TOML would write them with dots.
pub(super) fn path(steps: &[Step]) -> String {
    let keys = steps.iter().filter_map(|step| match step {
        Step::Key(key) => Some(key.as_str()),
        Step::Item(_) => None,
    });
    keys.collect::<Vec<_>>().join(".")
}

fn found_name(found: &str) -> String {
    for (serde, ours) in [
        ("string ", "the text "),
        ("integer ", "the number "),
        ("floating point ", "the number "),
        ("boolean ", ""),
    ] {
        if let Some(value) = found.strip_prefix(serde) {
            return format!("{ours}{value}");
        }
    }
    match found {
        "sequence" => "a list".to_owned(),
        "map" => "a table".to_owned(),
        other => other.to_owned(),
    }
}

fn expected_name(expected: &str) -> &str {
    match expected {
        "a string" => "a text in quotes",
        "path string" => "a path in quotes",
        "socket address" => "an IP address with a port in quotes, such as \"127.0.0.1:8080\"",
        "a boolean" => "`true` or `false`",
        "a sequence" => "a list in square brackets",
        "a map" => TABLE,
        "u8" | "u16" | "u32" | "u64" | "usize" => "a positive whole number",
        other if other.starts_with("a nonzero ") => "a positive whole number",
        other if other.starts_with("struct ") => TABLE,
        other => other,
    }
}
