//! Telephone numbers in a form that can be compared.

use std::fmt;

/// A telephone number in the international form of ITU-T E.164: `+`, then 7 to 15 digits, of which
/// the first is not 0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct E164(Box<str>);

/// The most digits of country code and subscriber number together.
const MAX_DIGITS: usize = 15;

/// The digits of the shortest international numbers, such as those of Niue.
const MIN_DIGITS: usize = 7;

/// Seven digits without a `+` are more often a local number than an international one.
const MIN_DIGITS_WITHOUT_PLUS: usize = 8;

impl E164 {
    /// Reads a number that may have separators and may lack its `+`, as some of Zoom's and RingCentral's
    /// do.
    ///
    /// `None` for anything else: letters, extensions, short codes, national numbers that start with 0, and
    /// `+44 (0)20 ...`, whose 0 belongs to no international number. A national number of 8 or more digits
    /// looks like an international one without its `+`, and is read as one.
    pub fn read(text: &str) -> Option<Self> {
        // Most numbers are in that form already.
        if is_e164(text, MIN_DIGITS) {
            return Some(Self(text.into()));
        }
        if text.contains("(0)") {
            return None;
        }
        let (digits, min) = match text.trim_start_matches(is_separator).strip_prefix('+') {
            Some(digits) => (digits, MIN_DIGITS),
            None => (text, MIN_DIGITS_WITHOUT_PLUS),
        };
        let mut number = String::with_capacity(1 + digits.len());
        number.push('+');
        number.extend(digits.chars().filter(|c| !is_separator(*c)));
        is_e164(&number, min).then(|| Self(number.into()))
    }

    /// The number: `+` and digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `number` is a `+`, then at least `min` digits, of which the first is not 0.
fn is_e164(number: &str, min: usize) -> bool {
    number.strip_prefix('+').is_some_and(|digits| {
        (min..=MAX_DIGITS).contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && !digits.starts_with('0')
    })
}

/// Separators of digits: spaces of all kinds, hyphens and dashes, dots, slashes, parentheses.
pub(super) fn is_separator(c: char) -> bool {
    c.is_whitespace() || matches!(c, '-' | '.' | '/' | '(' | ')' | '\u{2010}'..='\u{2015}')
}

impl fmt::Display for E164 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::E164;

    fn read(text: &str) -> Option<String> {
        E164::read(text).map(|number| number.to_string())
    }

    #[test]
    fn separators_are_removed_and_a_missing_plus_is_added() {
        for text in [
            "+12025550143",
            "12025550143",
            " +1 (202) 555-0143 ",
            "+1.202.555.0143",
            "1-202-555-0143",
            "+1\u{a0}202\u{a0}555\u{2011}0143",
            "(+1) 202/5550143",
        ] {
            assert_eq!(read(text).as_deref(), Some("+12025550143"), "{text:?}");
        }
    }

    #[test]
    fn anything_but_an_international_number_is_refused() {
        for text in [
            "",
            "+",
            "911",
            "72345",
            "5550143",
            "1-800-FLOWERS",
            "+12025550143x12",
            "+12025550143,,12#",
            "+12025550143 ext. 12",
            "02025550143",
            "+02025550143",
            "+44 (0)20 7946 0143",
            "++12025550143",
            "1+2025550143",
            "+1234567890123456",
            "+1202555014\u{664}",
            "anonymous",
            "sip:12025550143",
        ] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_shortest_and_the_longest_numbers_are_read() {
        assert_eq!(read("+6834000").as_deref(), Some("+6834000"));
        assert_eq!(read("29021234").as_deref(), Some("+29021234"));
        assert_eq!(
            read("+123456789012345").as_deref(),
            Some("+123456789012345")
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_as_none_or_as_a_plus_and_digits(text in any::<String>()) {
            if let Some(number) = read(&text) {
                let digits = number.strip_prefix('+').expect("a plus comes first");
                prop_assert!((7..=15).contains(&digits.len()));
                prop_assert!(digits.bytes().all(|byte| byte.is_ascii_digit()));
                prop_assert_eq!(read(&number), Some(number.clone()), "reading again changes it");
            }
        }

        #[test]
        fn separators_anywhere_change_nothing(
            digits in "[1-9][0-9]{7,14}",
            plus in any::<bool>(),
            separators in proptest::collection::vec("[-. /\u{2013}\u{a0}]{0,2}", 16),
        ) {
            let mut text = String::from(if plus { "+" } else { "" });
            for (digit, separator) in digits.chars().zip(&separators) {
                text.push(digit);
                text.push_str(separator);
            }
            prop_assert_eq!(read(&text), Some(format!("+{digits}")));
        }
    }
}
