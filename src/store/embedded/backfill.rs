//! Writes the states of all deliveries to a journal that lacks them, since it has version 1 or has
//! lost its end.
//!
//! The ledger has the states. They go into the first segment of version 2, which gets its name when
//! all of them are on stable storage. So the segment is complete, or the next start creates it
//! again. Events that the ledger has not read by then go to the handlers that are configured when
//! they are read.

use jiff::Timestamp;

use super::{
    ledger::LedgerDatabase,
    reader::Directory,
    recovery::{Tail, follow},
    segment::{Position, VERSION},
};
use crate::store::StoreError;

/// Makes sure that the journal has the states of all deliveries, and that no record is appended to
/// a segment of an older version.
pub(super) fn backfill(
    database: &mut LedgerDatabase,
    directory: &Directory,
    mut tail: Tail,
    now: Timestamp,
) -> Result<Tail, StoreError> {
    let written = || StoreError::writing(directory.path());
    let number = tail.header.number + 1;
    if database.is_journaled()? {
        return match tail.header.version {
            VERSION => Ok(tail),
            _ => follow(directory, tail, number, now).map_err(written()),
        };
    }
    if !database.is_sound()? {
        database.reset("it is damaged")?;
        return backfill(database, directory, tail, now);
    }
    tracing::info!("the states of all deliveries are written to the journal");
    tail.seal().map_err(written())?;
    let header = tail.successor(number, now);
    let tail = Tail::begin_with(directory, header, |segment| {
        let (through, mut added) = (database.through()?, Ok(()));
        let listed = database.inventory(Position::default(), through, |record| {
            if added.is_ok() {
                added = segment.add(&record);
            }
        });
        listed.map_err(StoreError::database("reading the ledger"))?;
        added.map_err(written())
    })?;
    super::disk::sync_dir(directory.path()).map_err(written())?;
    database.set_journaled()?;
    Ok(tail)
}
