//! Comparison of subjects, which a person writes in another form than a provider.

use std::borrow::Cow;

use super::{E164, Notification, distinct::distinct, e164::is_separator, subjects_of};

/// What stands before and behind the number in a URI.
const SCHEMES: [&str; 5] = ["tel:", "sip:", "sips:", "sms:", "callto:"];
const BEHIND: [char; 3] = [';', '@', '?'];

/// The prefixes that are dialled in place of a `+`: in most countries, and in North America.
const DIALLED: [&str; 2] = ["00", "011"];

/// The form of a subject by which it is compared: an E.164 number, an id as it is, anything else in
/// lower case.
pub fn normal_form(subject: &str) -> Cow<'_, str> {
    let subject = subject.trim();
    if subject.starts_with('+')
        && let Some(number) = E164::read(subject)
    {
        return match number.as_str() == subject {
            true => Cow::Borrowed(subject),
            false => Cow::Owned(number.to_string()),
        };
    }
    match subject.chars().all(|c| c.is_ascii_digit()) {
        true => Cow::Borrowed(subject),
        false => Cow::Owned(subject.to_lowercase()),
    }
}

/// The normal forms of every subject that a person may mean by `text`. Digits alone may be an id, an
/// international number without its `+`, or a number of North America without its country code.
pub fn meant_by(text: &str) -> Vec<String> {
    let text = without_scheme(text.trim());
    let number: String = text
        .replace("(0)", "")
        .chars()
        .filter(|c| !is_separator(*c))
        .collect();
    let digits = number.strip_prefix('+').unwrap_or(&number);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return vec![normal_form(text).into_owned()];
    }
    let international = |digits: &str| E164::read(&format!("+{digits}"));
    let mut meant = vec![normal_form(&number).into_owned()];
    if number == digits {
        let dialled = DIALLED
            .iter()
            .find_map(|prefix| digits.strip_prefix(prefix));
        let national = is_north_american(digits).then(|| format!("1{digits}"));
        let numbers = [Some(digits), dialled, national.as_deref()];
        let numbers = numbers.into_iter().flatten().filter_map(international);
        meant.extend(numbers.map(|number| number.to_string()));
    }
    distinct(meant)
}

fn without_scheme(text: &str) -> &str {
    let scheme = SCHEMES.iter().find_map(|scheme| {
        let (start, rest) = text.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    });
    scheme.map_or(text, |rest| rest.split(BEHIND).next().unwrap_or(rest))
}

/// Whether `digits` are a number of the North American Numbering Plan: area code, exchange, line.
fn is_north_american(digits: &str) -> bool {
    let starts_well = |at| matches!(digits.as_bytes().get(at), Some(b'2'..=b'9'));
    digits.len() == 10 && starts_well(0) && starts_well(3)
}

impl Notification {
    /// Whether one of the subjects has one of these normal forms.
    pub fn is_about(&self, meant: &[String]) -> bool {
        let mut subjects = self.subjects.iter();
        subjects.any(|subject| meant.iter().any(|meant| *meant == normal_form(subject)))
    }

    /// Completes the subjects of an event that may have been stored when an event had one subject
    /// only. A body that can no longer be read leaves them as they are.
    pub fn complete_subjects(&mut self) {
        if self.subjects.len() == 1
            && let Some(subjects) = subjects_of(&self.name, &self.body)
            && subjects.first() == self.subjects.first()
        {
            self.subjects = subjects;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{meant_by, normal_form};

    fn finds(text: &str, subject: &str) -> bool {
        meant_by(text).contains(&normal_form(subject).into_owned())
    }

    #[test]
    fn a_number_is_found_however_it_is_written() {
        for text in [
            "+12025550143",
            "12025550143",
            "+1 (202) 555-0143",
            " 1-202-555-0143 ",
            "2025550143",
            "(202) 555-0143",
            "0012025550143",
            "011 1 202 555 0143",
            "tel:+1-202-555-0143",
            "TEL:+12025550143;ext=7",
            "sip:+12025550143@example.com",
        ] {
            assert!(finds(text, "+12025550143"), "{text:?}");
            assert!(!finds(text, "+12025550144"), "{text:?}");
        }
        assert!(finds("+44 (0)20 7946 0143", "+442079460143"));
        assert!(finds("0044 20 7946 0143", "+442079460143"));
    }

    #[test]
    fn digits_may_be_an_id_or_a_number_and_a_plus_makes_them_a_number() {
        assert!(finds("77001", "77001"));
        assert!(finds("2025550143", "2025550143"));
        assert!(finds("2025550143", "+2025550143"));
        assert!(!finds("+2025550143", "2025550143"));
        assert!(!finds("+2025550143", "+12025550143"));
        assert!(
            !finds("1025550143", "+11025550143"),
            "no area code starts with 1"
        );
    }

    #[test]
    fn other_texts_are_compared_without_case_and_outer_spaces() {
        assert!(finds(" Reception ", "reception"));
        assert!(finds("ZÜRICH", "Zürich"));
        assert!(!finds("reception", "reception 2"));
        for text in ["", "+", "tel:", "-"] {
            assert_eq!(meant_by(text).len(), 1, "{text:?}");
        }
    }
}
