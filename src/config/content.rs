//! What a file says, apart from how it is written.
//!
//! **Invariant:** files that say the same have the same digest, in each build and on each machine.
//! The order of keys, white space and remarks have no part in it.
//!
//! **Invariant:** what a [`Redaction`] hides has no part in a digest, neither its text nor its
//! length.

use sha2::{Digest, Sha256};
use toml::de::{DeTable, DeValue};

use super::{redaction::Redaction, section::Value};

/// The digest of the file `table`, without what `redaction` hides.
pub(super) fn digest(table: &DeTable<'_>, redaction: &Redaction) -> [u8; 32] {
    let mut text = String::new();
    add_table(table, redaction, &mut text);
    Sha256::digest(text).into()
}

/// The digest of `value`, with all secrets that stand in it.
pub(super) fn full_digest(value: &Value<'_>) -> [u8; 32] {
    let mut text = String::new();
    add(value, &Redaction::default(), &mut text);
    Sha256::digest(text).into()
}

fn add_table(table: &DeTable<'_>, redaction: &Redaction, text: &mut String) {
    text.push('{');
    for (key, value) in table.iter() {
        *text += &format!("{:?}=", key.get_ref());
        add(value, redaction, text);
        text.push(',');
    }
    text.push('}');
}

fn add(value: &Value<'_>, redaction: &Redaction, text: &mut String) {
    let span = value.span();
    match value.get_ref() {
        DeValue::Table(table) => add_table(table, redaction, text),
        DeValue::Array(items) => {
            text.push('[');
            for item in items.iter() {
                add(item, redaction, text);
                text.push(',');
            }
            text.push(']');
        }
        _ if redaction.hides(&span) => *text += "***",
        DeValue::String(value) => *text += &format!("{:?}", redaction.shown(&span, value)),
        DeValue::Integer(number) => *text += &number.to_string(),
        DeValue::Float(number) => *text += &number.to_string(),
        DeValue::Boolean(truth) => *text += &truth.to_string(),
        DeValue::Datetime(time) => *text += &time.to_string(),
    }
}
