//! `nats`: publishes a message to a JetStream stream for each event.
//!
//! The message is a [`Message`] in CloudEvents' NATS binding: the attributes are `ce-` headers, and the content
//! type of the structured form is in `Content-Type`. The setting `subject` names its [`subject`]. A stream that
//! has the subject must exist: hookswitch creates none.
//!
//! Done means that the stream has acknowledged the message: in a stream with replicas, that a majority has it.
//! When the message reaches their disks depends on the server's `sync_interval`: every two minutes by default,
//! and before the acknowledgement with `always`.
//!
//! **Order.** A stream keeps messages in the order of their acknowledgements. So with `order = "key"` it has the
//! events of each ordering key in the order in which they arrived.
//!
//! **Duplicates.** `Nats-Msg-Id` is the delivery's [deduplication id](Delivery::deduplication_id). So within its
//! duplicate window a stream keeps one message for all attempts, and one more for each replay.
//!
//! | answer | outcome |
//! |---|---|
//! | the stream's acknowledgement, also of a duplicate | done |
//! | the user may not publish to this subject | parked |
//! | the message is larger than the server or the stream accepts | parked |
//! | a subject of more than 2048 bytes | parked, unsent |
//! | any other error of a stream, such as that it is full | retried |
//! | no stream has the subject, or its stream has no leader now | retried |
//! | wrong credentials, no connection, no answer | retried |
//!
//! An event is parked only for a reason that lies in the event itself. A problem that concerns all events, such
//! as a wrong password, is retried: an operator can fix it, and no event is lost.
//!
//! **Invariant:** a reason contains no subject, since a subject may contain a key.

mod auth;
mod connection;
mod settings;
mod subject;

use async_nats::{Client, Event, HeaderMap, Request, RequestError, RequestErrorKind, ServerError};
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::broadcast::{self, error::RecvError};

use super::{
    AnyEvent, BuildContext, BuildError, Delivery, Handler, HandlerKind, Outcome,
    broker::reconnecting::ReconnectingClient,
    cloud_event::CloudEvent,
    message::{Format, Message, to_header},
};
use connection::Connection;

pub(super) use settings::Settings;

/// The stream's error for a message over its `max_msg_size`.
const MESSAGE_TOO_LARGE: u32 = 10054;
/// The stream's error for headers over 64 KiB.
const HEADERS_TOO_LARGE: u32 = 10097;

impl HandlerKind for Settings {
    const KIND: &'static str = "nats";
    const EXAMPLE: &'static str = r#"
[handlers.bus]
kind = "nats"
events = ["*"]
servers = ["tls://nats-1.example.com:4222", "tls://nats-2.example.com:4222"]
subject = "telephony.{type}"
format = "structured"
auth = { user = { name = "hookswitch", password = { env = "NATS_PASSWORD" } } }
# auth = { token = { env = "NATS_TOKEN" } }
# auth = { nkey = { file = "/run/secrets/nats.nk" } }
# auth = { credentials = { file = "/run/secrets/nats.creds" } }
# tls = { ca = "/etc/hookswitch/ca.pem", certificate = "/etc/hookswitch/nats.pem", key = "/etc/hookswitch/nats-key.pem" }
connect_timeout = "5s"
"#;
    type Handler = Nats;

    fn build(self, context: &mut BuildContext) -> Result<Nats, BuildError> {
        context.warn(self.cleartext_warning());
        self.check().map_err(BuildError)?;
        for server in &self.servers.0 {
            context.connects_to(server.host(), server.port());
        }
        Ok(Nats {
            client: ReconnectingClient::new(self.longest_connect().min(context.timeout)),
            settings: self,
        })
    }
}

/// The handler.
#[derive(Debug)]
pub(super) struct Nats {
    client: ReconnectingClient<Connection>,
    settings: Settings,
}

impl Handler for Nats {
    type Event = AnyEvent;

    async fn handle(&self, delivery: Delivery<'_, AnyEvent>) -> Outcome {
        let settings = &self.settings;
        let subject = match settings.subject.fill(&delivery) {
            Ok(subject) => subject,
            Err(too_long) => return Outcome::park(too_long),
        };
        let event = CloudEvent::new(delivery.notification, delivery.context);
        let message = Message::new(&event, settings.format);
        let headers = headers(&delivery, &message, settings.format);
        let connection = match self.client.connection(Connection::open(settings)).await {
            Ok(connection) => connection,
            Err(unconnected) => return Outcome::retry(unconnected),
        };
        // Subscribes before it publishes, so that it misses no error.
        let events = connection.events.subscribe();
        let inbox = connection.client.new_inbox();
        tokio::select! {
            answer = publish(&connection.client, &subject, &inbox, headers, message.body) => answer,
            complaint = complaint(events, &subject, &inbox) => complaint,
        }
    }
}

fn headers(delivery: &Delivery<'_, AnyEvent>, message: &Message, format: Format) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, text) in &message.attributes {
        headers.insert(format!("ce-{name}"), to_header(text));
    }
    // In the binary form the content type of the data is an attribute, by the rule of the binding.
    if format != Format::Binary {
        headers.insert("Content-Type", message.content_type);
    }
    headers.insert("Nats-Msg-Id", &*to_header(&delivery.deduplication_id()));
    headers
}

/// Publishes one message and waits for the stream's answer.
///
/// The answer has an inbox of its own: the client's shared inbox keeps a request until its answer
/// arrives.
async fn publish(
    client: &Client,
    subject: &str,
    inbox: &str,
    headers: HeaderMap,
    body: Bytes,
) -> Outcome {
    let request = Request::new()
        .headers(headers)
        .payload(body)
        .inbox(inbox.to_owned())
        // The dispatcher ends the attempt at its deadline.
        .timeout(None);
    match client.send_request(subject.to_owned(), request).await {
        Ok(answer) => judge(&answer.payload),
        Err(error) => refused(&error),
    }
}

/// JetStream's answer: the place of the message, or an error.
#[derive(Deserialize)]
struct Answer {
    seq: Option<u64>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    /// The number in the server's list of errors.
    #[serde(default)]
    err_code: u32,
    /// The text in that list.
    #[serde(default)]
    description: String,
}

/// The outcome of an answer. See the module's table.
fn judge(answer: &[u8]) -> Outcome {
    match serde_json::from_slice(answer) {
        Ok(Answer {
            error: Some(error), ..
        }) => {
            let Refusal {
                err_code,
                description,
            } = error;
            let why = format!("the stream refused the message: {description} ({err_code})");
            match err_code {
                MESSAGE_TOO_LARGE | HEADERS_TOO_LARGE => Outcome::park(why),
                _ => Outcome::retry(why),
            }
        }
        Ok(Answer { seq: Some(_), .. }) => Outcome::Done,
        Ok(_) | Err(_) => Outcome::retry(
            "something that is no stream answered; keep services off the subjects of `subject`",
        ),
    }
}

/// The outcome without an answer.
fn refused(error: &RequestError) -> Outcome {
    match error.kind() {
        RequestErrorKind::NoResponders => Outcome::retry(
            "no stream takes the message; make one for the subjects of `subject`, or see why it \
             has no leader",
        ),
        RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::InvalidSubject => {
            Outcome::park(format!("the message cannot be sent: {error}"))
        }
        RequestErrorKind::TimedOut | RequestErrorKind::Other => {
            Outcome::retry(format!("got no answer: {error}"))
        }
    }
}

/// Waits for an event of the connection after which no answer will come to `inbox`.
async fn complaint(mut events: broadcast::Receiver<Event>, subject: &str, inbox: &str) -> Outcome {
    loop {
        let text = match events.recv().await {
            Ok(Event::Disconnected | Event::Closed) => {
                return Outcome::retry("the connection was lost before the stream answered");
            }
            Ok(Event::ServerError(ServerError::Other(text))) => text,
            Ok(_) | Err(RecvError::Lagged(_)) => continue,
            // The connection is gone, and the answer with it.
            Err(RecvError::Closed) => return Outcome::retry("the connection was closed"),
        };
        let denies = |what: &str| text.contains(&format!("Permissions Violation for {what}"));
        if denies(&format!("Publish to \"{subject}\"")) {
            return Outcome::park(
                "the server denies the user to publish under the event's subject",
            );
        }
        if denies(&format!("Subscription to \"{inbox}\"")) {
            return Outcome::retry(
                "the server denies the user its inbox; let it subscribe to `_INBOX.>`",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The outcome of an answer, as a text.
    fn outcome(answer: &str) -> String {
        match judge(answer.as_bytes()) {
            Outcome::Done => "done".to_owned(),
            Outcome::Retry { after: None, why } => format!("retry: {why}"),
            Outcome::Park { why } => format!("park: {why}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_streams_answer_decides() {
        let error = |code: u32, text: &str| {
            format!(
                r#"{{"stream":"S","seq":0,"error":{{"code":400,"err_code":{code},"description":"{text}"}}}}"#
            )
        };
        for (answer, expected) in [
            (r#"{"stream":"S","seq":1}"#.to_owned(), "done"),
            (
                r#"{"stream":"S","seq":1,"duplicate":true}"#.to_owned(),
                "done",
            ),
            (
                error(10054, "message size exceeds maximum allowed"),
                "park: the stream refused the message: message size exceeds maximum allowed (10054)",
            ),
            (
                error(10097, "header size exceeds maximum allowed of 64k"),
                "park: the stream refused the message: header size exceeds maximum allowed of 64k \
                 (10097)",
            ),
            (
                error(10077, "maximum messages exceeded"),
                "retry: the stream refused the message: maximum messages exceeded (10077)",
            ),
            (
                r#"{"error":{}}"#.to_owned(),
                "retry: the stream refused the message:  (0)",
            ),
        ] {
            assert_eq!(outcome(&answer), expected, "{answer}");
        }
    }

    #[test]
    fn a_service_that_answers_in_a_streams_place_has_stored_nothing() {
        for answer in ["", "+OK", "null", "{}", "{\"ok\":true}", "{\"seq\":\"1\"}"] {
            let outcome = outcome(answer);
            assert!(
                outcome.starts_with("retry: something that is no stream"),
                "{outcome}"
            );
        }
    }

    /// The outcome of `happenings` for an attempt with the subject `a.b` and the inbox `_INBOX.c`.
    async fn came_to(happenings: Vec<Event>) -> String {
        let (events, attempt) = broadcast::channel(8);
        for happening in happenings {
            events.send(happening).unwrap();
        }
        drop(events);
        match complaint(attempt, "a.b", "_INBOX.c").await {
            Outcome::Retry { after: None, why } => format!("retry: {why}"),
            Outcome::Park { why } => format!("park: {why}"),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn an_attempt_ends_with_its_connection_and_with_its_own_denial_alone() {
        let says = |text: &str| Event::ServerError(ServerError::Other(text.to_owned()));
        let others = [
            Event::Connected,
            Event::LameDuckMode,
            says("Permissions Violation for Publish to \"a.b.c\""),
            says("Permissions Violation for Subscription to \"_INBOX.d\""),
        ];
        for (last, expected) in [
            (Event::Disconnected, "retry: the connection was lost"),
            (Event::Closed, "retry: the connection was lost"),
            (Event::Draining, "retry: the connection was closed"),
            (
                says("Permissions Violation for Publish to \"a.b\" using reply \"_INBOX.c\""),
                "park: the server denies the user to publish",
            ),
            (
                says("Permissions Violation for Subscription to \"_INBOX.c\""),
                "retry: the server denies the user its inbox",
            ),
        ] {
            let happenings = others.iter().chain([&last]).cloned();
            let outcome = came_to(happenings.collect()).await;
            assert!(outcome.starts_with(expected), "{last}: {outcome}");
        }
    }
}
