//! File descriptors: as many as the connections need that are allowed, and never all of them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For everything but connections of providers: the store's files, and what handlers open. Where only
/// few are allowed, half of them.
const BESIDE: u64 = 1024;

/// How many connections can be open at once: `max_connections`, or fewer where the system does not
/// let us have that many files. It is asked for them, since what a process begins with is often as
/// few as 1024 of all kinds; but for no more, since programs that handlers run begin with what we
/// have, and some of them close each one that they could have.
pub(super) fn connections(max_connections: usize) -> usize {
    let wanted = max_connections as u64 + BESIDE;
    let has = allowed(wanted);
    if has >= wanted {
        return max_connections;
    }
    let left = has - BESIDE.min(has / 2);
    let connections = max_connections.min(usize::try_from(left).unwrap_or(usize::MAX));
    tracing::warn!(
        limit = has,
        connections,
        "there are fewer files than [server] max_connections = {max_connections} may need, so there \
         will be fewer connections; raise the limit of the process (LimitNOFILE of systemd, ulimit -n) \
         to {wanted}, or lower max_connections",
    );
    connections
}

/// How many files can be open at once: `wanted`, or more, if that can be had.
fn allowed(wanted: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` is no limit.
    let Some(current) = current.filter(|current| *current < wanted) else {
        return wanted;
    };
    let raised = maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let limit = Rlimit {
        current: Some(raised),
        maximum,
    };
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => raised,
        Err(error) => {
            tracing::debug!(%error, "the limit of open files stays as it is");
            current
        }
    }
}
