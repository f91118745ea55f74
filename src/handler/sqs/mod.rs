//! `sqs`: sends a message to an Amazon SQS queue for each event, by `SendMessage`.
//!
//! CloudEvents has no binding for SQS. A message has the form that the bindings to other brokers have:
//!
//! | `format` | `MessageBody` | attribute `content-type` |
//! |---|---|---|
//! | `structured` | the CloudEvent as JSON | `application/cloudevents+json` |
//! | `raw` | the provider's body, byte for byte | the content type of the data |
//!
//! There is no `binary`: a message has room for ten attributes, and a CloudEvent here has up to twelve.
//!
//! SQS refuses [some characters of Unicode][limits]. JSON can contain two of them unescaped, U+FFFE and U+FFFF,
//! and the structured form escapes these. In the raw form an event with such a character is parked, and so is an
//! event whose raw body is not text.
//!
//! **Done** means that SQS has answered with the message's id: several servers have the message then. If the
//! answer has the MD5 of another body, the message is sent again.
//!
//! **A queue whose name ends in `.fifo`** keeps the order of each message group and drops duplicates. The
//! message group is the event's partition key; an event without a key is a group of its own. Events of one
//! ordering key are in one group, in order. Events of several ordering keys may be out of order. Characters that
//! a group id must not have are percent-encoded; a group id of more than 128 characters is then replaced by its
//! SHA-256. The deduplication id is the delivery's [own](Delivery::deduplication_id). So within five minutes the
//! queue accepts one message for all attempts, and one more for each replay.
//!
//! **A standard queue** promises neither: it may deliver a message twice, or late.
//!
//! | answer | outcome |
//! |---|---|
//! | 200 with a message's id | done |
//! | the message is too large, or has a character that SQS refuses | parked |
//! | more than 1 MiB with its attributes, which no queue accepts | parked, unsent |
//! | throttled, 5xx, any other error of the queue, such as that it does not exist | retried |
//! | wrong or expired credentials, or none | credentials are looked up again, and the message is retried |
//! | no connection, no answer | retried |
//!
//! An event is parked only for a reason that lies in the event itself. A problem that concerns all events, such
//! as a policy, is retried: an operator can fix it, and no event is lost.
//!
//! **Invariant:** a reason contains the code of an answer and not its message, which may quote the event.
//!
//! [limits]: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html

mod answer;
mod credentials;
mod message;
mod queue;
mod settings;

use bytes::Bytes;
use http::{Request, header};
use reqwest::{Client, Response};
use sha2::{Digest, Sha256};

use super::{
    AnyEvent, BuildContext, BuildError, Delivery, Handler, HandlerKind, Outcome, client,
    cloud_event::CloudEvent,
    message::{Format, Message},
    with_causes,
};
use answer::Answer;
use credentials::Identity;
use message::SendMessage;
use queue::Queue;

pub(super) use settings::Settings;

/// The most bytes of an answer that are read. An answer of SQS has a few hundred.
const LONGEST_ANSWER: usize = 64 << 10;

impl HandlerKind for Settings {
    const KIND: &'static str = "sqs";
    const EXAMPLE: &'static str = r#"
[handlers.sqs]
kind = "sqs"
events = ["*"]
queue_url = "https://sqs.eu-west-1.amazonaws.com/111122223333/telephony.fifo"
# region = "eu-west-1"
access_key_id = { env = "SQS_ACCESS_KEY_ID" }
secret_access_key = { env = "SQS_SECRET_ACCESS_KEY" }
# session_token = { env = "SQS_SESSION_TOKEN" }
# tls = { ca = "/etc/hookswitch/ca.pem" }
format = "structured"
connect_timeout = "5s"
"#;
    type Handler = Sqs;

    fn build(self, context: &mut BuildContext) -> Result<Sqs, BuildError> {
        let region = self.region().map_err(BuildError)?;
        let identity = match self.keys().map_err(BuildError)? {
            Some(keys) => Identity::fixed(keys, region),
            None => Identity::found(region).map_err(client::refuse)?,
        };
        let endpoint = &self.queue_url.endpoint;
        if let (Some(host), Some(port)) = (endpoint.host_str(), endpoint.port_or_known_default()) {
            context.connects_to(host, port);
        }
        let tls = self.tls().map_err(BuildError)?;
        let builder = client::builder(context, self.connect_timeout, tls)?;
        Ok(Sqs {
            client: builder.build().map_err(client::refuse)?,
            identity,
            queue: self.queue_url,
            format: self.format.0,
        })
    }
}

/// The handler.
#[derive(Debug)]
pub(super) struct Sqs {
    client: Client,
    identity: Identity,
    queue: Queue,
    format: Format,
}

impl Handler for Sqs {
    type Event = AnyEvent;

    async fn handle(&self, delivery: Delivery<'_, AnyEvent>) -> Outcome {
        let event = CloudEvent::new(delivery.notification, delivery.context);
        let message = Message::new(&event, self.format);
        let message = match SendMessage::new(&self.queue, &message, &delivery, self.format) {
            Ok(message) => message,
            Err(unfit) => return Outcome::park(unfit),
        };
        match self.send(&message).await {
            Ok(answer) => answer.outcome(&message.message_body),
            Err(why) => Outcome::retry(why),
        }
    }
}

impl Sqs {
    async fn send(&self, message: &SendMessage<'_>) -> Result<Answer, String> {
        let unwritable = |problem: &dyn std::error::Error| {
            format!("the request cannot be written: {}", with_causes(problem))
        };
        let body = serde_json::to_vec(message).map_err(|problem| unwritable(&problem))?;
        let request = Request::post(self.queue.endpoint.as_str())
            .header(header::CONTENT_TYPE, "application/x-amz-json-1.0")
            .header("x-amz-target", "AmazonSQS.SendMessage")
            .header("x-amz-content-sha256", hex(&Sha256::digest(&body)))
            .body(())
            .map_err(|problem| unwritable(&problem))?;
        let (mut head, ()) = request.into_parts();
        let used = self.identity.sign(&mut head).await?;
        let request = Request::from_parts(head, body);
        let request = request.try_into().map_err(got_no_answer)?;
        let mut response = self.client.execute(request).await.map_err(got_no_answer)?;
        let body = body_of(&mut response).await.map_err(got_no_answer)?;
        let answer = Answer::read(response.status(), &body);
        if answer.is_of_credentials() {
            self.identity.forget(&used);
        }
        Ok(answer)
    }
}

/// The body of an answer, up to a limit.
async fn body_of(response: &mut Response) -> reqwest::Result<Bytes> {
    let mut body = Vec::new();
    while body.len() < LONGEST_ANSWER
        && let Some(chunk) = response.chunk().await?
    {
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}

fn got_no_answer(error: reqwest::Error) -> String {
    format!("got no answer: {}", client::describe(error))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
