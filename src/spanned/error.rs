//! What is wrong with a value, in data.

use std::fmt;

use serde::de::{self, Unexpected};
use toml::de::DeValue;

use super::Place;

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What is wrong.
    pub kind: Kind,
    /// Where; `None` until the error leaves a [`Deserializer`](super::Deserializer).
    pub place: Option<Place>,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A table has a key that it cannot have.
    UnknownField {
        /// The key.
        field: String,
        /// The keys that the table can have.
        expected: &'static [&'static str],
    },
    /// A table lacks a key.
    MissingField(&'static str),
    /// A table has a key twice, once under another name.
    DuplicateField(&'static str),
    /// A text, or the key of a table with one key, is none of the choices.
    UnknownVariant {
        /// The text.
        variant: String,
        /// The choices.
        expected: &'static [&'static str],
    },
    /// A value has the wrong type.
    InvalidType {
        /// The value.
        found: Found,
        /// The type, as its visitor calls it.
        expected: String,
    },
    /// A value has the right type and is out of range.
    InvalidValue {
        /// The value.
        found: Found,
        /// The type, as its visitor calls it.
        expected: String,
    },
    /// A table or an array has the wrong number of entries.
    InvalidLength {
        /// How many entries it has.
        length: usize,
        /// The type, as its visitor calls it.
        expected: String,
    },
    /// A type says by itself what is wrong.
    Message {
        /// Its message.
        message: String,
        /// The type, as its visitor calls it, where the visitor was given a text.
        expected: Option<String>,
    },
}

/// The value that an error is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A text.
    Text(String),
    /// An integer or a float, as TOML writes it.
    Number(String),
    /// `true` or `false`.
    Boolean(bool),
    /// A date, a time, or both.
    Datetime,
    /// An array.
    Array,
    /// A table.
    Table,
    /// A value that only serde knows.
    Other(String),
}

impl Error {
    pub(super) const fn new(kind: Kind) -> Self {
        Self { kind, place: None }
    }

    /// Puts an error without a place at `place`.
    pub(super) fn at(self, place: Place) -> Self {
        Self {
            place: self.place.or(Some(place)),
            ..self
        }
    }

    /// Says what the visitor that refused a text calls its type.
    pub(super) fn expecting(mut self, name: String) -> Self {
        if let (Kind::Message { expected, .. }, None) = (&mut self.kind, &self.place) {
            expected.get_or_insert(name);
        }
        self
    }
}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        let (message, expected) = (message.to_string(), None);
        Self::new(Kind::Message { message, expected })
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let (found, expected) = (found.into(), expected.to_string());
        Self::new(Kind::InvalidType { found, expected })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let (found, expected) = (found.into(), expected.to_string());
        Self::new(Kind::InvalidValue { found, expected })
    }

    fn invalid_length(length: usize, expected: &dyn de::Expected) -> Self {
        let expected = expected.to_string();
        Self::new(Kind::InvalidLength { length, expected })
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let variant = variant.to_owned();
        Self::new(Kind::UnknownVariant { variant, expected })
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let field = field.to_owned();
        Self::new(Kind::UnknownField { field, expected })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Kind::MissingField(field))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(Kind::DuplicateField(field))
    }
}

impl std::error::Error for Error {}

/// For developers. A reader of a configuration gets a report, which the config floor writes.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.kind, &self.place) {
            (Kind::Message { message, .. }, _) => f.write_str(message),
            (kind, Some(place)) => write!(f, "{kind:?} at `{}`", place.path),
            (kind, None) => write!(f, "{kind:?}"),
        }
    }
}

impl From<Unexpected<'_>> for Found {
    fn from(found: Unexpected<'_>) -> Self {
        match found {
            Unexpected::Str(text) => Self::Text(text.to_owned()),
            Unexpected::Unsigned(number) => Self::Number(number.to_string()),
            Unexpected::Signed(number) => Self::Number(number.to_string()),
            Unexpected::Float(number) => Self::Number(format!("{number:?}")),
            Unexpected::Bool(truth) => Self::Boolean(truth),
            Unexpected::Unit => Self::Datetime,
            Unexpected::Seq => Self::Array,
            Unexpected::Map => Self::Table,
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<&DeValue<'_>> for Found {
    fn from(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(number) => Self::Number(number.to_string()),
            DeValue::Float(number) => Self::Number(number.to_string()),
            DeValue::Boolean(truth) => Self::Boolean(*truth),
            DeValue::Datetime(_) => Self::Datetime,
            DeValue::Array(_) => Self::Array,
            DeValue::Table(_) => Self::Table,
        }
    }
}
