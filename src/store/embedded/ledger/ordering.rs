//! The ordering keys of deliveries in the ledger. The windows of the
//! [queue](crate::store::embedded::queue) are filled with them, and operators see what a delivery
//! waits for.

use rusqlite::{Connection, Result, Row, types::Type};

use super::delivery::HandlerId;
use crate::{
    event::{KeyHash, OrderingKeys},
    store::embedded::segment::Position,
};

/// Reads the columns `scope`, `key` and `keys`, of which the first is column `first`.
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

/// The values of `scope`, `key` and `keys`.
pub(super) fn columns(keys: Option<&OrderingKeys>) -> (Option<KeyHash>, KeyHash, Option<Vec<u8>>) {
    let Some(keys) = keys else {
        return (None, 0, None);
    };
    let first = keys.keys().first().copied().unwrap_or(0);
    let bytes = || keys.keys().iter().flat_map(|key| key.to_be_bytes());
    let several = (keys.keys().len() > 1).then(|| bytes().collect());
    (Some(keys.scope()), first, several)
}

/// The most open deliveries that are searched for a blocker, which takes about 50 ms.
const REACH: i64 = 64 << 10;

/// The open deliveries before a position, youngest first.
pub(super) const BEFORE: &str = "SELECT position, scope, key, keys
    FROM deliveries INDEXED BY unfinished
    WHERE handler = ?1 AND state = 0 AND state < 3 AND position < ?2 ORDER BY position DESC LIMIT ?3";

/// The youngest open delivery of `handler` before `position` that shares one of `keys`; `None` also
/// if the search is too long.
pub(super) fn blocker(
    db: &Connection,
    handler: HandlerId,
    position: Position,
    keys: &OrderingKeys,
) -> Result<Option<Position>> {
    let mut before = db.prepare_cached(BEFORE)?;
    let mut rows = before.query((handler, position.to_sql(), REACH))?;
    while let Some(row) = rows.next()? {
        if read(row, 1)?.is_some_and(|other| other.share_a_key_with(keys)) {
            return Ok(Some(Position::from_sql(row.get(0)?)));
        }
    }
    Ok(None)
}
