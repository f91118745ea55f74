//! `redis`: adds an entry to a Redis stream for each event, by `XADD`.
//!
//! CloudEvents has no binding for Redis. An entry has these fields:
//!
//! | `format` | fields |
//! |---|---|
//! | `structured` | `event`: the CloudEvent as JSON |
//! | `binary` | one for each attribute, with its name, and `data`: the provider's body, byte for byte |
//! | `raw` | `data` alone |
//!
//! The server chooses the entry's id. A stream keeps duplicates: an entry whose reply was lost is in it twice.
//! Consumers recognize duplicates by the event's id.
//!
//! **Done** means that the server has replied to `XADD`: the entry is in its memory. The server's settings say
//! what survives a crash: with `appendonly yes` and `appendfsync always` the reply comes after the entry is on
//! disk; with `everysec`, the default, up to a second of entries is lost; without `appendonly`, all entries since
//! the last snapshot are lost. `wait` makes done stricter: `replicas` requires that so many replicas have the
//! entry (`WAIT`), and `fsync = true` that the disks of the server and of these replicas have it (`WAITAOF`, from
//! Redis 7.2). An entry that is not confirmed in time is added again.
//!
//! **Order.** A stream keeps its entries in the order in which they were added. So with `order = "key"` it has the
//! events of each ordering key in the order in which they arrived.
//!
//! | answer | outcome |
//! |---|---|
//! | the entry's id, and the confirmation that `wait` requires | done |
//! | fewer replicas or disks than `wait` requires | retried |
//! | any error, no connection, no answer | retried |
//!
//! An error of the server never lies in one entry: its memory is full, it is read-only, the user may not write,
//! the key is not a stream. Such an error can be resolved without a change of the event. So no event is parked for
//! it before `retry` has run out.
//!
//! **Invariant:** a reason contains the code of a server's error and not its text, which may quote the command,
//! and so the event.

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
        self.name_server(context);
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
    /// Each attempt has a connection of its own: a slow reply, such as that of `WAIT`, delays all later
    /// replies on its connection.
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
        // The client does not say whether the server has closed a connection.
        if let Some(idle) = self.idle.take(|_| true) {
            match self.add(idle, entry).await {
                // The server may have closed this connection and all idle ones long ago.
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
            // The dispatcher ends the attempt at its deadline.
            .set_response_timeout(None);
        let client = &self.client;
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// Adds an entry and waits for its confirmation. The connection is reused only after success.
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

/// Waits until the entries of this connection are where `wait` requires them.
async fn confirm(connection: &mut MultiplexedConnection, wait: &Wait) -> Result<(), Failure> {
    let Wait {
        replicas,
        fsync,
        timeout,
    } = *wait;
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    // Both reply with the number that they found, at their time limit at the latest.
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

/// Why an entry does not count as delivered, without the server's own text.
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

/// Describes an error of the connection; of an error reply, the code alone.
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

/// Advice for the operator on an error.
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
