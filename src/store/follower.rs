//! Watches background tasks for progress, so that events which are stored and not delivered are
//! noticed.
//!
//! A follower is a background task that works behind the append path. It is stalled when it has had
//! work for [`STALLED_AFTER`] without progress, because it fails again and again or because it hangs. A
//! stall and its end are logged once each, and shown as a metric. While a critical follower is
//! stalled, the service reports that it is not ready, so that other replicas get the requests.
//! Events that arrive all the same are stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::telemetry::{ByFollower, Metrics};

/// How long a follower may make no progress before it counts as stalled: longer than any single
/// step of its work takes, and short enough for a load balancer to act on.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// The interval of the checks.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// All followers of a store.
#[derive(Clone, Debug, Default)]
pub struct Followers(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    present: BTreeMap<u64, TaskState>,
    /// All names that followers have had. Their gauges must be set, also to 0.
    names: BTreeSet<&'static str>,
}

#[derive(Debug)]
struct TaskState {
    name: &'static str,
    /// Whether deliveries wait for this task.
    is_critical: bool,
    /// A description of the work, for the log.
    what: String,
    /// Since when the task has had work without progress, and its last error.
    since: Option<Instant>,
    why: Option<String>,
    is_stalled: bool,
}

/// A handle by which a background task reports its progress. Dropping it ends the watch.
#[derive(Debug)]
pub struct Follower {
    all: Followers,
    id: u64,
}

impl Followers {
    /// Watches the task `name`, described by `what`. The service is not ready while the task is
    /// stalled.
    pub fn critical(&self, name: &'static str, what: impl Into<String>) -> Follower {
        self.add(name, what.into(), true)
    }

    /// Watches the task `name`, described by `what`. A stall is logged and shown, and changes
    /// nothing else.
    pub fn background(&self, name: &'static str, what: impl Into<String>) -> Follower {
        self.add(name, what.into(), false)
    }

    fn add(&self, name: &'static str, what: String, is_critical: bool) -> Follower {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.names.insert(name);
        let task = TaskState {
            name,
            is_critical,
            what,
            since: None,
            why: None,
            is_stalled: false,
        };
        state.present.insert(id, task);
        Follower {
            all: self.clone(),
            id,
        }
    }

    /// Whether a critical follower is stalled, as of the last check.
    pub fn any_stalled(&self) -> bool {
        let state = self.lock();
        let mut present = state.present.values();
        present.any(|task| task.is_critical && task.is_stalled)
    }

    /// Checks all followers, logs changes, and sets the gauges in `metrics`.
    pub fn check(&self, metrics: &Metrics) {
        let mut state = self.lock();
        let mut counts: BTreeMap<_, i64> = state.names.iter().map(|name| (*name, 0)).collect();
        for task in state.present.values_mut() {
            task.check();
            *counts.entry(task.name).or_default() += i64::from(task.is_stalled);
        }
        for (follower, count) in counts {
            let by = ByFollower { follower };
            metrics.follower_stalled.get_or_create(&by).set(count);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TaskState {
    fn check(&mut self) {
        let is_late = self
            .since
            .is_some_and(|since| since.elapsed() >= STALLED_AFTER);
        if is_late == self.is_stalled {
            return;
        }
        self.is_stalled = is_late;
        let (follower, what) = (self.name, &self.what);
        if is_late {
            let why = self.why.as_deref().unwrap_or("it takes too long");
            tracing::error!(follower, "{what} makes no progress: {why}");
        } else {
            tracing::info!(follower, "{what} makes progress again");
        }
    }
}

impl Follower {
    /// The task has work.
    pub fn started(&self) {
        self.change(|task| {
            task.since.get_or_insert_with(Instant::now);
        });
    }

    /// The task has made progress, or has no work.
    pub fn progressed(&self) {
        self.change(|task| {
            task.since = None;
            task.why = None;
        });
    }

    /// The task failed with `why`. Returns whether this is the first failure since the last
    /// progress, and so worth a log line.
    pub fn failed(&self, why: &impl ToString) -> bool {
        let mut is_first = false;
        self.change(|task| {
            task.since.get_or_insert_with(Instant::now);
            is_first = task.why.replace(why.to_string()).is_none();
        });
        is_first
    }

    fn change(&self, change: impl FnOnce(&mut TaskState)) {
        if let Some(task) = self.all.lock().present.get_mut(&self.id) {
            change(task);
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.all.lock().present.remove(&self.id);
    }
}
