//! Wires the floors together, supervises them, and drains them.
//!
//! **Invariant:** every long-lived task is spawned here, or on the tracker that is created here, and
//! the shutdown waits for it.
//!
//! **Invariant:** the order of the shutdown is: readiness is false and no connection is accepted;
//! requests in flight finish; deliveries in progress finish; the journal is synced and closed. One
//! deadline covers all of it.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};
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
    telemetry::{ByPhase, ByResult, ByVersion, Metrics, seconds},
};

/// The clock of all floors below.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the only place that reads the clock"
)]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// A service whose configuration has not been read.
#[derive(Clone, Debug)]
pub struct Builder {
    kinds: Vec<handler::Kind>,
    name: &'static str,
    version: &'static str,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            kinds: handler::KINDS.to_vec(),
            name: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

impl Builder {
    /// Registers a kind of handler for the TOML. It replaces a kind with the same name.
    #[must_use]
    pub fn handler_kind<K: HandlerKind>(mut self) -> Self {
        self.kinds.retain(|kind| kind.kind != K::KIND);
        self.kinds.push(handler::Kind::undescribed::<K>());
        self
    }

    /// The name and the version of the program, for its command line and its log: those of the
    /// embedding crate are `env!("CARGO_PKG_NAME")` and `env!("CARGO_PKG_VERSION")`.
    #[must_use]
    pub const fn program(mut self, name: &'static str, version: &'static str) -> Self {
        self.name = name;
        self.version = version;
        self
    }

    /// The name of the program.
    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }

    /// The version of the program.
    pub(crate) const fn version(&self) -> &'static str {
        self.version
    }

    /// The kinds of handlers.
    pub(crate) fn kinds(&self) -> &[handler::Kind] {
        &self.kinds
    }

    /// Reads the configuration at `path`.
    ///
    /// # Errors
    ///
    /// A report of all problems in the configuration.
    pub fn load(&self, path: impl AsRef<Path>) -> Result<Config, config::Report> {
        config::load(path.as_ref(), &self.kinds, config::environment)
    }

    /// Reads the configuration `toml`, which need not be a file. The report calls it `name`.
    ///
    /// ```
    /// let builder = hookswitch::App::builder();
    /// let report = builder.parse("settings", "[log]\nformat = \"jsn\"").unwrap_err();
    /// assert!(report.to_string().contains("settings:2:10"));
    /// ```
    ///
    /// # Errors
    ///
    /// A report of all problems in the configuration.
    pub fn parse(&self, name: &str, toml: &str) -> Result<Config, config::Report> {
        config::parse(Path::new(name), toml, &self.kinds, config::environment)
    }
}

/// Why a service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A server could not be bound.
    #[error(transparent)]
    Bind(#[from] http::Error),
    /// The store could not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How a service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything in progress finished.
    Drained,
    /// The deadline passed first. Unfinished deliveries are made again.
    CutShort,
    /// The store or a component of the service failed. Acknowledged events are safe.
    Failed,
}

/// Why a service shuts down.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    Requested,
    Failure,
}

/// A service whose addresses are bound and whose store is open.
///
/// ```no_run
/// # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
/// use hookswitch::{App, End};
///
/// let config = App::builder().load("hookswitch.toml")?;
/// let app = App::build(config, |_, _| {}).await?;
/// println!("providers post to {}", app.address());
/// let interrupt = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
/// assert_eq!(app.run(interrupt).await, End::Drained);
/// # Ok(())
/// # }
/// ```
pub struct App {
    server: http::Server,
    admin_address: SocketAddr,
    drain_timeout: Duration,
    components: Arc<Components>,
}

/// The running components, as far as a reload needs them.
struct Components {
    store: Arc<dyn Store>,
    webhook: Arc<Webhook>,
    dispatcher: Arc<Dispatcher>,
    admin: admin::Handle,
    certificate: Option<Arc<http::Certificate>>,
    /// The sections of the configuration in force that require a restart.
    restart_required: Mutex<config::RestartRequired>,
    readiness: Arc<Readiness>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    /// Stops the admin server, after everything else.
    stop: CancellationToken,
}

impl Components {
    fn enter(&self, phase: Phase) {
        enter(phase, &self.readiness, &self.metrics);
    }
}

impl App {
    /// A builder with the built-in kinds of handlers.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Binds both servers, opens the store and starts the handlers. The admin server answers from
    /// the beginning, so that probes can follow the start. `rebuild` is called with (done, total)
    /// while a ledger is rebuilt.
    ///
    /// # Errors
    ///
    /// When an address cannot be bound or the store cannot be opened.
    pub async fn build(
        config: Config,
        rebuild: impl Fn(u64, u64) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        log_warnings(&config.warnings);
        let restart_required = config.restart_required;
        let metrics = Arc::new(Metrics::default());
        let version = ByVersion {
            version: env!("CARGO_PKG_VERSION"),
        };
        metrics.build_info.get_or_create(&version).set(1);
        metrics.config_hash.set(config.hash);
        metrics.start_timestamp_seconds.set(seconds(now()));
        let readiness = Arc::new(Readiness::default());
        enter(Phase::Starting, &readiness, &metrics);
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();

        let server = http::Server::bind(&config.server, &metrics)?;
        let admin_server =
            admin::Server::bind(&config.admin, readiness.clone(), metrics.clone(), now)?;
        let (admin, admin_address) = (admin_server.handle(), admin_server.local_addr());
        tasks.spawn(admin_server.serve(stop.clone().cancelled_owned()));

        enter(Phase::Recovering, &readiness, &metrics);
        let context = store::Context {
            metrics: metrics.clone(),
            clock: now,
            rebuild: Arc::new(rebuild),
        };
        let engine = config.store;
        // Opening reads files. It must not block the admin server.
        let opening =
            tasks.spawn_blocking(move || engine.open(context).map(|store| (engine, store)));
        let (engine, store) = opening.await.map_err(|_| StoreError::Closed)??;
        readiness.set_store(store.clone());

        let webhook = Arc::new(Webhook::new(
            &config.server,
            config.endpoints,
            store.clone(),
            metrics.clone(),
            now,
        ));
        tasks.spawn(supervise_followers(
            store.clone(),
            metrics.clone(),
            stop.clone(),
        ));
        let dispatcher = Arc::new(Dispatcher::new(
            store.clone(),
            store.followers(),
            metrics.clone(),
            now,
            tasks.clone(),
        ));
        let console = Arc::new(admin::Console {
            store: store.clone(),
            operators: Arc::new(admin::Operators::new(engine, now)),
            dispatcher: dispatcher.clone(),
            webhook: webhook.clone(),
            metrics: metrics.clone(),
            readiness: readiness.clone(),
            clock: now,
            started_at: now(),
            pauses: ArcSwap::default(),
            pauses_problem: ArcSwapOption::default(),
        });
        // A paused handler must begin no attempt. A database that is down delays all handlers.
        if let Err(error) = console.refresh_pauses().await {
            tracing::warn!(
                "the paused handlers cannot be read, so no handler begins an attempt: {error}"
            );
            let handlers = config.handlers.iter();
            dispatcher.set_paused(handlers.map(|handler| handler.name.clone()).collect());
        }
        dispatcher.replace(config.handlers).await?;
        tasks.spawn(follow_pauses(console.clone(), stop.clone()));
        admin.set_console(console);

        let components = Components {
            store,
            webhook,
            dispatcher,
            admin,
            certificate: server.certificate(),
            restart_required: Mutex::new(restart_required),
            readiness,
            metrics,
            tasks,
            stop,
        };
        Ok(Self {
            server,
            admin_address,
            drain_timeout: config.server.drain_timeout,
            components: Arc::new(components),
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

    /// Changes the configuration of the running service.
    pub(crate) fn reloader(&self) -> Reloader {
        Reloader(self.components.clone())
    }

    /// Serves until `shutdown` is ready, or until the store or another component fails. Then drains.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> End {
        let Self {
            server,
            drain_timeout,
            components,
            ..
        } = self;
        let draining = CancellationToken::new();
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let serving = server.serve(
            components.webhook.clone(),
            draining.clone().cancelled_owned(),
        );
        let serving = components.tasks.spawn(async move {
            let _guard = guard;
            serving.await
        });
        components.enter(Phase::Serving);

        let mut health = components.store.health();
        let cause = tokio::select! {
            () = shutdown => Cause::Requested,
            () = until_poisoned(&mut health) => Cause::Failure,
            () = components.dispatcher.broken() => {
                tracing::error!("a handler's worker stopped by itself");
                Cause::Failure
            }
            () = ended.cancelled() => {
                tracing::error!("the server stopped by itself");
                Cause::Failure
            }
        };
        tracing::info!("shutting down");
        components.enter(Phase::Draining);
        let deadline = Instant::now() + drain_timeout;
        draining.cancel();
        let answered = serving.await.is_ok_and(|drained| drained.complete);
        let delivered = components.dispatcher.drain(deadline).await;
        let closed = components.store.close().await;
        components.stop.cancel();
        components.tasks.close();
        let finished = timeout_at(deadline, components.tasks.wait()).await.is_ok();
        match closed {
            _ if cause == Cause::Failure => End::Failed,
            Err(error) => {
                tracing::error!(%error, "the store could not be closed cleanly");
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

/// Enters `phase`, and shows it.
fn enter(phase: Phase, readiness: &Readiness, metrics: &Metrics) {
    readiness.enter(phase);
    for other in Phase::ALL {
        let label = ByPhase {
            phase: other.as_str(),
        };
        let gauge = metrics.phase.get_or_create(&label);
        gauge.set(i64::from(other == phase));
    }
}

/// Logs the warnings about the configuration in force.
fn log_warnings(warnings: &config::Report) {
    for problem in warnings.problems() {
        tracing::warn!("{problem}");
    }
}

/// Checks the store's followers for progress, periodically.
async fn supervise_followers(
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let followers = store.followers();
    while !stop.is_cancelled() {
        followers.check(&metrics);
        drop(timeout(store::CHECK_INTERVAL, stop.cancelled()).await);
    }
}

/// How often the service looks which handlers are paused.
const PAUSES_INTERVAL: Duration = Duration::from_secs(1);

/// Obeys the pauses that commands and other replicas make.
async fn follow_pauses(console: Arc<admin::Console>, stop: CancellationToken) {
    let mut is_failing = false;
    while timeout(PAUSES_INTERVAL, stop.cancelled()).await.is_err() {
        match console.refresh_pauses().await {
            Ok(()) => is_failing = false,
            Err(error) if !is_failing => {
                is_failing = true;
                tracing::warn!(
                    "the paused handlers cannot be read, and stay as they were: {error}"
                );
            }
            Err(_) => {}
        }
    }
}

/// Ready when the store is poisoned or gone.
async fn until_poisoned(health: &mut watch::Receiver<Health>) {
    let poisoned = |health: &Health| matches!(health, Health::Poisoned { .. });
    match health.wait_for(poisoned).await {
        Ok(health) => tracing::error!(health = ?*health, "the store is poisoned"),
        Err(_) => tracing::error!("the store stopped by itself"),
    }
}

/// Changes the configuration of a running service. A reload is applied as a whole or refused.
#[derive(Clone)]
pub(crate) struct Reloader(Arc<Components>);

impl Reloader {
    /// Applies `config`: endpoints, secrets, handlers, certificates. Refuses it if it changes a
    /// setting that needs a restart.
    pub async fn reload(&self, config: Config) {
        let components = &self.0;
        let mut restart_required = components.restart_required.lock().await;
        let changes = restart_required.changes(&config.restart_required);
        if !changes.is_empty() {
            let changes = changes.join(" and ");
            self.refuse(&format!(
                "{changes} cannot change while the service runs; restart it"
            ));
            return;
        }
        // The content of the files may have changed since the configuration was checked.
        let certificate = components.certificate.as_ref();
        if let Some(Err(error)) = certificate.map(|certificate| certificate.refresh()) {
            self.refuse(&error.to_string());
            return;
        }
        *restart_required = config.restart_required;
        // Handlers first: an event of a new endpoint must find its handlers.
        if let Err(error) = components.dispatcher.replace(config.handlers).await {
            self.refuse(&error.to_string());
            return;
        }
        components.webhook.replace_endpoints(config.endpoints);
        components.admin.reload(&config.admin);
        components.metrics.config_hash.set(config.hash);
        components
            .metrics
            .reloads
            .get_or_create(&ByResult { result: "applied" })
            .inc();
        tracing::info!("the configuration was reloaded");
        log_warnings(&config.warnings);
    }

    /// Logs and counts a refused reload.
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
