//! One integration binary: the real service, on port 0, with real sockets and real disks.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that cannot go on should stop where it is, and say why"
)]

#[cfg(feature = "amqp")]
mod amqp;
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
#[cfg(feature = "mqtt")]
#[path = "../support/mosquitto.rs"]
mod mosquitto;
#[cfg(feature = "mqtt")]
mod mqtt;
#[cfg(feature = "nats")]
mod nats;
#[path = "../support/postgres.rs"]
mod postgres;
#[cfg(feature = "amqp")]
#[path = "../support/rabbitmq.rs"]
mod rabbitmq;
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
