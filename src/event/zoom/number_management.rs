//! `zoom.number-management`: a customer changed the emergency address or the caller name of numbers that
//! its carrier brought to Zoom.
//!
//! The carrier has to change its own databases, and this event is its only record of the change. Each
//! event has two names, one of the product Number Management and one of the product Phone. Both have the
//! same members, and are read as one.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::Value;

use super::Envelope;
use crate::event::{
    E164, EventFamily, Key, KeyHash, LenientString, OrderingKeys, Topic, TriState,
    distinct::distinct, json, key_hash, lenient_string::LenientStr, one_or_many,
};

/// One event.
pub type Event = Envelope<Payload>;

/// The change of an emergency address.
pub const EMERGENCY_ADDRESS_UPDATED: &str = "peering-number-emergency-address-updated";

/// The change of a caller name.
pub const CNAM_UPDATED: &str = "peering-number-cnam-updated";

/// The customer and the change (Zoom's Number Management events specification, which requires both
/// members).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Payload {
    /// The Zoom account of the customer, not of the carrier.
    pub account_id: LenientString,
    /// The change.
    pub object: Object,
    /// Other members.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// A change of some numbers. The specification does not say what an absent or a null address or name means,
/// so absent, null and empty are kept apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Object {
    /// Zoom's code of the carrier: a 32-bit integer in the specification.
    pub carrier_code: LenientString,
    /// The numbers: E.164 by the specification. Those of the product Phone may lack their `+`. May be empty.
    /// `e164` parses them.
    #[serde(deserialize_with = "one_or_many::deserialize")]
    #[schemars(schema_with = "one_or_many::schema::<LenientString>")]
    pub phone_numbers: Vec<LenientString>,
    /// The new emergency address.
    #[serde(default, skip_serializing_if = "TriState::is_absent")]
    pub emergency_address: TriState<EmergencyAddress>,
    /// The new caller name (CNAM), of any length.
    #[serde(default, skip_serializing_if = "TriState::is_absent")]
    pub cnam: TriState<LenientString>,
    /// Other members.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// An emergency address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmergencyAddress {
    /// House number and street. The only member that the specification requires.
    pub address_line1: Option<LenientString>,
    /// Floor, suite and the like.
    pub address_line2: Option<LenientString>,
    /// City.
    pub city: Option<LenientString>,
    /// Zoom's abbreviation of the country.
    pub country: Option<LenientString>,
    /// Zoom's abbreviation of the state.
    pub state_code: Option<LenientString>,
    /// Postal code.
    pub zip: Option<LenientString>,
    /// Other members.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

impl Object {
    /// The numbers that can be parsed as E.164; [`phone_numbers`](Self::phone_numbers) has all.
    pub fn e164(&self) -> impl Iterator<Item = E164> {
        self.phone_numbers
            .iter()
            .filter_map(|text| E164::read(text))
    }
}

/// The members of a body that its ordering keys are made of. They are parsed by themselves, since a body
/// that the family cannot read has ordering keys too.
#[derive(Deserialize)]
struct OrderingBody<'a, O> {
    #[serde(borrow)]
    payload: OrderingPayload<'a, O>,
}

#[derive(Deserialize)]
struct OrderingPayload<'a, O> {
    #[serde(borrow)]
    account_id: LenientStr<'a>,
    object: Option<O>,
}

impl<O> OrderingBody<'_, O> {
    /// The account's scope.
    fn scope(&self) -> KeyHash {
        scope(&self.payload.account_id.0)
    }
}

#[derive(Deserialize)]
struct OrderingObject<'a> {
    #[serde(borrow)]
    carrier_code: LenientStr<'a>,
    #[serde(borrow, deserialize_with = "one_or_many::deserialize")]
    phone_numbers: Vec<LenientStr<'a>>,
}

impl OrderingObject<'_> {
    /// The keys of the numbers, as [`keys`] makes them.
    fn keys(&self) -> Vec<KeyHash> {
        keys(
            &self.carrier_code.0,
            self.phone_numbers.iter().map(|number| &*number.0),
        )
    }
}

fn scope(account: &str) -> KeyHash {
    key_hash(&[Event::NAME, "/", account])
}

/// A key for each number of the carrier. None if a number cannot be parsed: it may be a number of another
/// event.
fn keys<'a>(carrier: &str, numbers: impl Iterator<Item = &'a str>) -> Vec<KeyHash> {
    let key = |number| Some(key_hash(&[carrier, "/", E164::read(number)?.as_str()]));
    numbers.map(key).collect::<Option<_>>().unwrap_or_default()
}

/// The change in the name of an event about a peering number, which follows its product.
fn peering_number(event: &str) -> Option<&str> {
    event
        .strip_prefix("number_management.")
        .or_else(|| event.strip_prefix("phone."))?
        .strip_prefix("peering_number_")
}

impl EventFamily for Event {
    const NAME: &'static str = "zoom.number-management";
    const CHANGES: &'static [(&'static str, &'static str)] = &[
        (
            EMERGENCY_ADDRESS_UPDATED,
            "A customer changed the emergency address of numbers.",
        ),
        (
            CNAM_UPDATED,
            "A customer changed the caller name (CNAM) of numbers.",
        ),
    ];
    const EXAMPLE: &'static str =
        include_str!("../../../fixtures/zoom/number-management/an-emergency-address-changed.json");

    /// Every `peering_number_*` event of the two products. An event that Zoom adds is claimed as an
    /// unrecognized change: it keeps its order with the other changes of its numbers, and gets to the
    /// handlers of the whole family.
    fn claims(event: &str) -> bool {
        peering_number(event).is_some()
    }

    fn change(&self) -> Option<&'static str> {
        match peering_number(&self.event)? {
            "emergency_address_updated" => Some(EMERGENCY_ADDRESS_UPDATED),
            "cnam_updated" => Some(CNAM_UPDATED),
            _ => None,
        }
    }

    /// The account and the carrier.
    fn key(&self) -> Option<Key> {
        let Payload {
            account_id, object, ..
        } = &self.payload;
        let carrier = &object.carrier_code;
        Some(Key::of(&[Self::NAME, "/", account_id, "/", carrier]))
    }

    /// Each number, within its carrier and account. An event without numbers, or with one that cannot be
    /// parsed, has all keys of the account.
    fn ordering_keys_of(_: Option<&Key>, body: &[u8]) -> Option<OrderingKeys> {
        if let Ok(ordered) = json::read::<OrderingBody<'_, OrderingObject<'_>>>(body) {
            let keys = ordered.payload.object.iter().flat_map(OrderingObject::keys);
            return Some(OrderingKeys::of(ordered.scope(), keys));
        }
        let ordered: OrderingBody<'_, IgnoredAny> = json::read(body).ok()?;
        Some(OrderingKeys::whole(ordered.scope()))
    }

    fn ordering_keys(&self) -> Option<OrderingKeys> {
        let Payload {
            account_id, object, ..
        } = &self.payload;
        let numbers = object.phone_numbers.iter().map(LenientString::as_str);
        let keys = keys(&object.carrier_code, numbers);
        Some(OrderingKeys::of(scope(account_id), keys))
    }

    /// The numbers that can be parsed.
    fn subjects(&self) -> Vec<String> {
        distinct(self.payload.object.e164().map(|number| number.to_string()))
    }

    fn occurred_at(&self) -> Option<Timestamp> {
        self.event_time()
    }

    /// One for each number and change, so that a newer name does not replace an older address. A number that
    /// is not E.164 is used as it was written. An event without the address or name that it reports has no
    /// topics.
    fn topics(&self, key: &Key, change: &'static str) -> Vec<Topic> {
        let object = &self.payload.object;
        let is_reported = match change {
            CNAM_UPDATED => !object.cnam.is_absent(),
            _ => !object.emergency_address.is_absent(),
        };
        let numbers = object.phone_numbers.iter().filter(|_| is_reported);
        let topic = |text: &LenientString| {
            let e164 = E164::read(text);
            let number = e164.as_ref().map_or(text.as_str(), E164::as_str);
            Topic::of(&[key.as_str(), "/", change, "/", number])
        };
        let mut topics: Vec<_> = numbers.map(topic).collect();
        topics.sort_unstable();
        topics.dedup();
        topics
    }
}

#[cfg(test)]
mod tests {
    use super::{EmergencyAddress, Event, Object};
    use crate::event::{self, EventFamily, Facts, LenientString, OrderingKeys, TriState};

    fn event(name: &str, object: &str) -> Event {
        let json = format!(
            r#"{{"event": "{name}", "payload": {{"account_id": "qX7tLw2bR0eVYdm4Zk9sHA", "object": {object}}}}}"#
        );
        event::decode(json.as_bytes()).expect("it is an event")
    }

    fn object(members: &str) -> Object {
        let object = format!(r#"{{"carrier_code": 4410, "phone_numbers": [] {members}}}"#);
        let name = "number_management.peering_number_cnam_updated";
        event(name, &object).payload.object
    }

    #[test]
    fn peering_number_events_of_both_products_are_claimed() {
        for (event, ours) in [
            ("number_management.peering_number_cnam_updated", true),
            ("phone.peering_number_emergency_address_updated", true),
            ("number_management.peering_number_deleted", true),
            ("phone.peering_number_", true),
            ("phone.caller_ended", false),
            ("number_management.number_updated", false),
            ("contact_center.peering_number_cnam_updated", false),
            ("endpoint.url_validation", false),
            ("", false),
        ] {
            assert_eq!(Event::claims(event), ours, "{event}");
        }
    }

    #[test]
    fn the_events_of_both_products_have_the_same_key_and_topic() {
        let ours = event(
            "number_management.peering_number_cnam_updated",
            r#"{"carrier_code": 4410, "phone_numbers": ["+12025550143"], "cnam": "A"}"#,
        );
        let twin = event(
            "phone.peering_number_cnam_updated",
            r#"{"carrier_code": "4410", "phone_numbers": [12025550143], "cnam": "A"}"#,
        );
        assert_eq!(ours.change(), twin.change());
        assert_eq!(ours.key(), twin.key());
        assert_eq!(ours.subjects(), twin.subjects());
        assert_eq!(Facts::of(&ours).topics, Facts::of(&twin).topics);
    }

    fn ordering(body: &str) -> OrderingKeys {
        let recognized = event::recognize("zoom", body.as_bytes());
        let key = recognized.facts.key.as_ref();
        let keys = event::ordering_keys(&recognized.name, key, body.as_bytes());
        keys.expect("its account can be read")
    }

    fn ordering_of(account: &str, object: &str) -> OrderingKeys {
        let event = "phone.peering_number_cnam_updated";
        ordering(&format!(
            r#"{{"event": "{event}", "payload": {{"account_id": "{account}", "object": {object}}}}}"#
        ))
    }

    #[test]
    fn each_number_is_a_key_within_its_carrier_and_account() {
        let one = |numbers: &str| {
            ordering_of(
                "a",
                &format!(r#"{{"carrier_code": 1, "phone_numbers": {numbers}}}"#),
            )
        };
        let both = one(r#"["+12025550143", "1 (202) 555-0144", "12025550143"]"#);
        assert_eq!(both.keys().len(), 2);
        assert!(both.share_a_key_with(&one(r#""12025550144""#)));
        assert!(!both.share_a_key_with(&one(r#"["+12025550145"]"#)));
        let elsewhere = r#"{"carrier_code": "2", "phone_numbers": ["+12025550143"]}"#;
        assert!(!both.share_a_key_with(&ordering_of("a", elsewhere)));
        let somebody = r#"{"carrier_code": 1, "phone_numbers": ["+12025550143"]}"#;
        assert!(!both.share_a_key_with(&ordering_of("b", somebody)));
        assert!(both.share_a_key_with(&ordering_of("a", somebody)));
    }

    #[test]
    fn an_event_whose_numbers_cannot_be_parsed_has_all_keys_of_its_account() {
        for object in [
            r#"{"carrier_code": 1, "phone_numbers": []}"#,
            r#"{"carrier_code": 1, "phone_numbers": ["+12025550143", "reception"]}"#,
            r#"{"carrier_code": 1}"#,
            r#"{"carrier_code": 1, "phone_numbers": 7, "phone_numbers": 8}"#,
            r#""nothing""#,
            "null",
        ] {
            let keys = ordering_of("a", object);
            assert!(keys.is_whole(), "{object}");
            let number = r#"{"carrier_code": 2, "phone_numbers": ["+12025550143"]}"#;
            assert!(keys.share_a_key_with(&ordering_of("a", number)), "{object}");
        }
    }

    #[test]
    fn an_unreadable_event_has_the_ordering_keys_of_its_numbers() {
        let body = r#"{"event": "phone.peering_number_emergency_address_updated", "payload":
            {"account_id": "a", "object": {"carrier_code": 1, "phone_numbers": ["12025550143"],
            "emergency_address": "14 Invented Row"}}}"#;
        let number = r#"{"carrier_code": 1, "phone_numbers": ["+12025550143"]}"#;
        assert_eq!(ordering(body), ordering_of("a", number));
    }

    #[test]
    fn a_name_and_an_address_of_one_number_are_two_topics() {
        let topics = |change: &str, value: &str| {
            let numbers = r#""phone_numbers": ["+12025550143", "12025550143"]"#;
            let object = format!(r#"{{"carrier_code": 4410, {numbers} {value}}}"#);
            Facts::of(&event(&format!("phone.peering_number_{change}"), &object)).topics
        };
        let name = topics("cnam_updated", r#", "cnam": null"#);
        let address = topics("emergency_address_updated", r#", "emergency_address": {}"#);
        assert_eq!(name.len(), 1);
        assert_eq!(address.len(), 1);
        assert_ne!(name, address);
        // An event without the value that it reports replaces nothing.
        assert!(topics("cnam_updated", r#", "emergency_address": {}"#).is_empty());
        assert!(topics("emergency_address_updated", "").is_empty());
        assert!(topics("display_name_updated", "").is_empty());
    }

    #[test]
    fn absent_null_and_empty_stay_apart() {
        assert_eq!(object("").cnam, TriState::Absent);
        assert_eq!(object(r#", "cnam": null"#).cnam, TriState::Null);
        let empty = object(r#", "cnam": """#).cnam;
        assert_eq!(empty, TriState::Present(LenientString::from("")));

        assert_eq!(object("").emergency_address, TriState::Absent);
        let null = object(r#", "emergency_address": null"#);
        assert_eq!(null.emergency_address, TriState::Null);
        let empty = object(r#", "emergency_address": {}"#).emergency_address;
        let empty: &EmergencyAddress = empty.value().expect("it is present");
        assert_eq!(empty.address_line1, None);
    }

    #[test]
    fn an_address_that_is_none_makes_the_event_unreadable() {
        let body = r#"{"event": "phone.peering_number_emergency_address_updated", "payload":
            {"account_id": "a", "object": {"carrier_code": 1, "phone_numbers": [],
            "emergency_address": "14 Invented Row"}}}"#;
        let recognized = event::recognize("zoom", body.as_bytes());
        let name = "zoom.number-management.unreadable";
        assert_eq!(recognized.name.as_str(), name);
        let unreadable = recognized.unreadable.expect("it is unreadable").to_string();
        assert!(!unreadable.contains("Invented"), "{unreadable}");
    }
}
