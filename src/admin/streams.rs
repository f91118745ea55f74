//! Live streams. A stream keeps its connection for as long as somebody looks, so that streams have
//! places of their own: they leave connections for everything else.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::api::problem::Problem;

/// The most live streams.
const MAX_STREAMS: usize = 16;

/// The places for live streams.
pub(super) struct Streams(Arc<Semaphore>);

impl Default for Streams {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_STREAMS)))
    }
}

impl Streams {
    /// A place, until it is dropped.
    ///
    /// # Errors
    ///
    /// When all places are taken.
    pub(super) fn take(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let place = Arc::clone(&self.0).try_acquire_owned();
        place.map_err(|_| Problem::too_many_streams(MAX_STREAMS))
    }
}
