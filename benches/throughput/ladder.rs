//! The cost of each thing that a 200 stands for: the steps of [`receiver`] and hookswitch, in turn.

use crate::{
    configuration, load,
    process::{Process, Service},
    receiver,
};

/// The ports of what is measured and of the admin server.
const PORTS: [u16; 2] = [18080, 19090];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The number of connections
    #[arg(long, default_value_t = 64)]
    connections: u64,
    /// The turns of each
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// The duration of a turn, in seconds
    #[arg(long, default_value_t = 4)]
    seconds: u64,
}

/// The sums over the turns of one step.
#[derive(Clone, Copy, Default)]
struct Sum {
    per_s: f64,
    us_per_event: f64,
}

pub(crate) fn measure(args: &Args) -> anyhow::Result<()> {
    let mut sums = [Sum::default(); receiver::STEPS.len() + 1];
    for _ in 0..args.turns {
        for (step, sum) in sums.iter_mut().enumerate() {
            let turn = turn(step, args)?;
            sum.per_s += turn.figures.per_s();
            sum.us_per_event += turn.us_per_event();
        }
    }
    let names = receiver::STEPS.iter().chain(&["hookswitch"]);
    let turns = args.turns as f64;
    for (name, sum) in names.zip(&sums) {
        println!(
            "{name}: {:.0} a second, {:.2} of the first; {:.0} us of processor time an event",
            sum.per_s / turns,
            sum.per_s / sums[0].per_s,
            sum.us_per_event / turns
        );
    }
    Ok(())
}

/// Starts the receiver of `step`, or hookswitch after the last one, in a new folder, and measures it.
fn turn(step: usize, args: &Args) -> anyhow::Result<load::Turn> {
    let dir = tempfile::tempdir()?;
    let [port, admin] = PORTS;
    if step < receiver::STEPS.len() {
        return loaded(&receiver::start(step, port, dir.path())?, args);
    }
    let store = format!("kind = \"embedded\"\npath = {:?}", dir.path().join("data"));
    let config = configuration(dir.path(), "hookswitch.toml", PORTS, &store, "")?;
    loaded(&Service::start(&config, admin)?.process, args)
}

fn loaded(process: &Process, args: &Args) -> anyhow::Result<load::Turn> {
    let [port, _] = PORTS;
    load::run(load::Args::on(port, 4, 1))?;
    load::Turn::of(
        process,
        load::Args::on(port, args.connections, args.seconds),
    )
}
