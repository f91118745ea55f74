//! The contents of events.

use std::sync::Arc;

use bytes::Bytes;

use super::{Event, Personal};
use crate::{
    event::{DedupeKey, EndpointName, EventId, EventName, Key, Notification, OrderingKeys, Topic},
    store::embedded::codec::{
        put_bytes, put_integer, put_list, put_option, put_text, put_time, take, take_array,
        take_bytes, take_integer, take_list, take_option, take_text, take_time,
    },
};

/// The origin of events that a provider sent.
const RECEIVED: u8 = 1;

pub(super) fn put_public(out: &mut Vec<u8>, notification: &Notification) {
    out.extend_from_slice(notification.id.as_bytes());
    put_time(out, notification.received_at);
    put_option(out, notification.occurred_at, put_time);
    out.push(RECEIVED);
    put_option(out, None::<()>, |_, ()| {});
    put_text(out, notification.endpoint.as_str());
    put_text(out, notification.name.as_str());
    put_list(out, &notification.dedupe, |out, key| {
        out.extend_from_slice(key.as_bytes());
    });
}

pub(super) fn put_personal(
    out: &mut Vec<u8>,
    notification: &Notification,
    keys: Option<&OrderingKeys>,
) {
    put_option(out, notification.key.as_ref().map(Key::as_str), put_text);
    put_list(out, &notification.subjects, |out, subject| {
        put_text(out, subject)
    });
    put_list(out, &notification.topics, |out, topic| {
        put_text(out, topic.as_str())
    });
    put_option(out, keys, |out, keys| {
        put_integer(out, keys.scope());
        put_list(out, keys.keys(), |out, key| put_integer(out, *key));
    });
    put_bytes(out, &notification.body);
}

pub(super) fn take_event(
    public: &mut &[u8],
    personal: &mut &[u8],
    state: Personal,
    share: impl FnOnce(&[u8]) -> Bytes,
) -> Option<Event> {
    let id = EventId::from_bytes(take_array(public)?);
    let received_at = take_time(public)?;
    let occurred_at = take_option(public, take_time)?;
    let [_origin] = take_array(public)?;
    take_option(public, |bytes| take(bytes, 25))?;
    let mut notification = Notification {
        id,
        endpoint: EndpointName::from(take_text(public)?),
        name: EventName::from(take_text(public)?),
        key: None,
        subjects: Vec::new(),
        occurred_at,
        received_at,
        topics: Vec::new(),
        dedupe: take_list(public, |bytes| take_array(bytes).map(DedupeKey::from_bytes))?,
        body: Bytes::new(),
    };
    let mut keys = None;
    if state == Personal::Whole {
        notification.key = take_option(personal, take_text)?.map(Key::from);
        notification.subjects = take_list(personal, |bytes| take_text(bytes).map(str::to_owned))?;
        notification.topics = take_list(personal, |bytes| take_text(bytes).map(Topic::from))?;
        keys = take_option(personal, |bytes| {
            let scope = take_integer(bytes)?;
            Some(OrderingKeys::from_hashes(
                scope,
                take_list(bytes, take_integer)?,
            ))
        })?;
        notification.body = share(take_bytes(personal)?);
    }
    Some(Event {
        notification: Arc::new(notification),
        keys,
        personal: state,
    })
}
