//! hookswitch receives RingCentral and Zoom telephony webhooks and never loses one.
//!
//! It verifies the sender of a request, writes the event to stable storage before it answers, parses
//! the event, and delivers each event at least once, in order per number, to the handlers that a
//! TOML file names. It is not a general webhook gateway, a queue, or a client of the providers'
//! APIs.
//!
//! **The promise.** A 200 means that the event is on stable storage and every matching handler
//! will get it, in order per number, or it will be parked where a person can see it and replay it.
//! Nothing authentic is ever refused, and nothing forged is ever stored.
//!
//! # A handler of your own
//!
//! A program that embeds this crate has all commands of `hookswitch`, and its own kinds of handlers besides the
//! built-in ones. [`App`] runs the service within a program that has other commands, and [`Builder::parse`] takes a
//! configuration that is no file.
//!
//! The crate is in no registry. A program depends on a copy of the repository, by its path or by the URL of a
//! repository and a tag, with Rust 1.95 or newer. `full` has all built-in kinds but `kafka`:
//!
//! ```toml
//! [dependencies]
//! hookswitch = { path = "../hookswitch", features = ["full"] }
//! # or: hookswitch = { git = "https://git.example.com/hookswitch", tag = "v0.1.0" }
//! serde = { version = "1", features = ["derive"] } # for the settings of a handler
//! tokio = { version = "1", features = ["rt-multi-thread"] }
//! ```
//!
//! [`Outcome`] and [`DeliveryContext`] may grow in any version; a removal or a change of meaning takes a new minor
//! version while the crate is 0.x. Settings and defaults in the TOML, the names of metrics and events, and exit codes
//! are kept in the same way.
//!
//! ```no_run
#![cfg_attr(any(doc, doctest), doc = include_str!("../examples/custom_handler.rs"))]
//! ```
//!
//! # Floors
//!
//! A floor may use the floors below it in this list, never those above it. A test checks this.
//!
//! | floor | what it does |
//! |---|---|
//! | `main` | the entry point of the program |
//! | [`cli`] | the command line, one file per subcommand |
//! | [`app`] | builds, supervises and drains the service |
//! | [`config`] | reads the TOML file, and reports all of its problems at once |
//! | [`http`], [`admin`] | the ingress server, which providers post to; the admin server, with probes, metrics, the API and the pages for operators |
//! | [`dispatch`] | delivers at least once, in order per number |
//! | [`handler`] | makes one attempt to deliver one event |
//! | [`store`] | keeps events and deliveries durably |
//! | [`provider`] | verifies requests, and composes them for tests |
//! | [`event`] | parses events |
//! | [`client_tls`], [`secret`], [`ca_bundle`], [`pem`], `postgres_url`, [`quantity`], [`spanned`], [`cleartext`], `entries`, [`telemetry`] | foundations that every floor may use: TLS with a server, secrets by reference, CA certificates, certificates and keys, URLs of PostgreSQL, sizes and durations, a TOML value with its places, warnings about credentials without TLS, tables with a line for each entry, logs and metrics |
//!
//! # Glossary
//!
//! | term | meaning |
//! |---|---|
//! | provider | a company that posts events: `ringcentral`, `zoom` |
//! | endpoint | one URL that a provider posts to; it serves one event family |
//! | request | an HTTP request that has not been verified |
//! | answer | the HTTP response to a request; its metric label is `stored`, `handshake` or the reason of the rejection |
//! | eviction | when a limit is reached, the connection that has waited longest for its peer is closed, or the request is answered 503 |
//! | admission, refusal | the provider floor's verdict on a request |
//! | notification | one authenticated message, with its bytes exactly as received |
//! | family | a group of events with one typed shape: `zoom.number-management` |
//! | facts | what the floors above need of an event: its name, its keys, its subject, its time, its topics |
//! | unrecognized, unreadable | an authentic event that no family knows; one that its family cannot parse |
//! | event name | `<family>.<change>`: `ringcentral.phone-number.created` |
//! | ordering keys | the set of keys that order an event: a phone number, an extension's id |
//! | scope | the namespace of ordering keys, such as a Zoom account; an event can have all keys of its scope |
//! | partition key | the one key that brokers get: a number's id, an extension's id, account and carrier |
//! | topic | what a newer event replaces: one kind of change of one number |
//! | journal | the append-only log on disk; its sync is what a 200 stands for |
//! | segment | one file of the journal |
//! | position | a place in the journal |
//! | watermark | the position up to which a view has read the journal |
//! | ledger | the database of events and deliveries; a view of the journal |
//! | deduplication index | the table by which duplicates are recognized; a view of the journal |
//! | window | the open deliveries of one handler in memory; a view of the journal |
//! | transfer | moving all events from one store to another |
//! | follower | a background task behind the append path, watched for progress: the indexer, the ledger, a handler's claims |
//! | handler | a named receiver of events in the TOML; its kind is a Rust type |
//! | subscription | the patterns of a handler, and whether it is ordered |
//! | claim, lease | a delivery that a worker may attempt; the proof and the term of that |
//! | settlement | the result of a claimed delivery, as the store records it |
//! | delivery, attempt | one event for one handler; one attempt to deliver it |
//! | park | stop retrying a delivery and keep it with its reason until a person decides (a dead letter) |
//! | replay | deliver again on request, with a reason, marked as a replay |

#![cfg_attr(
    not(feature = "full"),
    expect(
        dead_code,
        reason = "a build without some handler kinds uses less of what the kinds share"
    )
)]

// What an embedder gets. Within a floor, `pub` is for the floors above it.
pub use app::{App, Builder, End, Error};
pub use cli::main;
pub use config::{Config, Report};
pub use event::{
    DedupeKey, E164, EndpointName, EventId, EventName, HandlerName, Key, LenientString,
    Notification, Topic, TriState, Unreadable, ringcentral, zoom,
};
pub use handler::{
    AnyEvent, BuildContext, BuildError, Delivery, DeliveryContext, Error as HandlerError, Event,
    Handler, HandlerKind, Outcome,
};

mod cli;

mod app;

mod config;

mod admin;
mod http;

mod dispatch;
mod handler;

mod store;

mod provider;

mod event;

mod ca_bundle;
mod cleartext;
mod client_tls;
mod entries;
mod pem;
#[cfg(any(feature = "postgres", feature = "sql"))]
mod postgres_url;
mod quantity;
mod secret;
mod spanned;
mod telemetry;
