//! Converts notifications to rows and back. The columns are the same everywhere, in this order.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::{Timestamp, civil::Date, tz::Offset};
use serde_json as json;
use sha2::{Digest, Sha256};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::escape;
use crate::{
    event::{DedupeKey, EventId, EventName, Key, Notification, Topic},
    store::Attempt,
};

/// The columns that [`notification`] reads, of a table or alias `e`.
pub(super) const COLUMNS: &str = "e.id, e.name, e.endpoint, e.key, e.subject, e.occurred_at,
    e.received_at, e.topics, e.dedupe, e.body, e.further_subjects";

/// The events with these ids, each with its day and position.
pub(super) async fn find(
    client: &Client,
    ids: &[EventId],
) -> Result<Vec<(Notification, Date, i64)>, tokio_postgres::Error> {
    let find = format!("SELECT e.day, e.position, {COLUMNS} FROM events e WHERE e.id = ANY($1)");
    let ids: Vec<_> = ids.iter().copied().map(uuid).collect();
    let rows = client.query(&find, &[&ids]).await?;
    let event = |row: &Row| Ok((notification(row, 2)?, row.try_get(0)?, row.try_get(1)?));
    rows.iter().map(event).collect()
}

/// Reads a notification from the columns that begin at `first`.
pub(super) fn notification(row: &Row, first: usize) -> Result<Notification, tokio_postgres::Error> {
    let topics: Option<String> = row.try_get(first + 7)?;
    let dedupe: Vec<Uuid> = row.try_get(first + 8)?;
    let body: Vec<u8> = row.try_get(first + 9)?;
    Ok(Notification {
        id: event_id(row.try_get(first)?),
        name: EventName::new(escape::get(row, first + 1)?),
        endpoint: escape::get(row, first + 2)?.as_str().into(),
        key: escape::find(row, first + 3)?.map(Key::new),
        subjects: subjects(row, (first + 4, first + 10))?,
        occurred_at: row.try_get(first + 5)?,
        received_at: row.try_get(first + 6)?,
        topics: topics
            .map(|topics| read_topics(&topics))
            .unwrap_or_default(),
        dedupe: dedupe.into_iter().map(read_dedupe_key).collect(),
        body: Bytes::from(body),
    })
}

/// Reads the subjects from two columns: the first subject, and the further ones.
pub(super) fn subjects(
    row: &Row,
    (first, further): (usize, usize),
) -> Result<Vec<String>, tokio_postgres::Error> {
    let further: Option<String> = row.try_get(further)?;
    let further = further.map(|further| json::from_str::<Vec<String>>(&further));
    let mut subjects = Vec::from_iter(escape::find(row, first)?);
    subjects.extend(further.and_then(Result::ok).into_iter().flatten());
    Ok(subjects)
}

/// Reads an attempt's begin, duration and error from the columns that begin at `first`.
pub(super) fn attempt(row: &Row, first: usize) -> Result<Attempt, tokio_postgres::Error> {
    Ok(Attempt {
        started_at: row.try_get(first)?,
        took_ms: row.try_get::<_, i64>(first + 1)?.cast_unsigned(),
        why: escape::get(row, first + 2)?,
    })
}

/// The topics as JSON; `None` where there are none.
pub(super) fn topics(notification: &Notification) -> Option<String> {
    let topics = &notification.topics;
    let written = (!topics.is_empty()).then(|| json::to_string(topics));
    // A string can always be written as JSON.
    written.and_then(Result::ok)
}

/// The subjects behind the first one as JSON.
pub(super) fn further_subjects(notification: &Notification) -> Cow<'static, str> {
    match notification.subjects.get(1..) {
        // A list of strings can always be written as JSON.
        Some(further @ [_, ..]) => json::to_string(further).unwrap_or_default().into(),
        _ => "[]".into(),
    }
}

fn read_topics(topics: &str) -> Vec<Topic> {
    json::from_str(topics).unwrap_or_default()
}

/// The hash that identifies a topic: topics come from senders and can have any length.
pub(super) fn topic_key(topic: &Topic) -> Uuid {
    let digest = Sha256::digest(topic.as_str());
    let mut key = [0; 16];
    key.copy_from_slice(digest.split_at(16).0);
    Uuid::from_bytes(key)
}

/// The id as a UUID.
pub(super) fn uuid(id: EventId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

/// Reverses [`uuid()`].
pub(super) fn event_id(id: Uuid) -> EventId {
    EventId::from_bytes(*id.as_bytes())
}

/// The dedupe key as a UUID.
pub(super) fn dedupe_key(key: &DedupeKey) -> Uuid {
    Uuid::from_bytes(*key.as_bytes())
}

pub(super) fn read_dedupe_key(key: Uuid) -> DedupeKey {
    DedupeKey::from_bytes(*key.as_bytes())
}

/// The day (UTC) of an event's partition.
pub(super) fn day(received_at: Timestamp) -> Date {
    Offset::UTC.to_datetime(received_at).date()
}
