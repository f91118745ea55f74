//! Lists of events.
//!
//! **Invariant:** a page looks at a bounded number of rows, however many there are.

use std::collections::{HashMap, HashSet};

use jiff::civil::Date;
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use super::{error::PgError, escape, pool::PgConnection, registry::HandlerId, rows};
use crate::{
    event::{EventName, Key, Notification, meant_by},
    store::{
        DeliveryState, EventFilter, EventList, EventSummary,
        operator::{MOST_LOOKED_AT, needle},
    },
};

/// The events in a range of ids, which sort by time of receipt, newest first.
pub(super) const WALK: &str = "SELECT day, position, id, name, endpoint, key, occurred_at,
        received_at
    FROM events WHERE id > $1 AND id <= $2 ORDER BY id DESC LIMIT $3";

/// Those of some events that have a delivery that the filter asks for: to the handler `$3`, open
/// (`$4`) or over (`$5`), in the state `$6` if it is over, with the text `$7` in its reasons.
pub(super) const WITH_DELIVERY: &str = "SELECT t.position
    FROM unnest($1::date[], $2::bigint[]) AS t (day, position)
    WHERE ($4::boolean AND EXISTS (SELECT FROM handlers h
            JOIN deliveries d ON d.handler = h.id AND d.position = t.position
            WHERE ($3::integer IS NULL OR h.id = $3) AND ($7::text IS NULL
                OR EXISTS (SELECT FROM attempts a WHERE a.day = t.day AND a.position = t.position
                    AND a.handler = h.id AND strpos(lower(a.why), $7) > 0))))
        OR ($5::boolean AND EXISTS (SELECT FROM ended x
            WHERE x.day = t.day AND x.position = t.position
            AND ($3::integer IS NULL OR x.handler = $3) AND ($6::smallint IS NULL OR x.state = $6)
            AND ($7::text IS NULL OR strpos(lower(x.why), $7) > 0
                OR EXISTS (SELECT FROM attempts a WHERE a.day = t.day AND a.position = t.position
                    AND a.handler = x.handler AND strpos(lower(a.why), $7) > 0))))";

/// The numbers of open and of parked deliveries of some events, with their subjects, and with the
/// bodies of those that a program stored that knew one subject only.
pub(super) const DETAILS: &str = "SELECT t.position, e.subject, e.further_subjects,
        CASE WHEN e.further_subjects IS NULL AND e.subject IS NOT NULL THEN e.body END,
        (SELECT count(*) FROM handlers h JOIN deliveries d ON d.handler = h.id
            AND d.position = t.position),
        (SELECT count(*) FROM ended x WHERE x.day = t.day AND x.position = t.position
            AND x.state = 2)
    FROM unnest($1::date[], $2::bigint[]) AS t (day, position)
    JOIN events e ON e.day = t.day AND e.position = t.position";

const HANDLER: &str = "SELECT id FROM handlers WHERE name = $1";

/// An event of a list, without its subjects and its counts.
struct Candidate {
    day: Date,
    position: i64,
    event: EventSummary,
}

/// Newest first.
pub(super) async fn list(
    connection: &PgConnection,
    filter: &EventFilter,
) -> Result<EventList, PgError> {
    let Some(deliveries) = DeliveryFilter::new(connection, filter).await? else {
        return Ok(EventList::default());
    };
    let meant = filter.about.as_deref().map(meant_by);
    let (from, to) = filter.ids();
    let (from, mut to) = (Uuid::from_bytes(from), Uuid::from_bytes(to));
    let mut list = EventList::default();
    let mut left = MOST_LOOKED_AT;
    // A page whose events all match takes one step. Each further step takes longer, so that few do.
    let mut step = filter.limit.saturating_add(1).max(50);
    loop {
        // One more shows whether there is more.
        let size = step.min(left) as i64 + 1;
        let parameters: &[&(dyn ToSql + Sync)] = &[&from, &to, &size];
        let found = connection.client.query(WALK, parameters).await?;
        let is_last = found.len() < size as usize;
        let looked_at = found.iter().take(step.min(left));
        let candidates = looked_at.map(candidate).collect::<Result<Vec<_>, _>>()?;
        left -= candidates.len();
        step = step.saturating_mul(4);
        let last = candidates.last().map(|candidate| candidate.event.id);
        let taken = candidates.into_iter();
        let mut taken: Vec<_> = taken
            .filter(|candidate| filter.takes(&candidate.event))
            .collect();
        deliveries.retain(connection, &mut taken).await?;
        if let Some(meant) = &meant {
            retain_about(connection, &mut taken, meant).await?;
        }
        let room = filter.limit - list.events.len();
        let is_cut = taken.len() > room;
        taken.truncate(room);
        list.events.extend(detailed(connection, taken).await?);
        list.next = match () {
            () if is_cut => list.events.last().map(|event| event.id),
            () if is_last => None,
            () => last,
        };
        if is_cut || is_last || left == 0 || list.events.len() >= filter.limit {
            return Ok(list);
        }
        // The range includes its upper bound, and ids are numbers.
        to = last.map_or(to, |last| {
            Uuid::from_u128(rows::uuid(last).as_u128().saturating_sub(1))
        });
    }
}

fn candidate(row: &Row) -> Result<Candidate, PgError> {
    Ok(Candidate {
        day: row.try_get(0)?,
        position: row.try_get(1)?,
        event: EventSummary {
            id: rows::event_id(row.try_get(2)?),
            name: EventName::new(escape::get(row, 3)?),
            endpoint: escape::get(row, 4)?.as_str().into(),
            key: escape::find(row, 5)?.map(Key::new),
            subjects: Vec::new(),
            occurred_at: row.try_get(6)?,
            received_at: row.try_get(7)?,
            open: 0,
            parked: 0,
        },
    })
}

/// The days and the positions of `candidates`, as parameters.
fn places(candidates: &[Candidate]) -> (Vec<Date>, Vec<i64>) {
    let places = candidates.iter();
    places
        .map(|candidate| (candidate.day, candidate.position))
        .unzip()
}

/// The conditions of a filter on deliveries.
struct DeliveryFilter {
    is_needed: bool,
    handler: Option<HandlerId>,
    open: bool,
    over: bool,
    state: Option<i16>,
    needle: Option<String>,
}

impl DeliveryFilter {
    /// Those of `filter`; `None` if nothing can match, since there is no such handler.
    async fn new(connection: &PgConnection, filter: &EventFilter) -> Result<Option<Self>, PgError> {
        let mut handler = None;
        if let Some(name) = &filter.handler {
            let name = escape::to_sql(name.as_str());
            match connection.client.query_opt(HANDLER, &[&name]).await? {
                Some(row) => handler = Some(row.try_get(0)?),
                None => return Ok(None),
            }
        }
        let state = filter.state;
        Ok(Some(Self {
            is_needed: filter.is_about_deliveries(),
            handler,
            open: state.is_none_or(DeliveryState::is_open),
            over: state.is_none_or(|state| !state.is_open()),
            state: state.map(|state| state as i16),
            needle: filter
                .why
                .as_deref()
                .map(|why| escape::to_sql(&needle(why)).into_owned()),
        }))
    }

    /// Keeps the events with such a delivery.
    async fn retain(
        &self,
        connection: &PgConnection,
        candidates: &mut Vec<Candidate>,
    ) -> Result<(), PgError> {
        if !self.is_needed || candidates.is_empty() {
            return Ok(());
        }
        let (days, positions) = places(candidates);
        let parameters: &[&(dyn ToSql + Sync)] = &[
            &days,
            &positions,
            &self.handler,
            &self.open,
            &self.over,
            &self.state,
            &self.needle,
        ];
        let found = connection.client.query(WITH_DELIVERY, parameters).await?;
        let found = found.iter().map(|row| row.try_get(0));
        let found = found.collect::<Result<HashSet<i64>, _>>()?;
        candidates.retain(|candidate| found.contains(&candidate.position));
        Ok(())
    }
}

/// Keeps the events that are about one of `meant`. The stored event decides.
async fn retain_about(
    connection: &PgConnection,
    candidates: &mut Vec<Candidate>,
    meant: &[String],
) -> Result<(), PgError> {
    let ids: Vec<_> = candidates
        .iter()
        .map(|candidate| candidate.event.id)
        .collect();
    let mut about = HashSet::new();
    for ids in ids.chunks(500) {
        for (mut notification, ..) in rows::find(&connection.client, ids).await? {
            notification.complete_subjects();
            if notification.is_about(meant) {
                about.insert(notification.id);
            }
        }
    }
    candidates.retain(|candidate| about.contains(&candidate.event.id));
    Ok(())
}

/// The events of `candidates` with their subjects and counts.
async fn detailed(
    connection: &PgConnection,
    mut candidates: Vec<Candidate>,
) -> Result<Vec<EventSummary>, PgError> {
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let (days, positions) = places(&candidates);
    let parameters: &[&(dyn ToSql + Sync)] = &[&days, &positions];
    let mut found = HashMap::new();
    for row in connection.client.query(DETAILS, parameters).await? {
        found.insert(row.try_get::<_, i64>(0)?, row);
    }
    for Candidate {
        position, event, ..
    } in &mut candidates
    {
        // An event that retention has deleted meanwhile is listed without them.
        let Some(row) = found.get(position) else {
            continue;
        };
        event.subjects = subjects(row, event)?;
        event.open = row.try_get::<_, i64>(4)?.cast_unsigned();
        event.parked = row.try_get::<_, i64>(5)?.cast_unsigned();
    }
    Ok(candidates
        .into_iter()
        .map(|candidate| candidate.event)
        .collect())
}

fn subjects(row: &Row, event: &EventSummary) -> Result<Vec<String>, PgError> {
    let subjects = rows::subjects(row, (1, 2))?;
    let Some(body) = row.try_get::<_, Option<Vec<u8>>>(3)? else {
        return Ok(subjects);
    };
    let mut notification = Notification {
        id: event.id,
        endpoint: event.endpoint.clone(),
        name: event.name.clone(),
        key: None,
        subjects,
        occurred_at: None,
        received_at: event.received_at,
        topics: Vec::new(),
        dedupe: Vec::new(),
        body: body.into(),
    };
    notification.complete_subjects();
    Ok(notification.subjects)
}
