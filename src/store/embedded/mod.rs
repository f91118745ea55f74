//! The embedded store (placeholder: to be written).
use super::{Context, Engine, Records, Store, StoreError};
use serde::Deserialize;
use std::sync::Arc;

/// What the TOML says of an embedded store.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where it lives.
    pub path: std::path::PathBuf,
}
impl super::Kind for Settings {
    const KIND: &'static str = "embedded";
}
impl Engine for Settings {
    fn open(&self, _context: Context) -> Result<Arc<dyn Store>, StoreError> {
        Err(StoreError::Closed)
    }
    fn records(&self) -> Result<Box<dyn Records>, StoreError> {
        Err(StoreError::Closed)
    }
}
