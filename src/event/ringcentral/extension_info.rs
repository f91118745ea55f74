//! Placeholder: to be written.
use crate::event::{EventFamily, Key, Topic};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    event: String,
}

impl EventFamily for Event {
    const NAME: &'static str = "ringcentral.extension-info";
    const CHANGES: &'static [&'static str] = &["update", "delete", "create"];
    fn claims(_event: &str) -> bool {
        false
    }
    fn change(&self) -> Option<&'static str> {
        None
    }
    fn key(&self) -> Option<Key> {
        None
    }
    fn subject(&self) -> Option<String> {
        None
    }
    fn occurred_at(&self) -> Option<Timestamp> {
        None
    }
    fn topics(&self) -> Vec<Topic> {
        Vec::new()
    }
}
