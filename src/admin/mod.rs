//! Floor 5: the operator's door, on a listener of its own: probes and metrics.

use std::net::SocketAddr;

use serde::Deserialize;

use crate::secret::Secret;

/// What the TOML's `[admin]` says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The bearer token that `/metrics` asks for; required unless the listener is on loopback.
    /// Probes answer without it: they say one word.
    pub token: Option<Secret>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            token: None,
        }
    }
}
