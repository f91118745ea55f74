//! `migrate`: moves events and deliveries from one store to another.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Error};
use indicatif::ProgressBar;

use super::{
    Exit,
    output::count,
    replay::progress_bar,
    serve::{rebuild_progress, start_logging},
};
use crate::{
    app::{self, Builder},
    config,
    store::{self, StoreError, TransferPhase, TransferSummary},
    telemetry::Metrics,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Move all events and deliveries from an embedded store to the PostgreSQL store of the
    /// configuration, while no service uses either. Run it again after an interruption, or to move
    /// newer events
    EmbeddedToPostgres(Args),
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration of the service with the embedded store
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
}

pub(super) fn run(command: &Command, path: &Path, builder: &Builder) -> anyhow::Result<Exit> {
    let Command::EmbeddedToPostgres(args) = command;
    let old = builder.load(&args.from)?;
    let new = config::load_store(path)?;
    start_logging(&old)?;
    let handlers = old.handlers.iter();
    let subscriptions = handlers.map(|consumer| consumer.subscription()).collect();
    let context = store::Context {
        metrics: Arc::new(Metrics::default()),
        clock: app::now,
        rebuild: Arc::new(rebuild_progress()),
    };
    let mut target = new.target().with_context(|| named("--config", path))?;
    let source = old.store.source(context, subscriptions);
    let source = source.with_context(|| named("--from", &args.from))?;
    let mut progress = Progress::new();
    let moved = store::transfer(&source, &mut *target, &mut |step, done, total| {
        progress.report(step, done, total);
    });
    progress.bar.finish_and_clear();
    report(&moved.map_err(with_advice)?)
}

fn named(option: &str, config: &Path) -> String {
    format!("the store of {} ({option})", config.display())
}

/// `error`, with advice for a transfer that it interrupted.
fn with_advice(error: StoreError) -> Error {
    match error {
        StoreError::TransferMismatch { .. } => Error::new(error),
        error => Error::new(error).context(
            "the move was interrupted; it kept what it had moved, so fix this and run it again",
        ),
    }
}

fn report(moved: &TransferSummary) -> anyhow::Result<Exit> {
    let mut out = io::stdout().lock();
    let seen = moved.events + moved.duplicates + moved.damaged.len() as u64;
    if moved.is_incremental && seen == 0 {
        writeln!(out, "nothing to move: all of it was moved before")?;
        return Ok(Exit::Success);
    }
    writeln!(
        out,
        "{} with {} moved and compared{}; checksum {}",
        count(moved.events, "event"),
        count(moved.deliveries, "delivery"),
        if moved.is_incremental {
            ", new since the last move"
        } else {
            ""
        },
        moved.checksum,
    )?;
    if moved.duplicates > 0 {
        writeln!(
            out,
            "{} left out, since the database has copies of them",
            count(moved.duplicates, "event"),
        )?;
    }
    if moved.damaged.is_empty() {
        return Ok(Exit::Success);
    }
    writeln!(
        out,
        "{} damaged in the embedded store, and left there; ask the provider for what is missing:",
        match moved.damaged.len() {
            1 => "1 event is".to_owned(),
            events => format!("{events} events are"),
        },
    )?;
    for id in &moved.damaged {
        writeln!(out, "{id}")?;
    }
    Ok(Exit::Negative)
}

/// Shows progress on standard error: a bar on a terminal, or else a line for each tenth.
struct Progress {
    bar: ProgressBar,
    reported: Option<(TransferPhase, u64)>,
}

impl Progress {
    fn new() -> Self {
        Self {
            bar: progress_bar(0),
            reported: None,
        }
    }

    fn report(&mut self, step: TransferPhase, done: u64, total: u64) {
        let verb = match step {
            TransferPhase::Move => "moved",
            TransferPhase::Compare => "compared",
        };
        let now = (step, done * 10 / total.max(1));
        let is_new = self.reported.replace(now) != Some(now);
        if self.bar.is_hidden() && is_new {
            // Progress is not part of the result, so a closed standard error is no failure.
            writeln!(io::stderr(), "{done} of {} {verb}", count(total, "event")).ok();
        }
        self.bar.set_message(verb);
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}
