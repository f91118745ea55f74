//! One integration binary: the real service, on port 0, with real sockets and real disks.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that cannot go on should stop where it is, and say why"
)]

mod answers;
mod command_line;
mod crash;
mod deliver;
mod disk;
mod drain;
mod floors;
mod harness;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "nats")]
mod nats;
#[path = "../support/postgres.rs"]
mod postgres;
mod readme;
#[cfg(feature = "redis")]
mod redis;
mod reload;
mod replicas;
#[path = "../support/server.rs"]
mod server;
mod shipped;
#[cfg(feature = "sql")]
mod sql;
