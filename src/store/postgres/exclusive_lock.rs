//! Exclusive access to the store, for a transfer into it. No service runs on the store meanwhile,
//! and a service that is started waits for the end of the transfer. A lock excludes services during
//! the transfer, and a row of `moves` excludes them after an interrupted one.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Row;

use super::{
    Settings, error::PgError, maintenance, operator::OperatorConnection, pool::PgConnection, rows,
    schema,
};
use crate::store::{Cursor, StoreError};

/// How long to wait for the lock: the server needs a moment to notice that a process was killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// The interval between attempts to take the lock.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Taken until the connection ends.
const TAKE: &str = "SELECT pg_try_advisory_lock(hashtext('hookswitch.move'))";

const BEGIN: &str = "INSERT INTO moves (began_at) SELECT clock_timestamp()
    WHERE NOT EXISTS (SELECT FROM moves WHERE ended_at IS NULL)";

const BEFORE: &str = "SELECT place, event FROM moves WHERE place IS NOT NULL ORDER BY id DESC";

const END: &str = "UPDATE moves SET ended_at = clock_timestamp(), place = $1, event = $2
    WHERE ended_at IS NULL";

const CUT_SHORT: &str = "SELECT EXISTS (SELECT FROM moves WHERE ended_at IS NULL)";

/// Taken for a moment only.
const LOOK: &str = "SELECT pg_try_advisory_xact_lock_shared(hashtext('hookswitch.move'))";

impl OperatorConnection {
    /// Connects to the store exclusively, and creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// When the store cannot be written, or a service uses it.
    pub(super) fn create(settings: &Settings) -> Result<Self, StoreError> {
        let making = async |connection: &mut PgConnection| schema::migrate(connection).await;
        let operator = Self::connect(settings, making)?;
        match operator.runtime.block_on(take(&operator.connection)) {
            Ok(true) => Ok(operator),
            Ok(false) => Err(StoreError::Locked(settings.url.to_string())),
            Err(error) => {
                Err(error.into_store_error(&format!("opening the store at {}", settings.url)))
            }
        }
    }
}

/// Tries to take the store exclusively. A service would hold the lock of the maintenance.
async fn take(connection: &PgConnection) -> Result<bool, PgError> {
    let deadline = Instant::now() + PATIENCE;
    while !(maintenance::elect(connection).await? && ask(connection, TAKE).await?) {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        sleep(RETRY_INTERVAL).await;
    }
    Ok(true)
}

/// Records the begin of a transfer. Returns the cursors of earlier ones, latest first.
pub(super) async fn begin(connection: &PgConnection) -> Result<Vec<Cursor>, PgError> {
    connection.client.execute(BEGIN, &[]).await?;
    let rows = connection.client.query(BEFORE, &[]).await?;
    let milestone = |row: &Row| {
        let (place, event) = (row.try_get(0)?, rows::event_id(row.try_get(1)?));
        Ok(Cursor { place, event })
    };
    rows.iter().map(milestone).collect()
}

/// Records the end of a transfer.
pub(super) async fn end(connection: &PgConnection, last: Option<Cursor>) -> Result<(), PgError> {
    let place = last.map(|last| last.place);
    let event = last.map(|last| rows::uuid(last.event));
    connection.client.execute(END, &[&place, &event]).await?;
    Ok(())
}

/// Fails while a transfer holds the store exclusively.
pub(super) async fn check(connection: &PgConnection) -> Result<(), PgError> {
    if ask(connection, LOOK).await? {
        return Ok(());
    }
    let why = "a store is being moved into the database; events are accepted after the transfer";
    Err(PgError::Unavailable(why.to_owned()))
}

/// Fails after an interrupted transfer.
pub(super) async fn check_whole(connection: &PgConnection) -> Result<(), PgError> {
    if !ask(connection, CUT_SHORT).await? {
        return Ok(());
    }
    let why = "a move of a store into the database was cut short; run `hookswitch migrate` again \
               to finish it, or delete its row from hookswitch.moves to give up the rest";
    Err(PgError::Unavailable(why.to_owned()))
}

async fn ask(connection: &PgConnection, question: &str) -> Result<bool, PgError> {
    Ok(connection
        .client
        .query_one(question, &[])
        .await?
        .try_get(0)?)
}
