//! RingCentral's events.

mod extension;
mod filter;

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Family, LenientString};
use crate::entries::entries;

entries! {
    /// The families of RingCentral.
    pub(super) const FAMILIES: [Family of Event];

    pub mod phone_number;
    pub mod extension_info;
    pub mod extension_list;
}

/// The envelope of all RingCentral notifications (developer guide, "Event filters").
///
/// Null reads as absent: RingCentral sends null for a member without a value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Envelope<B> {
    /// The id of the notification. Despite its name it is often not a UUID but 18 to 20 digits, so treat
    /// it as opaque.
    pub uuid: Option<LenientString>,
    /// The event filter that the notification was sent for, with its query. It has ids or `~`.
    pub event: String,
    /// When RingCentral sent the notification. No member says when the event happened. ISO 8601 with an
    /// offset, such as `Z` or `+0000`; `sent_at` parses it.
    pub timestamp: Option<LenientString>,
    /// The subscription that the notification was sent for.
    pub subscription_id: Option<LenientString>,
    /// The extension that owns the subscription. It may be in the body instead; the method `owner_id` looks
    /// in both places.
    pub owner_id: Option<LenientString>,
    /// The event.
    pub body: B,
    /// Other members.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// A body that may name the owner of the subscription. OpenAPI has the owner in the body, the guide's
/// samples have it in the envelope.
pub trait HasOwner {
    /// The extension that owns the subscription, if the body names it.
    fn owner_id(&self) -> Option<&LenientString>;
}

impl<B: HasOwner> Envelope<B> {
    /// The extension that owns the subscription, from the envelope or the body.
    pub fn owner_id(&self) -> Option<&str> {
        let owner = self.owner_id.as_ref().or_else(|| self.body.owner_id());
        owner.map(LenientString::as_str)
    }
}

impl<B> Envelope<B> {
    /// The time in `timestamp`; `None` without an offset.
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
    fn the_owner_is_found_in_the_envelope_and_in_the_body() {
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
    fn a_timestamp_is_parsed_with_and_without_a_colon_in_its_offset() {
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
    fn a_timestamp_that_is_no_moment_is_none() {
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
