//! Who may do what on the admin server.
//!
//! A request is admitted in this order: its `Host` is checked, its caller is found, a request that
//! changes something must come from the server's own pages, and the caller must have the role.
//!
//! | the caller has | who it is |
//! |---|---|
//! | `Authorization: Bearer` | the token of that value |
//! | a session cookie, which [`Access::log_in`] makes | the token that logged in |
//! | neither, and no token is configured | `local`, with every role; the server is on loopback then |
//!
//! **Invariant:** a page of another origin can neither read nor change anything. A name that resolves
//! to this server, as in DNS rebinding, is refused by its `Host`. A request that a browser sends for
//! another page is refused by `Sec-Fetch-Site` or `Origin`; one that has neither must carry a bearer
//! token, which no browser adds by itself.
//!
//! **Invariant:** tokens are compared in constant time, as digests.

mod host;
mod session;

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, Method, header};
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::{sync::Semaphore, time::sleep};

use super::Settings;
use crate::secret::Secret;

pub(super) use session::{Session, end as end_session};

/// What a caller may do.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Look at everything except what identifies people: numbers, names and addresses are masked.
    Read,
    /// Change things: pause handlers, replay and skip deliveries.
    Operate,
    /// Look at bodies and at unmasked numbers.
    Raw,
}

/// One of `[admin.tokens]`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// The token itself.
    pub token: Secret,
    /// What its holder may do: `read`, `operate`, `raw`. Each of the others includes `read`.
    pub roles: Vec<Role>,
}

/// Who makes a request.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// The name of the token, or `local`.
    pub name: Arc<str>,
    roles: Arc<[Role]>,
    /// Whether the caller has a session that it can end.
    pub has_session: bool,
}

impl Caller {
    /// Whether the caller may do what `role` allows.
    pub fn may(&self, role: Role) -> bool {
        role == Role::Read || self.roles.contains(&role)
    }
}

/// Why a request is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// The request names a host that the server is not configured for.
    Host,
    /// The request has no token and no session.
    Anonymous,
    /// The token is wrong.
    WrongToken,
    /// The request changes something, and may come from a page of another origin.
    Origin,
    /// The caller does not have this role.
    Role(Role),
    /// Too many logins failed at the same time.
    TooManyFailures,
}

/// The tokens and the hosts in force.
pub(super) struct Access {
    rules: ArcSwap<Rules>,
    /// Whether the admin server listens on loopback.
    is_loopback: bool,
    /// Failed attempts that are slowed down now.
    failing: Semaphore,
    failures: Counter,
}

struct Rules {
    tokens: Vec<KnownToken>,
    hosts: Vec<String>,
}

struct KnownToken {
    caller: Caller,
    /// The digest of the token. Sessions are signed with it, so it is as secret as the token.
    digest: [u8; 32],
}

/// The caller where no token is configured.
static LOCAL: LazyLock<Caller> = LazyLock::new(|| Caller {
    name: Arc::from("local"),
    roles: Arc::from([Role::Read, Role::Operate, Role::Raw]),
    has_session: false,
});

/// The most failed attempts that are slowed down at the same time. Further ones are refused at once, so
/// that they take no connection from others.
const MAX_FAILING: usize = 8;

/// How long a failed attempt takes.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

impl Access {
    pub(super) fn new(settings: &Settings, failures: Counter) -> Self {
        Self {
            rules: ArcSwap::from_pointee(Rules::new(settings)),
            is_loopback: settings.listen.ip().is_loopback(),
            failing: Semaphore::new(MAX_FAILING),
            failures,
        }
    }

    /// Replaces the tokens and the hosts. Sessions of tokens that have changed end.
    pub(super) fn replace(&self, settings: &Settings) {
        self.rules.store(Arc::new(Rules::new(settings)));
    }

    /// Whether cookies may only be sent over TLS. Browsers take loopback for safe.
    pub(super) const fn needs_tls(&self) -> bool {
        !self.is_loopback
    }

    /// Admits a request for something that `role` allows, at `now`.
    ///
    /// # Errors
    ///
    /// Why the request is not admitted. A wrong token is answered after a pause.
    pub(super) async fn admit(
        &self,
        method: &Method,
        headers: &HeaderMap,
        role: Role,
        now: Timestamp,
    ) -> Result<Caller, Denied> {
        let rules = self.rules.load_full();
        let caller = match bearer(headers) {
            Some(token) => match self.by_token(&rules, token).await? {
                Some(known) => known.caller.clone(),
                None => LOCAL.clone(),
            },
            None => {
                if !host::is_known(headers, &rules.hosts) {
                    return Err(Denied::Host);
                }
                let caller = rules.by_session(headers, now).ok_or(Denied::Anonymous)?;
                if !method.is_safe() && !is_own_page(headers) {
                    return Err(Denied::Origin);
                }
                caller
            }
        };
        match caller.may(role) {
            true => Ok(caller),
            false => Err(Denied::Role(role)),
        }
    }

    /// Makes a session for the holder of `token`, from `now` on.
    ///
    /// # Errors
    ///
    /// When the token is wrong, or the request comes from another origin.
    pub(super) async fn log_in(
        &self,
        headers: &HeaderMap,
        token: &str,
        now: Timestamp,
    ) -> Result<Session, Denied> {
        let rules = self.rules.load_full();
        if !host::is_known(headers, &rules.hosts) {
            return Err(Denied::Host);
        }
        if !is_own_page(headers) {
            return Err(Denied::Origin);
        }
        let known = self.by_token(&rules, token.trim().as_bytes()).await?;
        let known = known.ok_or(Denied::WrongToken)?;
        Ok(Session::new(&known.caller.name, &known.digest, now))
    }

    /// The configured token of this value; `None` where no token is configured.
    async fn by_token<'r>(
        &self,
        rules: &'r Rules,
        token: &[u8],
    ) -> Result<Option<&'r KnownToken>, Denied> {
        let found = rules.find(token);
        if found.is_some() || rules.tokens.is_empty() {
            return Ok(found);
        }
        self.failures.inc();
        let Ok(_permit) = self.failing.try_acquire() else {
            return Err(Denied::TooManyFailures);
        };
        sleep(FAILURE_PAUSE).await;
        Err(Denied::WrongToken)
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").finish_non_exhaustive()
    }
}

impl Rules {
    fn new(settings: &Settings) -> Self {
        let named = settings.tokens.iter();
        let mut tokens: Vec<_> = named
            .map(|(name, token)| KnownToken::new(name, &token.roles, &token.token))
            .collect();
        if let Some(token) = &settings.token {
            tokens.push(KnownToken::new("token", &[Role::Read], token));
        }
        Self {
            tokens,
            hosts: settings.hosts.clone(),
        }
    }

    /// The configured token of this value. All of them are compared, so that the time says nothing.
    fn find(&self, token: &[u8]) -> Option<&KnownToken> {
        let digest = digest(token);
        let mut found = None;
        for known in &self.tokens {
            if known.digest.ct_eq(&digest).into() {
                found = Some(known);
            }
        }
        found
    }

    fn by_session(&self, headers: &HeaderMap, now: Timestamp) -> Option<Caller> {
        if self.tokens.is_empty() {
            return Some(LOCAL.clone());
        }
        let session = Session::read(headers)?;
        let named = |known: &&KnownToken| *known.caller.name == *session.name();
        let known = self.tokens.iter().find(named)?;
        session.is_valid(&known.digest, now).then(|| Caller {
            has_session: true,
            ..known.caller.clone()
        })
    }
}

impl KnownToken {
    fn new(name: &str, roles: &[Role], token: &Secret) -> Self {
        Self {
            caller: Caller {
                name: name.into(),
                roles: roles.into(),
                has_session: false,
            },
            digest: digest(token.expose().as_bytes()),
        }
    }
}

/// The token of the `Authorization` header.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    value.strip_prefix(b"Bearer ")
}

/// Whether the request was sent by one of the server's own pages. Browsers say so themselves:
/// `Sec-Fetch-Site` on secure origins, and `Origin` with every form.
fn is_own_page(headers: &HeaderMap) -> bool {
    match headers.get(SEC_FETCH_SITE) {
        Some(site) => site == "same-origin",
        None => host::is_origin(headers),
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The tokens by name, as the TOML has them.
pub(super) type Tokens = BTreeMap<String, Token>;
