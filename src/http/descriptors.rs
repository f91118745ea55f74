//! File descriptors: as many as the connections need that are allowed.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For everything but connections of providers: the store's files, and what handlers open.
const BESIDE: u64 = 1024;

/// Sees to it that `max_connections` can be open at once, as far as the system lets us: what a process
/// begins with is often as few as 1024 of all kinds. No more than that is asked for, since programs
/// that handlers run begin with what we have, and some of them close each one that they could have.
pub(super) fn make_room(max_connections: usize) {
    let wanted = max_connections as u64 + BESIDE;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` is no limit.
    let Some(current) = current.filter(|current| *current < wanted) else {
        return;
    };
    let allowed = maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let raised = Rlimit {
        current: Some(allowed),
        maximum,
    };
    let has = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => allowed,
        Err(error) => {
            tracing::debug!(%error, "the limit of open files stays as it is");
            current
        }
    };
    if has < wanted {
        tracing::warn!(
            limit = has,
            max_connections,
            "fewer files can be open at once than connections may need; raise the limit of the \
             process (LimitNOFILE of systemd, ulimit -n), or lower max_connections"
        );
    }
}
