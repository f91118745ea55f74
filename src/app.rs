//! Wires the floors together, supervises them, and drains them.
//!
//! **Invariant:** every long-lived task is spawned here, or on the tracker that is handed out here,
//! and is waited for at the end.
//!
//! **Invariant:** the order of the end is: readiness false and no new connections; requests in
//! flight finish; deliveries under way finish; the journal is synced and closed. One deadline holds
//! for all of it.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::{self, Phase, Readiness},
    config::{self, Config},
    dispatch::Dispatcher,
    handler::{self, HandlerKind},
    http::{self, Webhook},
    store::{self, Health, Store, StoreError},
    telemetry::{ByResult, Metrics},
};

/// The clock that everything below is given.
#[expect(clippy::disallowed_methods, reason = "this is where the clock is read")]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// The name by which a program that embeds this crate finds its way in.
#[derive(Debug)]
pub struct Hookswitch;

impl Hookswitch {
    /// A service with the kinds of handlers that come with the crate.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

/// A service before its configuration has been read.
#[derive(Clone, Debug)]
pub struct Builder {
    kinds: Vec<handler::Kind>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            kinds: handler::KINDS.to_vec(),
        }
    }
}

impl Builder {
    /// Adds a kind of handler, which the TOML can then name. One of the same name is replaced.
    #[must_use]
    pub fn handler_kind<K: HandlerKind>(mut self) -> Self {
        self.kinds.retain(|kind| kind.kind != K::KIND);
        self.kinds.push(handler::Kind::of::<K>());
        self
    }

    /// Reads the configuration at `path`.
    ///
    /// # Errors
    ///
    /// A report of everything that is wrong with it.
    pub fn load(&self, path: &Path) -> Result<Config, config::Report> {
        config::load(path, &self.kinds, config::environment)
    }
}

/// Why a service cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A server could not be bound.
    #[error(transparent)]
    Bind(#[from] http::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How a service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All that had begun was finished.
    Drained,
    /// The deadline came first. Nothing is lost: what was not finished is delivered again.
    CutShort,
    /// The store failed, or a part of the service itself did. What was acknowledged is safe.
    Failed,
}

/// Why a service begins to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    Asked,
    Failure,
}

/// A service that listens and does not answer yet.
pub struct App {
    server: http::Server,
    admin_address: SocketAddr,
    drain_timeout: Duration,
    parts: Arc<Parts>,
}

/// What runs, and what a reload changes.
struct Parts {
    store: Arc<dyn Store>,
    webhook: Arc<Webhook>,
    dispatcher: Dispatcher,
    certificate: Option<Arc<http::Certificate>>,
    /// What of the configuration in force cannot change while the service runs.
    fixed: Mutex<config::Fixed>,
    readiness: Arc<Readiness>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    /// Stops the admin server, after everything else.
    stop: CancellationToken,
}

impl App {
    /// Binds both servers, opens the store and starts the handlers. The admin server answers from
    /// the beginning, so that probes can follow the start. `rebuild` is called with (done, total)
    /// while a ledger is rebuilt.
    ///
    /// # Errors
    ///
    /// When an address cannot be bound or the store cannot be opened.
    pub async fn build(
        config: Config,
        rebuild: Arc<dyn Fn(u64, u64) + Send + Sync>,
    ) -> Result<Self, Error> {
        warn(&config.warnings);
        let fixed = config.fixed;
        let metrics = Arc::new(Metrics::default());
        let readiness = Arc::new(Readiness::default());
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();

        let server = http::Server::bind(&config.server, &metrics)?;
        let admin = admin::Server::bind(&config.admin)?;
        let admin_address = admin.local_addr();
        tasks.spawn(admin.serve(
            readiness.clone(),
            metrics.clone(),
            now,
            stop.clone().cancelled_owned(),
        ));

        readiness.enter(Phase::Recovering);
        let context = store::Context {
            metrics: metrics.clone(),
            clock: now,
            rebuild,
        };
        let engine = config.store;
        // Opening reads files. It must not block the admin server.
        let opening = tasks.spawn_blocking(move || engine.open(context));
        let store = opening.await.map_err(|_| StoreError::Closed)??;
        readiness.observe(store.clone());

        let webhook = Webhook::new(
            &config.server,
            config.endpoints,
            store.clone(),
            metrics.clone(),
            now,
        );
        tasks.spawn(look_after(store.clone(), metrics.clone(), stop.clone()));
        let dispatcher = Dispatcher::new(
            store.clone(),
            store.followers(),
            metrics.clone(),
            now,
            tasks.clone(),
        );
        dispatcher.replace(config.handlers).await?;

        let parts = Parts {
            store,
            webhook: Arc::new(webhook),
            dispatcher,
            certificate: server.certificate(),
            fixed: Mutex::new(fixed),
            readiness,
            metrics,
            tasks,
            stop,
        };
        Ok(Self {
            server,
            admin_address,
            drain_timeout: config.server.drain_timeout,
            parts: Arc::new(parts),
        })
    }

    /// The address that providers post to.
    pub fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// The address of the admin server.
    pub const fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// What changes a running service's configuration.
    pub fn reloader(&self) -> Reloader {
        Reloader(self.parts.clone())
    }

    /// Serves until `shutdown` is ready, or the store or another part fails; then drains.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> End {
        let Self {
            server,
            drain_timeout,
            parts,
            ..
        } = self;
        let draining = CancellationToken::new();
        let ended = CancellationToken::new();
        let alarm = ended.clone().drop_guard();
        let serving = server.serve(parts.webhook.clone(), draining.clone().cancelled_owned());
        let serving = parts.tasks.spawn(async move {
            let _alarm = alarm;
            serving.await
        });
        parts.readiness.enter(Phase::Serving);

        let mut health = parts.store.health();
        let cause = tokio::select! {
            () = shutdown => Cause::Asked,
            () = until_poisoned(&mut health) => Cause::Failure,
            () = parts.dispatcher.broken() => {
                tracing::error!("a handler's worker ended by itself");
                Cause::Failure
            }
            () = ended.cancelled() => {
                tracing::error!("the server stopped by itself");
                Cause::Failure
            }
        };
        tracing::info!("shutting down");
        parts.readiness.enter(Phase::Draining);
        let deadline = Instant::now() + drain_timeout;
        draining.cancel();
        let answered = serving.await.is_ok_and(|drained| drained.complete);
        let delivered = parts.dispatcher.drain(deadline).await;
        let closed = parts.store.close().await;
        parts.stop.cancel();
        parts.tasks.close();
        let finished = timeout_at(deadline, parts.tasks.wait()).await.is_ok();
        match closed {
            _ if cause == Cause::Failure => End::Failed,
            Err(error) => {
                tracing::error!(%error, "the store could not be closed in order");
                End::Failed
            }
            Ok(()) if answered && delivered && finished => End::Drained,
            Ok(()) => End::CutShort,
        }
    }
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = self.address();
        f.debug_struct("App")
            .field("address", &address)
            .finish_non_exhaustive()
    }
}

/// Logs what the configuration in force is warned of.
fn warn(warnings: &config::Report) {
    for problem in warnings.problems() {
        tracing::warn!("{problem}");
    }
}

/// Looks now and then whether what is stored is worked on.
async fn look_after(store: Arc<dyn Store>, metrics: Arc<Metrics>, stop: CancellationToken) {
    let followers = store.followers();
    while !stop.is_cancelled() {
        followers.look(&metrics);
        drop(timeout(store::LOOK_EVERY, stop.cancelled()).await);
    }
}

async fn until_poisoned(health: &mut watch::Receiver<Health>) {
    let poisoned = |health: &Health| matches!(health, Health::Poisoned { .. });
    match health.wait_for(poisoned).await {
        Ok(health) => tracing::error!(health = ?*health, "the store is poisoned"),
        Err(_) => tracing::error!("the store ended by itself"),
    }
}

/// Changes the configuration of a running service: validated whole, swapped at once.
#[derive(Clone)]
pub struct Reloader(Arc<Parts>);

impl Reloader {
    /// Puts `config` in force: endpoints, secrets, handlers, certificates. One that changes what
    /// cannot change while running is refused whole.
    pub async fn reload(&self, config: Config) {
        let parts = &self.0;
        let mut fixed = parts.fixed.lock().await;
        let changes = fixed.changes(&config.fixed);
        if !changes.is_empty() {
            let changes = changes.join(" and ");
            self.refuse(&format!(
                "{changes} cannot change while the service runs; restart it"
            ));
            return;
        }
        *fixed = config.fixed;
        // Handlers first: what a new endpoint takes must find who gets it.
        if let Err(error) = parts.dispatcher.replace(config.handlers).await {
            self.refuse(&error.to_string());
            return;
        }
        parts.webhook.replace_endpoints(config.endpoints);
        if let Some(Err(error)) = parts
            .certificate
            .as_ref()
            .map(|certificate| certificate.refresh())
        {
            tracing::error!(%error, "the old certificate stays in use");
        }
        parts
            .metrics
            .reloads
            .get_or_create(&ByResult { result: "applied" })
            .inc();
        tracing::info!("the configuration was reloaded");
        warn(&config.warnings);
    }

    /// Says that a reload changed nothing, and why.
    pub fn refuse(&self, why: &str) {
        let refused = ByResult { result: "refused" };
        self.0.metrics.reloads.get_or_create(&refused).inc();
        tracing::error!("the configuration was not reloaded, the old one stays in force: {why}");
    }
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reloader")
    }
}
