//! A serde deserializer over a TOML value with spans, and an error that says in data what is wrong.
//!
//! The TOML crate has such a deserializer too. The error of that deserializer is an English
//! sentence, and a program has to guess from the sentence which key was unknown. Serde itself does
//! not guess: [`de::Error`] has one constructor for each kind of mistake, and derived impls call
//! these constructors. [`Error`] keeps the arguments of the call.
//!
//! **Invariant:** an error that a [`Deserializer`] returns has a [`Place`]: the path of the value
//! from the root, and the span of the value or of its key.
//!
//! Serde stops at the first mistake. A [`Deserializer`] can skip the values at given paths, so that
//! a caller who wants every mistake reads again without the values that were wrong. A skipped item
//! of an array leaves its index unused, so that a path means the same in each reading.
//!
//! TOML has no null and serde has no date. A date or a time is visited as a unit, which no setting
//! takes.

mod choice;
mod error;
mod path;
#[cfg(test)]
mod tests;

use std::vec;

use serde::de::{self, value::BorrowedStrDeserializer};
use toml::{
    Spanned,
    de::{DeInteger, DeString, DeTable, DeValue},
};

use choice::Choice;
use path::Step;

pub(crate) use choice::TEXT_OR_TABLE;
pub use error::{Error, Found, Kind};
pub use path::{Path, Place};

/// Deserializes a value, and skips parts of the value.
#[derive(Clone, Debug)]
pub struct Deserializer<'de> {
    value: &'de Spanned<DeValue<'de>>,
    path: Path,
    skipped: &'de [Path],
}

impl<'de> Deserializer<'de> {
    /// Deserializes all of `root`.
    #[cfg(test)]
    pub const fn new(root: &'de Spanned<DeValue<'de>>) -> Self {
        Self::skipping(root, &[])
    }

    /// Deserializes `root` as if the values at `skipped` were not there.
    pub const fn skipping(root: &'de Spanned<DeValue<'de>>, skipped: &'de [Path]) -> Self {
        Self {
            value: root,
            path: Path(Vec::new()),
            skipped,
        }
    }

    fn place(&self) -> Place {
        Place {
            path: self.path.clone(),
            span: self.value.span(),
            is_key: false,
        }
    }

    /// Deserializes `value`, which is one step away; `None` when it is skipped.
    fn entry(&self, step: Step, value: &'de Spanned<DeValue<'de>>) -> Option<Self> {
        let path = self.path.step(step);
        (!self.skipped.contains(&path)).then_some(Self {
            value,
            path,
            skipped: self.skipped,
        })
    }

    fn entries(&self, table: &'de DeTable<'de>) -> Entries<'de> {
        let entries = table.iter().filter_map(|(key, value)| {
            let value = self.entry(Step::Key(key.get_ref().to_string()), value)?;
            Some((Key::new(key, &value), value))
        });
        Entries {
            rest: entries.collect::<Vec<_>>().into_iter(),
            value: None,
        }
    }

    fn items(&self, items: &'de [Spanned<DeValue<'de>>]) -> Items<'de> {
        let items = items.iter().enumerate();
        let items = items.filter_map(|(index, item)| self.entry(Step::Index(index), item));
        Items(items.collect::<Vec<_>>().into_iter())
    }

    fn visit<V: de::Visitor<'de>>(&self, visitor: V) -> Result<V::Value, Error> {
        match self.value.get_ref() {
            DeValue::String(text) => {
                let expected: &dyn de::Expected = &visitor;
                let expected = expected.to_string();
                let visited = visitor.visit_borrowed_str(text);
                visited.map_err(|error: Error| error.expecting(expected))
            }
            DeValue::Integer(number) => visit_integer(number, visitor),
            DeValue::Float(number) => match number.as_str().parse() {
                Ok(number) => visitor.visit_f64(number),
                Err(error) => Err(de::Error::custom(error)),
            },
            DeValue::Boolean(truth) => visitor.visit_bool(*truth),
            DeValue::Datetime(_) => visitor.visit_unit(),
            DeValue::Array(items) => visitor.visit_seq(self.items(items)),
            DeValue::Table(table) => visitor.visit_map(self.entries(table)),
        }
    }
}

fn visit_integer<'de, V: de::Visitor<'de>>(
    number: &DeInteger<'_>,
    visitor: V,
) -> Result<V::Value, Error> {
    let (digits, radix) = (number.as_str(), number.radix());
    if let Ok(number) = i64::from_str_radix(digits, radix) {
        return visitor.visit_i64(number);
    }
    if let Ok(number) = u64::from_str_radix(digits, radix) {
        return visitor.visit_u64(number);
    }
    let expected: &dyn de::Expected = &visitor;
    Err(Error::new(Kind::InvalidValue {
        found: Found::Number(number.to_string()),
        expected: expected.to_string(),
    }))
}

impl<'de> de::Deserializer<'de> for Deserializer<'de> {
    type Error = Error;

    fn deserialize_any<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.visit(visitor).map_err(|error| error.at(self.place()))
    }

    // A value that stands there is never `None`.
    fn deserialize_option<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let place = self.place();
        visitor.visit_some(self).map_err(|error| error.at(place))
    }

    fn deserialize_newtype_struct<V: de::Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let place = self.place();
        let visited = visitor.visit_newtype_struct(self);
        visited.map_err(|error| error.at(place))
    }

    fn deserialize_enum<V: de::Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let choice = Choice::of(&self);
        let visited = choice.and_then(|choice| visitor.visit_enum(choice));
        visited.map_err(|error| error.at(self.place()))
    }

    fn deserialize_ignored_any<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier
    }
}

/// A key with its place.
#[derive(Debug)]
struct Key<'de> {
    name: &'de str,
    place: Place,
}

impl<'de> Key<'de> {
    fn new(key: &'de Spanned<DeString<'de>>, value: &Deserializer<'de>) -> Self {
        let place = Place {
            span: key.span(),
            is_key: true,
            ..value.place()
        };
        Self {
            name: key.get_ref(),
            place,
        }
    }

    fn read<S: de::DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        let read = seed.deserialize(BorrowedStrDeserializer::<Error>::new(self.name));
        read.map_err(|error| error.at(self.place))
    }
}

/// The entries of a table.
#[derive(Debug)]
struct Entries<'de> {
    rest: vec::IntoIter<(Key<'de>, Deserializer<'de>)>,
    /// The value of the key that was read last.
    value: Option<Deserializer<'de>>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = Error;

    fn next_key_seed<S: de::DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        let Some((key, value)) = self.rest.next() else {
            return Ok(None);
        };
        self.value = Some(value);
        key.read(seed).map(Some)
    }

    fn next_value_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        match self.value.take() {
            Some(value) => read(value, seed),
            None => Err(de::Error::custom("a value is read before its key")),
        }
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// The items of an array.
#[derive(Debug)]
struct Items<'de>(vec::IntoIter<Deserializer<'de>>);

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<S: de::DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        self.0.next().map(|item| read(item, seed)).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

/// Reads `value`. What a type says after its value was visited has the place of the value too.
fn read<'de, S: de::DeserializeSeed<'de>>(
    value: Deserializer<'de>,
    seed: S,
) -> Result<S::Value, Error> {
    let place = value.place();
    seed.deserialize(value).map_err(|error| error.at(place))
}
