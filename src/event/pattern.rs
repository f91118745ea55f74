//! Patterns of event names, by which a handler selects its events.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

use super::{EventName, event_names, families};

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
        if event_names().any(|name| pattern.matches(&name)) {
            return Ok(pattern);
        }
        Err(PatternError::MatchesNothing {
            pattern: text.to_owned(),
            nearest: nearest(text),
        })
    }

    /// Whether the pattern matches `name`.
    pub fn matches(&self, name: &EventName) -> bool {
        matches(&self.0, name)
    }
}

/// The pattern for one event, one family or one provider that is most similar to `text`.
fn nearest(text: &str) -> Option<String> {
    let families = families().flat_map(|family| [family.name, family.provider()]);
    let whole = families.map(|name| format!("{name}.*"));
    event_names()
        .map(|name| name.to_string())
        .chain(whole)
        .map(|pattern| (likeness(text, &pattern), pattern))
        .filter(|(likeness, _)| *likeness > LEAST_LIKENESS)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, pattern)| pattern)
}

/// The least likeness of two words or patterns that one may be taken for the other.
const LEAST_LIKENESS: f64 = 0.6;

/// The likeness of two patterns, from 0 to 1: the share of words that they have in common. A misspelled
/// word counts for less, and a word that only one of them has counts against it. Letters alone would
/// prefer a short name with the same beginning to the one with the same words.
fn likeness(one: &str, other: &str) -> f64 {
    let words = |pattern: &'_ str| -> Vec<String> {
        let words = pattern
            .split(['.', '-', '*'])
            .filter(|word| !word.is_empty());
        words.map(str::to_owned).collect()
    };
    let (one, other) = (words(one), words(other));
    let common: f64 = one
        .iter()
        .map(|word| {
            let likenesses = other
                .iter()
                .map(|other| strsim::normalized_damerau_levenshtein(word, other));
            likenesses
                .filter(|likeness| *likeness >= LEAST_LIKENESS)
                .fold(0.0, f64::max)
        })
        .sum();
    2.0 * common / (one.len() + other.len()).max(1) as f64
}

/// A pattern that takes names of one tense, and misses those of the other: `*.updated` misses `*.update`.
#[derive(Debug, PartialEq, Eq)]
pub struct TenseGap {
    /// The pattern.
    pub pattern: Pattern,
    /// The names that no pattern takes.
    pub missed: Vec<EventName>,
    /// The pattern in the other tense.
    pub other: Pattern,
}

/// The gaps in `patterns`. Providers say "update" and "updated" of the same kind of change.
pub fn tense_gaps(patterns: &[Pattern]) -> Vec<TenseGap> {
    let is_taken = |name: &EventName| patterns.iter().any(|pattern| pattern.matches(name));
    let gap = |pattern: &Pattern| {
        let other = Pattern(in_other_tense(&pattern.0)?.into());
        let takes = |change: String| {
            event_names().any(|name| pattern.matches(&name) && change_of(&name) == change)
        };
        let missed = event_names().filter(|name| {
            let in_other_tense = in_other_tense(change_of(name));
            other.matches(name) && !is_taken(name) && in_other_tense.is_some_and(takes)
        });
        let missed: Vec<_> = missed.collect();
        (!missed.is_empty()).then(|| TenseGap {
            pattern: pattern.clone(),
            missed,
            other,
        })
    };
    patterns.iter().filter_map(gap).collect()
}

/// The last part of `name`.
fn change_of(name: &EventName) -> &str {
    name.as_str().rsplit('.').next().unwrap_or_default()
}

/// `update` for `updated`, and the reverse.
fn in_other_tense(pattern: &str) -> Option<String> {
    match pattern.strip_suffix('d').filter(|rest| rest.ends_with('e')) {
        Some(present) => Some(present.to_owned()),
        None => pattern.ends_with('e').then(|| format!("{pattern}d")),
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

    use super::{Pattern, PatternError, matches, tense_gaps};
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
            let matched: Vec<_> = event_names().filter(|n| pattern.matches(n)).collect();
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
        for (text, nearest) in [
            ("zooom.*", "zoom.*"),
            ("zoom.number-managment.*", "zoom.number-management.*"),
            (
                "zoom.number-management.cnam-updated",
                "zoom.number-management.peering-number-cnam-updated",
            ),
            (
                "ringcentral.extension-info.updated",
                "ringcentral.extension-info.update",
            ),
        ] {
            let suggestion = format!("did you mean {nearest:?}?");
            assert!(refused(text).ends_with(&suggestion), "{}", refused(text));
        }
        for text in ["", "qqq", "*.created.*", "teams.*"] {
            let PatternError::MatchesNothing { pattern, .. } =
                Pattern::new(text).expect_err("it matches nothing");
            assert_eq!(pattern, text);
        }
    }

    #[test]
    fn a_pattern_of_one_tense_misses_names_of_the_other() {
        let missed = |texts: &[&str]| -> Vec<(String, String, Vec<String>)> {
            let patterns = texts.iter().map(|text| Pattern::new(text).unwrap());
            let gaps = tense_gaps(&patterns.collect::<Vec<_>>()).into_iter();
            let text = |name: EventName| name.to_string();
            gaps.map(|gap| {
                (
                    gap.pattern.to_string(),
                    gap.other.to_string(),
                    gap.missed.into_iter().map(text).collect(),
                )
            })
            .collect()
        };
        let of_extensions = |change: &str| {
            ["info", "list"].map(|family| format!("ringcentral.extension-{family}.{change}"))
        };
        assert_eq!(
            missed(&["zoom.*", "ringcentral.*.updated"]),
            [(
                "ringcentral.*.updated".to_owned(),
                "ringcentral.*.update".to_owned(),
                of_extensions("update").to_vec()
            )]
        );
        assert_eq!(
            missed(&["*.delete"]),
            [(
                "*.delete".to_owned(),
                "*.deleted".to_owned(),
                vec!["ringcentral.phone-number.deleted".to_owned()]
            )]
        );
        for sound in [
            &["*"][..],
            &["ringcentral.*.updated", "ringcentral.*.update"],
            &["ringcentral.*.updated", "ringcentral.extension-*"],
            &["ringcentral.*.update*"],
            &["ringcentral.phone-number.updated"],
            &["ringcentral.phone-number.*ed"],
            &["zoom.*-updated"],
            &["*.unreadable"],
        ] {
            assert_eq!(missed(sound), [], "{sound:?}");
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
