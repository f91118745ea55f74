//! The credentials that a server is shown.

use async_nats::{AuthError, ConnectOptions};
use nkeys::{KeyPair, KeyPairType};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::secret::Secret;

/// Credentials, in one of four forms.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(try_from = "AuthTable")]
#[schemars(with = "AuthTable")]
pub(super) enum Auth {
    User(User),
    Token(Secret),
    Nkey(Seed),
    Credentials(Credentials),
}

/// The table in the TOML. It is no enum, so that a table with two of the forms has a report of its own.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
struct AuthTable {
    /// The name and the password of a user.
    user: Option<User>,
    /// A token.
    token: Option<Secret>,
    /// The seed of a user's nkey.
    #[schemars(with = "Option<Secret>")]
    nkey: Option<Seed>,
    /// The text of a `.creds` file: the JWT and the seed of a user.
    #[schemars(with = "Option<Secret>")]
    credentials: Option<Credentials>,
}

/// A user with a name and a password.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct User {
    /// The name.
    name: String,
    /// The password.
    password: Secret,
}

/// The seed of a user's nkey. The server gets the public key and a signature, and never the seed.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Secret")]
pub(super) struct Seed(Secret);

/// The content of a `.creds` file: a JWT by which an account vouches for a user, and the seed that signs. The
/// server gets the JWT and a signature.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Secret")]
pub(super) struct Credentials {
    jwt: Secret,
    seed: Seed,
}

impl Auth {
    /// `options` with these credentials.
    pub(super) fn show(&self, options: ConnectOptions) -> ConnectOptions {
        match self {
            Self::User(User { name, password }) => {
                options.user_and_password(name.clone(), password.expose().to_owned())
            }
            Self::Token(token) => options.token(token.expose().to_owned()),
            Self::Nkey(Seed(seed)) => options.nkey(seed.expose().to_owned()),
            Self::Credentials(Credentials { jwt, seed }) => {
                let seed = seed.clone();
                options.jwt(jwt.expose().to_owned(), move |nonce| {
                    let signed = seed.sign(&nonce);
                    std::future::ready(signed)
                })
            }
        }
    }

    /// The secret that is sent as it is, if there is one. A seed is not sent: it signs a nonce of the server,
    /// and a JWT is of no use without its seed.
    pub(super) const fn credential(&self) -> Option<&'static str> {
        match self {
            Self::User(_) => Some("its password"),
            Self::Token(_) => Some("its token"),
            Self::Nkey(_) | Self::Credentials(_) => None,
        }
    }
}

impl TryFrom<AuthTable> for Auth {
    type Error = &'static str;

    fn try_from(table: AuthTable) -> Result<Self, Self::Error> {
        let mut given = [
            table.user.map(Self::User),
            table.token.map(Self::Token),
            table.nkey.map(Self::Nkey),
            table.credentials.map(Self::Credentials),
        ]
        .into_iter()
        .flatten();
        match (given.next(), given.next()) {
            (Some(auth), None) => Ok(auth),
            (Some(_), Some(_)) => Err(
                "a server is shown one of `user`, `token`, `nkey` and `credentials`, and here are \
                 several; keep one of them",
            ),
            (None, _) => Err(
                "`auth` says nothing; give it `user`, `token`, `nkey` or `credentials`, or leave \
                 it out",
            ),
        }
    }
}

impl Seed {
    fn sign(&self, nonce: &[u8]) -> Result<Vec<u8>, AuthError> {
        let pair = KeyPair::from_seed(self.0.expose());
        let signed = pair.and_then(|pair| pair.sign(nonce));
        signed.map_err(AuthError::new)
    }
}

impl TryFrom<Secret> for Seed {
    type Error = &'static str;

    fn try_from(seed: Secret) -> Result<Self, Self::Error> {
        match KeyPair::from_seed(seed.expose()) {
            // The library's own error is left out: it may quote the seed.
            Ok(pair) if matches!(pair.key_pair_type(), KeyPairType::User) => Ok(Self(seed)),
            _ => Err(
                "the secret is not the seed of a user's nkey; it is 58 letters and digits that \
                 begin with SU, as `nk -gen user` writes them",
            ),
        }
    }
}

impl TryFrom<Secret> for Credentials {
    type Error = &'static str;

    fn try_from(file: Secret) -> Result<Self, Self::Error> {
        let below = |begin| below(file.expose(), begin).map(Secret::derived);
        let jwt = below("BEGIN NATS USER JWT");
        let seed = below("BEGIN USER NKEY SEED").map(Seed::try_from);
        match (jwt, seed) {
            (Some(jwt), Some(Ok(seed))) => Ok(Self { jwt, seed }),
            _ => Err(
                "the secret is not a user's credentials; they are a JWT and a seed, each below \
                 its BEGIN line, as `nsc generate creds` writes them",
            ),
        }
    }
}

/// The line below the one that contains `begin`, if there is one and it is not empty.
fn below(text: &str, begin: &str) -> Option<String> {
    let mut lines = text.lines();
    lines.find(|line| line.contains(begin))?;
    let line = lines.next()?.trim();
    (!line.is_empty() && !line.starts_with('-')).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{self, Sources};

    fn read(text: &str) -> Result<Auth, String> {
        let sources = Sources {
            env: |name| match name {
                "USER" => KeyPair::new_user().seed().ok(),
                "ACCOUNT" => KeyPair::new_account().seed().ok(),
                "CREDENTIALS" => {
                    let seed = KeyPair::new_user().seed().ok()?;
                    Some(format!(
                        "-----BEGIN NATS USER JWT-----\r\nhush\r\n------END NATS USER JWT------\r\n\
                         -----BEGIN USER NKEY SEED-----\r\n{seed}\r\n------END USER NKEY SEED------"
                    ))
                }
                "HALF" => Some("-----BEGIN NATS USER JWT-----\nhush".to_owned()),
                "EMPTY" => Some(
                    "-----BEGIN NATS USER JWT-----\n------END NATS USER JWT------\n\
                     -----BEGIN USER NKEY SEED-----\n------END USER NKEY SEED------"
                        .to_owned(),
                ),
                _ => Some("hush".to_owned()),
            },
            inline: false,
        };
        let value = toml::de::ValueDeserializer::parse(text).unwrap();
        secret::with(sources, || Auth::deserialize(value))
            .map_err(|error| error.message().to_owned())
    }

    #[test]
    fn each_way_of_identifying_is_read_and_shows_no_secret() {
        for sound in [
            "{ user = { name = \"a\", password = { env = \"A\" } } }",
            "{ token = { env = \"A\" } }",
            "{ nkey = { env = \"USER\" } }",
            "{ credentials = { env = \"CREDENTIALS\" } }",
        ] {
            let shown = format!("{:?}", read(sound).unwrap());
            assert!(
                !shown.contains("hush") && !shown.contains("SU"),
                "{sound}: {shown}"
            );
        }
    }

    #[test]
    fn what_shows_a_server_nothing_or_too_much_is_refused() {
        for (auth, why) in [
            ("{}", "`auth` says nothing"),
            (
                "{ token = { env = \"A\" }, nkey = { env = \"USER\" } }",
                "here are several",
            ),
            ("{ ticket = \"hush\" }", "unknown field `ticket`"),
            (
                "{ token = \"hush\" }",
                "only while every listener is on loopback",
            ),
            ("{ user = { name = \"a\" } }", "missing field `password`"),
            ("{ nkey = { env = \"A\" } }", "not the seed"),
            ("{ nkey = { env = \"ACCOUNT\" } }", "not the seed"),
            ("{ credentials = { env = \"A\" } }", "not a user's"),
            ("{ credentials = { env = \"USER\" } }", "not a user's"),
            ("{ credentials = { env = \"HALF\" } }", "not a user's"),
            ("{ credentials = { env = \"EMPTY\" } }", "not a user's"),
        ] {
            let refused = read(auth).unwrap_err();
            assert!(refused.contains(why), "{auth}: {refused}");
            assert!(!refused.contains("hush"), "{refused}");
        }
    }
}
