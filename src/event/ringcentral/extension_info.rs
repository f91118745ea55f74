//! `ringcentral.extension-info`: one extension was changed or deleted.
//!
//! The event has no data of the extension. It asks its receiver to read the extension again, and hints at
//! what to read. OpenAPI calls its body `ExtensionInfoEventBody`, and requires no member.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use super::extension::{EventType, Hint};
use super::{
    Envelope, HasOwner, extension,
    filter::{self, Filter},
};
use crate::event::{EventFamily, Key, LenientString, Topic, one_or_many};

/// One event.
pub type Event = Envelope<Body>;

/// A change of an extension.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Body {
    /// The extension's id: a string in the guide and OpenAPI, a number in real traffic.
    pub extension_id: Option<LenientString>,
    /// The change.
    pub event_type: Option<EventType>,
    /// What to read again. Empty on a delete.
    #[serde(default, deserialize_with = "one_or_many::deserialize")]
    #[schemars(schema_with = "one_or_many::schema::<Hint>")]
    pub hints: Vec<Hint>,
    /// The extension that owns the subscription, if the envelope does not name it.
    pub owner_id: Option<LenientString>,
    /// Other members.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

impl Event {
    /// The extension's id, from the body or else from the filter; `None` if the filter has `~`.
    pub fn extension_id(&self) -> Option<&str> {
        let body = self.body.extension_id.as_deref();
        body.filter(|id| !id.is_empty())
            .or_else(|| extension_of(&self.event).filter(|id| filter::is_number(id)))
    }

    /// The paths of the RingCentral API to read again, each once: without hints the extension itself. None
    /// for a deleted extension, or without an id.
    pub fn resources(&self) -> Vec<String> {
        let body = &self.body;
        let id = self.extension_id();
        id.map_or_else(Vec::new, |id| {
            extension::resources(id, body.event_type.as_ref(), &body.hints)
        })
    }
}

/// The extension in the filter `/restapi/v1.0/account/{a}/extension/{e}`. The query may be anything: it can
/// select hints, in a syntax that is not documented.
fn extension_of(event: &str) -> Option<&str> {
    match Filter::parse(event)?.path.as_slice() {
        ["extension", id] if filter::is_id(id) => Some(id),
        _ => None,
    }
}

impl HasOwner for Body {
    fn owner_id(&self) -> Option<&LenientString> {
        self.owner_id.as_ref()
    }
}

impl EventFamily for Event {
    const NAME: &'static str = "ringcentral.extension-info";
    const CHANGES: &'static [(&'static str, &'static str)] = &[
        ("update", "An extension was changed."),
        ("delete", "An extension was deleted."),
        ("create", "An extension was created."),
    ];
    const EXAMPLE: &'static str =
        include_str!("../../../fixtures/ringcentral/extension-info/an-extension-changed.json");

    /// One extension, but not the list of extensions and not a resource below one.
    fn claims(event: &str) -> bool {
        extension_of(event).is_some()
    }

    fn change(&self) -> Option<&'static str> {
        self.body.event_type.as_ref()?.change()
    }

    fn key(&self) -> Option<Key> {
        Some(Key::of(&[Self::NAME, "/", self.extension_id()?]))
    }

    /// The extension's id, and its number if the body has it.
    fn subjects(&self) -> Vec<String> {
        extension::subjects(self.extension_id().map(|id| (id, &self.body.others)))
    }

    fn occurred_at(&self) -> Option<Timestamp> {
        self.sent_at()
    }

    /// See [`extension::topics`].
    fn topics(&self, key: &Key, change: &'static str) -> Vec<Topic> {
        extension::topics(key.as_str(), change, &self.body.hints)
    }
}

#[cfg(test)]
mod tests {
    use super::Event;
    use crate::event::{self, EventFamily, Facts};

    fn event(body: &str) -> Event {
        let event = "/restapi/v1.0/account/4051563/extension/77001";
        let json = format!(r#"{{"event": "{event}", "body": {body}}}"#);
        event::decode(json.as_bytes()).expect("it is an event")
    }

    #[test]
    fn one_extension_is_claimed_with_any_form_of_id_and_any_query() {
        for event in [
            "/restapi/v1.0/account/4051563/extension/77001",
            "/restapi/v1.0/account/~/extension/77001",
            "/restapi/v1.0/account/~/extension/~",
            "/restapi/v1.0/account/{accountId}/extension/{extensionId}",
            "/restapi/v1.0/account/~/extension/77001?hints=Limits",
        ] {
            assert!(Event::claims(event), "{event}");
        }
    }

    #[test]
    fn the_list_and_resources_below_an_extension_are_not_claimed() {
        for event in [
            "/restapi/v1.0/account/~/extension",
            "/restapi/v1.0/account/~/extension/",
            "/restapi/v1.0/account/~/extension?hints=Limits",
            "/restapi/v1.0/account/~/extension/77001/",
            "/restapi/v1.0/account/~/extension/77001/presence",
            "/restapi/v1.0/account/~/extension/77001/message-store",
            "/restapi/v1.0/account/~/extension/grant",
            "/restapi/v1.0/account/~/presence",
        ] {
            assert!(!Event::claims(event), "{event}");
        }
    }

    #[test]
    fn the_id_in_the_body_goes_before_the_one_in_the_path() {
        let in_both = event(r#"{"extensionId": 88002}"#);
        assert_eq!(in_both.extension_id(), Some("88002"));
        for body in ["{}", r#"{"extensionId": null}"#, r#"{"extensionId": ""}"#] {
            assert_eq!(event(body).extension_id(), Some("77001"), "{body}");
        }
    }

    #[test]
    fn each_resource_is_named_once_and_without_hints_it_is_the_extension() {
        let features = "/restapi/v1.0/account/~/extension/77001/features";
        let itself = "/restapi/v1.0/account/~/extension/77001";
        let resources = |body| event(body).resources();
        assert_eq!(
            resources(r#"{"eventType": "Update", "hints": ["Limits", "Features"]}"#),
            [features]
        );
        assert_eq!(resources(r#"{"eventType": "Update"}"#), [itself]);
        assert_eq!(resources(r#"{"hints": ["SomethingNew", null]}"#), [itself]);
        assert!(resources(r#"{"eventType": "Delete"}"#).is_empty());
    }

    #[test]
    fn an_update_is_superseded_only_by_one_with_all_of_its_hints() {
        let topics = |body| Facts::of(&event(body)).topics;
        let both = topics(r#"{"eventType": "Update", "hints": ["Limits", "Features"]}"#);
        let one = topics(r#"{"eventType": "Update", "hints": "Limits"}"#);
        let none = topics(r#"{"eventType": "Update"}"#);
        let deletion = topics(r#"{"eventType": "Delete"}"#);
        let unknown = topics(r#"{"eventType": "Suspend", "hints": ["Limits"]}"#);
        assert_eq!(both.len(), 2);
        assert_eq!(one.len(), 1);
        assert!(both.contains(&one[0]));
        assert!(!both.contains(&none[0]));
        assert_ne!(none, deletion);
        assert!(unknown.is_empty());
    }
}
