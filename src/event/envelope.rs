//! The `event` member, which the envelopes of both providers have, parsed by itself.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

/// The `event` member of `body`, if the body is JSON and has it once.
pub(super) fn event(body: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        #[serde(borrow)]
        event: Cow<'a, str>,
    }
    let envelope: Envelope<'_> = serde_json::from_slice(body).ok()?;
    Some(envelope.event)
}

/// The first `event` member of `body`. The rest of the body is not parsed, and may be anything.
pub(super) fn first_event(body: &[u8]) -> Option<Cow<'_, str>> {
    let mut found = None;
    let mut json = serde_json::Deserializer::from_slice(body);
    // The parser reports an error, since the visitor stops before the end of the object.
    json.deserialize_map(Search(&mut found)).ok();
    found
}

/// Visits an object up to its first `event` member.
struct Search<'a, 'de>(&'a mut Option<Cow<'de, str>>);

#[derive(Deserialize)]
struct Borrowed<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Member {
    Event,
    #[serde(other)]
    Other,
}

impl<'de> Visitor<'de> for Search<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(member) = members.next_key()? {
            match member {
                Member::Event => {
                    *self.0 = Some(members.next_value::<Borrowed<'_>>()?.0);
                    break;
                }
                Member::Other => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}
