//! One connection for all attempts, made by the attempt that first needs it.
//!
//! The client would go on connecting in the background for ever, whoever still wants it, and keep
//! why it fails to itself. So it is given one try, and once that has failed, the next attempt makes
//! a new connection and has what comes of it for its reason; how often is then for the delivery's
//! own pauses to say.

use std::sync::Arc;

use async_nats::{Client, ConnectError, ConnectErrorKind, Event, connection::State};
use tokio::sync::{Mutex, broadcast};

use super::Settings;
use crate::handler::with_causes;

/// How many of a server's complaints may wait to be looked at by one attempt; each attempt in
/// flight causes at most a few.
const COMPLAINTS: usize = 64;

/// Makes connections, one at a time.
#[derive(Debug)]
pub(super) struct Links {
    settings: Settings,
    newest: Mutex<Option<Arc<Link>>>,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) client: Client,
    /// What happens on it besides answers.
    pub(super) events: broadcast::Sender<Event>,
}

impl Links {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            newest: Mutex::default(),
        }
    }

    pub(super) const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The connection, made anew if it is broken.
    ///
    /// # Errors
    ///
    /// Why none can be made, in words for an operator.
    pub(super) async fn get(&self) -> Result<Arc<Link>, String> {
        let mut newest = self.newest.lock().await;
        match &*newest {
            Some(link) if link.client.connection_state() == State::Connected => Ok(link.clone()),
            _ => {
                let link = Link::open(&self.settings).await;
                let link = Arc::new(link.map_err(|error| describe(&error))?);
                *newest = Some(link.clone());
                Ok(link)
            }
        }
    }
}

impl Link {
    async fn open(settings: &Settings) -> Result<Self, ConnectError> {
        let (events, _) = broadcast::channel(COMPLAINTS);
        let heard = events.clone();
        let options = settings.options().event_callback(move |event| {
            // An `Err` says that no attempt is in flight that could want to know.
            heard.send(event).ok();
            std::future::ready(())
        });
        let client = options.connect(&settings.servers.0[..]).await?;
        Ok(Self { client, events })
    }
}

/// What went wrong, down to its first cause, and what to do where a server will not know us.
fn describe(error: &ConnectError) -> String {
    let cure = match error.kind() {
        ConnectErrorKind::AuthorizationViolation => {
            "; the server does not accept what `auth` shows it"
        }
        _ => "",
    };
    format!("cannot connect: {}{cure}", with_causes(error))
}
