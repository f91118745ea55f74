//! The least that a Zoom receiver can do: verify the signature over the raw body and answer 200,
//! storing nothing. What hookswitch's throughput is compared with.
//!
//! `cargo run --release --example bare_axum -- 127.0.0.1:8081 SECRET`

use std::sync::Arc;

use axum::{Router, body::Bytes, extract::State, routing::post};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sha2::Sha256;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments
        .next()
        .unwrap_or_else(|| "127.0.0.1:8081".to_owned());
    let secret = arguments
        .next()
        .unwrap_or_else(|| "local-zoom-secret".to_owned());
    let key = Hmac::<Sha256>::new_from_slice(secret.as_bytes())?;
    let router = Router::new()
        .route("/", post(receive))
        .with_state(Arc::new(key));
    let listener = tokio::net::TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A client that goes away in the middle is no concern of a baseline.
            drop(server.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn receive(
    State(key): State<Arc<Hmac<Sha256>>>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    if is_signed(&key, &headers, &body).is_some() {
        StatusCode::OK
    } else {
        StatusCode::UNAUTHORIZED
    }
}

fn is_signed(key: &Hmac<Sha256>, headers: &HeaderMap, body: &[u8]) -> Option<()> {
    let timestamp = headers.get("x-zm-request-timestamp")?;
    let signature = headers
        .get("x-zm-signature")?
        .as_bytes()
        .strip_prefix(b"v0=")?;
    let mut mac = key.clone();
    mac.update(b"v0:");
    mac.update(timestamp.as_bytes());
    mac.update(b":");
    mac.update(body);
    let wanted: String = mac
        .finalize()
        .into_bytes()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    (wanted.as_bytes() == signature).then_some(())
}
