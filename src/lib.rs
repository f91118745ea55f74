//! hookswitch receives RingCentral and Zoom telephony webhooks and never loses one.
//!
//! It proves who sent a request, writes it to stable storage before it answers, turns it into a
//! typed event, and delivers each event at least once, in order per number, to the handlers that a
//! TOML file names. It is not a general webhook gateway, a queue, or a client of the providers'
//! APIs.
//!
//! **The promise.** A 200 means that the event is on stable storage and every matching handler
//! will get it, in order per number, or it will be parked where a person can see it and replay it.
//! Nothing authentic is ever refused, and nothing forged is ever stored.
//!
//! # Floors
//!
//! Each floor may use what stands below it in this list, never what stands above it; a test keeps
//! it so.
//!
//! | floor | what it does |
//! |---|---|
//! | `main` | arguments in, exit code out |
//! | [`cli`] | one file per subcommand |
//! | [`app`] | wires the floors together, supervises them, drains them |
//! | [`config`] | the TOML file, and one report of everything wrong with it |
//! | [`http`], [`admin`] | the server that providers post to; the admin server |
//! | [`dispatch`] | at least once, in order per number |
//! | [`handler`] | what to do with one event |
//! | [`store`] | remember it |
//! | [`provider`] | who said it |
//! | [`event`] | what was said |
//! | [`client_tls`], [`secret`], [`ca_bundle`], `postgres_url`, [`quantity`], [`cleartext`], [`telemetry`] | foundations that every floor may use: TLS with a server, secrets by reference, CA certificates, URLs of PostgreSQL, sizes and durations, warnings about credentials without TLS, logs and metrics |
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | provider | a company that calls us: `ringcentral`, `zoom` |
//! | endpoint | one URL that a provider posts to; it serves one event family |
//! | request | what came in, unbelieved |
//! | admission, refusal | the provider floor's verdict on a request |
//! | notification | one authenticated message, its bytes exactly as they came |
//! | family | a group of events with one typed shape: `zoom.number-management` |
//! | event name | `<family>.<change>`: `ringcentral.phone-number.created` |
//! | ordering keys | what an event keeps its order by, a set: a phone number, an extension's id |
//! | scope | what ordering keys stand in, such as a Zoom account; an event can have all keys of its scope |
//! | partition key | the one key that brokers get: a number's id, an extension's id, account and carrier |
//! | topic | what a newer event replaces: one kind of change of one number |
//! | journal | the append-only log on disk; its sync is what a 200 stands for |
//! | position | a place in the journal |
//! | ledger | the database of who has had what |
//! | window | the open deliveries of one handler, as far as they are in memory |
//! | follower | who works behind what is stored: the indexer, the ledger, a handler's claims |
//! | handler | a named consumer in the TOML; its kind is a Rust type |
//! | delivery, attempt | one event for one handler; one try at it |
//! | park | give up on a delivery for now, visibly, with its reason (a dead letter) |
//! | replay | deliver again on purpose, with a reason, marked as a replay |

pub mod cli;

pub mod app;

pub mod config;

pub mod admin;
pub mod http;

pub mod dispatch;
pub mod handler;

pub mod store;

pub mod provider;

pub mod event;

pub mod ca_bundle;
pub mod cleartext;
pub mod client_tls;
#[cfg(any(feature = "postgres", feature = "sql"))]
pub(crate) mod postgres_url;
pub mod quantity;
pub mod secret;
pub mod telemetry;
