//! Patterns of event names, by which a handler selects its events.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

use super::{EventName, event_names};

/// An event name with `*` for any run of characters, dots included. `*` alone matches every event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Box<str>);

/// Why a text is refused as a pattern.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It matches no event name.
    #[error("the pattern {pattern:?} matches no event; {}", suggestion(.nearest))]
    MatchesNothing {
        /// The pattern.
        pattern: String,
        /// The most similar event name.
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
    /// Parses a pattern.
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

    /// Whether the pattern matches `name`.
    pub fn matches(&self, name: &EventName) -> bool {
        matches(&self.0, name)
    }
}

/// Whether `pattern` matches `name`.
fn matches(pattern: &str, name: &EventName) -> bool {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Pattern, PatternError, matches};
    use crate::event::{EventName, event_names};

    #[test]
    fn a_star_matches_any_run_of_characters() {
        let name = EventName::new("zoom.number-management.peering-number-cnam-updated");
        for (pattern, expected) in [
            ("*", true),
            ("**", true),
            ("***", true),
            ("zoom.*", true),
            ("zoom*", true),
            ("*updated", true),
            ("*.*", true),
            ("*cnam*", true),
            ("*.number-management.*", true),
            ("zoom.*.peering-*-cnam-*", true),
            ("zoom.number-management.peering-number-cnam-updated", true),
            ("zoom.number-management.peering-number-cnam-updated*", true),
            ("*zoom.number-management.peering-number-cnam-updated", true),
            ("zoom", false),
            ("zoom.", false),
            ("oom.*", false),
            ("*cnam", false),
            ("*number*number*number*", false),
            ("*number*number*", true),
            ("zoom.*zoom.*", false),
            ("ringcentral.*", false),
            ("Zoom.*", false),
            ("zoom.?", false),
            ("", false),
        ] {
            assert_eq!(matches(pattern, &name), expected, "{pattern:?}");
        }
    }

    #[test]
    fn the_ends_of_a_pattern_do_not_overlap() {
        for (pattern, name, expected) in [
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("ab*ba", "aba", false),
            ("a*b*b", "ab", false),
            ("a*b*b", "abb", true),
            ("*x*", "x", true),
            ("*x*", "", false),
            ("*ab*", "aab", true),
            ("*", "", true),
            ("", "", true),
            ("é*", "éa", true),
        ] {
            let name = EventName::new(name);
            assert_eq!(matches(pattern, &name), expected, "{pattern:?} {name:?}");
        }
    }

    #[test]
    fn an_event_name_is_a_pattern_that_matches_itself_alone() {
        for name in event_names() {
            let pattern = Pattern::new(name.as_str()).expect("the name can occur");
            let matched: Vec<_> = event_names()
                .into_iter()
                .filter(|n| pattern.matches(n))
                .collect();
            assert_eq!(matched, [name]);
        }
    }

    #[test]
    fn a_pattern_that_matches_nothing_is_refused_with_a_similar_name() {
        let refused = |text: &str| {
            Pattern::new(text)
                .expect_err("it matches nothing")
                .to_string()
        };
        assert_eq!(
            refused("ringcentral.phone-number.create"),
            "the pattern \"ringcentral.phone-number.create\" matches no event; did you mean \
             \"ringcentral.phone-number.created\"?"
        );
        for text in ["", "qqq", "*.created.*", "teams.*"] {
            let PatternError::MatchesNothing { pattern, .. } =
                Pattern::new(text).expect_err("it matches nothing");
            assert_eq!(pattern, text);
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_as_a_naive_matcher_does(pattern in "[ab*]{0,8}", name in "[ab]{0,10}") {
            fn naive(pattern: &[u8], name: &[u8]) -> bool {
                match (pattern, name) {
                    ([], []) => true,
                    ([b'*', rest @ ..], _) => {
                        (0..=name.len()).any(|taken| naive(rest, &name[taken..]))
                    }
                    ([p, ps @ ..], [n, ns @ ..]) => p == n && naive(ps, ns),
                    _ => false,
                }
            }
            let expected = naive(pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(matches(&pattern, &EventName::new(name)), expected);
        }
    }
}
