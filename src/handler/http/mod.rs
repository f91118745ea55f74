//! `http`: a POST to a URL for each event.
//!
//! What is posted is a [`Message`] in CloudEvents' HTTP binding: its attributes are `ce-` headers.
//!
//! **Signature.** Every request has a `webhook-id` and a `webhook-timestamp`; with a `signing_secret`,
//! it has the `webhook-signature` of Standard Webhooks too. The libraries that verify a signature read
//! the body as JSON in UTF-8. The structured form is always that. The provider's own body, which the
//! other forms have, may be something else, and then the libraries fail.
//!
//! **Duplicates.** `webhook-id` is the delivery's [deduplication id](Delivery::deduplication_id). So a receiver
//! that drops duplicates by it accepts one message for all attempts, and one more for each replay.
//!
//! | answer | outcome |
//! |---|---|
//! | 2xx | done, whatever the body says and whether or not it ever ends |
//! | 408, 425, 429, 5xx | retried, not before what `Retry-After` says |
//! | 3xx | parked: redirects are not followed, since what is meant for one host is not for another |
//! | any other | parked |
//! | none | retried |
//!
//! **Invariant:** neither the URL, which may hold a token, nor anything that the receiver says is in
//! a reason.

mod settings;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use jiff::{Timestamp, fmt::rfc2822};
use reqwest::{Client, Response};
use tokio::time::timeout;

use super::{
    AnyEvent, BuildContext, BuildError, Delivery, Handler, HandlerKind, Outcome, client,
    cloud_event::CloudEvent,
    message::{Format, Message, to_header},
    signature::Signer,
};
use settings::Destination;

pub(super) use settings::Settings;

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// How much of an answer's body is read, in bytes, and for how long, so that its connection can be
/// used again. Nothing in it matters.
const LONGEST_ANSWER: usize = 64 << 10;
const LONGEST_LISTENING: Duration = Duration::from_millis(250);

impl HandlerKind for Settings {
    const KIND: &'static str = "http";
    const EXAMPLE: &'static str = r#"
[handlers.crm]
kind = "http"
events = ["ringcentral.phone-number.*", "zoom.number-management.peering-number-cnam-updated"]
url = "https://crm.example.com/hooks"
format = "structured"
signing_secret = { env = "CRM_SIGNING_SECRET" }
headers = { x-source = "hookswitch", authorization = { env = "CRM_AUTHORIZATION" } }
# tls = { ca = "/etc/hookswitch/ca.pem", certificate = "/etc/hookswitch/crm.pem", key = "/etc/hookswitch/crm-key.pem" }
connect_timeout = "5s"
# proxy = "http://proxy.example.com:3128"
"#;
    type Handler = Http;

    fn build(self, context: &mut BuildContext) -> Result<Http, BuildError> {
        context.warn(self.cleartext_warnings());
        let Destination(server) = self.proxy.as_ref().unwrap_or(&self.url);
        if let (Some(host), Some(port)) = (server.host_str(), server.port_or_known_default()) {
            context.connects_to(host, port);
        }
        let tls = self.tls().map_err(BuildError)?;
        let builder = client::builder(context, self.connect_timeout, tls)?;
        let builder = match self.proxy {
            Some(Destination(url)) => {
                builder.proxy(reqwest::Proxy::all(url).map_err(client::refuse)?)
            }
            None => builder,
        };
        Ok(Http {
            client: builder.build().map_err(client::refuse)?,
            url: self.url,
            format: self.format,
            signer: self.signing_secret,
            headers: self
                .headers
                .into_iter()
                .map(|(name, value)| (name.0, value.header))
                .collect(),
        })
    }
}

/// The handler.
#[derive(Debug)]
pub(super) struct Http {
    client: Client,
    url: Destination,
    format: Format,
    signer: Option<Signer>,
    headers: HeaderMap,
}

impl Handler for Http {
    type Event = AnyEvent;

    async fn handle(&self, delivery: Delivery<'_, AnyEvent>) -> Outcome {
        let (headers, body) = match self.compose(&delivery) {
            Ok(request) => request,
            Err(unwritable) => return Outcome::park(unwritable),
        };
        let request = self.client.post(self.url.0.clone()).headers(headers);
        match request.body(body).send().await {
            Ok(response) => {
                let outcome = judge(&response, delivery.context.started_at);
                // An `Err` says that the rest of the body was not waited for.
                timeout(LONGEST_LISTENING, exhaust(response)).await.ok();
                outcome
            }
            Err(error) => Outcome::retry(format!("got no answer: {}", client::describe(error))),
        }
    }
}

impl Http {
    fn compose(
        &self,
        delivery: &Delivery<'_, AnyEvent>,
    ) -> Result<(HeaderMap, Bytes), http::Error> {
        let event = CloudEvent::new(delivery.notification, delivery.context);
        let message = Message::new(&event, self.format);
        let mut headers = self.headers.clone();
        let content_type = HeaderValue::from_static(message.content_type);
        headers.insert(header::CONTENT_TYPE, content_type);
        for (name, text) in message.attributes_beside_content_type() {
            let name = HeaderName::try_from(format!("ce-{name}"))?;
            headers.insert(name, HeaderValue::try_from(to_header(text))?);
        }
        let body = message.body;
        let id = to_header(&delivery.deduplication_id());
        let at = delivery.context.started_at;
        if let Some(signer) = &self.signer {
            let signature = signer.sign(&id, at, &body);
            headers.insert(WEBHOOK_SIGNATURE, HeaderValue::try_from(signature)?);
        }
        headers.insert(WEBHOOK_ID, HeaderValue::try_from(id)?);
        headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(at.as_second()));
        Ok((headers, body))
    }
}

/// What an answer means. See the module's table.
fn judge(response: &Response, now: Timestamp) -> Outcome {
    let status = response.status();
    match status {
        _ if status.is_success() => Outcome::Done,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            again(response, now)
        }
        _ if status.is_server_error() => again(response, now),
        _ if status.is_redirection() => Outcome::park(format!(
            "the answer was {status}; redirects are not followed, so set `url` to where it leads"
        )),
        _ => Outcome::park(format!("the answer was {status}")),
    }
}

fn again(response: &Response, now: Timestamp) -> Outcome {
    let after = response.headers().get(header::RETRY_AFTER);
    Outcome::Retry {
        after: after.and_then(|after| retry_after(after.to_str().ok()?, now)),
        why: format!("the answer was {}", response.status()).into(),
    }
}

/// The pause that a `Retry-After` asks for: a number of seconds, or a date.
fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    // One in the past asks for no pause.
    Some(Duration::try_from(until.duration_since(now)).unwrap_or_default())
}

/// Reads the rest of a short answer.
async fn exhaust(mut response: Response) {
    let mut length = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        length += chunk.len();
        if length > LONGEST_ANSWER {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
