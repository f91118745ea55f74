//! What waits for what: the order of deliveries by their ordering keys, on one connection.
//!
//! An open delivery waits for each older open one of its handler that it shares a key with. It is
//! queued behind one of them, the youngest that is found, and looked at again when that one is over:
//! so the deliveries of one key form a chain, and each end wakes one.
//!
//! **Invariant:** an open delivery is ready if it waits for none, and otherwise queued behind an older
//! open one that it shares a key with.

use rusqlite::{Connection, OptionalExtension, Result, Row, types::Type};

use super::delivery::{HandlerId, QUEUED, READY};
use crate::{
    event::{KeyHash, OrderingKeys},
    store::embedded::segment::Position,
};

/// Reads the columns `scope`, `key` and `keys` of a delivery, from column `first` on.
pub(super) fn read(row: &Row<'_>, first: usize) -> Result<Option<OrderingKeys>> {
    let Some(scope) = row.get(first)? else {
        return Ok(None);
    };
    let key: KeyHash = row.get(first + 1)?;
    let several = row.get_ref(first + 2)?.as_blob_or_null();
    let several = several.map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(first + 2, Type::Blob, Box::new(error))
    })?;
    let keys = match (key, several) {
        (0, _) => Vec::new(),
        (key, None) => vec![key],
        (_, Some(bytes)) => {
            let (keys, _) = bytes.as_chunks();
            keys.iter()
                .map(|key| KeyHash::from_be_bytes(*key))
                .collect()
        }
    };
    Ok(Some(OrderingKeys::from_hashes(scope, keys)))
}

/// What is written to `scope`, `key` and `keys`.
pub(super) fn columns(keys: Option<&OrderingKeys>) -> (Option<KeyHash>, KeyHash, Option<Vec<u8>>) {
    let Some(keys) = keys else {
        return (None, 0, None);
    };
    let first = keys.keys().first().copied().unwrap_or(0);
    let bytes = || keys.keys().iter().flat_map(|key| key.to_be_bytes());
    let several = (keys.keys().len() > 1).then(|| bytes().collect());
    (Some(keys.scope()), first, several)
}

/// Notes the further keys of an open delivery, one by one.
pub(super) const NOTE: &str =
    "INSERT OR IGNORE INTO further_keys (handler, scope, key, position) VALUES (?1, ?2, ?3, ?4)";

/// Forgets them.
pub(super) const FORGET: &str =
    "DELETE FROM further_keys WHERE handler = ?1 AND scope = ?2 AND key = ?3 AND position = ?4";

/// Does [`NOTE`] or [`FORGET`] with the keys behind the first one.
pub(super) fn change_further_keys(
    db: &Connection,
    change: &str,
    (handler, position): (HandlerId, Position),
    keys: Option<&OrderingKeys>,
) -> Result<()> {
    let Some(keys) = keys else { return Ok(()) };
    for key in keys.keys().iter().skip(1) {
        db.prepare_cached(change)?
            .execute((handler, keys.scope(), key, position.to_sql()))?;
    }
    Ok(())
}

/// The youngest delivery that one of `keys` at `position` waits for, as far as one look tells: of those
/// that a whole scope waits for, any will do.
pub(super) fn blocker(
    db: &Connection,
    handler: HandlerId,
    position: Position,
    keys: &OrderingKeys,
) -> Result<Option<Position>> {
    let (scope, position) = (keys.scope(), position.to_sql());
    let mut youngest: Option<i64> = None;
    if keys.is_whole() {
        youngest = db
            .prepare_cached(BLOCKER_OF_WHOLE)?
            .query_row((handler, scope, position), |row| row.get(0))?;
    }
    for key in keys.keys() {
        let found: Option<i64> = db
            .prepare_cached(BLOCKER)?
            .query_row((handler, scope, key, position), |row| row.get(0))?;
        youngest = youngest.max(found);
    }
    Ok(youngest.map(Position::from_sql))
}

/// What a delivery of one key waits for: the youngest older one of the key, or of the whole scope. Here
/// and elsewhere the predicate of the index is repeated, since it could not be used otherwise, and the
/// index is named, since the primary key would be used otherwise.
pub(super) const BLOCKER: &str = "SELECT nullif(max(
    ifnull((SELECT position FROM deliveries INDEXED BY ordered
        WHERE handler = ?1 AND scope = ?2 AND key = ?3 AND position < ?4
            AND state < 2 AND scope IS NOT NULL ORDER BY position DESC LIMIT 1), -1),
    ifnull((SELECT position FROM deliveries INDEXED BY ordered
        WHERE handler = ?1 AND scope = ?2 AND key = 0 AND position < ?4
            AND state < 2 AND scope IS NOT NULL ORDER BY position DESC LIMIT 1), -1),
    ifnull((SELECT position FROM further_keys
        WHERE handler = ?1 AND scope = ?2 AND key = ?3 AND position < ?4
        ORDER BY position DESC LIMIT 1), -1)), -1)";

/// What a delivery of a whole scope waits for: the youngest older one of the whole scope, or else any
/// older one.
pub(super) const BLOCKER_OF_WHOLE: &str = "SELECT coalesce(
    (SELECT position FROM deliveries INDEXED BY ordered
        WHERE handler = ?1 AND scope = ?2 AND key = 0 AND position < ?3
            AND state < 2 AND scope IS NOT NULL ORDER BY position DESC LIMIT 1),
    (SELECT position FROM deliveries INDEXED BY ordered
        WHERE handler = ?1 AND scope = ?2 AND key > 0 AND position < ?3
            AND state < 2 AND scope IS NOT NULL LIMIT 1))";

/// The state of an open delivery, and what it is queued behind.
pub(super) fn state(
    db: &Connection,
    (handler, position): (HandlerId, Position),
    keys: Option<&OrderingKeys>,
) -> Result<(i64, Option<Position>)> {
    let blocker = match keys {
        Some(keys) => blocker(db, handler, position, keys)?,
        None => None,
    };
    Ok((if blocker.is_some() { QUEUED } else { READY }, blocker))
}

/// Looks again at what is queued behind a delivery that is open no longer.
pub(super) fn wake(db: &Connection, handler: HandlerId, over: Position) -> Result<()> {
    while let Some((position, keys)) = db
        .prepare_cached(WAITING)?
        .query_row((handler, over.to_sql()), |row| {
            Ok((Position::from_sql(row.get(0)?), read(row, 1)?))
        })
        .optional()?
    {
        let (state, behind) = state(db, (handler, position), keys.as_ref())?;
        db.prepare_cached(
            "UPDATE deliveries SET state = ?3, behind = ?4 WHERE handler = ?1 AND position = ?2",
        )?
        .execute((
            handler,
            position.to_sql(),
            state,
            behind.map(Position::to_sql),
        ))?;
    }
    Ok(())
}

/// The first of those that are queued behind a delivery.
pub(super) const WAITING: &str = "SELECT position, scope, key, keys
    FROM deliveries INDEXED BY waiting WHERE handler = ?1 AND behind = ?2 AND state = 1 LIMIT 1";

/// Queues what is ready behind a delivery that was made open again before it. What is being attempted
/// at this moment is queued as well: the service begins nothing that shares a key with it until that
/// has ended.
pub(super) fn step_back(
    db: &Connection,
    handler: HandlerId,
    position: Position,
    keys: &OrderingKeys,
) -> Result<()> {
    let (scope, position) = (keys.scope(), position.to_sql());
    if keys.is_whole() {
        db.prepare_cached(STEP_BACK_ALL)?
            .execute((handler, scope, position))?;
    }
    for key in keys.keys() {
        db.prepare_cached(STEP_BACK)?
            .execute((handler, scope, key, position))?;
    }
    Ok(())
}

/// Queues the next of a key, and the next of the whole scope, if they are ready. What comes after them
/// is queued already.
pub(super) const STEP_BACK: &str = "UPDATE deliveries SET state = 1, behind = ?4
    WHERE handler = ?1 AND state = 0 AND position IN (
        (SELECT position FROM deliveries INDEXED BY ordered
            WHERE handler = ?1 AND scope = ?2 AND key = ?3 AND position > ?4
                AND state < 2 AND scope IS NOT NULL ORDER BY position LIMIT 1),
        (SELECT position FROM deliveries INDEXED BY ordered
            WHERE handler = ?1 AND scope = ?2 AND key = 0 AND position > ?4
                AND state < 2 AND scope IS NOT NULL ORDER BY position LIMIT 1),
        (SELECT position FROM further_keys
            WHERE handler = ?1 AND scope = ?2 AND key = ?3 AND position > ?4
            ORDER BY position LIMIT 1))";

/// The same for all keys of a scope.
pub(super) const STEP_BACK_ALL: &str = "UPDATE deliveries INDEXED BY ordered
    SET state = 1, behind = ?3
    WHERE handler = ?1 AND scope = ?2 AND position > ?3 AND state = 0
        AND state < 2 AND scope IS NOT NULL";
