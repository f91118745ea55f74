//! `migrate`: from one store to another.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Answer, output::count, replay::progress_bar};
use crate::{
    app::{self, Builder},
    config, store,
    telemetry::Metrics,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Move everything from an embedded store into the PostgreSQL store of the configuration, while
    /// no service runs on either; run it again if it was cut short
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
    let handlers = old.handlers.iter();
    let subscriptions = handlers.map(|consumer| consumer.subscription()).collect();
    let context = store::Context {
        metrics: Arc::new(Metrics::default()),
        clock: app::now,
        rebuild: Arc::new(|_, _| {}),
    };
    let mut target = new.target()?;
    let mut source = old.store.source(context, subscriptions)?;
    let bar = progress_bar(0);
    let moved = store::transfer(&mut *source, &mut *target, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    writeln!(
        io::stdout(),
        "{} with {} moved and compared; checksum {}; {} left out, since the store has copies of them",
        count(usize::try_from(moved.events).unwrap_or(usize::MAX), "event"),
        match moved.deliveries {
            1 => "1 delivery".to_owned(),
            deliveries => format!("{deliveries} deliveries"),
        },
        moved.checksum,
        moved.copies,
    )?;
    if moved.damaged == 0 {
        return Ok(Answer::Yes);
    }
    writeln!(
        io::stdout(),
        "{} damaged in the embedded store, and left there; ask the provider for what is missing",
        match moved.damaged {
            1 => "1 event is".to_owned(),
            events => format!("{events} events are"),
        },
    )?;
    Ok(Answer::No)
}
