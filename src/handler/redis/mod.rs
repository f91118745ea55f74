//! `redis`: an entry in a Redis stream for each event, by `XADD`.
//!
//! CloudEvents has no binding for Redis. An entry's fields are these:
//!
//! | `format` | fields |
//! |---|---|
//! | `structured` | `event`: the CloudEvent as JSON |
//! | `binary` | one for each attribute, named like it, and `data`: the provider's body, byte for byte |
//! | `raw` | `data` alone |
//!
//! The entry's id is the server's own. The event's id, by which copies are told, is in the event;
//! a stream itself keeps every copy, so an entry whose confirmation was lost is there twice.
//!
//! **What done stands for.** The reply to `XADD` says that the server has the entry in memory. What
//! outlives a crash of the server is for its settings to say: with `appendonly yes` and
//! `appendfsync always`, the reply comes after the entry is on its disk; with `everysec`, which is
//! the default, up to a second of entries is lost; without `appendonly`, everything since the last
//! snapshot is. With `wait`, done stands for more: `replicas` asks for so many replicas that have
//! the entry (`WAIT`), `fsync = true` for it to be on the server's disk, and on theirs (`WAITAOF`,
//! from Redis 7.2). An entry that is not confirmed in time is added again.
//!
//! **Order.** A stream keeps entries in the order in which they were added, so with
//! `order = "key"` it has the events of each ordering key in the order in which they arrived.
//!
//! | answer | outcome |
//! |---|---|
//! | the entry's id, and what `wait` asks for | done |
//! | fewer replicas or disks than `wait` asks for | tried again |
//! | any error, no connection, no answer | tried again |
//!
//! What a server can hold against an entry is true of any entry: its memory is full, it is
//! read-only, the user may not write, the key is no stream. That gets well without the event being
//! changed, so nothing is parked for it before `retry` says so.
//!
//! **Invariant:** no server's words are in a reason, only its error's code: they may quote the
//! command, and the event in it.

mod settings;

use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, RedisError, RedisResult, Value,
    aio::MultiplexedConnection, cmd,
};

use super::{
    AnyEvent, BuildContext, BuildError, Delivery, Handler, HandlerKind, Outcome,
    broker::idle::IdleConnections,
    cloud_event::CloudEvent,
    message::{Format, Message},
};
use settings::Wait;

pub(super) use settings::Settings;

impl HandlerKind for Settings {
    const KIND: &'static str = "redis";
    const EXAMPLE: &'static str = r#"
[handlers.stream]
kind = "redis"
events = ["*"]
url = "rediss://redis.example.com:6379/0"
username = "hookswitch"
password = { env = "REDIS_PASSWORD" }
# tls = { ca = "/etc/hookswitch/ca.pem", certificate = "/etc/hookswitch/redis.pem", key = "/etc/hookswitch/redis-key.pem" }
stream = "telephony"
# maxlen = 1_000_000
format = "structured"
wait = { replicas = 1, timeout = "1s" }
connect_timeout = "5s"
"#;
    type Handler = Redis;

    fn build(self, context: &mut BuildContext) -> Result<Redis, BuildError> {
        context.warn(self.cleartext_warning());
        if let Some(contradiction) = self.contradiction(context.timeout) {
            return Err(BuildError(contradiction.to_owned()));
        }
        Ok(Redis {
            client: self.client().map_err(BuildError)?,
            idle: IdleConnections::default(),
            settings: self,
        })
    }
}

/// The handler.
#[derive(Debug)]
pub(super) struct Redis {
    client: Client,
    /// A reply can hold up those behind it on the same connection, as that of `WAIT` does, so each
    /// attempt has a connection of its own.
    idle: IdleConnections<MultiplexedConnection>,
    settings: Settings,
}

impl Handler for Redis {
    type Event = AnyEvent;

    async fn handle(&self, delivery: Delivery<'_, AnyEvent>) -> Outcome {
        let event = CloudEvent::new(delivery.notification, delivery.context);
        let entry = self.entry(&Message::new(&event, self.settings.format));
        match self.deliver(&entry).await {
            Ok(()) => Outcome::Done,
            Err(failure) => Outcome::retry(failure),
        }
    }
}

impl Redis {
    /// The command that adds an event.
    fn entry(&self, message: &Message) -> Cmd {
        let mut entry = cmd("XADD");
        entry.arg(&self.settings.stream.0);
        if let Some(maxlen) = self.settings.maxlen {
            entry.arg("MAXLEN").arg("~").arg(maxlen.get());
        }
        entry.arg("*");
        for (name, text) in &message.attributes {
            entry.arg(name).arg(text);
        }
        let field = match self.settings.format {
            Format::Structured => "event",
            Format::Binary | Format::Raw => "data",
        };
        entry.arg(field).arg(&message.body[..]);
        entry
    }

    async fn deliver(&self, entry: &Cmd) -> Result<(), Failure> {
        // The client does not tell whether the server has closed a connection.
        if let Some(idle) = self.idle.take(|_| true) {
            match self.add(idle, entry).await {
                // The server may have closed this connection, and all that were idle, long ago.
                Err(Failure::Lost(_)) => self.idle.clear(),
                added => return added,
            }
        }
        let fresh = self.connect().await.map_err(Failure::connecting)?;
        self.add(fresh, entry).await
    }

    async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.settings.connect_timeout))
            // The dispatcher gives the attempt up in time.
            .set_response_timeout(None);
        let client = &self.client;
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// Adds an entry and waits for its confirmation. The connection is used again only if all went
    /// well.
    async fn add(&self, mut connection: MultiplexedConnection, entry: &Cmd) -> Result<(), Failure> {
        let added = entry.query_async::<Value>(&mut connection).await;
        added.map_err(|error| Failure::of("XADD", &error))?;
        if let Some(wait) = &self.settings.wait {
            confirm(&mut connection, wait).await?;
        }
        self.idle.put(connection);
        Ok(())
    }
}

/// Waits until what this connection has added is where `wait` wants it.
async fn confirm(connection: &mut MultiplexedConnection, wait: &Wait) -> Result<(), Failure> {
    let Wait {
        replicas,
        fsync,
        timeout,
    } = *wait;
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    // Both name how many they found, at the end of their time at the latest.
    let (disk, found) = if fsync {
        let mut waitaof = cmd("WAITAOF");
        waitaof.arg(1).arg(replicas).arg(timeout_ms);
        let found = waitaof.query_async::<(u32, u32)>(connection).await;
        found.map_err(|error| Failure::of("WAITAOF", &error))?
    } else {
        let mut wait = cmd("WAIT");
        wait.arg(replicas).arg(timeout_ms);
        let found = wait.query_async::<u32>(connection).await;
        (1, found.map_err(|error| Failure::of("WAIT", &error))?)
    };
    if disk == 0 {
        return Err(Failure::Unwritten);
    }
    if found < replicas {
        return Err(Failure::Unconfirmed { found, replicas });
    }
    Ok(())
}

/// Why an entry does not count as delivered, without a word of the server's.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot connect: {0}")]
    Connecting(String),
    #[error("got no answer: {0}")]
    Lost(String),
    #[error("the server refused {command} with {code}{}", hint(command, code))]
    Refused { command: &'static str, code: String },
    #[error("{found} of the {replicas} replicas to wait for have the entry in time")]
    Unconfirmed { found: u32, replicas: u32 },
    #[error("the entry is not on the server's disk in time")]
    Unwritten,
}

impl Failure {
    fn of(command: &'static str, error: &RedisError) -> Self {
        match error.code() {
            Some(code) => Self::Refused {
                command,
                code: code.to_owned(),
            },
            None => Self::Lost(describe(error)),
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "it is given to `map_err`")]
    fn connecting(error: RedisError) -> Self {
        Self::Connecting(describe(&error))
    }
}

/// What went wrong on this side of the connection; of an answer, its code alone.
fn describe(error: &RedisError) -> String {
    match error.kind() {
        ErrorKind::Io => error.to_string(),
        ErrorKind::AuthenticationFailed => {
            "the server refused `username` and `password`".to_owned()
        }
        _ => match error.code() {
            Some(code) => format!("the server answered {code}{}", hint("", code)),
            None => error.category().to_owned(),
        },
    }
}

/// What an operator can do about an error.
fn hint(command: &str, code: &str) -> &'static str {
    match (command, code) {
        ("WAITAOF", "ERR") => "; `fsync` takes Redis 7.2 or later, with `appendonly yes`",
        (_, "CLUSTERDOWN" | "MOVED" | "ASK") => {
            "; name the node of the cluster that has the stream"
        }
        (_, "LOADING") => "; it is still loading its data",
        (_, "MISCONF") => "; it cannot write to its own disk",
        (_, "NOAUTH") => "; it wants a password",
        (_, "NOPERM") => "; let the user run this command on the stream",
        (_, "NOREPLICAS") => "; it has fewer replicas than its own settings ask for",
        (_, "OOM") => "; its memory is full",
        (_, "READONLY") => "; it is a replica, and only the primary takes entries",
        (_, "WRONGTYPE") => "; the key that `stream` names is no stream",
        _ => "",
    }
}
