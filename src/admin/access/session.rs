//! Sessions of the pages: a cookie that says who logged in and until when.
//!
//! The server keeps nothing: the cookie carries a MAC under a key that is derived from the token. A
//! session ends with its time, with the cookie, or when its token is changed.

use std::{fmt::Write, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, header};
use jiff::Timestamp;
use sha2::Sha256;

/// How long a session lasts: a shift of work.
const LIFETIME: Duration = Duration::from_hours(8);

/// The name of the cookie.
const COOKIE: &str = "hookswitch_session";

/// What a session's MAC covers besides the session, so that no other use of the key is a session.
const CONTEXT: &[u8] = b"hookswitch admin session\n";

/// A session, as its cookie has it: `name.expiry.mac`.
#[derive(Clone, Debug)]
pub(in super::super) struct Session {
    name: String,
    /// In seconds since 1970.
    expiry: i64,
    mac: String,
}

impl Session {
    /// A session of the token called `name`, which has the digest `key`, from `now` on.
    pub(super) fn new(name: &str, key: &[u8; 32], now: Timestamp) -> Self {
        let expiry = now.as_second() + LIFETIME.as_secs().cast_signed();
        let mac = URL_SAFE_NO_PAD.encode(mac(name, expiry, key).finalize().into_bytes());
        Self {
            name: name.to_owned(),
            expiry,
            mac,
        }
    }

    /// The session of a request. It is not checked.
    pub(super) fn read(headers: &HeaderMap) -> Option<Self> {
        let cookies = headers.get_all(header::COOKIE).iter();
        let mut pairs = cookies
            .filter_map(|cookies| cookies.to_str().ok())
            .flat_map(|cookies| cookies.split(';'));
        let value = pairs.find_map(|pair| {
            let (name, value) = pair.trim().split_once('=')?;
            (name == COOKIE).then_some(value)
        })?;
        let (rest, mac) = value.rsplit_once('.')?;
        let (name, expiry) = rest.rsplit_once('.')?;
        Some(Self {
            name: name.to_owned(),
            expiry: expiry.parse().ok()?,
            mac: mac.to_owned(),
        })
    }

    /// The name of the token that logged in.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether this server made the session with the token of the digest `key`, and it lasts at `now`.
    pub(super) fn is_valid(&self, key: &[u8; 32], now: Timestamp) -> bool {
        let sent = URL_SAFE_NO_PAD.decode(&self.mac).unwrap_or_default();
        let is_ours = mac(&self.name, self.expiry, key)
            .verify_slice(&sent)
            .is_ok();
        is_ours && now.as_second() < self.expiry
    }

    /// The `Set-Cookie` header that begins the session in a browser.
    pub(in super::super) fn cookie(&self, needs_tls: bool) -> String {
        let value = format!("{}.{}.{}", self.name, self.expiry, self.mac);
        set_cookie(&value, LIFETIME, needs_tls)
    }
}

/// The `Set-Cookie` header that ends the session in a browser.
pub(in super::super) fn end(needs_tls: bool) -> String {
    set_cookie("", Duration::ZERO, needs_tls)
}

fn set_cookie(value: &str, age: Duration, needs_tls: bool) -> String {
    let age = age.as_secs();
    let mut cookie = format!("{COOKIE}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict");
    if needs_tls {
        // Writing to a `String` cannot fail.
        write!(cookie, "; Secure").ok();
    }
    cookie
}

fn mac(name: &str, expiry: i64, key: &[u8; 32]) -> Hmac<Sha256> {
    #[expect(clippy::expect_used, reason = "a key of HMAC may have any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length is right");
    mac.update(CONTEXT);
    mac.update(format!("{name}.{expiry}").as_bytes());
    mac
}
