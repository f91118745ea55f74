//! The source of a transfer.

use std::{sync::Arc, thread, time::Duration};

use super::{Embedded, Settings, Shared, disk::SystemDisk, ledger::OperatorConnection};
use crate::store::{Context, Health, StoreError, Subscription};

/// The interval of checks whether the ledger is complete.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A store that is the source of a transfer. No service runs on it meanwhile.
pub struct TransferSource {
    pub(super) operator: OperatorConnection,
    /// Keeps services away.
    _store: Embedded,
}

impl TransferSource {
    /// Opens the store as a service does, and waits until the ledger has the whole journal.
    /// `subscriptions` decide who gets the events that the ledger does not have yet.
    pub(super) fn open(
        settings: &Settings,
        context: Context,
        subscriptions: Vec<Subscription>,
    ) -> Result<Self, StoreError> {
        // A store that does not exist must not be created.
        settings.require_ledger()?;
        // Retention must not delete events before they are transferred.
        let settings = &Settings {
            retain: Duration::MAX,
            ..settings.clone()
        };
        let clock = context.clock;
        let store = Embedded::open(settings, context, Arc::new(SystemDisk))?;
        let shared = &store.shared;
        shared
            .ledger
            .run_blocking("subscribing", |database| database.subscribe(subscriptions))?;
        shared.core.progress.subscribed();
        until_known(shared)?;
        let operator = OperatorConnection::open(settings, clock)?;
        Ok(Self {
            operator,
            _store: store,
        })
    }
}

/// Waits until the ledger has the whole journal.
fn until_known(shared: &Shared) -> Result<(), StoreError> {
    loop {
        if shared.ledger.watermark()?.through >= shared.core.progress.end() {
            return Ok(());
        }
        // The indexer has ended.
        if let Health::Poisoned { why } = shared.core.health.get() {
            return Err(StoreError::database("indexing the journal")(why));
        }
        thread::sleep(LOOK_EVERY);
    }
}
