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

mod error;
mod path;

use std::vec;

use serde::de::{self, value::BorrowedStrDeserializer};
use toml::{
    Spanned,
    de::{DeInteger, DeString, DeTable, DeValue},
};

use path::Step;

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

    /// The choice that a text makes, or the only key of a table.
    fn choice(&self) -> Result<Choice<'de>, Error> {
        let wrong = match self.value.get_ref() {
            DeValue::String(name) => {
                let (place, content) = (self.place(), None);
                let name = Key { name, place };
                return Ok(Choice { name, content });
            }
            DeValue::Table(table) => {
                let mut entries = self.entries(table).rest;
                let length = entries.len();
                if let (1, Some((name, value))) = (length, entries.next()) {
                    let content = Some(value);
                    return Ok(Choice { name, content });
                }
                let expected = "a table with one key".to_owned();
                Kind::InvalidLength { length, expected }
            }
            other => Kind::InvalidType {
                found: other.into(),
                expected: TEXT_OR_TABLE.to_owned(),
            },
        };
        Err(Error::new(wrong))
    }
}

/// The name of the type of a choice.
pub(crate) const TEXT_OR_TABLE: &str = "a text in quotes or a table";

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
        let choice = self.choice();
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

/// The variant of an enum, by its name alone or with its content.
#[derive(Debug)]
struct Choice<'de> {
    name: Key<'de>,
    content: Option<Deserializer<'de>>,
}

impl<'de> de::EnumAccess<'de> for Choice<'de> {
    type Error = Error;
    type Variant = Content<'de>;

    fn variant_seed<S: de::DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Content<'de>), Error> {
        let content = Content {
            variant: self.name.name,
            content: self.content,
        };
        Ok((self.name.read(seed)?, content))
    }
}

/// The content of a variant.
#[derive(Debug)]
struct Content<'de> {
    variant: &'de str,
    content: Option<Deserializer<'de>>,
}

impl<'de> Content<'de> {
    fn required(self) -> Result<Deserializer<'de>, Error> {
        let variant = self.variant;
        self.content.ok_or_else(|| {
            Error::new(Kind::InvalidType {
                found: Found::Text(variant.to_owned()),
                expected: format!("a table such as {{ {variant} = ... }}"),
            })
        })
    }
}

impl<'de> de::VariantAccess<'de> for Content<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        let Some(content) = self.content else {
            return Ok(());
        };
        match content.value.get_ref() {
            DeValue::Table(table) if table.is_empty() => Ok(()),
            other => {
                let expected = "an empty table".to_owned();
                let found = other.into();
                let error = Error::new(Kind::InvalidType { found, expected });
                Err(error.at(content.place()))
            }
        }
    }

    fn newtype_variant_seed<S: de::DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        read(self.required()?, seed)
    }

    fn tuple_variant<V: de::Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        de::Deserializer::deserialize_any(self.required()?, visitor)
    }

    // An enum need not refuse unknown fields by itself.
    fn struct_variant<V: de::Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let content = self.required()?;
        if let DeValue::Table(table) = content.value.get_ref() {
            let mut keys = content.entries(table).rest.map(|(key, _)| key);
            if let Some(key) = keys.find(|key| !fields.contains(&key.name)) {
                let error: Error = de::Error::unknown_field(key.name, fields);
                return Err(error.at(key.place));
            }
        }
        de::Deserializer::deserialize_any(content, visitor)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        size: u8,
        choice: Option<Choice>,
        #[serde(default)]
        items: Vec<Item>,
        listen: Option<SocketAddr>,
    }

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Choice {
        Plain,
        Single(u8),
        Pair(u8, u8),
        Full { key: String },
    }

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    #[serde(try_from = "String")]
    struct Item;

    impl TryFrom<String> for Item {
        type Error = &'static str;

        fn try_from(text: String) -> Result<Self, &'static str> {
            (text == "good").then_some(Self).ok_or("no item")
        }
    }

    fn read(text: &str, skipped: &[Path]) -> Result<Settings, Error> {
        let table = DeTable::parse(text).unwrap();
        let root = Spanned::new(table.span(), DeValue::Table(table.into_inner()));
        Settings::deserialize(Deserializer::skipping(&root, skipped))
    }

    /// A path with its indices.
    fn whole(path: &Path) -> String {
        let steps = path.0.iter().map(|step| match step {
            Step::Key(key) => key.clone(),
            Step::Index(index) => index.to_string(),
        });
        steps.collect::<Vec<_>>().join(".")
    }

    /// Checks that `text` has a mistake of this kind, at this path, and that the span is `at`.
    #[track_caller]
    fn check(text: &str, kind: &Kind, path: &str, at: &str) {
        let error = read(text, &[]).unwrap_err();
        let place = error.place.unwrap();
        assert_eq!(&error.kind, kind, "{text}");
        assert_eq!(whole(&place.path), path, "{text}");
        assert_eq!(&text[place.span], at, "{text}");
    }

    fn invalid_type(found: Found, expected: &str) -> Kind {
        let expected = expected.to_owned();
        Kind::InvalidType { found, expected }
    }

    fn number(number: &str) -> Found {
        Found::Number(number.to_owned())
    }

    #[test]
    fn a_key_that_is_unknown_or_missing_is_named() {
        let unknown = |field: &str, expected| {
            let field = field.to_owned();
            Kind::UnknownField { field, expected }
        };
        let fields = &["size", "choice", "items", "listen"];
        check("sice = 2", &unknown("sice", fields), "sice", "sice");
        let text = "size = 1\nchoice = { full = { kay = 1 } }";
        check(text, &unknown("kay", &["key"]), "choice.full.kay", "kay");
        check("items = []", &Kind::MissingField("size"), "", "");
        let text = "size = 1\nchoice = { full = {} }";
        check(text, &Kind::MissingField("key"), "choice.full", "{}");
    }

    #[test]
    fn a_value_of_a_wrong_type_or_out_of_range_is_kept() {
        let text = || Found::Text("x".to_owned());
        check("size = \"x\"", &invalid_type(text(), "u8"), "size", "\"x\"");
        let date = "size = 1979-05-27";
        check(
            date,
            &invalid_type(Found::Datetime, "u8"),
            "size",
            "1979-05-27",
        );
        check(
            "size = [1]",
            &invalid_type(Found::Array, "u8"),
            "size",
            "[1]",
        );
        let items = "items = [\"good\", 5]";
        check(
            items,
            &invalid_type(number("5"), "a string"),
            "items.1",
            "5",
        );
        for large in ["300", "-1", "99999999999999999999"] {
            let kind = Kind::InvalidValue {
                found: number(large),
                expected: "u8".to_owned(),
            };
            check(&format!("size = {large}"), &kind, "size", large);
        }
    }

    #[test]
    fn a_choice_that_is_none_is_kept_with_the_choices() {
        let kind = || Kind::UnknownVariant {
            variant: "odd".to_owned(),
            expected: &["plain", "single", "pair", "full"],
        };
        check("choice = \"odd\"", &kind(), "choice", "\"odd\"");
        check("choice = { odd = 1 }", &kind(), "choice.odd", "odd");
        let text = invalid_type(number("5"), TEXT_OR_TABLE);
        check("choice = 5", &text, "choice", "5");
        let kind = Kind::InvalidLength {
            length: 2,
            expected: "a table with one key".to_owned(),
        };
        let both = "{ plain = {}, single = 1 }";
        check(&format!("choice = {both}"), &kind, "choice", both);
        let alone = Found::Text("full".to_owned());
        let kind = invalid_type(alone, "a table such as { full = ... }");
        check("choice = \"full\"", &kind, "choice", "\"full\"");
        let kind = invalid_type(number("1"), "an empty table");
        check("choice = { plain = 1 }", &kind, "choice.plain", "1");
    }

    #[test]
    fn what_a_type_says_by_itself_has_a_place_too() {
        let kind = Kind::Message {
            message: "no item".to_owned(),
            expected: None,
        };
        let text = "items = [\"good\", \"bad\"]";
        check(text, &kind, "items.1", "\"bad\"");
        let error = read("listen = \"here\"", &[]).unwrap_err();
        let Kind::Message { expected, .. } = error.kind else {
            panic!("{error:?}");
        };
        assert_eq!(expected.as_deref(), Some("socket address"));
    }

    #[test]
    fn a_skipped_value_is_not_there_and_moves_no_other() {
        let text = "size = 1\nitems = [\"bad\", \"good\", \"bad\"]\nchoice = 5";
        let mut skipped = Vec::new();
        let settings = loop {
            match read(text, &skipped) {
                Ok(settings) => break settings,
                Err(error) => skipped.push(error.place.unwrap().path),
            }
        };
        let skipped: Vec<_> = skipped.iter().map(whole).collect();
        assert_eq!(skipped, ["choice", "items.0", "items.2"]);
        assert_eq!(settings.items, [Item]);
        assert_eq!(settings.choice, None);
    }

    #[test]
    fn each_form_of_a_choice_is_read() {
        for (text, choice) in [
            ("\"plain\"", Choice::Plain),
            ("{ plain = {} }", Choice::Plain),
            ("{ single = 0xff }", Choice::Single(255)),
            ("{ pair = [1, 2] }", Choice::Pair(1, 2)),
            (
                "{ full.key = \"x\" }",
                Choice::Full {
                    key: "x".to_owned(),
                },
            ),
        ] {
            let read = read(&format!("size = 1_0\nchoice = {text}"), &[]).unwrap();
            assert_eq!((read.size, read.choice), (10, Some(choice)), "{text}");
        }
    }
}
