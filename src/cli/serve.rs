//! `serve`: runs the service and handles its signals.

use std::{
    io::{self, Write},
    path::Path,
    sync::Mutex,
};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, output, replay::progress_bar};
use crate::{
    app::{App, Builder, End, Reloader},
    config::{Config, Log},
    telemetry::{self, LogFormat},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args, path: &Path, builder: &Builder) -> anyhow::Result<Exit> {
    let config = builder.load(path)?;
    start_logging(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    let end = runtime.block_on(serve(config, path, builder))?;
    match end {
        End::Drained => tracing::info!("stopped; everything in progress was finished"),
        End::CutShort => tracing::warn!(
            "stopped before everything in progress was finished; the rest is delivered at the next \
             start"
        ),
        End::Failed => {
            tracing::error!(
                "stopped because a component of the service failed; acknowledged events are safe"
            );
        }
    }
    Ok(match end {
        End::Drained => Exit::Success,
        End::CutShort => Exit::Negative,
        End::Failed => Exit::ServiceFailed,
    })
}

/// Starts logging to standard error, as configured.
pub(super) fn start_logging(config: &Config) -> anyhow::Result<()> {
    let Log { format, filter } = &config.log;
    telemetry::start_logging(*format, filter, output::has_color(&io::stderr()))
        .with_context(|| format!("log.filter {filter:?} is not a filter"))
}

async fn serve(config: Config, path: &Path, builder: &Builder) -> anyhow::Result<End> {
    let is_text = config.log.format == LogFormat::Text;
    let banner = is_text.then(|| Banner::of(&config, path, builder));
    let app = App::build(config, rebuild_progress()).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let reloads = reload_on_hangup(app.reloader(), path, builder)?;
    // Signals are handled from here on, so a reader of the log or of the banner may send one.
    tracing::info!(
        version = builder.version(),
        address = %app.address(),
        admin.address = %app.admin_address(),
        config = %path.display(),
        "the service has started"
    );
    if let Some(banner) = banner {
        banner.print(&app)?;
    }
    tokio::select! {
        end = app.run(shutdown) => Ok(end),
        never = reloads => match never {},
    }
}

/// Reloads the configuration at each SIGHUP.
fn reload_on_hangup(
    reloader: Reloader,
    path: &Path,
    builder: &Builder,
) -> io::Result<impl Future<Output = std::convert::Infallible>> {
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        loop {
            // The stream of signals ends only with the runtime.
            if hangup.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
            // The file and the secrets that it refers to are small, so blocking this thread is
            // cheaper than another one.
            match builder.load(path) {
                Ok(config) => reloader.reload(config).await,
                Err(report) => reloader.refuse(&report.render(false)),
            }
        }
    })
}

/// A progress bar of a ledger's rebuild, shown once a rebuild begins.
pub(super) fn rebuild_progress() -> impl Fn(u64, u64) + Send + Sync + 'static {
    let bar = Mutex::new(None);
    move |done, total| {
        let Ok(mut bar) = bar.lock() else { return };
        let bar = bar.get_or_insert_with(|| progress_bar(total));
        bar.set_position(done);
        if done >= total && !bar.is_finished() {
            bar.finish_and_clear();
        }
    }
}

/// The text that `serve` prints when it is ready, for people. A log for machines has only the record.
struct Banner {
    program: &'static str,
    version: &'static str,
    scheme: &'static str,
    paths: Vec<(String, String)>,
    config: String,
    /// Whether to say how to try the service. A production service refers to its secrets: they stand
    /// in the file itself while somebody tries it, on loopback alone.
    is_trial: bool,
}

impl Banner {
    fn of(config: &Config, path: &Path, builder: &Builder) -> Self {
        let endpoints = config.endpoints.iter();
        Self {
            program: builder.name(),
            version: builder.version(),
            scheme: if config.server.tls.is_some() {
                "https"
            } else {
                "http"
            },
            paths: endpoints
                .map(|endpoint| (endpoint.family.name.to_owned(), endpoint.path.clone()))
                .collect(),
            config: path.display().to_string(),
            is_trial: config.has_inline_secrets(),
        }
    }

    fn print(&self, app: &App) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let (scheme, address) = (self.scheme, app.address());
        writeln!(out, "{} {} is listening", self.program, self.version)?;
        for (family, path) in &self.paths {
            writeln!(out, "  {family:<28} {scheme}://{address}{path}")?;
        }
        writeln!(out, "  {:<28} http://{}/", "operators", app.admin_address())?;
        if self.is_trial {
            writeln!(out, "Try it from another terminal:")?;
            // The program as it was called, since it may not be in PATH.
            let program = std::env::args().next();
            let program = program.as_deref().unwrap_or(self.program);
            writeln!(out, "  {program} send --all --config {}", self.config)?;
        }
        out.flush()
    }
}
