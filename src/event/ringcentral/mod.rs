//! What RingCentral says.

mod filter;

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Family, Text};
use crate::entries::entries;

entries! {
    /// The families of RingCentral.
    pub(super) const FAMILIES: [Family of Event];

    pub mod phone_number;
    pub mod extension_info;
}

/// What all RingCentral notifications have in common (developer guide, "Event filters").
///
/// A member that is null reads as one that is absent: RingCentral sends nulls where it has nothing
/// to say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Envelope<B> {
    /// The identity of the notification. Despite its name often not a UUID but 18 to 20 digits, so
    /// nothing is to be read into it.
    pub uuid: Option<Text>,
    /// The event filter that the notification was sent for, with ids in the place of `~` or not,
    /// its query included.
    pub event: String,
    /// When RingCentral sent it, which is as near as it comes to saying when something happened.
    /// ISO 8601 with an offset, such as `Z` or `+0000`; `sent_at` reads it.
    pub timestamp: Option<Text>,
    /// The subscription that it was sent for.
    pub subscription_id: Option<Text>,
    /// The extension that owns the subscription. It may be said in the body instead; the method
    /// `owner_id` looks in both places.
    pub owner_id: Option<Text>,
    /// What is said.
    pub body: B,
    /// Members that are not known here.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// A body that may say who owns the subscription (OpenAPI has it there, the guide's samples have
/// it in the envelope).
pub trait Owned {
    /// The extension that owns the subscription, where the body says so.
    fn owner_id(&self) -> Option<&Text>;
}

impl<B: Owned> Envelope<B> {
    /// The extension that owns the subscription, from wherever it is said.
    pub fn owner_id(&self) -> Option<&str> {
        let owner = self.owner_id.as_ref().or_else(|| self.body.owner_id());
        owner.map(Text::as_str)
    }
}

impl<B> Envelope<B> {
    /// The time in `timestamp`, if it is one: a time without an offset is not.
    pub fn sent_at(&self) -> Option<Timestamp> {
        self.timestamp.as_deref()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{Envelope, extension_info};

    fn sent_at(timestamp: &str) -> Option<String> {
        let json = format!(r#"{{"event": "e", "timestamp": {timestamp}, "body": null}}"#);
        let envelope: Envelope<()> = serde_json::from_str(&json).expect("it is an envelope");
        envelope.sent_at().map(|time| time.to_string())
    }

    #[test]
    fn the_owner_is_found_in_either_place() {
        for (owner, in_body, found) in [
            ("1", "2", Some("1")),
            ("null", "2", Some("2")),
            (r#""1""#, "null", Some("1")),
            ("null", "null", None),
        ] {
            let body = format!(r#"{{"ownerId": {in_body}}}"#);
            let json = format!(r#"{{"event": "e", "ownerId": {owner}, "body": {body}}}"#);
            let event: extension_info::Event = serde_json::from_str(&json).expect("it is one");
            assert_eq!(event.owner_id(), found, "{json}");
        }
    }

    #[test]
    fn a_timestamp_is_read_with_and_without_a_colon_in_its_offset() {
        for timestamp in [
            r#""2018-11-15T07:10:33.501Z""#,
            r#""2018-11-15T07:10:33.501+0000""#,
            r#""2018-11-15T07:10:33.501+00:00""#,
            r#""2018-11-15T02:10:33.501-0500""#,
        ] {
            let time = sent_at(timestamp);
            assert_eq!(time.as_deref(), Some("2018-11-15T07:10:33.501Z"));
        }
    }

    #[test]
    fn what_is_not_a_moment_is_no_time_and_no_error() {
        for timestamp in [
            r#""2018-11-15T07:10:33.501""#,
            r#""yesterday""#,
            r#""""#,
            "1542265833501",
            "null",
            "{}",
        ] {
            assert_eq!(sent_at(timestamp), None, "{timestamp}");
        }
    }
}
