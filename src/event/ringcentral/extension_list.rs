//! `ringcentral.extension-list`: extensions of an account were created, changed or deleted.
//!
//! One event can have several changes. The guide has them in an array (`body.extensions[]`); OpenAPI's
//! `ExtensionListEventBody` is flat, with one change and no hints. Both forms are read, and
//! `Event::changes` has the changes of either. As in `ringcentral.extension-info`, a change has no data of
//! the extension: it asks its receiver to read the extension again.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use super::extension::{EventType, Hint};
use super::{Envelope, HasOwner, extension, filter::Filter};
use crate::event::{
    self, EventFamily, Key, KeyHash, LenientString, OrderingKeys, Topic, envelope, key_hash,
    one_or_many,
};

/// One event.
pub type Event = Envelope<Body>;

/// Changes of extensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Body {
    /// The changes, in the guide's form.
    #[serde(default, deserialize_with = "one_or_many::deserialize")]
    #[schemars(schema_with = "one_or_many::schema::<Change>")]
    pub extensions: Vec<Change>,
    /// The extension that owns the subscription, if the envelope does not name it.
    pub owner_id: Option<LenientString>,
    /// The one change, in OpenAPI's form.
    #[serde(flatten)]
    pub change: Change,
}

/// A change of one extension.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// The extension's id: a string in the guide and OpenAPI.
    pub extension_id: Option<LenientString>,
    /// The change.
    pub event_type: Option<EventType>,
    /// What to read again (guide). Empty on a create and a delete.
    #[serde(default, deserialize_with = "one_or_many::deserialize")]
    #[schemars(schema_with = "one_or_many::schema::<Hint>")]
    pub hints: Vec<Hint>,
    /// Other members.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// The change of an event whose changes are not all the same.
const MIXED: &str = "mixed";

impl Change {
    /// The extension's id, if it is not empty.
    pub fn extension_id(&self) -> Option<&str> {
        self.extension_id.as_deref().filter(|id| !id.is_empty())
    }

    /// The paths of the RingCentral API to read again, each once: without hints the extension itself. None
    /// for a deleted extension, or without an id.
    pub fn resources(&self) -> Vec<String> {
        self.extension_id().map_or_else(Vec::new, |id| {
            extension::resources(id, self.event_type.as_ref(), &self.hints)
        })
    }

    fn change(&self) -> Option<&'static str> {
        self.event_type.as_ref()?.change()
    }

    /// What a newer change would replace; `None` for a change that no other can be compared with.
    fn topics(&self, key: &Key) -> Option<Vec<Topic>> {
        let extension = format!("{key}/extension/{}", self.extension_id()?);
        Some(extension::topics(&extension, self.change()?, &self.hints))
    }
}

impl Event {
    /// The changes, in either form.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        let flat = &self.body.change;
        let is_there = flat.extension_id.is_some() || flat.event_type.is_some();
        let flat = is_there.then_some(flat);
        self.body.extensions.iter().chain(flat)
    }
}

impl HasOwner for Body {
    fn owner_id(&self) -> Option<&LenientString> {
        self.owner_id.as_ref()
    }
}

/// The account in the filter `/restapi/v1.0/account/{a}/extension`, with any query: it can select hints, in
/// a syntax that is not documented.
fn account_of(event: &str) -> Option<&str> {
    let filter = Filter::parse(event)?;
    (filter.path == ["extension"]).then_some(filter.account)
}

fn scope(account: &str) -> KeyHash {
    key_hash(&[Event::NAME, "/", account])
}

impl EventFamily for Event {
    const NAME: &'static str = "ringcentral.extension-list";
    const CHANGES: &'static [(&'static str, &'static str)] = &[
        ("update", "Extensions of the account were changed."),
        ("delete", "Extensions of the account were deleted."),
        ("create", "Extensions of the account were created."),
        (MIXED, "One event reports changes of different kinds."),
    ];
    const EXAMPLE: &'static str =
        include_str!("../../../fixtures/ringcentral/extension-list/an-extension-changed.json");

    /// The list of extensions, but not one extension.
    fn claims(event: &str) -> bool {
        account_of(event).is_some()
    }

    /// The change of all extensions, or [`MIXED`].
    fn change(&self) -> Option<&'static str> {
        let mut changes = self.changes().map(Change::change);
        let first = changes.next()?;
        match changes.all(|change| change == first) {
            true => first,
            false => Some(MIXED),
        }
    }

    /// The account: an event with several extensions must get to the same partition as an event with one of
    /// them.
    fn key(&self) -> Option<Key> {
        Some(Key::of(&[Self::NAME, "/", account_of(&self.event)?]))
    }

    /// Each extension, within its account. An event without an extension, or with one whose id is missing,
    /// has all keys of the account.
    fn ordering_keys(&self) -> Option<OrderingKeys> {
        let ids = self.changes().map(Change::extension_id);
        let keys = ids
            .map(|id| Some(key_hash(&[id?])))
            .collect::<Option<Vec<_>>>();
        let scope = scope(account_of(&self.event)?);
        Some(OrderingKeys::of(scope, keys.unwrap_or_default()))
    }

    /// An event that cannot be read has all keys of its account.
    fn ordering_keys_of(_: Option<&Key>, body: &[u8]) -> Option<OrderingKeys> {
        if let Ok(event) = event::decode::<Self>(body) {
            return event.ordering_keys();
        }
        let event = envelope::event(body)?;
        Some(OrderingKeys::whole(scope(account_of(&event)?)))
    }

    /// The id of each extension, and its number if the change has it.
    fn subjects(&self) -> Vec<String> {
        let changes = self.changes();
        extension::subjects(
            changes.filter_map(|change| Some((change.extension_id()?, &change.others))),
        )
    }

    fn occurred_at(&self) -> Option<Timestamp> {
        self.sent_at()
    }

    /// Those of each change. An event with a change that is not known has none: no other event reports all
    /// of it.
    fn topics(&self, key: &Key, _: &'static str) -> Vec<Topic> {
        let topics = self.changes().map(|change| change.topics(key));
        let topics = topics.collect::<Option<Vec<_>>>().unwrap_or_default();
        let mut topics = topics.concat();
        topics.sort_unstable();
        topics.dedup();
        topics
    }
}

#[cfg(test)]
mod tests {
    use super::Event;
    use crate::event::{self, EventFamily, Facts, OrderingKeys, ordering::MAX_KEYS};

    fn facts_of(account: &str, body: &str) -> Facts {
        let event = format!("/restapi/v1.0/account/{account}/extension");
        let json = format!(r#"{{"event": "{event}", "body": {body}}}"#);
        event::recognize("ringcentral", json.as_bytes()).facts
    }

    fn facts(body: &str) -> Facts {
        facts_of("4051563", body)
    }

    #[test]
    fn the_list_is_claimed_with_any_form_of_account_id_and_any_query() {
        for event in [
            "/restapi/v1.0/account/4051563/extension",
            "/restapi/v1.0/account/~/extension",
            "/restapi/v1.0/account/{accountId}/extension",
            "/restapi/v1.0/account/~/extension?hints=Limits",
        ] {
            assert!(Event::claims(event), "{event}");
        }
        for event in [
            "/restapi/v1.0/account/4051563/extension/77001",
            "/restapi/v1.0/account/~/extension/~",
            "/restapi/v1.0/account/~/extension/",
            "/restapi/v1.0/account/~/extension/77001/presence",
            "/restapi/v1.0/account/~/extensions",
            "/restapi/v1.0/account/extension",
        ] {
            assert!(!Event::claims(event), "{event}");
        }
    }

    #[test]
    fn both_forms_of_one_change_have_the_same_facts() {
        let flat = facts(r#"{"extensionId": "77001", "eventType": "Delete", "ownerId": "1"}"#);
        let listed = r#"{"extensions": [{"extensionId": 77001, "eventType": "Delete"}]}"#;
        assert_eq!(flat, facts(listed));
        let alone = r#"{"extensions": {"extensionId": "77001", "eventType": "Delete"}}"#;
        assert_eq!(flat, facts(alone));
        assert_eq!(flat.change, Some("delete"));
        assert_eq!(flat.subjects, ["77001"]);
    }

    #[test]
    fn an_event_has_the_change_that_all_its_extensions_have_or_is_mixed() {
        let change = |types: &[&str]| {
            let changes = types
                .iter()
                .map(|kind| format!(r#"{{"eventType": {kind}}}"#));
            let changes = changes.collect::<Vec<_>>().join(",");
            facts(&format!(r#"{{"extensions": [{changes}]}}"#)).change
        };
        let (create, delete, unknown) = (r#""Create""#, r#""Delete""#, r#""Suspend""#);
        assert_eq!(change(&[create]), Some("create"));
        assert_eq!(change(&[create, create]), Some("create"));
        assert_eq!(change(&[create, delete]), Some("mixed"));
        assert_eq!(change(&[delete, unknown]), Some("mixed"));
        assert_eq!(change(&[delete, "null"]), Some("mixed"));
        assert_eq!(change(&[unknown, unknown]), None);
        assert_eq!(change(&["null"]), None);
        assert_eq!(change(&[]), None);
    }

    fn ordering_keys(account: &str, ids: &[&str]) -> OrderingKeys {
        let changes = ids.iter().map(|id| format!(r#"{{"extensionId": {id}}}"#));
        let changes = changes.collect::<Vec<_>>().join(",");
        let keys = facts_of(account, &format!(r#"{{"extensions": [{changes}]}}"#)).ordering_keys;
        keys.expect("its account is known")
    }

    #[test]
    fn each_extension_is_a_key_within_its_account() {
        let both = ordering_keys("1", &["1001", r#""1002""#, r#""1001""#]);
        assert_eq!(both.keys().len(), 2);
        assert!(both.share_a_key_with(&ordering_keys("1", &["1002"])));
        assert!(!both.share_a_key_with(&ordering_keys("1", &["1003"])));
        assert!(!both.share_a_key_with(&ordering_keys("2", &["1002"])));
    }

    #[test]
    fn an_event_whose_extensions_are_not_all_known_has_all_keys_of_its_account() {
        let many: Vec<_> = (0..=MAX_KEYS).map(|id| id.to_string()).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        for ids in [&[][..], &["1001", "null"], &[r#""""#], many.as_slice()] {
            let keys = ordering_keys("1", ids);
            assert!(keys.is_whole(), "{ids:?}");
            assert!(keys.share_a_key_with(&ordering_keys("1", &["1002"])));
        }
    }

    #[test]
    fn an_unreadable_event_has_all_keys_of_its_account() {
        let unreadable = facts_of("1", r#"{"extensions": ["1001"]}"#);
        assert_eq!(unreadable.change, None);
        assert_eq!(unreadable.ordering_keys, Some(ordering_keys("1", &[])));
    }

    #[test]
    fn an_event_is_superseded_by_events_that_have_all_of_its_changes() {
        let topics = |body: &str| facts(body).topics;
        let update = r#"{"extensionId": "1", "eventType": "Update", "hints": ["Limits"]}"#;
        let delete = r#"{"extensionId": "2", "eventType": "Delete"}"#;
        let both = topics(&format!(
            r#"{{"extensions": [{update}, {delete}, {update}]}}"#
        ));
        let mut each = [topics(update), topics(delete)].concat();
        each.sort_unstable();
        assert_eq!(both, each);
        assert_eq!(both.len(), 2);

        for unknown in [
            r#"{"extensionId": "2", "eventType": "Suspend"}"#,
            r#"{"eventType": "Delete"}"#,
        ] {
            let body = format!(r#"{{"extensions": [{update}, {unknown}]}}"#);
            assert!(topics(&body).is_empty(), "{unknown}");
        }
    }

    #[test]
    fn the_resources_of_each_change_are_those_of_its_extension() {
        let json = r#"{"event": "/restapi/v1.0/account/~/extension", "body": {"extensions": [
            {"extensionId": "1", "eventType": "Update", "hints": ["Limits", "Features"]},
            {"extensionId": "2", "eventType": "Delete"},
            {"extensionId": "3", "eventType": "Create"}
        ]}}"#;
        let event: Event = event::decode(json.as_bytes()).expect("it is an event");
        let resources: Vec<_> = event.changes().map(super::Change::resources).collect();
        let account = "/restapi/v1.0/account/~";
        assert_eq!(
            resources,
            [
                vec![format!("{account}/extension/1/features")],
                vec![],
                vec![format!("{account}/extension/3")],
            ]
        );
    }
}
