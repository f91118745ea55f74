//! Version 1 of the journal's records, which are all events. They are read, and not written.
//!
//! ```text
//!    0  4  sync marker: FF 68 6B FE
//!    4  4  length of the payload in bytes, at most 32 MiB
//!    8  4  type of the payload: 1 is an event
//!   12  4  CRC32C of bytes 0 to 11 and the payload, XOR CRC32C of the record's position
//!   16  .  payload: id, time it was received, optional time it occurred, endpoint, name, optional
//!          partition key, optional subject, list of topics, list of dedupe keys, body to the end
//! ```

use std::sync::Arc;

use bytes::Bytes;

use super::{Event, Personal};
use crate::{
    event::{DedupeKey, EndpointName, EventId, EventName, Key, Notification, Topic},
    store::embedded::codec::{take_array, take_list, take_option, take_text, take_time},
};

pub(super) const MARKER: [u8; 4] = [0xff, b'h', b'k', 0xfe];
pub(super) const FRAME_BYTES: usize = 16;
pub(super) const EVENT: u32 = 1;

pub(super) fn take_event(bytes: &mut &[u8], share: impl FnOnce(&[u8]) -> Bytes) -> Option<Event> {
    let id = EventId::from_bytes(take_array(bytes)?);
    let received_at = take_time(bytes)?;
    let occurred_at = take_option(bytes, take_time)?;
    let notification = Notification {
        id,
        endpoint: EndpointName::from(take_text(bytes)?),
        name: EventName::from(take_text(bytes)?),
        key: take_option(bytes, take_text)?.map(Key::from),
        subjects: Vec::from_iter(take_option(bytes, take_text)?.map(str::to_owned)),
        occurred_at,
        received_at,
        topics: take_list(bytes, |bytes| take_text(bytes).map(Topic::from))?,
        dedupe: take_list(bytes, |bytes| take_array(bytes).map(DedupeKey::from_bytes))?,
        body: share(bytes),
    };
    Some(Event {
        keys: notification.ordering_keys(),
        notification: Arc::new(notification),
        personal: Personal::Whole,
    })
}
