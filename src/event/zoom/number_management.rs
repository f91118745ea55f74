//! `zoom.number-management`: a customer changed the emergency address or the caller name of numbers
//! that its carrier brought to Zoom.
//!
//! Zoom tells the carrier so that it can change its own databases; the event is the only record of
//! the change that the carrier gets. Each comes under two names, from the products Number
//! Management and Phone, with the same members: they are folded into one.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::Value;

use super::Envelope;
use crate::event::{
    E164, EventFamily, Given, Key, KeyHash, OrderingKeys, Text, Topic, json, key_hash, list,
    text::BorrowedText,
};

/// One event.
pub type Event = Envelope<Payload>;

/// The change that emergency address events report.
pub const EMERGENCY_ADDRESS_UPDATED: &str = "peering-number-emergency-address-updated";

/// The change that caller name events report.
pub const CNAM_UPDATED: &str = "peering-number-cnam-updated";

/// Whose numbers changed, and how (Zoom's Number Management events specification, which requires
/// both members).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Payload {
    /// The Zoom account of the customer, not of the carrier.
    pub account_id: Text,
    /// The change.
    pub object: Object,
    /// Members that are not known here.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// A change to some numbers. What an absent or a null address or name means is not documented, so
/// the two are kept apart from each other and from an empty one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Object {
    /// The carrier, by the code that Zoom gave it: a 32-bit whole number in the specification.
    pub carrier_code: Text,
    /// The numbers, E.164 by the specification; those of the Phone product have been seen without
    /// their `+`. May be empty. `e164` reads them.
    #[serde(deserialize_with = "list::read")]
    #[schemars(schema_with = "list::schema::<Text>")]
    pub phone_numbers: Vec<Text>,
    /// The new emergency address.
    #[serde(default, skip_serializing_if = "Given::is_absent")]
    pub emergency_address: Given<EmergencyAddress>,
    /// The new caller name (CNAM). Its length is not documented.
    #[serde(default, skip_serializing_if = "Given::is_absent")]
    pub cnam: Given<Text>,
    /// Members that are not known here.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// Where to send help.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmergencyAddress {
    /// House number and street; the one member that the specification requires.
    pub address_line1: Option<Text>,
    /// Floor, suite and the like.
    pub address_line2: Option<Text>,
    /// City.
    pub city: Option<Text>,
    /// Country, by Zoom's abbreviation.
    pub country: Option<Text>,
    /// State, by Zoom's abbreviation.
    pub state_code: Option<Text>,
    /// Postal code.
    pub zip: Option<Text>,
    /// Members that are not known here.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

impl Object {
    /// The numbers that are E.164, in order; [`phone_numbers`](Self::phone_numbers) has them all.
    pub fn e164(&self) -> impl Iterator<Item = E164> {
        self.phone_numbers
            .iter()
            .filter_map(|text| E164::read(text))
    }
}

/// What order goes by: read by itself, since it is needed of bodies too that the model cannot read.
#[derive(Deserialize)]
struct Ordered<'a, O> {
    #[serde(borrow)]
    payload: Owned<'a, O>,
}

#[derive(Deserialize)]
struct Owned<'a, O> {
    #[serde(borrow)]
    account_id: BorrowedText<'a>,
    object: Option<O>,
}

impl<O> Ordered<'_, O> {
    /// The account.
    fn scope(&self) -> KeyHash {
        scope(&self.payload.account_id.0)
    }
}

#[derive(Deserialize)]
struct Numbers<'a> {
    #[serde(borrow)]
    carrier_code: BorrowedText<'a>,
    #[serde(borrow, deserialize_with = "list::read")]
    phone_numbers: Vec<BorrowedText<'a>>,
}

impl Numbers<'_> {
    /// A key for each number, within its carrier; none where any cannot be read, since it may be one
    /// of those that other events are about.
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

fn keys<'a>(carrier: &str, numbers: impl Iterator<Item = &'a str>) -> Vec<KeyHash> {
    let key = |number| Some(key_hash(&[carrier, "/", E164::read(number)?.as_str()]));
    numbers.map(key).collect::<Option<_>>().unwrap_or_default()
}

/// What comes after the product in the name of an event about a peering number.
fn peering_number(event: &str) -> Option<&str> {
    event
        .strip_prefix("number_management.")
        .or_else(|| event.strip_prefix("phone."))?
        .strip_prefix("peering_number_")
}

impl EventFamily for Event {
    const NAME: &'static str = "zoom.number-management";
    const CHANGES: &'static [&'static str] = &[EMERGENCY_ADDRESS_UPDATED, CNAM_UPDATED];
    const EXAMPLE: &'static str =
        include_str!("../../../fixtures/zoom/number-management/an-emergency-address-changed.json");

    /// Every `peering_number_*` event of the two products. One that Zoom adds is claimed as well,
    /// as an unrecognized change: so it is kept in order with the other changes to its numbers,
    /// and reaches the handlers that take the whole family.
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

    /// Each number, within its carrier and account. An event of which any number cannot be read, or
    /// that has none, is about the whole account.
    fn ordering_keys(_: Option<&Key>, body: &[u8]) -> Option<OrderingKeys> {
        if let Ok(ordered) = json::read::<Ordered<'_, Numbers<'_>>>(body) {
            let keys = ordered.payload.object.iter().flat_map(Numbers::keys);
            return Some(OrderingKeys::of(ordered.scope(), keys));
        }
        let ordered: Ordered<'_, IgnoredAny> = json::read(body).ok()?;
        Some(OrderingKeys::whole(ordered.scope()))
    }

    fn own_ordering_keys(&self) -> Option<OrderingKeys> {
        let Payload {
            account_id, object, ..
        } = &self.payload;
        let numbers = object.phone_numbers.iter().map(Text::as_str);
        let keys = keys(&object.carrier_code, numbers);
        Some(OrderingKeys::of(scope(account_id), keys))
    }

    /// The first number.
    fn subject(&self) -> Option<String> {
        Some(self.payload.object.e164().next()?.to_string())
    }

    fn occurred_at(&self) -> Option<Timestamp> {
        self.event_time()
    }

    /// One for each number and kind of change, so that a newer name does not replace an older
    /// address. A number that is not E.164 stands for itself. An event without the very thing that
    /// it reports on replaces nothing.
    fn topics(&self, key: &Key, change: &'static str) -> Vec<Topic> {
        let object = &self.payload.object;
        let is_told = match change {
            CNAM_UPDATED => !object.cnam.is_absent(),
            _ => !object.emergency_address.is_absent(),
        };
        let numbers = object.phone_numbers.iter().filter(|_| is_told);
        let topic = |text: &Text| {
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
    use crate::event::{self, EventFamily, Facts, Given, OrderingKeys, Text};

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
    fn the_twins_are_one_event_of_one_key_and_one_topic() {
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
        assert_eq!(ours.subject(), twin.subject());
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
    fn an_event_whose_numbers_cannot_be_read_is_about_its_whole_account() {
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
    fn what_the_model_cannot_read_keeps_the_place_of_its_numbers() {
        let body = r#"{"event": "phone.peering_number_emergency_address_updated", "payload":
            {"account_id": "a", "object": {"carrier_code": 1, "phone_numbers": ["12025550143"],
            "emergency_address": "14 Invented Row"}}}"#;
        let number = r#"{"carrier_code": 1, "phone_numbers": ["+12025550143"]}"#;
        assert_eq!(ordering(body), ordering_of("a", number));
    }

    #[test]
    fn a_name_and_an_address_of_one_number_are_two_topics() {
        let told = |change: &str, value: &str| {
            let numbers = r#""phone_numbers": ["+12025550143", "12025550143"]"#;
            let object = format!(r#"{{"carrier_code": 4410, {numbers} {value}}}"#);
            Facts::of(&event(&format!("phone.peering_number_{change}"), &object)).topics
        };
        let name = told("cnam_updated", r#", "cnam": null"#);
        let address = told("emergency_address_updated", r#", "emergency_address": {}"#);
        assert_eq!(name.len(), 1);
        assert_eq!(address.len(), 1);
        assert_ne!(name, address);
        // What reports on nothing replaces nothing.
        assert!(told("cnam_updated", r#", "emergency_address": {}"#).is_empty());
        assert!(told("emergency_address_updated", "").is_empty());
        assert!(told("display_name_updated", "").is_empty());
    }

    #[test]
    fn absent_null_and_empty_stay_apart() {
        assert_eq!(object("").cnam, Given::Absent);
        assert_eq!(object(r#", "cnam": null"#).cnam, Given::Null);
        let empty = object(r#", "cnam": """#).cnam;
        assert_eq!(empty, Given::Value(Text::from("")));

        assert_eq!(object("").emergency_address, Given::Absent);
        let null = object(r#", "emergency_address": null"#);
        assert_eq!(null.emergency_address, Given::Null);
        let empty = object(r#", "emergency_address": {}"#).emergency_address;
        let empty: &EmergencyAddress = empty.value().expect("it is there");
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
