//! One connection to a cluster of NATS, which all attempts share.
//!
//! The client library would reconnect in the background for ever, even when no delivery needs the
//! connection, and would not say why it fails. So the library gets one try at each server. After that
//! the next attempt connects anew, and the reason of a failure is the reason of that attempt.

use async_nats::{Client, ConnectError, ConnectErrorKind, Event, connection::State};
use tokio::sync::broadcast;

use super::Settings;
use crate::handler::{broker::reconnecting, with_causes};

/// How many events of a connection may wait to be read by one attempt. Each attempt causes at most
/// a few.
const EVENTS: usize = 64;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: Client,
    /// What happens on the connection besides replies.
    pub(super) events: broadcast::Sender<Event>,
}

impl Connection {
    /// Connects to one of the servers.
    ///
    /// # Errors
    ///
    /// When no server accepts the connection.
    pub(super) async fn open(settings: &Settings) -> Result<Self, String> {
        let (events, _) = broadcast::channel(EVENTS);
        let sender = events.clone();
        let options = settings.options().event_callback(move |event| {
            // An error means that no attempt is in flight, so that nobody needs the event.
            sender.send(event).ok();
            std::future::ready(())
        });
        let client = options.connect(&settings.servers.0[..]).await;
        let client = client.map_err(|error| describe(&error))?;
        Ok(Self { client, events })
    }
}

impl reconnecting::Connection for Connection {
    fn is_open(&self) -> bool {
        self.client.connection_state() == State::Connected
    }
}

/// Why there is no connection, and what to do when a server refuses the credentials.
fn describe(error: &ConnectError) -> String {
    let cure = match error.kind() {
        ConnectErrorKind::AuthorizationViolation => {
            "; the server does not accept what `auth` shows it"
        }
        _ => "",
    };
    format!("{}{cure}", with_causes(error))
}
