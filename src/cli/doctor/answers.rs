//! The answers of the running service: their size and their time.

use bytes::Bytes;
use http::{HeaderMap, Method};
use jiff::{SignedDuration, Timestamp};
use reqwest::{Client, Url};

use super::{finding::Finding, service::Service};
use crate::{
    app,
    cli::{
        block_on,
        send::{self, ANSWER_BYTES, ANSWER_LIMIT, Sent},
    },
    config::Config,
    http::Endpoint,
    provider::{Composed, Message, Reply},
};

const CHECK: &str = "answers";

/// An answer that takes longer is slow, in milliseconds: providers give up after 3 seconds.
const SLOW_MS: u128 = 1000;

/// A path that no endpoint has.
const NOWHERE: &str = "/hookswitch-doctor";

/// Asks for an unknown path, and posts a handshake to each endpoint if `handshakes`.
pub(super) fn check(
    config: &Config,
    service: &Service,
    handshakes: bool,
    findings: &mut Vec<Finding>,
) {
    let asked = send::listener_url(config).and_then(|base| {
        // Whether the certificate is trusted is for the check of the certificate.
        let client = send::client(true)?;
        block_on(async {
            let mut sent = vec![("an unknown path".to_owned(), nowhere(&client, &base).await)];
            for endpoint in config.endpoints.iter().filter(|_| handshakes) {
                let last = last_handshake(service, endpoint);
                let what = format!(
                    "a handshake of {} (the last one before: {last})",
                    endpoint.name
                );
                sent.push((what, handshake(&client, &base, endpoint).await));
            }
            Ok(sent)
        })
    });
    match asked {
        Ok(sent) => sent
            .iter()
            .for_each(|(what, sent)| judge(what, sent, findings)),
        Err(error) => findings.push(Finding::warning(
            CHECK,
            format!("the service cannot be asked: {error}"),
            "give [server] a fixed port",
        )),
    }
}

async fn nowhere(client: &Client, base: &Url) -> Sent {
    let mut url = base.clone();
    url.set_path(NOWHERE);
    let composed = Composed {
        method: Method::GET,
        query: None,
        headers: HeaderMap::new(),
        body: Bytes::new(),
        expected: Reply::Empty,
    };
    let mut sent = send::post(client, &url, "-", String::new(), composed).await;
    if sent.status == Some(404) {
        sent.problem = None;
    }
    sent
}

async fn handshake(client: &Client, base: &Url, endpoint: &Endpoint) -> Sent {
    let composed = endpoint.provider.compose(Message::Handshake, app::now());
    let url = send::target(base, endpoint);
    send::post(
        client,
        &url,
        endpoint.name.as_str(),
        String::new(),
        composed,
    )
    .await
}

/// When the last handshake was, before this one takes its place in the metrics.
fn last_handshake(service: &Service, endpoint: &Endpoint) -> String {
    let label = format!("endpoint=\"{}\"", endpoint.name);
    let mut series = service.series("hookswitch_last_handshake_timestamp_seconds");
    let found = series.find(|(labels, _)| labels.contains(&label));
    let seconds = found
        .map(|(_, seconds)| seconds)
        .filter(|seconds| *seconds > 0.0);
    let since = seconds.and_then(|seconds| SignedDuration::try_from_secs_f64(seconds).ok());
    let at = since.and_then(|since| Timestamp::UNIX_EPOCH.checked_add(since).ok());
    at.map_or_else(
        || "none since the start".to_owned(),
        |at| format!("{at:.0}"),
    )
}

fn judge(what: &str, sent: &Sent, findings: &mut Vec<Finding>) {
    let (bytes, ms) = (sent.answer_bytes, sent.took_ms);
    let figures = format!("{what} is answered with {bytes} bytes in {ms} ms");
    findings.push(if bytes >= ANSWER_BYTES {
        Finding::blocker(
            CHECK,
            format!("{figures}; RingCentral takes less than {ANSWER_BYTES}"),
            "take away the headers that something between here and the service adds",
        )
    } else if let Some(problem) = &sent.problem {
        Finding::blocker(
            CHECK,
            format!("{what} is not answered as a provider expects: {problem}"),
            "reload the service, so that it uses this configuration and its secrets; its log says more",
        )
    } else if ms >= ANSWER_LIMIT.as_millis() {
        Finding::blocker(CHECK, figures, "providers wait 3 s: look at the load of this machine")
    } else if ms >= SLOW_MS {
        Finding::warning(CHECK, figures, "providers wait 3 s: look at the load of this machine")
    } else {
        Finding::fine(CHECK, figures)
    });
}
