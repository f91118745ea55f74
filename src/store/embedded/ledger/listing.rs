//! Lists of events.
//!
//! **Invariant:** a page looks at a bounded number of rows, however many there are.

use std::sync::Arc;

use rusqlite::{Connection, Result, Row, params};

use super::time;
use crate::{
    event::{EventId, EventName, Key, meant_by},
    store::{
        DeliveryState, EventFilter, EventList, EventSummary,
        embedded::{reader::EventReader, segment::Position},
        operator::{MOST_LOOKED_AT, needle},
    },
};

/// The columns of [`event`].
macro_rules! columns {
    () => {
        "id, name, endpoint, key, occurred_at, received_at, position"
    };
}

/// Newest first. Ids sort by time of receipt, so a range of times is a range of ids.
pub(super) fn list(
    db: &Connection,
    journal: EventReader,
    filter: &EventFilter,
) -> Result<EventList> {
    let mut page = Page::new(db, journal, filter);
    let (from, to) = filter.ids();
    let mut walk = db.prepare_cached(concat!(
        "SELECT ",
        columns!(),
        " FROM events WHERE id > ?1 AND id <= ?2 ORDER BY id DESC"
    ))?;
    let mut rows = walk.query(params![from, to])?;
    while let Some(row) = rows.next()? {
        if !page.look_at(event(row)?)? {
            break;
        }
    }
    page.finish()
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
    looked_at: usize,
    /// The event that was looked at last.
    last: Option<EventId>,
    is_full: bool,
}

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

    fn finish(mut self) -> Result<EventList> {
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
            incomplete_before: None,
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
