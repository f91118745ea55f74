//! Masks what identifies people, for callers without the role `raw`.

use std::net::Ipv4Addr;

use serde_json::Value;

/// The least digits of a run that is masked. Shorter ones are counts, ports and status codes.
const LEAST_DIGITS: usize = 7;

/// The digits of a number that stay.
const SHOWN: usize = 2;

/// `text` with every digit of each long number replaced, except the last two. Spaces, dots, hyphens and
/// parentheses may stand between the digits of a number.
pub(super) fn text(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(start);
        masked.push_str(before);
        let end = from.find(|c| !is_of_number(c)).unwrap_or(from.len());
        let (number, after) = from.split_at(end);
        push_masked(&mut masked, number);
        rest = after;
    }
    masked.push_str(rest);
    masked
}

const fn is_of_number(c: char) -> bool {
    c.is_ascii_digit() || matches!(c, ' ' | '.' | '-' | '(' | ')')
}

/// Whether `number` is an address of the Internet, or a date.
fn is_harmless(number: &str) -> bool {
    let number = number.trim_end_matches(['.', ' ', '-', '(', ')']);
    let is_date = || number.split('-').map(str::len).eq([4, 2, 2]);
    number.parse::<Ipv4Addr>().is_ok() || is_date()
}

fn push_masked(masked: &mut String, number: &str) {
    let mut digits = number.bytes().filter(u8::is_ascii_digit).count();
    let hides = digits >= LEAST_DIGITS && !is_harmless(number);
    for c in number.chars() {
        let hidden = hides && c.is_ascii_digit() && digits > SHOWN;
        masked.push(if hidden { '•' } else { c });
        digits -= usize::from(c.is_ascii_digit());
    }
}

/// The members whose texts identify nobody: what happened, to which subscription, and when.
const PUBLIC: &[&str] = &[
    "event",
    "eventType",
    "event_ts",
    "ownerId",
    "status",
    "subscriptionId",
    "timestamp",
    "type",
    "usageType",
    "uuid",
];

/// Masks every text and number in `value`, except the members that identify nobody. What is left of a
/// text are its length and its last two digits.
pub(super) fn json(value: &mut Value) {
    match value {
        Value::Object(members) => {
            let personal = members
                .iter_mut()
                .filter(|(name, _)| !PUBLIC.contains(&name.as_str()));
            personal.for_each(|(_, value)| json(value));
        }
        Value::Array(items) => items.iter_mut().for_each(json),
        Value::String(text) => *text = hidden(text),
        Value::Number(number) => *value = Value::String(hidden(&number.to_string())),
        Value::Bool(_) | Value::Null => {}
    }
}

/// `text` with its letters and digits replaced, except its last two digits.
fn hidden(text: &str) -> String {
    let mut digits = text.bytes().filter(u8::is_ascii_digit).count();
    let keeps = digits >= LEAST_DIGITS;
    let hide = |c: char| {
        let is_last = keeps && digits <= SHOWN;
        digits -= usize::from(c.is_ascii_digit());
        let shows = !c.is_alphanumeric() || c.is_ascii_digit() && is_last;
        if shows { c } else { '•' }
    };
    text.chars().map(hide).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{json as mask, text};

    #[test]
    fn a_body_shows_what_happened_and_to_nobody() {
        let mut body = json!({
            "event": "number_management.changed",
            "payload": { "number": "+1 202 555 0143", "id": 12_345_678, "new": true,
                "address": ["12 Main St", null] },
        });
        mask(&mut body);
        let masked = json!({
            "event": "number_management.changed",
            "payload": { "number": "+• ••• ••• ••43", "id": "••••••78", "new": true,
                "address": ["•• •••• ••", null] },
        });
        assert_eq!(body, masked);
    }

    #[test]
    fn long_numbers_are_masked_but_for_their_last_digits() {
        for (plain, masked) in [
            ("+12025550143", "+•••••••••43"),
            ("+1 (202) 555-0143 is gone", "+• (•••) •••-••43 is gone"),
            ("status 503 after 10 s", "status 503 after 10 s"),
            ("192.168.100.200:9092", "192.168.100.200:9092"),
            ("since 2026-01-31T08:00:00Z.", "since 2026-01-31T08:00:00Z."),
            ("", ""),
            ("número 12345678", "número ••••••78"),
        ] {
            assert_eq!(text(plain), masked);
        }
    }
}
