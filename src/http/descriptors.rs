//! The limit on file descriptors, and how many of them connections may use.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors reserved for the store's files and the handlers; half of all descriptors where the
/// limit is low.
const RESERVED: u64 = 1024;

/// The most open connections: `max_connections`, or fewer where the system limits open files. The
/// soft limit is often 1024, so it is raised to what is needed. It is raised no further, because
/// programs that handlers run inherit it, and some of them close every possible descriptor.
pub(super) fn connections(max_connections: usize) -> usize {
    let wanted = max_connections as u64 + RESERVED;
    let has = allowed(wanted);
    if has >= wanted {
        return max_connections;
    }
    let left = has - RESERVED.min(has / 2);
    let connections = max_connections.min(usize::try_from(left).unwrap_or(usize::MAX));
    tracing::warn!(
        limit = has,
        connections,
        "the limit of open files is too low for [server] max_connections = {max_connections}, so \
         there will be fewer connections; raise the limit of the process (LimitNOFILE of systemd, \
         ulimit -n) to {wanted}, or lower max_connections",
    );
    connections
}

/// How many open files `max_connections` needs, and how many a process like this one can have; `None` where
/// that is enough.
pub fn shortage(max_connections: usize) -> Option<(u64, u64)> {
    let wanted = max_connections as u64 + RESERVED;
    let has = getrlimit(Resource::Nofile).maximum?;
    (has < wanted).then_some((wanted, has))
}

/// The limit of open files, raised to `wanted` if it is lower and can be raised.
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
            tracing::debug!(%error, "the limit of open files cannot be raised");
            current
        }
    }
}
