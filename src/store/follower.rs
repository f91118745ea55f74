//! Whether those get on who work behind what is stored: what is taken and never delivered must show.
//!
//! A follower stands still when it has had something to do for [`PATIENCE`] and has got nowhere with it,
//! because it fails again and again, or because it hangs. It is said once when that begins and once when it
//! ends, and shown as a metric. While one stands still that deliveries wait for, the service is not
//! ready, so that others get the requests; what comes all the same is stored, since that is no less
//! possible than before.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::telemetry::{ByFollower, Metrics};

/// How long a follower may get nowhere until it counts as standing still: longer than anything takes
/// that one does at a time, and short enough for a load balancer to act on.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked whether one does.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// All of a store's followers.
#[derive(Clone, Debug, Default)]
pub struct Followers(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    present: BTreeMap<u64, TaskState>,
    /// All names that there have been: their gauges have to be set.
    names: BTreeSet<&'static str>,
}

#[derive(Debug)]
struct TaskState {
    name: &'static str,
    /// Whether deliveries wait for it.
    is_critical: bool,
    /// What it works on.
    what: String,
    /// Since when there is something to do, and what was in its way last.
    since: Option<Instant>,
    why: Option<String>,
    is_stalled: bool,
}

/// One follower. Forgotten when it is dropped.
#[derive(Debug)]
pub struct Follower {
    all: Followers,
    id: u64,
}

impl Followers {
    /// One called `name`, which works on `what`, and whom deliveries wait for.
    pub fn critical(&self, name: &'static str, what: impl Into<String>) -> Follower {
        self.add(name, what.into(), true)
    }

    /// One that nothing waits for yet: that it stands still is shown, and no more.
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

    /// Whether one stands still that deliveries wait for, as of the last look.
    pub fn any_stalled(&self) -> bool {
        let state = self.lock();
        let mut present = state.present.values();
        present.any(|task| task.is_critical && task.is_stalled)
    }

    /// Looks who stands still, says what has changed, and shows it in `metrics`.
    pub fn look(&self, metrics: &Metrics) {
        let mut state = self.lock();
        let mut counts: BTreeMap<_, i64> = state.names.iter().map(|name| (*name, 0)).collect();
        for task in state.present.values_mut() {
            task.look();
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
    fn look(&mut self) {
        let is_late = self.since.is_some_and(|since| since.elapsed() >= PATIENCE);
        if is_late == self.is_stalled {
            return;
        }
        self.is_stalled = is_late;
        let (follower, what) = (self.name, &self.what);
        if is_late {
            let why = self.why.as_deref().unwrap_or("it takes too long");
            tracing::error!(follower, "{what} has come to a standstill: {why}");
        } else {
            tracing::info!(follower, "{what} goes on");
        }
    }
}

impl Follower {
    /// There is something to do.
    pub fn started(&self) {
        self.change(|task| {
            task.since.get_or_insert_with(Instant::now);
        });
    }

    /// It has got somewhere, or has nothing to do.
    pub fn progressed(&self) {
        self.change(|task| {
            task.since = None;
            task.why = None;
        });
    }

    /// It failed, because of `why`. Whether that is the first time since it got on, and worth a line in
    /// the log.
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
