//! `migrate`: from one store to another.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Error};
use indicatif::ProgressBar;

use super::{
    Answer,
    output::count,
    replay::progress_bar,
    serve::{rebuild_progress, start_logging},
};
use crate::{
    app::{self, Builder},
    config,
    store::{self, Step, StoreError, Transferred},
    telemetry::Metrics,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Move everything from an embedded store into the PostgreSQL store of the configuration, while
    /// no service runs on either; run it again if it was cut short, or to move what is new since
    EmbeddedToPostgres(Args),
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration that the embedded store was used with
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
}

pub(super) fn run(command: &Command, path: &Path, builder: &Builder) -> anyhow::Result<Answer> {
    let Command::EmbeddedToPostgres(args) = command;
    let old = builder.load(&args.from)?;
    let new = config::load_store(path)?;
    start_logging(&old)?;
    let handlers = old.handlers.iter();
    let subscriptions = handlers.map(|consumer| consumer.subscription()).collect();
    let context = store::Context {
        metrics: Arc::new(Metrics::default()),
        clock: app::now,
        rebuild: rebuild_progress(),
    };
    let mut target = new.target().with_context(|| named("--config", path))?;
    let source = old.store.source(context, subscriptions);
    let source = source.with_context(|| named("--from", &args.from))?;
    let mut progress = Progress::new();
    let moved = store::transfer(&source, &mut *target, &mut |step, done, total| {
        progress.tell(step, done, total);
    });
    progress.bar.finish_and_clear();
    report(&moved.map_err(advise)?)
}

fn named(option: &str, config: &Path) -> String {
    format!("the store of {} ({option})", config.display())
}

/// `error`, with what to do about a transfer that it has ended.
fn advise(error: StoreError) -> Error {
    match error {
        StoreError::Different { .. } => Error::new(error),
        error => Error::new(error).context(
            "the move was cut short; what was moved is kept, so mend this and run it again",
        ),
    }
}

fn report(moved: &Transferred) -> anyhow::Result<Answer> {
    let mut out = io::stdout().lock();
    let seen = moved.events + moved.copies + moved.damaged.len() as u64;
    if moved.is_rest && seen == 0 {
        writeln!(out, "nothing to move: all of it was moved before")?;
        return Ok(Answer::Yes);
    }
    writeln!(
        out,
        "{} with {} moved and compared{}; checksum {}",
        count(moved.events, "event"),
        count(moved.deliveries, "delivery"),
        if moved.is_rest {
            ", new since the last move"
        } else {
            ""
        },
        moved.checksum,
    )?;
    if moved.copies > 0 {
        writeln!(
            out,
            "{} left out, since the database has copies of what is in them",
            count(moved.copies, "event"),
        )?;
    }
    if moved.damaged.is_empty() {
        return Ok(Answer::Yes);
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
    Ok(Answer::No)
}

/// Says on standard error how far it is: a bar on a terminal, and elsewhere a line for each tenth.
struct Progress {
    bar: ProgressBar,
    told: Option<(Step, u64)>,
}

impl Progress {
    fn new() -> Self {
        Self {
            bar: progress_bar(0),
            told: None,
        }
    }

    fn tell(&mut self, step: Step, done: u64, total: u64) {
        let word = match step {
            Step::Move => "moved",
            Step::Compare => "compared",
        };
        let now = (step, done * 10 / total.max(1));
        let is_new = self.told.replace(now) != Some(now);
        if self.bar.is_hidden() && is_new {
            // Whoever does not listen misses nothing that is asked for.
            writeln!(io::stderr(), "{done} of {} {word}", count(total, "event")).ok();
        }
        self.bar.set_message(word);
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}
