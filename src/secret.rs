//! Secrets by reference: `{ env = "NAME" }`, `{ file = "/path" }`, or, where the config allows it,
//! the text itself.
//!
//! **Invariant:** a [`Secret`] in hand has been read and is not empty.
//!
//! **Invariant:** a secret's text is in no log, no error and no `Debug`.
//!
//! A secret is read while its place in the TOML is deserialised, so that what is wrong with it is
//! reported at that place. What a reference may refer to is the caller's to say: [`Sources`] are
//! set for one thread while [`with`] runs, since `Deserialize` takes no arguments.

use std::{cell::RefCell, fmt, fs, io, path::Path, sync::Arc};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, de};

/// A text that proves somebody's identity.
#[derive(Clone)]
pub struct Secret(Arc<SecretString>);

impl Secret {
    /// The text. Named so that a reader sees each place where it gets out.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// A secret made out of others.
    pub(crate) fn derived(text: String) -> Self {
        Self(Arc::new(SecretString::from(text)))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// At least one secret, any of which will do.
#[derive(Clone, Debug)]
pub struct Secrets(Vec<Secret>);

impl Secrets {
    /// Just this one.
    pub fn one(secret: Secret) -> Self {
        Self(vec![secret])
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Secret> {
        self.0.iter()
    }

    /// The one that signs.
    pub fn first(&self) -> &Secret {
        match self.0.first() {
            Some(secret) => secret,
            None => unreachable!("secrets are never made empty"),
        }
    }
}

/// What a reference may refer to while [`with`] runs.
#[derive(Clone, Copy)]
pub struct Sources {
    /// Looks an environment variable up.
    pub env: fn(&str) -> Option<String>,
    /// Whether the text itself may stand in the TOML: only where nobody else can reach us.
    pub inline: bool,
}

thread_local! {
    static SOURCES: RefCell<Sources> = const {
        RefCell::new(Sources { env: |_| None, inline: false })
    };
}

/// Runs `read` with `sources` in force on this thread.
pub fn with<T>(sources: Sources, read: impl FnOnce() -> T) -> T {
    let before = SOURCES.replace(sources);
    let value = read();
    SOURCES.set(before);
    value
}

/// Why a secret could not be had.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error("the environment variable {0:?} is not set; set it, or refer to another one")]
    Unset(String),
    #[error("the environment variable {0:?} is empty; an empty secret would let anyone in")]
    EmptyVariable(String),
    #[error("the secret file {path:?} cannot be read: {error}")]
    Unreadable { path: String, error: io::Error },
    #[error("the secret file {0:?} is empty; an empty secret would let anyone in")]
    EmptyFile(String),
    #[error(
        "the secret file {0:?} can be written by everyone, so anyone could choose the secret; take \
         that right away with `chmod o-w`"
    )]
    Exposed(String),
    #[error("a secret is empty; an empty secret would let anyone in")]
    EmptyText,
    #[error(
        "a secret stands in the file itself, which is allowed only while every listener is on \
         loopback; use {{ env = \"NAME\" }} or {{ file = \"/path\" }}"
    )]
    Inline,
}

fn from_env(name: String, sources: Sources) -> Result<String, Missing> {
    match (sources.env)(&name) {
        None => Err(Missing::Unset(name)),
        Some(text) if text.is_empty() => Err(Missing::EmptyVariable(name)),
        Some(text) => Ok(text),
    }
}

/// Reads a file and takes one line end off, which editors and `echo` put there.
fn from_file(path: String) -> Result<String, Missing> {
    let unreadable = |error| Missing::Unreadable {
        path: path.clone(),
        error,
    };
    if is_exposed(Path::new(&path)).map_err(unreadable)? {
        return Err(Missing::Exposed(path));
    }
    let text = fs::read_to_string(&path).map_err(unreadable)?;
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

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reference).map(Self::derived)
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
        if !SOURCES.with_borrow(|sources| sources.inline) {
            return Err(E::custom(Missing::Inline));
        }
        if text.is_empty() {
            return Err(E::custom(Missing::EmptyText));
        }
        Ok(text.to_owned())
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
        let read = match map.next_entry::<String, String>()? {
            Some((key, name)) if key == "env" => {
                from_env(name, SOURCES.with_borrow(|sources| *sources))
            }
            Some((key, path)) if key == "file" => from_file(path),
            Some((key, _)) => return Err(de::Error::unknown_field(&key, &["env", "file"])),
            None => return Err(de::Error::invalid_length(0, &self)),
        };
        if let Some((key, _)) = map.next_entry::<String, de::IgnoredAny>()? {
            let problem = format!("a secret is read from one place, so {key:?} is one too many");
            return Err(de::Error::custom(problem));
        }
        read.map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Secrets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let secrets = Vec::deserialize(deserializer)?;
        if secrets.is_empty() {
            return Err(de::Error::custom(
                "at least one secret is needed; without one, nothing could be verified",
            ));
        }
        Ok(Self(secrets))
    }
}
