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
mod postgres;
mod readme;
mod reload;
#[path = "../support"]
mod support {
    pub(crate) mod postgres;
    pub(crate) mod server;
}
