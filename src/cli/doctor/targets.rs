//! The servers of the handlers, which are tried only when that is asked for.

use std::time::Duration;

use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use super::finding::Finding;
use crate::{cli::block_on, config::Config};

const CHECK: &str = "targets";

/// How long a server may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connects to each server of each handler, and sends nothing.
pub(super) fn check(config: &Config, findings: &mut Vec<Finding>) -> anyhow::Result<()> {
    let tried = block_on(async {
        let mut attempts = JoinSet::new();
        for handler in &config.handlers {
            for server in &handler.servers {
                let (handler, server) = (handler.name.to_string(), server.clone());
                attempts.spawn(async move { (attempt(&server).await, handler, server) });
            }
        }
        Ok(attempts.join_all().await)
    })?;
    for (result, handler, server) in tried {
        findings.push(match result {
            Ok(()) => Finding::fine(CHECK, format!("{server} of {handler} accepts connections")),
            Err(why) => Finding::warning(
                CHECK,
                format!("{server} of {handler} cannot be reached: {why}"),
                "events are kept and tried again until then: look at the server, its name and the firewall",
            ),
        });
    }
    Ok(())
}

async fn attempt(server: &str) -> Result<(), String> {
    match timeout(PATIENCE, TcpStream::connect(server)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}
