//! The admin server over real sockets.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    http::tests::{Memory, noon},
    secret,
    store::Health,
};

struct TestServer {
    address: SocketAddr,
    readiness: Arc<Readiness>,
    shutdown: CancellationToken,
    served: JoinHandle<Drained>,
}

impl TestServer {
    fn open(settings: &str) -> Self {
        let sources = secret::Sources {
            env: |_| None,
            inline: true,
        };
        let settings: Settings = secret::with(sources, || toml::from_str(settings).unwrap());
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let readiness = Arc::new(Readiness::default());
        let settings = Settings { listen, ..settings };
        let metrics = Arc::new(Metrics::default());
        let admin = Server::bind(&settings, Arc::clone(&readiness), metrics, noon).unwrap();
        let shutdown = CancellationToken::new();
        Self {
            address: admin.local_addr(),
            readiness,
            shutdown: shutdown.clone(),
            served: tokio::spawn(admin.serve(shutdown.cancelled_owned())),
        }
    }

    async fn get(&self, path: &str, token: Option<&str>) -> reqwest::Response {
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(20))
            .build()
            .unwrap();
        let request = client.get(format!("http://{}{path}", self.address));
        let request = match token {
            Some(token) => request.header("authorization", token),
            None => request,
        };
        request.send().await.unwrap()
    }

    async fn ready(&self) -> (u16, String) {
        let response = self.get("/readyz", None).await;
        (response.status().as_u16(), response.text().await.unwrap())
    }
}

#[tokio::test]
async fn readiness_is_the_first_reason_in_one_word() {
    let server = TestServer::open("");
    let store = Arc::new(Memory::default());
    let no = |reason: &str| (503, reason.to_owned());
    assert_eq!(server.get("/livez", None).await.status(), 200);
    assert_eq!(server.ready().await, no("starting"));
    server.readiness.enter(Phase::Recovering);
    assert_eq!(server.ready().await, no("recovering"));
    server
        .readiness
        .set_store(Arc::clone(&store) as Arc<dyn crate::store::Monitored>);
    server.readiness.enter(Phase::Serving);
    assert_eq!(server.ready().await, (200, "ready".to_owned()));

    let why = "it is a secret".to_owned();
    store
        .health
        .send_replace(Health::Unavailable { why: why.clone() });
    assert_eq!(server.ready().await, no("unavailable"));
    store.health.send_replace(Health::Poisoned { why });
    assert_eq!(server.ready().await, no("poisoned"));
    store.health.send_replace(Health::Sound);
    server.readiness.enter(Phase::Draining);
    assert_eq!(server.ready().await, no("draining"));
    assert_eq!(server.get("/livez", None).await.status(), 200);
}

#[tokio::test]
async fn gauges_are_updated_when_metrics_are_requested() {
    let server = TestServer::open("");
    assert_eq!(
        server.get("/metrics", None).await.status(),
        200,
        "before there is a store"
    );
    let store = Arc::new(Memory::default());
    server
        .readiness
        .set_store(Arc::clone(&store) as Arc<dyn crate::store::Monitored>);
    let response = server.get("/metrics", None).await;
    let text = response.text().await.unwrap();
    assert!(text.contains("hookswitch_store_sound 0\n"), "{text}");
    assert_eq!(*store.measured_at.lock().unwrap(), Some(noon()));
}

#[tokio::test]
async fn a_client_gets_open_metrics_if_it_asks_for_them() {
    let server = TestServer::open("");
    let url = format!("http://{}/metrics", server.address);
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(20))
        .build()
        .unwrap();
    let prometheus =
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4";
    for (accept, content_type, is_open) in [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", false),
        (
            "text/html, text/plain",
            "text/plain; version=0.0.4; charset=utf-8",
            false,
        ),
        (
            prometheus,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            true,
        ),
    ] {
        let request = client.get(&url).header("accept", accept);
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["content-type"], content_type, "{accept}");
        let text = response.text().await.unwrap();
        assert_eq!(text.ends_with("# EOF\n"), is_open, "{text}");
    }
}

#[tokio::test]
async fn metrics_need_the_token_and_probes_do_not() {
    let server = TestServer::open("token = \"open sesame\"");
    for wrong in [
        None,
        Some("Bearer open"),
        Some("open sesame"),
        Some("Bearer "),
    ] {
        let response = server.get("/metrics", wrong).await;
        assert_eq!(response.status(), 401, "{wrong:?}");
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        let problem = response.text().await.unwrap();
        let problem: serde_json::Value = serde_json::from_str(&problem).unwrap();
        assert_eq!(problem["status"], 401, "{problem}");
    }
    let right = Some("Bearer open sesame");
    assert_eq!(server.get("/metrics", right).await.status(), 200);
    assert_eq!(server.get("/livez", None).await.status(), 200);
    assert_eq!(server.get("/readyz", None).await.status(), 503);
    assert_eq!(server.get("/", right).await.status(), 503, "it is starting");
}

#[tokio::test]
async fn a_shutdown_ends_the_server() {
    let server = TestServer::open("");
    assert_eq!(server.get("/livez", None).await.status(), 200);
    server.shutdown.cancel();
    assert_eq!(server.served.await.unwrap(), Drained { complete: true });
}
