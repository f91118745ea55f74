//! Which events a handler takes.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

use super::{EventName, event_names};

/// An event name with `*` for any run of characters, dots included; `*` alone takes everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Box<str>);

/// Why a text is not a usable pattern.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It could never match.
    #[error("the pattern {pattern:?} matches no event; {}", suggestion(.nearest))]
    MatchesNothing {
        /// The pattern.
        pattern: String,
        /// The event name that is most like it.
        nearest: Option<String>,
    },
}

fn suggestion(nearest: &Option<String>) -> String {
    match nearest {
        Some(name) => format!("did you mean {name:?}?"),
        None => "event names look like \"ringcentral.phone-number.created\"".to_owned(),
    }
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// When it matches no event name that can occur.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let pattern = Self(text.into());
        if event_names().iter().any(|name| pattern.matches(name)) {
            return Ok(pattern);
        }
        let nearest = event_names()
            .into_iter()
            .map(|name| (strsim::jaro_winkler(name.as_str(), text), name))
            .filter(|(likeness, _)| *likeness > 0.8)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, name)| name.to_string());
        Err(PatternError::MatchesNothing {
            pattern: text.to_owned(),
            nearest,
        })
    }

    /// Whether it takes events called `name`.
    pub fn matches(&self, name: &EventName) -> bool {
        takes(&self.0, name)
    }
}

/// Whether `pattern` takes `name`, whatever other names there are.
pub(super) fn takes(pattern: &str, name: &EventName) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = name.as_str().strip_prefix(first) else {
        return false;
    };
    let Some(last) = pieces.next_back() else {
        return rest.is_empty(); // There was no `*` at all.
    };
    for piece in pieces {
        let Some((_, after)) = rest.split_once(piece) else {
            return false;
        };
        rest = after;
    }
    rest.ends_with(last)
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(de::Error::custom)
    }
}
