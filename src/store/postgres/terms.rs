//! The index of events by number and by key: see [`crate::store::terms`].
//!
//! An append adds the terms of its events. The events that `unindexed` names were stored before the
//! index was there, by a program that does not know the index, or have very many terms. Maintenance
//! adds their terms, latest first, for a small part of its time.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp, civil::Date};
use tokio_postgres::{GenericClient, Row, types::ToSql};

use super::{error::PgError, pool::PgConnection, rows};
use crate::store::terms::{KEY_BYTES, TermHasher};

const KEY: &str = "SELECT key FROM term_key";

/// The events that may lack their terms, latest first.
const UNINDEXED: &str =
    "SELECT day, first, last FROM unindexed ORDER BY day DESC, last DESC LIMIT 1";

/// The time before which events may lack their terms.
const INCOMPLETE: &str = "SELECT e.received_at FROM unindexed u
    CROSS JOIN LATERAL (SELECT received_at FROM events WHERE day = u.day AND position <= u.last
        AND position >= u.first ORDER BY day DESC, position DESC LIMIT 1) e
    ORDER BY u.day DESC, u.last DESC LIMIT 1";

/// Events of a day between two positions, latest first.
pub(super) static EVENTS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT e.position, {} FROM events e WHERE e.day = $1 AND e.position <= $2
         AND e.position >= $3 ORDER BY e.day DESC, e.position DESC LIMIT {STEP}",
        rows::COLUMNS
    )
});

/// Adds the terms `$2` of events at the positions `$3`. After that, of the events from `$6` to `$4`
/// only those up to `$5` may lack theirs, or none if that is null.
pub(super) const ADD_LATE: &str = "WITH
    added AS (INSERT INTO terms (day, term, position)
        SELECT $1::date, term, position FROM unnest($2::bigint[], $3::bigint[]) AS t (term, position)
        ON CONFLICT DO NOTHING),
    done AS (DELETE FROM unindexed
        WHERE day = $1 AND last = $4::bigint AND first = $6::bigint AND $5::bigint IS NULL)
    UPDATE unindexed SET last = $5
    WHERE day = $1 AND last = $4 AND first = $6 AND $5 IS NOT NULL";

/// The most events in one step.
const STEP: usize = 100;

/// The part of each interval of maintenance that goes into adding terms.
const SHARE: Duration = Duration::from_millis(500);

/// The hasher of the store's terms.
pub(super) async fn hasher(client: &impl GenericClient) -> Result<TermHasher, PgError> {
    let row = client.query_one(KEY, &[]).await?;
    let key: &[u8] = row.try_get(0)?;
    let key: &[u8; KEY_BYTES] = key
        .try_into()
        .map_err(|_| PgError::InvalidData("the key of the terms has another length".to_owned()))?;
    Ok(TermHasher::new(key))
}

/// The time before which events may be missing in a look-up; `None` if none is.
pub(super) async fn incomplete_before(
    connection: &PgConnection,
) -> Result<Option<Timestamp>, PgError> {
    let Some(row) = connection.client.query_opt(INCOMPLETE, &[]).await? else {
        return Ok(None);
    };
    let latest: Timestamp = row.try_get(0)?;
    Ok(latest.checked_add(SignedDuration::from_micros(1)).ok())
}

/// Adds terms that are missing, for a part of an interval of maintenance.
pub(super) async fn add_late(
    connection: &mut PgConnection,
    hasher: &TermHasher,
) -> Result<(), PgError> {
    let began = Instant::now();
    while add_some(connection, hasher).await? && began.elapsed() < SHARE {}
    Ok(())
}

/// Adds the terms of some events. Returns whether there may be more to do.
async fn add_some(connection: &mut PgConnection, hasher: &TermHasher) -> Result<bool, PgError> {
    let Some(row) = connection.client.query_opt(UNINDEXED, &[]).await? else {
        return Ok(false);
    };
    let (day, first, last): (Date, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let events = connection.prepare(EVENTS.as_str()).await?;
    let found = connection
        .client
        .query(&events, &[&day, &last, &first])
        .await?;
    let (mut terms, mut positions) = (Vec::new(), Vec::new());
    for row in &found {
        let position: i64 = row.try_get(0)?;
        for term in terms_of(row, hasher)? {
            terms.push(term);
            positions.push(position);
        }
    }
    let left = match found.last().filter(|_| found.len() == STEP) {
        Some(row) => Some(row.try_get::<_, i64>(0)? - 1).filter(|left| *left >= first),
        None => None,
    };
    let statement = connection.prepare(ADD_LATE).await?;
    let parameters: &[&(dyn ToSql + Sync)] = &[&day, &terms, &positions, &last, &left, &first];
    connection.client.execute(&statement, parameters).await?;
    Ok(true)
}

fn terms_of(row: &Row, hasher: &TermHasher) -> Result<Vec<i64>, PgError> {
    let mut event = rows::notification(row, 1)?;
    event.complete_subjects();
    Ok(hasher.terms(&event))
}
