//! Floor 5: the door. It takes what providers post, has it verified and stored, and answers.
//!
//! **Invariant:** an answer of 200 to an event is sent only after [`Store::append`] said `Ok`.
//!
//! **Invariant:** an answer carries no text, is never compressed, and is under 1024 bytes, status
//! line and headers included.
//!
//! [`Store::append`]: crate::store::Store::append

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{
    event::{EndpointName, Family},
    provider::Provider,
    quantity,
};

/// What the TOML's `[server]` says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The certificate, where TLS ends here and not at a proxy.
    pub tls: Option<Tls>,
    /// How many connections may be open; more wait to be accepted.
    pub max_connections: usize,
    /// How many requests may be in flight; more are answered 503.
    pub max_in_flight: usize,
    /// The largest body, in bytes; a larger one is answered 413.
    #[serde(with = "quantity::bytes")]
    pub max_body: u64,
    /// How many bytes of bodies may be held at once; a body beyond that is answered 503.
    #[serde(with = "quantity::bytes")]
    pub body_memory: u64,
    /// How long a new connection may say nothing, TLS handshake included.
    #[serde(with = "quantity::duration")]
    pub first_byte_timeout: Duration,
    /// How long a request's head may take, and how long a connection may idle between requests.
    #[serde(with = "quantity::duration")]
    pub head_timeout: Duration,
    /// How long a request's body may take. Providers themselves give up after 3 seconds.
    #[serde(with = "quantity::duration")]
    pub body_timeout: Duration,
    /// How long a shutdown waits for requests and deliveries that have begun.
    #[serde(with = "quantity::duration")]
    pub drain_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            tls: None,
            max_connections: 1024,
            max_in_flight: 512,
            max_body: 1 << 20,
            body_memory: 16 << 20,
            first_byte_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(3),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// Where the server's certificate is. Both files are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate and its intermediates, PEM. Providers do not fetch missing intermediates.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// One URL that a provider posts to.
#[derive(Debug)]
pub struct Endpoint {
    /// Its name in the TOML.
    pub name: EndpointName,
    /// The family that it serves. Authentic events of others are stored all the same.
    pub family: &'static Family,
    /// Its path, starting with a slash, compared byte for byte.
    pub path: String,
    /// Who may post to it.
    pub provider: Box<dyn Provider>,
}
