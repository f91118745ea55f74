//! The damage of the journal that has been found.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{store::embedded::segment::Position, telemetry::Metrics};

/// The damage that has been found. All readers of the journal share it, so that none is reported or
/// counted twice.
#[derive(Clone)]
pub(in super::super) struct DamageLog {
    found: Arc<Mutex<BTreeMap<Position, u64>>>,
    metrics: Arc<Metrics>,
}

impl DamageLog {
    /// No damage yet.
    pub(in super::super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            found: Arc::default(),
            metrics,
        }
    }

    /// Reports damage of `bytes` at `position`, unless it has been reported.
    pub(in super::super) fn report(&self, position: Position, bytes: u64, what: &'static str) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.insert(position, bytes).is_none() {
            tracing::error!(
                segment = position.segment(),
                offset = position.offset(),
                bytes,
                "the journal is damaged: {what}"
            );
        }
        let sum: u64 = found.values().sum();
        self.metrics.journal_damaged_bytes.set(sum.cast_signed());
    }
}
