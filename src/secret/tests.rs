//! Each form of a secret, and its errors.

use std::fs;

use serde::{Deserialize, de};

use super::{Secret, Secrets, Source, Sources, watch, with};

const SOURCES: Sources = Sources {
    env: |name| match name {
        "SET" => Some("a secret".to_owned()),
        "EMPTY" => Some(String::new()),
        "PADDED" => Some("a secret\n".to_owned()),
        _ => None,
    },
    inline: true,
};

fn read<T: de::DeserializeOwned>(text: &str, sources: Sources) -> Result<T, String> {
    let value = toml::de::ValueDeserializer::parse(text).unwrap();
    with(sources, || T::deserialize(value)).map_err(|error| error.message().to_owned())
}

fn one(text: &str) -> Result<String, String> {
    read::<Secret>(text, SOURCES).map(|secret| secret.expose().to_owned())
}

#[test]
fn each_form_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    for content in ["a secret", "a secret\n", "a secret\r\n"] {
        fs::write(&path, content).unwrap();
        let form = format!("{{ file = {path:?} }}");
        assert_eq!(one(&form).as_deref(), Ok("a secret"), "{content:?}");
    }
    assert_eq!(one("{ env = \"SET\" }").as_deref(), Ok("a secret"));
    assert_eq!(one("\"a secret\"").as_deref(), Ok("a secret"));
}

#[test]
fn what_is_no_secret_is_refused() {
    for (form, why) in [
        ("{ env = \"UNSET\" }", "\"UNSET\" is not set"),
        ("{ env = \"EMPTY\" }", "\"EMPTY\" is empty"),
        ("{ env = \"$SET\" }", "write { env = \"SET\" }"),
        ("{ env = \"${SET}\" }", "write { env = \"SET\" }"),
        ("{ env = \"PADDED\" }", "white space"),
        ("{ file = \"/nonexistent/secret\" }", "cannot be read"),
        ("{ env = \"SET\", file = \"/secret\" }", "here are two"),
        ("{}", "a place to be read from"),
        ("\"\"", "is empty"),
        ("\" a secret\"", "white space"),
        ("4711", "must be a text"),
        ("47.11", "must be a text"),
        ("true", "must be a text"),
    ] {
        let refused = one(form).unwrap_err();
        assert!(refused.contains(why), "{form}: {refused}");
        assert!(!refused.contains("4711"), "{refused}");
    }
}

#[cfg(unix)]
#[test]
fn a_file_that_everyone_may_write_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, "a secret").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let refused = one(&format!("{{ file = {path:?} }}")).unwrap_err();
    assert!(refused.contains("chmod o-w"), "{refused}");
}

#[test]
fn a_secret_in_the_toml_itself_is_refused_where_it_is_not_allowed_and_noted_all_the_same() {
    let sources = Sources {
        inline: false,
        ..SOURCES
    };
    let value = toml::de::ValueDeserializer::parse("\"a secret\"").unwrap();
    let (read, noted) = watch(sources, || Secret::deserialize(value));
    assert!(read.unwrap_err().message().contains("loopback"));
    let noted = noted.iter();
    let noted: Vec<_> = noted
        .map(|found| (&found.source, found.secret.expose()))
        .collect();
    assert_eq!(noted, [(&Source::Inline, "a secret")]);
}

#[test]
fn secrets_are_a_list_of_at_least_one() {
    let both = read::<Secrets>("[\"new\", { env = \"SET\" }]", SOURCES).unwrap();
    assert_eq!(
        both.iter().map(Secret::expose).collect::<Vec<_>>(),
        ["new", "a secret"]
    );
    assert_eq!(both.first().expose(), "new");
    for (form, why) in [
        ("[]", "at least one"),
        ("\"a secret\"", "square brackets"),
        ("{ env = \"SET\" }", "square brackets"),
    ] {
        let refused = read::<Secrets>(form, SOURCES).unwrap_err();
        assert!(refused.contains(why), "{form}: {refused}");
    }
}

#[test]
fn nothing_shows_a_secret_by_accident() {
    let secret = Secret::derived("hunter2".to_owned());
    assert_eq!(format!("{secret:?}"), "Secret(..)");
    assert!(!format!("{:?}", Secrets::one(secret)).contains("hunter2"));
}
