//! Reads secrets, each from the place that its reference names.

use std::{borrow::Cow, fmt, fs, io, path::Path};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use super::{NOT_READ, Secret, Secrets, Source, Sources, is_unread, sources};

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = deserializer.deserialize_any(Reference)?;
        if text.trim() != text {
            return Err(de::Error::custom(Missing::Padded));
        }
        refuse_unexpanded(&text)?;
        Ok(Self::derived(text))
    }
}

/// Checks that `text` is not `${NAME}`, which is a reference in other programs' files.
///
/// # Errors
///
/// When the text is such a reference, or a word followed by one, such as `Bearer ${NAME}`.
pub fn refuse_unexpanded<E: de::Error>(text: &str) -> Result<(), E> {
    let last = text.split_once(' ').map_or(text, |(_, last)| last);
    let name = last
        .strip_prefix("${")
        .and_then(|rest| rest.strip_suffix('}'));
    let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    match name.filter(|name| !name.is_empty() && is_name(name)) {
        Some(name) => Err(E::custom(Missing::Unexpanded(name.to_owned()))),
        None => Ok(()),
    }
}

/// Reads any of the three forms.
struct Reference;

impl<'de> de::Visitor<'de> for Reference {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret: { env = \"NAME\" } or { file = \"/path\" }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        sources::note(Source::Inline, text);
        if !sources::sources().inline {
            return Err(E::custom(Missing::Inline));
        }
        if text.is_empty() {
            return Err(E::custom(Missing::EmptyText));
        }
        Ok(text.to_owned())
    }

    // Serde's own words for these would quote the value.
    fn visit_bool<E: de::Error>(self, _: bool) -> Result<String, E> {
        Err(E::custom(Missing::NotText))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<String, E> {
        Err(E::custom(Missing::NotText))
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<String, E> {
        Err(E::custom(Missing::NotText))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<String, E> {
        Err(E::custom(Missing::NotText))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
        let reference = map.next_entry::<Place, String>()?;
        if map.next_entry::<Place, de::IgnoredAny>()?.is_some() {
            return Err(de::Error::custom(Missing::TwoPlaces));
        }
        let read = match reference {
            None => Err(Missing::NoPlace),
            Some((_, name)) if name.is_empty() => Err(Missing::NoPlace),
            Some((Place::Env, name)) if name.starts_with('$') => {
                let name = name.trim_matches(['$', '{', '}']);
                Err(Missing::Dollar(name.to_owned()))
            }
            Some(_) if is_unread() => return Err(de::Error::custom(NOT_READ)),
            Some((Place::Env, name)) => from_env(name.clone(), sources::sources())
                .inspect(|text| sources::note(Source::Env(name), text)),
            Some((Place::File, path)) => {
                from_file(path.clone()).inspect(|text| sources::note(Source::File(path), text))
            }
        };
        read.map_err(de::Error::custom)
    }
}

/// Where a secret is read from.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Place {
    Env,
    File,
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let reference = |key: &str, description: &str| {
            json_schema!({
                "type": "object",
                "properties": { (key): { "description": description, "type": "string" } },
                "required": [key],
                "additionalProperties": false,
            })
        };
        json_schema!({ "anyOf": [
            reference("env", "The name of an environment variable that holds the secret."),
            reference("file", "The path of a file that holds the secret."),
            { "description": "The secret itself, only while both listeners are on loopback.", "type": "string" },
        ]})
    }
}

impl<'de> Deserialize<'de> for Secrets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(List).map(Self)
    }
}

/// Reads a list of secrets.
struct List;

impl<'de> de::Visitor<'de> for List {
    type Value = Vec<Secret>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of secrets such as [{ env = \"NAME\" }]")
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Vec<Secret>, A::Error> {
        let mut secrets = Vec::new();
        while let Some(secret) = items.next_element()? {
            secrets.push(secret);
        }
        if secrets.is_empty() {
            return Err(de::Error::custom(Missing::None));
        }
        Ok(secrets)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<Secret>, E> {
        sources::note(Source::Inline, text);
        Err(E::custom(Missing::NotListed))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, _: A) -> Result<Vec<Secret>, A::Error> {
        Err(de::Error::custom(Missing::NotListed))
    }
}

impl JsonSchema for Secrets {
    fn schema_name() -> Cow<'static, str> {
        "Secrets".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let secret = generator.subschema_for::<Secret>();
        json_schema!({ "type": "array", "items": secret, "minItems": 1 })
    }
}

/// Why a secret could not be had.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error("the environment variable {0:?} is not set; set it, or refer to another one")]
    Unset(String),
    #[error("the name of an environment variable has no `$`; write {{ env = {0:?} }}")]
    Dollar(String),
    #[error("the environment variable {0:?} is empty; set it to the secret")]
    EmptyVariable(String),
    #[error("the secret file {path:?} cannot be read: {error}; put it where this user can read it")]
    Unreadable { path: String, error: io::Error },
    #[error("the secret file {0:?} is empty; write the secret into it")]
    EmptyFile(String),
    #[error(
        "the secret file {0:?} begins with a byte order mark, which would be part of the secret; \
         save it as UTF-8 without one"
    )]
    Marked(String),
    #[error(
        "variables are not replaced in this file, so the text itself would be the secret; write \
         {{ env = \"{0}\" }} for the whole text"
    )]
    Unexpanded(String),
    #[error(
        "the secret file {0:?} can be written by everyone, so anyone could choose the secret; take \
         that right away with `chmod o-w`"
    )]
    Exposed(String),
    #[error(
        "a secret is empty; write it, or refer to one with {{ env = \"NAME\" }} or {{ file = \"/path\" }}"
    )]
    EmptyText,
    #[error(
        "a secret stands in the file itself, which is allowed only while every listener is on \
         loopback; use {{ env = \"NAME\" }} or {{ file = \"/path\" }}"
    )]
    Inline,
    #[error("a secret begins or ends with white space, which no provider sends; take it away")]
    Padded,
    #[error("a secret must be a text; use {{ env = \"NAME\" }} or {{ file = \"/path\" }}")]
    NotText,
    #[error(
        "secrets come as a list, so that several can be valid while one is replaced; put square brackets around it"
    )]
    NotListed,
    #[error("a secret is read from one place, and here are two; keep one of them")]
    TwoPlaces,
    #[error(
        "a secret needs a place to be read from; use {{ env = \"NAME\" }} or {{ file = \"/path\" }}"
    )]
    NoPlace,
    #[error(
        "at least one secret is needed, or nothing could be verified; add one as {{ env = \"NAME\" }} or {{ file = \"/path\" }}"
    )]
    None,
}

fn from_env(name: String, sources: Sources) -> Result<String, Missing> {
    match (sources.env)(&name) {
        None => Err(Missing::Unset(name)),
        Some(text) if text.is_empty() => Err(Missing::EmptyVariable(name)),
        Some(text) => Ok(text),
    }
}

/// What editors of Windows write before a text in UTF-8 or UTF-16.
const BYTE_ORDER_MARKS: [&[u8]; 3] = [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"];

/// Reads a file and takes one line end off, which editors and `echo` put there.
fn from_file(path: String) -> Result<String, Missing> {
    let unreadable = |error| Missing::Unreadable {
        path: path.clone(),
        error,
    };
    if is_exposed(Path::new(&path)).map_err(unreadable)? {
        return Err(Missing::Exposed(path));
    }
    let bytes = fs::read(&path).map_err(unreadable)?;
    if BYTE_ORDER_MARKS.iter().any(|mark| bytes.starts_with(mark)) {
        return Err(Missing::Marked(path));
    }
    let text = String::from_utf8(bytes);
    let text = text.map_err(|error| unreadable(io::Error::other(error)))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(Missing::EmptyFile(path));
    }
    Ok(text.to_owned())
}

/// Whether everyone may write the file. Reading is not looked at: container engines mount secrets
/// readable by all, inside a file system that nobody else sees.
#[cfg(unix)]
fn is_exposed(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::metadata(path)?.permissions().mode() & 0o002 != 0)
}

#[cfg(not(unix))]
fn is_exposed(path: &Path) -> io::Result<bool> {
    fs::metadata(path).map(|_| false)
}
