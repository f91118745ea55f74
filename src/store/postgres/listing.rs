//! Lists of events.
//!
//! **Invariant:** a page looks at a bounded number of rows, however many there are.

use std::collections::{HashMap, HashSet};

use jiff::{Timestamp, civil::Date};
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use super::{error::PgError, escape, pool::PgConnection, registry::HandlerId, rows, terms};
use crate::{
    event::{EventId, EventName, Key, Notification, meant_by},
    store::{
        DeliveryState, EventFilter, EventList, EventSummary,
        operator::{MOST_LOOKED_AT, needle},
    },
};

/// The columns of [`candidate`], from `t` and `e`.
macro_rules! walk {
    ($which:literal) => {
        concat!(
            "SELECT t.day, t.position, e.id, e.name, e.endpoint, e.key, e.occurred_at, e.received_at ",
            $which
        )
    };
}

/// The events in a range of ids, which sort by time of receipt, newest first.
pub(super) const ALL: &str = walk!(
    "FROM events e CROSS JOIN LATERAL (SELECT e.day, e.position) t
    WHERE e.id > $1 AND e.id <= $2 ORDER BY e.id DESC LIMIT $3"
);

/// The events with one of the terms `$1` between two places, latest first. An event can have several
/// of the terms.
pub(super) const WITH_TERM: &str = walk!(
    "FROM (SELECT t.day, t.position FROM unnest($1::bigint[]) AS w (term)
        CROSS JOIN LATERAL (SELECT day, position FROM terms
            WHERE term = w.term AND day >= $2 AND day <= $4
                AND (day, position) > ($2::date, $3::bigint)
                AND (day, position) < ($4::date, $5::bigint)
            ORDER BY day DESC, position DESC LIMIT $6) t
        ORDER BY t.day DESC, t.position DESC LIMIT $6) t
    LEFT JOIN events e ON e.day = t.day AND e.position = t.position
    ORDER BY t.day DESC, t.position DESC"
);

/// The events with an open delivery to the handler `$1`, or to any, between two positions, latest
/// first.
pub(super) const OPEN: &str = walk!(
    "FROM (SELECT t.day, t.position FROM handlers h
        CROSS JOIN LATERAL (SELECT day, position FROM deliveries
            WHERE handler = h.id AND position < $2 AND position > $4
            ORDER BY handler DESC, position DESC LIMIT $3) t
        WHERE $1::integer IS NULL OR h.id = $1
        ORDER BY t.position DESC LIMIT $3) t
    LEFT JOIN events e ON e.day = t.day AND e.position = t.position ORDER BY t.position DESC"
);

/// The events with a parked delivery between two positions, latest first.
pub(super) const PARKED: &str = walk!(
    "FROM (SELECT day, position FROM ended
        WHERE state = 2 AND position < $1 AND position > $3
        ORDER BY position DESC LIMIT $2) t
    LEFT JOIN events e ON e.day = t.day AND e.position = t.position ORDER BY t.position DESC"
);

/// The latest event up to an id.
pub(super) const LATEST: &str =
    "SELECT day, position, id FROM events WHERE id <= $1 ORDER BY id DESC LIMIT 1";

/// Those of some events that have a delivery that the filter asks for: to the handler `$3`, open
/// (`$4`) or over (`$5`), in the state `$6` if it is over, with the text `$7` in its reasons.
pub(super) const WITH_DELIVERY: &str = "SELECT t.position
    FROM unnest($1::date[], $2::bigint[]) AS t (day, position)
    WHERE ($4::boolean AND EXISTS (SELECT FROM handlers h
            CROSS JOIN LATERAL (SELECT FROM deliveries d
                WHERE d.handler = h.id AND d.position = t.position LIMIT 1) d
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
        (SELECT count(*) FROM handlers h CROSS JOIN LATERAL (SELECT FROM deliveries d
            WHERE d.handler = h.id AND d.position = t.position LIMIT 1) d),
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

/// The order in which events are looked at, and the place up to which they have been.
enum Walk {
    /// All events in a range of ids.
    All { from: Uuid, to: Uuid },
    /// Those with one of some terms, between two places.
    WithTerm {
        terms: Vec<i64>,
        from: (Date, i64),
        to: (Date, i64),
    },
    /// Those with an open delivery, between two positions.
    Open {
        handler: Option<HandlerId>,
        above: i64,
        below: i64,
    },
    /// Those with a parked delivery, between two positions.
    Parked { above: i64, below: i64 },
}

/// Newest first.
pub(super) async fn list(
    connection: &PgConnection,
    filter: &EventFilter,
) -> Result<EventList, PgError> {
    let deliveries = DeliveryFilter::new(connection, filter).await?;
    let terms = match filter.about.is_some() || filter.key.is_some() {
        true => terms::hasher(&connection.client).await?.wanted(filter),
        false => None,
    };
    let mut list = EventList::default();
    if terms.is_some() {
        // What may be missing matters only if it is asked for.
        let before = terms::incomplete_before(connection).await?;
        let is_asked_for = |before: &Timestamp| filter.since.is_none_or(|since| since < *before);
        list.incomplete_before = before.filter(is_asked_for);
    }
    let Some(deliveries) = deliveries else {
        return Ok(list);
    };
    if let Some(walk) = Walk::new(connection, filter, terms, &deliveries).await? {
        fill(&mut list, connection, filter, &deliveries, walk).await?;
    }
    Ok(list)
}

/// Looks at events until the list is full, or no more may be looked at.
async fn fill(
    list: &mut EventList,
    connection: &PgConnection,
    filter: &EventFilter,
    deliveries: &DeliveryFilter,
    mut walk: Walk,
) -> Result<(), PgError> {
    let meant = filter.about.as_deref().map(meant_by);
    let mut left = MOST_LOOKED_AT;
    // A page whose events all match takes one step. Each further step is larger, so that few follow.
    let mut step = filter.limit.max(50);
    loop {
        step = step.min(left);
        // One more shows whether there is more.
        let found = walk.step(connection, step as i64 + 1).await?;
        let is_last = found.len() <= step;
        let looked_at = found.get(..step).unwrap_or(&found);
        left -= looked_at.len();
        walk.go_on_behind(looked_at.last())?;
        let mut taken = candidates(looked_at)?;
        let last = taken.last().map(|candidate| candidate.event.id);
        taken.retain(|candidate| filter.takes(&candidate.event));
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
            () => last.or(list.next),
        };
        if is_cut || is_last || left == 0 || list.events.len() >= filter.limit {
            return Ok(());
        }
        step = step.saturating_mul(4);
    }
}

impl Walk {
    /// The shortest walk that comes to all events that match; `None` if there are none.
    async fn new(
        connection: &PgConnection,
        filter: &EventFilter,
        terms: Option<Vec<i64>>,
        deliveries: &DeliveryFilter,
    ) -> Result<Option<Self>, PgError> {
        let (from, to) = filter.ids();
        let by_position = filter
            .state
            .filter(|state| state.is_open() || *state == DeliveryState::Parked);
        if terms.is_none() && by_position.is_none() {
            let (from, to) = (Uuid::from_bytes(from), Uuid::from_bytes(to));
            return Ok(Some(Self::All { from, to }));
        }
        let from_day = filter.since.map_or(Date::constant(1, 1, 1), rows::day);
        let to_day = filter.until.map_or(Date::constant(9999, 12, 31), rows::day);
        let (mut from, mut to) = ((from_day, -1), (to_day, i64::MAX));
        if let Some(after) = filter.after
            && let Some((place, _)) = latest(connection, after).await?
        {
            from = from.max(place);
        }
        if let Some(before) = filter.before {
            // The event itself may have been deleted.
            let Some(((day, position), id)) = latest(connection, before).await? else {
                return Ok(None);
            };
            to = to.min((day, position + i64::from(id != before)));
        }
        Ok(Some(match (terms, by_position) {
            (Some(terms), _) => Self::WithTerm { terms, from, to },
            (None, Some(DeliveryState::Parked)) => Self::Parked {
                above: from.1,
                below: to.1,
            },
            (None, _) => Self::Open {
                handler: deliveries.handler,
                above: from.1,
                below: to.1,
            },
        }))
    }

    /// The next rows.
    async fn step(&self, connection: &PgConnection, size: i64) -> Result<Vec<Row>, PgError> {
        let client = &connection.client;
        Ok(match self {
            Self::All { from, to } => client.query(ALL, &[from, to, &size]).await?,
            Self::WithTerm { terms, from, to } => {
                let parameters: &[&(dyn ToSql + Sync)] =
                    &[terms, &from.0, &from.1, &to.0, &to.1, &size];
                client.query(WITH_TERM, parameters).await?
            }
            Self::Open {
                handler,
                above,
                below,
            } => client.query(OPEN, &[handler, below, &size, above]).await?,
            Self::Parked { above, below } => client.query(PARKED, &[below, &size, above]).await?,
        })
    }

    /// Goes on behind a row.
    fn go_on_behind(&mut self, row: Option<&Row>) -> Result<(), PgError> {
        let Some(row) = row else {
            return Ok(());
        };
        let place = (row.try_get(0)?, row.try_get(1)?);
        match self {
            Self::All { to, .. } => {
                // The range includes its upper bound, and ids are numbers.
                let last: Uuid = row.try_get(2)?;
                *to = Uuid::from_u128(last.as_u128().saturating_sub(1));
            }
            Self::WithTerm { to, .. } => *to = place,
            Self::Open { below, .. } | Self::Parked { below, .. } => *below = place.1,
        }
        Ok(())
    }
}

/// The place of the latest event up to `id`, and its id.
async fn latest(
    connection: &PgConnection,
    id: EventId,
) -> Result<Option<((Date, i64), EventId)>, PgError> {
    let row = connection
        .client
        .query_opt(LATEST, &[&rows::uuid(id)])
        .await?;
    let place = |row: Row| {
        let place = (row.try_get(0)?, row.try_get(1)?);
        Ok((place, rows::event_id(row.try_get(2)?)))
    };
    row.map(place).transpose()
}

/// The events in `rows`, each once. Retention may have deleted some of them.
fn candidates(rows: &[Row]) -> Result<Vec<Candidate>, PgError> {
    let mut candidates = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(id) = row.try_get::<_, Option<Uuid>>(2)? {
            candidates.push(candidate(row, rows::event_id(id))?);
        }
    }
    candidates.dedup_by_key(|candidate| candidate.position);
    Ok(candidates)
}

fn candidate(row: &Row, id: EventId) -> Result<Candidate, PgError> {
    Ok(Candidate {
        day: row.try_get(0)?,
        position: row.try_get(1)?,
        event: EventSummary {
            id,
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
