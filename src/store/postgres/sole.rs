//! Having the store to oneself, to move events in: no service runs on it, and none that is started
//! takes part until the move has ended.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Settings, fault::Fault, pool::Session, records::Operator, schema, upkeep};
use crate::store::StoreError;

/// How long a store is waited for that somebody has: the server takes a moment to notice that a
/// process was killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked whether nobody has it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Held until the connection ends.
const TAKE: &str = "SELECT pg_try_advisory_lock(hashtext('hookswitch.move'))";

/// Held for a moment only.
const LOOK: &str = "SELECT pg_try_advisory_xact_lock_shared(hashtext('hookswitch.move'))";

impl Operator {
    /// Connects to the store in the place of all services, and makes it where there is none.
    ///
    /// # Errors
    ///
    /// When it cannot be written, or a service has it.
    pub(super) fn create(settings: &Settings) -> Result<Self, StoreError> {
        let making = async |session: &mut Session| schema::migrate(session).await;
        let operator = Self::connect(settings, making)?;
        match operator.runtime.block_on(take(&operator.session)) {
            Ok(true) => Ok(operator),
            Ok(false) => Err(StoreError::Locked(settings.url.to_string())),
            Err(fault) => Err(fault.during(&format!("opening the store at {}", settings.url))),
        }
    }
}

/// Whether the store is this connection's alone now. A service has one that does the upkeep.
async fn take(session: &Session) -> Result<bool, Fault> {
    let deadline = Instant::now() + PATIENCE;
    while !(upkeep::elect(session).await? && ask(session, TAKE).await?) {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(true)
}

/// Looks whether nobody has the store to himself.
pub(super) async fn check(session: &Session) -> Result<(), Fault> {
    if ask(session, LOOK).await? {
        return Ok(());
    }
    let why = "a store is being moved into the database; events are taken when that has ended";
    Err(Fault::Away(why.to_owned()))
}

async fn ask(session: &Session, lock: &str) -> Result<bool, Fault> {
    Ok(session.client.query_one(lock, &[]).await?.try_get(0)?)
}
