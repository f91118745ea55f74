//! Moving everything out of an embedded store.

use std::{sync::Arc, thread, time::Duration};

use super::{Embedded, Settings, Shared, disk::SystemDisk, ledger::OperatorConnection};
use crate::store::{Context, Health, StoreError, Subscription};

/// How often it is looked whether the ledger knows the whole journal.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A store that events are moved out of. Nobody else has it meanwhile.
pub struct TransferSource {
    pub(super) operator: OperatorConnection,
    /// Keeps others away.
    _store: Embedded,
}

impl TransferSource {
    /// Opens the store as a service would, and waits until its ledger knows all of its journal.
    /// `subscriptions` say who gets what of events that it does not know yet.
    pub(super) fn open(
        settings: &Settings,
        context: Context,
        subscriptions: Vec<Subscription>,
    ) -> Result<Self, StoreError> {
        // What is not there must not be made.
        let ledger = settings.ledger();
        if !ledger.exists() {
            return Err(StoreError::Absent(settings.path.display().to_string()));
        }
        // Nothing may be deleted before it has been moved.
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
        shared.progress.subscribed();
        until_known(shared)?;
        let operator = OperatorConnection::open(settings, clock)?;
        Ok(Self {
            operator,
            _store: store,
        })
    }
}

/// Waits until the ledger knows the whole journal.
fn until_known(shared: &Shared) -> Result<(), StoreError> {
    loop {
        let watermark = shared
            .ledger
            .run_blocking("reading the ledger", |database| database.watermark())?;
        if watermark.through >= shared.progress.end() {
            return Ok(());
        }
        // Nobody reads the journal any more.
        if let Health::Poisoned { why } = shared.health.get() {
            return Err(StoreError::database("bringing the ledger up to date")(why));
        }
        thread::sleep(LOOK_EVERY);
    }
}
