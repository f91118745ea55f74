//! `audit`: lists what operators have done; and who the operator of this command is.

use super::{Exit, output::Format};
use crate::{
    app, config,
    store::{Action, AuditEntry, Operator},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// List at most this many entries
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    format: Format,
}

pub(super) fn run(args: &Args, operator: &dyn Operator) -> anyhow::Result<Exit> {
    let entries = operator.audit(None, args.limit)?;
    args.format.print(
        &entries,
        ["time", "who", "what", "to", "why"],
        |entry| {
            [
                format!("{:.0}", entry.at),
                entry.who.clone(),
                entry.action.clone(),
                entry.target.clone(),
                entry.reason.clone(),
            ]
        },
        "no operator has changed anything",
    )?;
    Ok(Exit::Success)
}

/// What this command does to `target`, for the audit log.
pub(super) fn entry(action: Action, target: String, reason: &str) -> AuditEntry {
    let users = ["SUDO_USER", "USER", "LOGNAME"];
    let user = users.iter().find_map(|name| config::environment(name));
    let user = user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    AuditEntry {
        at: app::now(),
        who: format!("cli:{user}"),
        action,
        target,
        reason: reason.to_owned(),
    }
}
