//! Zoom's events.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Family, LenientString};
use crate::entries::entries;

entries! {
    /// The families of Zoom.
    pub(super) const FAMILIES: [Family of Event];

    pub mod number_management;
}

/// The envelope of all Zoom notifications ("Using webhooks"). The order of its members differs between
/// products.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Envelope<P> {
    /// The event's name, such as `number_management.peering_number_cnam_updated`.
    pub event: String,
    /// The time of the event, in milliseconds since 1970. (The signature's timestamp is in seconds.) A number,
    /// or a string of digits on some events; absent on others.
    pub event_ts: Option<LenientString>,
    /// The event.
    pub payload: P,
    /// Other members. Zoom adds some without notice.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

impl<P> Envelope<P> {
    /// The time in `event_ts`, if it is a whole number of milliseconds.
    pub fn event_time(&self) -> Option<Timestamp> {
        let millis = self.event_ts.as_deref()?.parse().ok()?;
        Timestamp::from_millisecond(millis).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::Envelope;

    fn event_time(event_ts: &str) -> Option<String> {
        let json = format!(r#"{{"event": "e", "event_ts": {event_ts}, "payload": null}}"#);
        let envelope: Envelope<()> = serde_json::from_str(&json).expect("it is an envelope");
        envelope.event_time().map(|time| time.to_string())
    }

    #[test]
    fn a_time_is_parsed_from_a_number_and_from_digits() {
        for event_ts in ["1619155436400", r#""1619155436400""#] {
            let time = event_time(event_ts);
            assert_eq!(time.as_deref(), Some("2021-04-23T05:23:56.4Z"));
        }
    }

    #[test]
    fn an_event_time_that_is_no_time_is_none() {
        for event_ts in [
            "null",
            r#""""#,
            r#""2024-09-08 15:58:40""#,
            "true",
            "9223372036854775807",
            "18446744073709551615",
            "1e300",
        ] {
            assert_eq!(event_time(event_ts), None, "{event_ts}");
        }
    }
}
