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
mod backup;
mod command_line;
mod console;
mod copied;
mod crash;
mod deliver;
mod disk;
mod doctor;
mod documents;
mod drain;
mod floors;
mod harness;
mod http;
#[cfg(feature = "kafka")]
mod kafka;
mod kill_points;
#[cfg(feature = "postgres")]
mod migrate;
mod monitoring;
#[cfg(feature = "mqtt")]
mod mqtt;
#[cfg(feature = "nats")]
mod nats;
mod openapi;
mod order;
mod pages;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
mod reload;
#[cfg(feature = "postgres")]
mod replicas;
mod rotation;
mod shipped;
#[cfg(feature = "sql")]
mod sql;
#[cfg(feature = "sqs")]
mod sqs;
mod standstill;
mod verifiers;
mod verify;
#[path = "../support"]
mod support {
    pub(crate) mod browser;
    #[cfg(feature = "mqtt")]
    pub(crate) mod mosquitto;
    pub(crate) mod mtls;
    pub(crate) mod postgres;
    #[cfg(feature = "amqp")]
    pub(crate) mod rabbitmq;
    #[cfg(feature = "kafka")]
    pub(crate) mod relay;
    pub(crate) mod server;
}
