//! The changes and hints that the events about extensions have in common.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::event::{Topic, distinct::distinct, open_enum::open_enum};

open_enum! {
    /// A change of an extension (guide, OpenAPI).
    pub enum EventType {
        /// The extension was changed.
        Update,
        /// The extension was deleted. A bot gets this event when it is removed.
        Delete,
        /// The extension was created. Documented for the list of extensions only.
        Create,
    }
}

open_enum! {
    /// What to read again (guide; all but the last in OpenAPI too).
    pub enum Hint {
        /// The account's settings.
        AccountSettings,
        /// The account's status.
        AccountStatus,
        /// The rules for answering calls.
        AnsweringRules,
        /// The extension's phone numbers.
        CompanyNumbers,
        /// The countries that can be called.
        DialingPlan,
        /// The extension itself.
        ExtensionInfo,
        /// The features of the extension.
        Features,
        /// The limits of these features.
        Limits,
        /// The permissions of the extension.
        Permissions,
        /// The extension's picture.
        ProfileImage,
        /// The extension's video settings.
        VideoConfiguration,
        /// The members of call queues (guide only).
        CallQueueMembersChange,
    }
}

impl EventType {
    /// The last part of the event name; `None` for a change that is not known.
    pub(super) fn change(&self) -> Option<&'static str> {
        match self {
            Self::Update => Some("update"),
            Self::Delete => Some("delete"),
            Self::Create => Some("create"),
            Self::Other(_) => None,
        }
    }
}

impl Hint {
    /// The paths of the RingCentral API to read again for the extension with the id `extension`. Any other
    /// hint means the extension itself.
    pub fn resource(&self, extension: &str) -> Vec<String> {
        let account = "/restapi/v1.0/account/~";
        let itself = format!("{account}/extension/{extension}");
        match self {
            Self::AccountSettings | Self::AccountStatus => vec![account.to_owned()],
            Self::DialingPlan => vec![format!("{account}/dialing-plan")],
            Self::CompanyNumbers => vec![format!("{itself}/phone-number")],
            Self::Features | Self::Limits | Self::Permissions => vec![format!("{itself}/features")],
            Self::ProfileImage => vec![format!("{itself}/profile-image")],
            Self::VideoConfiguration => vec![format!("{account}/extension"), itself],
            Self::CallQueueMembersChange => vec![
                format!("{itself}/call-queues"),
                format!("{account}/call-queues/{extension}/bulk-assign"),
            ],
            Self::AnsweringRules | Self::ExtensionInfo | Self::Other(_) => vec![itself],
        }
    }
}

/// The paths of the RingCentral API to read again for the extension with the id `extension`, each once:
/// without hints the extension itself. None for a deleted extension.
pub(super) fn resources(
    extension: &str,
    event_type: Option<&EventType>,
    hints: &[Hint],
) -> Vec<String> {
    if event_type == Some(&EventType::Delete) {
        return Vec::new();
    }
    let hints = match hints {
        [] => &[Hint::ExtensionInfo],
        hints => hints,
    };
    let mut resources = Vec::new();
    for resource in hints.iter().flat_map(|hint| hint.resource(extension)) {
        if !resources.contains(&resource) {
            resources.push(resource);
        }
    }
    resources
}

/// What a newer event about `extension` would replace, where `extension` is a key of it: one topic for each
/// hint, or the extension itself without hints. So a newer update replaces an older one only when it has
/// the same hints or more. A deletion has a topic of its own, so that an update that is sent late does not
/// supersede it.
pub(super) fn topics(extension: &str, change: &str, hints: &[Hint]) -> Vec<Topic> {
    if change == "delete" {
        return vec![Topic::of(&[extension, "/deletion"])];
    }
    if hints.is_empty() {
        return vec![Topic::new(extension)];
    }
    let hints: BTreeSet<_> = hints.iter().map(Hint::as_str).collect();
    hints
        .into_iter()
        .map(|hint| Topic::of(&[extension, "/hint/", hint]))
        .collect()
}

/// The id of each of `extensions`, and its number if that is among the other members of the change.
pub(super) fn subjects<'a>(
    extensions: impl IntoIterator<Item = (&'a str, &'a BTreeMap<String, Value>)>,
) -> Vec<String> {
    let subjects = extensions.into_iter().flat_map(|(id, others)| {
        let number = others.get("extensionNumber").and_then(text);
        [Some(id.to_owned()), number].into_iter().flatten()
    });
    distinct(subjects)
}

/// An id or a number that is a string or a number in JSON; `None` for anything else.
pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::Hint;

    #[test]
    fn every_documented_hint_has_its_documented_resource() {
        let account = "/restapi/v1.0/account/~";
        for (hint, below) in [
            ("AccountSettings", [""].as_slice()),
            ("AccountStatus", &[""]),
            ("AnsweringRules", &["/extension/5"]),
            ("CompanyNumbers", &["/extension/5/phone-number"]),
            ("DialingPlan", &["/dialing-plan"]),
            ("ExtensionInfo", &["/extension/5"]),
            ("Features", &["/extension/5/features"]),
            ("Limits", &["/extension/5/features"]),
            ("Permissions", &["/extension/5/features"]),
            ("ProfileImage", &["/extension/5/profile-image"]),
            ("VideoConfiguration", &["/extension", "/extension/5"]),
            (
                "CallQueueMembersChange",
                &["/extension/5/call-queues", "/call-queues/5/bulk-assign"],
            ),
            ("SomethingNew", &["/extension/5"]),
        ] {
            let resources: Vec<_> = below
                .iter()
                .map(|path| format!("{account}{path}"))
                .collect();
            assert_eq!(Hint::from(hint).resource("5"), resources, "{hint}");
        }
    }
}
