//! Each kind of mistake, with its place.

use std::net::SocketAddr;

use serde::Deserialize;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Deserializer, Error, Found, Kind, Path, TEXT_OR_TABLE, path::Step};

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
