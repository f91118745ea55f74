//! When a certificate expires: the one field of X.509 that operators monitor.
//!
//! The parser reads only the path to that field (RFC 5280, section 4.1). A certificate is a sequence
//! whose first element is a sequence of version, serial number, algorithm, issuer, validity and more.
//! The validity is a sequence of two times. The result only sets a metric; rustls parses the
//! certificate itself.

use jiff::{Timestamp, civil, tz::TimeZone};

/// The DER tags on the path to the field.
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// An optional field, present in every certificate of version 2 or later.
const VERSION: u8 = 0xa0;

/// The last moment at which the certificate `der` is valid; `None` when it cannot be parsed.
pub(super) fn not_after(der: &[u8]) -> Option<Timestamp> {
    let mut certificate = Elements(der).enter(SEQUENCE)?;
    let mut fields = certificate.enter(SEQUENCE)?;
    let (mut tag, _) = fields.next()?;
    if tag == VERSION {
        (tag, _) = fields.next()?;
    }
    if tag != INTEGER {
        return None;
    }
    let (_algorithm, _issuer) = (fields.enter(SEQUENCE)?, fields.enter(SEQUENCE)?);
    let mut validity = fields.enter(SEQUENCE)?;
    let _not_before = validity.next()?;
    let (tag, text) = validity.next()?;
    time(tag, std::str::from_utf8(text).ok()?)
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`: certificates allow no other form of either type.
fn time(tag: u8, text: &str) -> Option<Timestamp> {
    let (year, rest) = match tag {
        UTC_TIME => {
            let year = number(text.get(..2)?)?;
            let century = if year < 50 { 2000 } else { 1900 };
            (century + year, text.get(2..)?)
        }
        GENERALIZED_TIME => (number(text.get(..4)?)?, text.get(4..)?),
        _ => return None,
    };
    let part = |at: usize| i8::try_from(number(rest.get(at..at + 2)?)?).ok();
    if rest.get(10..)? != "Z" {
        return None;
    }
    civil::DateTime::new(year, part(0)?, part(2)?, part(4)?, part(6)?, part(8)?, 0)
        .ok()?
        .to_zoned(TimeZone::UTC)
        .ok()
        .map(|zoned| zoned.timestamp())
}

fn number(digits: &str) -> Option<i16> {
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().ok())?
}

/// A run of DER elements.
struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    /// The next element's tag and content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&short, rest) = rest.split_first()?;
        let (length, rest) = match short {
            0..=0x7f => (usize::from(short), rest),
            // The low bits say how many bytes of length follow; four reach any certificate.
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(short & 0x7f))?;
                let length = bytes
                    .iter()
                    .fold(0, |sum, &byte| sum << 8 | usize::from(byte));
                (length, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The elements inside the next element, whose tag must be `tag`.
    fn enter(&mut self, tag: u8) -> Option<Self> {
        let (found, content) = self.next()?;
        (found == tag).then_some(Self(content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(year: i32) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["hooks.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 3, 4);
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn both_encodings_of_time_are_parsed() {
        for (year, expected) in [
            (2031, "2031-03-04T00:00:00Z"),
            (2049, "2049-03-04T00:00:00Z"),
            (2077, "2077-03-04T00:00:00Z"),
        ] {
            let end = not_after(&certificate(year));
            assert_eq!(end, Some(expected.parse().unwrap()), "{year}");
        }
    }

    #[test]
    fn a_truncated_certificate_has_no_expiry() {
        let whole = certificate(2031);
        for length in 0..whole.len() {
            assert_eq!(not_after(&whole[..length]), None);
        }
    }
}
