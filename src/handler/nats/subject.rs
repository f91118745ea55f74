//! The subject of an event's message.
//!
//! A subject consists of tokens with dots between them, and consumers choose by token. So the value of a field is
//! one token without wildcards: the dot, `*`, `>`, the percent sign and everything but printable ASCII are
//! percent-encoded. `-` stands for an absent value. Only `{type}` keeps its dots, so that `zoom.>` selects a
//! provider.

use serde::Deserialize;

use super::{AnyEvent, Delivery};
use crate::handler::{
    broker::template::{Field, Template},
    cloud_event::encode,
};

/// The longest subject, in bytes. A server closes the connection on a line of 4096 bytes, which also has the
/// subject of the reply and the lengths.
const LONGEST: usize = 2048;

/// A subject with fields in it, such as `telephony.{type}`.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Template")]
pub(super) struct Subject(Template);

impl Subject {
    /// The subject of one event.
    ///
    /// # Errors
    ///
    /// When the subject is longer than any server accepts.
    pub(super) fn fill(&self, delivery: &Delivery<'_, AnyEvent>) -> Result<String, TooLong> {
        let subject = self.0.name(delivery.notification, delivery.context, tokens);
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

/// `text` as one token; as several for an event name.
fn tokens(field: Field, text: &str) -> String {
    encode(text, |byte| match byte {
        b'.' => field == Field::Type,
        b'*' | b'>' | b'%' => false,
        _ => byte.is_ascii_graphic(),
    })
}

impl TryFrom<Template> for Subject {
    type Error = String;

    /// Whether every token is valid and not empty, for any values of the fields.
    fn try_from(template: Template) -> Result<Self, String> {
        let sample = template.plain();
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
            None => Ok(Self(template)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{event::Key, handler::sample};

    fn read(text: &str) -> Result<Subject, String> {
        Subject::try_from(Template::try_from(text.to_owned())?)
    }

    fn fill(template: &str, key: Option<&str>) -> Result<String, TooLong> {
        let mut notification = sample::notification("{}");
        notification.key = key.map(Key::new);
        read(template).unwrap().fill(&Delivery {
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
            ("a.{type", "nothing closes"),
            ("a.{name}", "the fields are {type}"),
        ] {
            let refused = read(text).unwrap_err();
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
