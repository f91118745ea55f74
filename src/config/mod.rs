//! The TOML file: read, checked whole, and turned into what the floors are built from.

use crate::{admin, dispatch, http, store};

/// Everything that a service is built from.
#[derive(Debug)]
pub struct Config {
    /// The door.
    pub server: http::Settings,
    /// The operator's door.
    pub admin: admin::Settings,
    /// The store.
    pub store: Box<dyn store::Engine>,
    /// Who may post what where; never empty.
    pub endpoints: Vec<http::Endpoint>,
    /// Who gets what.
    pub handlers: Vec<dispatch::Consumer>,
}
