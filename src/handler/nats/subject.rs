//! The subject that an event is published under.
//!
//! A subject is tokens with dots between them, and consumers choose by token. So what an event says
//! of itself may make no tokens of its own, nor wildcards: in each field, all but printable ASCII is
//! percent-encoded, and so are the dot, `*`, `>` and the percent sign. A field that is nothing is
//! `-`. Only `{type}` keeps its dots, so that `zoom.>` chooses by provider.

use serde::Deserialize;

use super::{AnyEvent, Delivery};
use crate::handler::cloud_event::encode;

/// The longest subject, in bytes: a server closes the connection on a line of 4096, the rest of
/// which is the reply's subject and the lengths.
const LONGEST: usize = 2048;

/// A subject with fields in it, such as `telephony.{type}`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Template(Vec<Part>);

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Field),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Type,
    Endpoint,
    Handler,
    Key,
}

impl Field {
    const ALL: [(&'static str, Self); 4] = [
        ("type", Self::Type),
        ("endpoint", Self::Endpoint),
        ("handler", Self::Handler),
        ("key", Self::Key),
    ];

    fn named(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, field)| *field).ok_or_else(|| {
            let names = Self::ALL
                .map(|(known, _)| format!("{{{known}}}"))
                .join(", ");
            format!("a subject has no field {{{name}}}; the fields are {names}")
        })
    }

    fn value(self, delivery: &Delivery<'_, AnyEvent>) -> String {
        let notification = delivery.notification;
        match self {
            Self::Type => {
                let parts = notification.name.as_str().split('.');
                parts.map(token).collect::<Vec<_>>().join(".")
            }
            Self::Endpoint => token(notification.endpoint.as_str()),
            Self::Handler => token(delivery.context.handler.as_str()),
            Self::Key => token(notification.key.as_ref().map_or("", |key| key.as_str())),
        }
    }
}

impl Template {
    /// The subject of one event.
    ///
    /// # Errors
    ///
    /// When it is longer than any server takes.
    pub(super) fn fill(&self, delivery: &Delivery<'_, AnyEvent>) -> Result<String, TooLong> {
        let part = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Field(field) => field.value(delivery),
        };
        let subject: String = self.0.iter().map(part).collect();
        match subject.len() {
            0..=LONGEST => Ok(subject),
            length => Err(TooLong(length)),
        }
    }
}

/// A subject is too long.
#[derive(Debug, thiserror::Error)]
#[error("the subject has {0} bytes, and {LONGEST} are the most that a server takes")]
pub(super) struct TooLong(usize);

/// One token that says `text`.
fn token(text: &str) -> String {
    if text.is_empty() {
        return "-".to_owned();
    }
    encode(text, |byte| {
        byte.is_ascii_graphic() && !b".*>%".contains(&byte)
    })
}

impl TryFrom<String> for Template {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after
                .split_once('}')
                .ok_or("a field of the subject has no end; write it as {type}")?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::Field(Field::named(name)?));
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        parts.retain(|part| *part != Part::Text(String::new()));
        check(&parts)?;
        Ok(Self(parts))
    }
}

/// Whether every token holds something, whatever the fields say, and nothing that is no subject's.
fn check(parts: &[Part]) -> Result<(), String> {
    let part = |part: &Part| match part {
        Part::Text(text) => text.clone(),
        Part::Field(_) => "field".to_owned(),
    };
    let sample: String = parts.iter().map(part).collect();
    let looks = "a subject looks like \"telephony.{type}\"";
    if sample.split('.').any(str::is_empty) {
        return Err(format!(
            "a part of the subject between two dots is empty; {looks}"
        ));
    }
    let is_allowed = |c: char| c.is_ascii_graphic() && !"*>{}".contains(c);
    match sample.chars().find(|c| !is_allowed(*c)) {
        Some(odd) => Err(format!("no event's subject can hold {odd:?}; {looks}")),
        None if sample.len() > LONGEST => Err(format!("the subject is too long; {looks}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{event::Key, handler::sample};

    fn fill(template: &str, key: Option<&str>) -> Result<String, TooLong> {
        let mut notification = sample::notification("{}");
        notification.key = key.map(Key::new);
        Template::try_from(template.to_owned())
            .unwrap()
            .fill(&Delivery {
                event: AnyEvent,
                notification: &notification,
                context: &sample::context(),
            })
    }

    #[test]
    fn fields_are_filled_in() {
        for (template, subject) in [
            ("telephony", "telephony"),
            ("{type}", "zoom.number-management.unrecognized"),
            (
                "a.{handler}.{endpoint}-{type}.z",
                "a.sample.front%20door-zoom.number-management.unrecognized.z",
            ),
            ("{key}", "zoom%2Enumber-management/a%25b/%2A/%3E/%20/%C3%A9"),
        ] {
            let key = "zoom.number-management/a%b/*/>/ /é";
            assert_eq!(fill(template, Some(key)).unwrap(), subject);
        }
        assert_eq!(fill("a.{key}", None).unwrap(), "a.-");
        assert_eq!(fill("a.{key}", Some("")).unwrap(), "a.-");
    }

    #[test]
    fn a_subject_that_no_server_takes_is_refused() {
        let key = "k".repeat(LONGEST - 2);
        assert_eq!(fill("a.{key}", Some(&key)).unwrap().len(), LONGEST);
        let refused = fill("ab.{key}", Some(&key)).unwrap_err().to_string();
        assert!(refused.contains("2049 bytes"), "{refused}");
    }

    #[test]
    fn what_is_no_subject_is_refused_while_it_is_read() {
        for (text, why) in [
            ("", "is empty"),
            (".a", "is empty"),
            ("a..{key}", "is empty"),
            ("a.", "is empty"),
            ("a b", "' '"),
            ("a.*", "'*'"),
            ("a.>", "'>'"),
            ("a}", "'}'"),
            ("é", "'é'"),
            ("a.{type", "no end"),
            ("a.{name}", "{type}, {endpoint}, {handler}, {key}"),
        ] {
            let refused = Template::try_from(text.to_owned()).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }

    proptest! {
        #[test]
        fn any_key_is_one_token(key in any::<String>()) {
            let subject = fill("a.{key}", Some(&key)).unwrap();
            prop_assert_eq!(subject.split('.').count(), 2);
            prop_assert!(subject.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert!(!subject.ends_with('.') && !subject.contains(['*', '>']));
        }
    }
}
