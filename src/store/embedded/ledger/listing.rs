//! Lists of events.
//!
//! **Invariant:** a page looks at a bounded number of rows, however many there are.

use std::{cmp::Reverse, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, Result, Row, params};

use super::{delivery::HandlerId, terms, time};
use crate::{
    event::{EventId, EventName, HandlerName, Key, meant_by},
    store::{
        DeliveryState, EventFilter, EventList, EventSummary,
        embedded::{reader::EventReader, segment::Position},
        operator::{MOST_LOOKED_AT, id_range, needle},
    },
};

/// The events in a range of ids, newest first.
pub(super) const ALL: &str =
    "SELECT id, name, endpoint, key, occurred_at, received_at, position FROM events
    WHERE id > ?1 AND id <= ?2 ORDER BY id DESC";

/// The event at a position.
pub(super) const AT: &str =
    "SELECT id, name, endpoint, key, occurred_at, received_at, position FROM events
    WHERE position = ?1";

/// The unfinished deliveries of a handler in a state, latest first.
pub(super) const UNFINISHED: &str = "SELECT position FROM deliveries INDEXED BY unfinished
    WHERE handler = ?1 AND state = ?2 AND state < 3 AND position < ?3
    ORDER BY position DESC LIMIT ?4";

/// Newest first.
pub(super) fn list(
    db: &Connection,
    journal: EventReader,
    filter: &EventFilter,
) -> Result<EventList> {
    let terms = terms::hasher(db)?.wanted(filter);
    let mut page = Page::new(db, journal, filter);
    match (&terms, filter.state) {
        (Some(terms), _) => page.walk_terms(terms)?,
        (None, Some(DeliveryState::Ready | DeliveryState::Queued)) => {
            page.walk_unfinished(DeliveryState::Ready)?;
        }
        (None, Some(DeliveryState::Parked)) => page.walk_unfinished(DeliveryState::Parked)?,
        (None, _) => page.walk_all()?,
    }
    let incomplete_before = match terms {
        Some(_) => terms::incomplete_before(db)?,
        None => None,
    };
    // What may be missing matters only if it is asked for.
    let incomplete_before =
        incomplete_before.filter(|before| filter.since.is_none_or(|since| since < *before));
    page.finish(incomplete_before)
}

/// The event in `row`, without its subjects and its counts.
fn event(row: &Row<'_>) -> Result<(Position, EventSummary)> {
    let event = EventSummary {
        id: EventId::from_bytes(row.get(0)?),
        name: EventName::new(row.get::<_, String>(1)?),
        endpoint: row.get::<_, String>(2)?.as_str().into(),
        key: row.get::<_, Option<String>>(3)?.map(Key::new),
        subjects: Vec::new(),
        occurred_at: row.get::<_, Option<i64>>(4)?.map(time),
        received_at: time(row.get(5)?),
        open: 0,
        parked: 0,
    };
    Ok((Position::from_sql(row.get(6)?), event))
}

/// A page while it fills up.
struct Page<'a> {
    db: &'a Connection,
    journal: EventReader,
    filter: &'a EventFilter,
    /// The normal forms of what the events are to be about.
    meant: Option<Vec<String>>,
    needle: Option<String>,
    found: Vec<(Position, EventSummary)>,
    /// The number of rows that were looked at.
    looked_at: usize,
    /// The event that was looked at last.
    last: Option<EventId>,
    is_full: bool,
}

/// The events of these positions are looked at, without both bounds.
struct Bounds {
    from: i64,
    to: i64,
}

/// By how much the order of ids may differ from the order of storage. Ids have the time of receipt. An
/// event is stored within seconds, but a clock that is set back may be off by more.
const SLACK: SignedDuration = SignedDuration::from_hours(1);

impl<'a> Page<'a> {
    fn new(db: &'a Connection, journal: EventReader, filter: &'a EventFilter) -> Self {
        Self {
            db,
            journal,
            filter,
            meant: filter.about.as_deref().map(meant_by),
            needle: filter.why.as_deref().map(needle),
            found: Vec::new(),
            looked_at: 0,
            last: None,
            is_full: false,
        }
    }

    /// Looks at all events. Ids sort by time of receipt, so a range of times is a range of ids.
    fn walk_all(&mut self) -> Result<()> {
        let (from, to) = self.filter.ids();
        let mut walk = self.db.prepare_cached(ALL)?;
        let mut rows = walk.query(params![from, to])?;
        while let Some(row) = rows.next()? {
            if !self.look_at(event(row)?)? {
                break;
            }
        }
        Ok(())
    }

    /// Looks at the events with one of these terms, segment by segment.
    fn walk_terms(&mut self, terms: &[i64]) -> Result<()> {
        let Some(bounds) = self.bounds()? else {
            return Ok(());
        };
        let mut segment = self.db.prepare_cached(terms::SEGMENT)?;
        let mut events = self.db.prepare_cached(terms::EVENTS)?;
        let mut below = Position::from_sql(bounds.to);
        while below > Position::from_sql(bounds.from) {
            // Nothing is at offset 0 of a segment.
            let last = Position::from_sql(below.to_sql() - 1);
            let number = segment.query_row([last.segment()], |row| row.get(0))?;
            let Some(number): Option<u32> = number else {
                break;
            };
            if self.looked_at >= MOST_LOOKED_AT {
                return self.stop_at(Position::new(number + 1, 0).min(below));
            }
            self.looked_at += 1;
            let end = match number == below.segment() {
                true => below.offset().cast_signed(),
                false => i64::MAX,
            };
            let mut positions = Vec::new();
            for term in terms {
                let found = events.query_map(
                    params![number, term, end, MOST_LOOKED_AT as i64 + 1],
                    |row| {
                        let offset: i64 = row.get(0)?;
                        Ok(Position::new(number, offset.cast_unsigned()))
                    },
                )?;
                for position in found {
                    positions.push(position?);
                }
            }
            if !self.look_at_positions(positions, &bounds)? {
                break;
            }
            below = Position::new(number, 0);
        }
        Ok(())
    }

    /// Looks at the events with an unfinished delivery in `state`.
    fn walk_unfinished(&mut self, state: DeliveryState) -> Result<()> {
        let Some(bounds) = self.bounds()? else {
            return Ok(());
        };
        let mut handlers = self
            .db
            .prepare_cached("SELECT id FROM handlers WHERE ?1 IS NULL OR name = ?1")?;
        let mut walk = self.db.prepare_cached(UNFINISHED)?;
        let name = self.filter.handler.as_ref().map(HandlerName::as_str);
        let handlers = handlers.query_map([name], |row| row.get(0))?;
        let mut positions = Vec::new();
        for handler in handlers {
            let handler: HandlerId = handler?;
            // One more shows whether there is more.
            let size = MOST_LOOKED_AT as i64 + 1;
            let found =
                walk.query_map(params![handler, state, bounds.to, size], |row| row.get(0))?;
            for position in found {
                positions.push(Position::from_sql(position?));
            }
        }
        self.look_at_positions(positions, &bounds)?;
        Ok(())
    }

    /// Looks at the events at `positions`, latest first. Returns `false` if that ends the page.
    fn look_at_positions(&mut self, mut positions: Vec<Position>, bounds: &Bounds) -> Result<bool> {
        positions.sort_unstable_by_key(|position| Reverse(*position));
        positions.dedup();
        let mut find = self.db.prepare_cached(AT)?;
        for position in positions {
            if position.to_sql() <= bounds.from {
                return Ok(false);
            }
            // Retention may have deleted the event.
            let found = find.query_row([position.to_sql()], event).optional()?;
            if let Some(found) = found
                && !self.look_at(found)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The range of positions of the events that the filter may select; `None` if there are none.
    fn bounds(&self) -> Result<Option<Bounds>> {
        let filter = self.filter;
        let mut bounds = Bounds {
            from: 0, // No record is there.
            to: i64::MAX,
        };
        if let Some(before) = filter.before {
            // The event itself may have been deleted.
            let Some((position, id)) = self.latest(before.as_bytes())? else {
                return Ok(None);
            };
            bounds.to = position + i64::from(id != before);
        }
        if let Some(after) = filter.after {
            let latest = self.latest(after.as_bytes())?;
            bounds.from = latest.map_or(0, |(position, _)| position);
        }
        let (since, until) = (
            filter.since.and_then(|since| since.checked_sub(SLACK).ok()),
            filter.until.and_then(|until| until.checked_add(SLACK).ok()),
        );
        let (from, to) = id_range(since, until);
        if since.is_some()
            && let Some((position, _)) = self.latest(&from)?
        {
            bounds.from = bounds.from.max(position);
        }
        if until.is_some() {
            let latest = self.latest(&to)?;
            bounds.to = bounds
                .to
                .min(latest.map_or(0, |(position, _)| position + 1));
        }
        Ok(Some(bounds))
    }

    /// The latest event up to an id.
    fn latest(&self, id: &[u8; 16]) -> Result<Option<(i64, EventId)>> {
        self.db
            .prepare_cached(
                "SELECT position, id FROM events WHERE id <= ?1 ORDER BY id DESC LIMIT 1",
            )?
            .query_row([id], |row| {
                Ok((row.get(0)?, EventId::from_bytes(row.get(1)?)))
            })
            .optional()
    }

    /// Ends the page: all events from `position` on have been looked at.
    fn stop_at(&mut self, position: Position) -> Result<()> {
        let next = self
            .db
            .prepare_cached("SELECT id FROM events WHERE position >= ?1 ORDER BY position LIMIT 1")?
            .query_row([position.to_sql()], |row| {
                Ok(EventId::from_bytes(row.get(0)?))
            })
            .optional()?;
        (self.last, self.is_full) = (next, true);
        Ok(())
    }

    /// Takes the event if it matches. Returns `false`, and does not look at the event, if the page is
    /// full.
    fn look_at(&mut self, (position, event): (Position, EventSummary)) -> Result<bool> {
        if self.found.len() >= self.filter.limit || self.looked_at >= MOST_LOOKED_AT {
            self.is_full = true;
            return Ok(false);
        }
        self.looked_at += 1;
        self.last = Some(event.id);
        if self.filter.takes(&event) && self.has_delivery(position)? && self.is_about(position) {
            self.found.push((position, event));
        }
        Ok(true)
    }

    /// Whether the event has a delivery that the filter asks for.
    fn has_delivery(&self, position: Position) -> Result<bool> {
        let filter = self.filter;
        if !filter.is_about_deliveries() {
            return Ok(true);
        }
        let handler = filter.handler.as_ref().map(|handler| handler.as_str());
        // A queued delivery is an open one, as the table has it.
        let state = filter.state.map(|state| match state.is_open() {
            true => DeliveryState::Ready,
            false => state,
        });
        self.db
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM handlers h
                     CROSS JOIN deliveries d ON d.handler = h.id AND d.position = ?1
                     WHERE (?2 IS NULL OR h.name = ?2) AND (?3 IS NULL OR d.state = ?3)
                     AND (?4 IS NULL OR instr(lower(d.why), ?4) > 0
                         OR EXISTS (SELECT 1 FROM attempts a WHERE a.handler = d.handler
                             AND a.position = d.position AND instr(lower(a.why), ?4) > 0)))",
            )?
            .query_row(
                params![position.to_sql(), handler, state, self.needle],
                |row| row.get(0),
            )
    }

    /// Whether the event is about what the filter asks for. The journal decides.
    fn is_about(&mut self, position: Position) -> bool {
        let Some(meant) = &self.meant else {
            return true;
        };
        let read = self.journal.read(position);
        read.is_ok_and(|event| {
            let mut event = Arc::unwrap_or_clone(event.notification);
            event.complete_subjects();
            event.is_about(meant)
        })
    }

    fn finish(mut self, incomplete_before: Option<Timestamp>) -> Result<EventList> {
        let mut events = Vec::with_capacity(self.found.len());
        // Oldest first, since the journal is read ahead.
        for (position, mut event) in self.found.into_iter().rev() {
            (event.open, event.parked) = counts(self.db, position)?;
            // An event that cannot be read is listed without its subjects.
            if let Ok(read) = self.journal.read(position) {
                let mut read = Arc::unwrap_or_clone(read.notification);
                read.complete_subjects();
                event.subjects = read.subjects;
            }
            events.push(event);
        }
        events.reverse();
        Ok(EventList {
            events,
            next: self.last.filter(|_| self.is_full),
            incomplete_before,
        })
    }
}

/// The numbers of open and of parked deliveries.
fn counts(db: &Connection, position: Position) -> Result<(u64, u64)> {
    db.prepare_cached(
        "SELECT count(*) FILTER (WHERE state < 2), count(*) FILTER (WHERE state = 2)
         FROM handlers CROSS JOIN deliveries ON handler = id WHERE position = ?1",
    )?
    .query_row([position.to_sql()], |row| {
        let count = |column| row.get(column).map(i64::cast_unsigned);
        Ok((count(0)?, count(1)?))
    })
}
