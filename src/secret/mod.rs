//! Secrets by reference: `{ env = "NAME" }`, `{ file = "/path" }`, or, where the configuration allows
//! it, the text itself.
//!
//! **Invariant:** a [`Secret`] has been read and is not empty.
//!
//! **Invariant:** a secret's text is in no log, no error and no `Debug`.
//!
//! A secret is read while its value in the TOML is deserialized, so that an error is reported at that
//! place. The caller decides what a reference may refer to: [`Sources`] are set for one thread while
//! [`watch`] runs, since `Deserialize` takes no arguments.

mod reference;
mod sources;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use secrecy::{ExposeSecret, SecretString};

pub use reference::refuse_unexpanded;
#[cfg(test)]
pub use sources::with;
pub use sources::{Found, NOT_READ, Source, Sources, is_unread, unread, watch};

/// A text that proves somebody's identity.
#[derive(Clone)]
pub struct Secret(Arc<SecretString>);

impl Secret {
    /// The text. The name marks each place at which the text gets out.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// A secret that was derived from others.
    pub(crate) fn derived(text: String) -> Self {
        Self(Arc::new(SecretString::from(text)))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// At least one secret. Any of them is accepted.
#[derive(Clone, Debug)]
pub struct Secrets(Vec<Secret>);

impl Secrets {
    /// A list of one secret.
    pub fn one(secret: Secret) -> Self {
        Self(vec![secret])
    }

    /// All secrets, in the order of the file.
    pub fn as_slice(&self) -> &[Secret] {
        &self.0
    }

    /// All secrets.
    pub fn iter(&self) -> impl Iterator<Item = &Secret> {
        self.0.iter()
    }

    /// The secret that signs.
    pub fn first(&self) -> &Secret {
        match self.0.first() {
            Some(secret) => secret,
            None => unreachable!("secrets are never made empty"),
        }
    }
}
