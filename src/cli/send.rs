//! `send`: posts to an endpoint as its provider would, to test it.

use std::{
    error::Error,
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use include_dir::{Dir, include_dir};
use reqwest::{Client, Url};
use serde::Serialize;
use uuid::Uuid;

use super::{Exit, healthcheck::connect_address, output::Format};
use crate::{
    app,
    config::Config,
    http::Endpoint,
    provider::{Composed, Message, Reply},
};

/// The fixtures in the binary: `<provider>/<family>/<case>.json`.
static FIXTURES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/fixtures");

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The names of the endpoints to post to
    endpoints: Vec<String>,
    /// Post to every endpoint of the configuration
    #[arg(long, conflicts_with = "endpoints")]
    all: bool,
    /// Post to this URL instead of the configured listener; the endpoint's path is added if the URL
    /// has none
    #[arg(long, value_name = "URL")]
    to: Option<Url>,
    /// Post the bytes of this file instead of the fixtures; repeatable
    #[arg(long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Post each event N times, as a provider that retries would
    #[arg(long, default_value_t = 1, value_name = "N")]
    copies: u32,
    /// Post only the handshake
    #[arg(long)]
    handshake: bool,
    /// Accept any certificate, such as a self-signed one
    #[arg(long)]
    insecure: bool,
    #[command(flatten)]
    format: Format,
}

/// How long both providers wait for an answer.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// RingCentral takes answers that are smaller than this, in bytes.
pub(super) const ANSWER_BYTES: usize = 1024;

/// One row of the table: a message and its answer.
#[derive(Debug, Serialize)]
pub(super) struct Sent {
    endpoint: String,
    message: String,
    pub(super) status: Option<u16>,
    pub(super) answer_bytes: usize,
    pub(super) took_ms: u128,
    /// What is wrong with the answer; `None` if the provider would accept it.
    pub(super) problem: Option<String>,
    /// Whether the server was reached, and its certificate is not trusted.
    #[serde(skip)]
    is_untrusted: bool,
}

pub(super) fn run(args: &Args, config: Config) -> anyhow::Result<Exit> {
    let base = match &args.to {
        Some(url) => url.clone(),
        None => listener_url(&config)?,
    };
    let endpoints = select(args, config.endpoints)?;
    let client = client(args.insecure)?;
    let sent = super::block_on(async {
        let mut sent = Vec::new();
        for endpoint in &endpoints {
            let url = target(&base, endpoint);
            for (what, composed) in messages(args, endpoint)? {
                sent.push(post(&client, &url, endpoint.name.as_str(), what, composed).await);
            }
        }
        Ok(sent)
    })?;
    print(args, &sent)?;
    if !sent.is_empty() && sent.iter().all(|sent| sent.status.is_none()) {
        if sent.iter().all(|sent| sent.is_untrusted) {
            bail!(
                "the server at {base} shows a certificate that is not trusted; is it the right one, \
                 with its intermediates? --insecure accepts any certificate"
            );
        }
        bail!("no server answered at {base}; is `hookswitch serve` running there?");
    }
    let sound = sent.iter().all(|sent| sent.problem.is_none());
    Ok(if sound { Exit::Success } else { Exit::Negative })
}

/// A client that waits as long as the providers do.
pub(super) fn client(insecure: bool) -> anyhow::Result<Client> {
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(ANSWER_LIMIT)
        .tls_danger_accept_invalid_certs(insecure)
        .build()
        .context("the client cannot be built")
}

/// The URL of the configured listener, as seen from this machine.
pub(super) fn listener_url(config: &Config) -> anyhow::Result<Url> {
    let address = connect_address(config.server.listen);
    if address.port() == 0 {
        bail!("the configured port is 0, so the system chooses one; give the URL with --to");
    }
    let scheme = if config.server.tls.is_some() {
        "https"
    } else {
        "http"
    };
    Ok(Url::parse(&format!("{scheme}://{address}"))?)
}

fn select(args: &Args, endpoints: Vec<Endpoint>) -> anyhow::Result<Vec<Endpoint>> {
    let names: Vec<_> = endpoints
        .iter()
        .map(|endpoint| endpoint.name.to_string())
        .collect();
    if let Some(unknown) = args.endpoints.iter().find(|name| !names.contains(name)) {
        bail!(
            "there is no endpoint {unknown:?}; there are {}",
            names.join(", ")
        );
    }
    if args.endpoints.is_empty() && !args.all {
        bail!(
            "give --all, or the names of endpoints: {}",
            names.join(", ")
        );
    }
    let wanted = |endpoint: &Endpoint| {
        args.all
            || args
                .endpoints
                .iter()
                .any(|name| name == endpoint.name.as_str())
    };
    Ok(endpoints.into_iter().filter(wanted).collect())
}

pub(super) fn target(base: &Url, endpoint: &Endpoint) -> Url {
    let mut url = base.clone();
    if url.path() == "/" {
        url.set_path(&endpoint.path);
    }
    url
}

/// The messages to one endpoint, in order.
fn messages(args: &Args, endpoint: &Endpoint) -> anyhow::Result<Vec<(String, Composed)>> {
    let compose = |message: Message<'_>| endpoint.provider.compose(message, app::now());
    let mut messages = Vec::new();
    if args.files.is_empty() || args.handshake {
        messages.push(("handshake".to_owned(), compose(Message::Handshake)));
    }
    if args.handshake {
        return Ok(messages);
    }
    for (what, body) in bodies(args, endpoint)? {
        let delivery = Uuid::now_v7().to_string().replace('-', "_");
        for copy in 1..=args.copies {
            let what = if copy == 1 {
                what.clone()
            } else {
                format!("{what} (copy {copy})")
            };
            let message = Message::Event {
                body: &body,
                delivery: &delivery,
            };
            messages.push((what, compose(message)));
        }
    }
    Ok(messages)
}

fn bodies(args: &Args, endpoint: &Endpoint) -> anyhow::Result<Vec<(String, Bytes)>> {
    if !args.files.is_empty() {
        let read = |path: &PathBuf| {
            let body = std::fs::read(path)
                .with_context(|| format!("{} cannot be read", path.display()))?;
            Ok((path.display().to_string(), Bytes::from(body)))
        };
        return args.files.iter().map(read).collect();
    }
    let folder = endpoint.family.name.replace('.', "/");
    let files = FIXTURES
        .get_dir(&folder)
        .map(Dir::files)
        .into_iter()
        .flatten();
    let bodies = files.filter_map(|file| {
        let name = file.path().file_stem()?.to_string_lossy().into_owned();
        // Unchanged fixtures would be copies of the events of an earlier run.
        let body = endpoint.provider.freshen(file.contents(), app::now())?;
        Some((name, body))
    });
    Ok(bodies.collect())
}

pub(super) async fn post(
    client: &Client,
    url: &Url,
    endpoint: &str,
    message: String,
    composed: Composed,
) -> Sent {
    let started = Instant::now();
    let answer = exchange(client, url, &composed).await;
    let took_ms = started.elapsed().as_millis();
    let mut sent = Sent {
        endpoint: endpoint.to_owned(),
        message,
        status: None,
        answer_bytes: 0,
        took_ms,
        problem: None,
        is_untrusted: false,
    };
    match answer {
        Ok(answer) => {
            sent.status = Some(answer.status);
            sent.answer_bytes = answer.bytes;
            sent.problem = problem(&answer, &composed.expected);
        }
        Err(error) => {
            let cause = root_cause(&error);
            sent.is_untrusted = matches!(
                cause.downcast_ref(),
                Some(rustls::Error::InvalidCertificate(_))
            );
            sent.problem = Some(cause.to_string());
        }
    }
    sent
}

/// An HTTP answer.
struct Received {
    status: u16,
    headers: http::HeaderMap,
    body: Bytes,
    /// The approximate size of the answer in HTTP/1.1.
    bytes: usize,
}

async fn exchange(client: &Client, url: &Url, composed: &Composed) -> reqwest::Result<Received> {
    let mut url = url.clone();
    if let Some(query) = &composed.query {
        let queries = url.query().into_iter().chain([query.as_str()]);
        url.set_query(Some(&queries.collect::<Vec<_>>().join("&")));
    }
    let request = client
        .request(composed.method.clone(), url)
        .headers(composed.headers.clone())
        .body(composed.body.clone());
    let response = request.send().await?;
    let status = response.status();
    let headers = response.headers().clone();
    let body = response.bytes().await?;
    let status_line = "HTTP/1.1 200 \r\n\r\n".len() + status.canonical_reason().unwrap_or("").len();
    let header_lines: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + ": \r\n".len() + value.len())
        .sum();
    Ok(Received {
        status: status.as_u16(),
        headers,
        bytes: status_line + header_lines + body.len(),
        body,
    })
}

/// What the provider would reject about the answer.
fn problem(answer: &Received, expected: &Reply) -> Option<String> {
    if answer.status != 200 {
        return Some(match answer.status {
            401 => "refused; does the service use this configuration's secret?".to_owned(),
            404 => "no endpoint at this path".to_owned(),
            503 => "not stored now; the service's log and /readyz say why".to_owned(),
            status => format!("{status} instead of 200"),
        });
    }
    if answer.bytes >= ANSWER_BYTES {
        return Some("the answer is not under RingCentral's 1024 bytes".to_owned());
    }
    match expected {
        Reply::Empty => None,
        Reply::Header(name, value) => {
            (answer.headers.get(name) != Some(value)).then(|| format!("{name} was not echoed"))
        }
        Reply::Body { body, .. } => {
            let is_expected = answer.body == body || is_same_json(&answer.body, body);
            (!is_expected).then(|| "the answer to the handshake is wrong".to_owned())
        }
    }
}

fn is_same_json(one: &[u8], other: &[u8]) -> bool {
    let [one, other] = [one, other].map(serde_json::from_slice::<serde_json::Value>);
    matches!((one, other), (Ok(one), Ok(other)) if one == other)
}

fn print(args: &Args, sent: &[Sent]) -> anyhow::Result<()> {
    args.format.print(
        sent,
        ["endpoint", "message", "status", "bytes", "ms", "verdict"],
        |sent| {
            [
                sent.endpoint.clone(),
                sent.message.clone(),
                super::output::or_dash(sent.status.as_ref()),
                sent.answer_bytes.to_string(),
                sent.took_ms.to_string(),
                sent.problem.clone().unwrap_or_else(|| "ok".to_owned()),
            ]
        },
        "nothing to send",
    )
}

/// The innermost source of `error`: `reqwest` itself only says that sending failed.
fn root_cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut cause = error;
    loop {
        // An I/O error passes over the error inside to the source of that.
        let io = cause.downcast_ref::<io::Error>();
        let inner = io.and_then(io::Error::get_ref);
        match inner.map(|inner| inner as _).or_else(|| cause.source()) {
            Some(source) => cause = source,
            None => return cause,
        }
    }
}
