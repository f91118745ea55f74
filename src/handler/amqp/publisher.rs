//! One connection to a broker.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError},
    types::ShortString,
    uri::AMQPUri,
};

use super::runtime::runtime;
use crate::handler::broker::{connector::Connector, reconnecting};

/// A connection, and its channels.
///
/// **Invariant:** no two messages are under way on one channel. So what the broker confirms,
/// returns or closes a channel for is the one message that was sent on it: the library matches
/// returned messages to confirmations by the order of arrival alone, which is not theirs when the
/// broker confirms several at once.
pub(super) struct Publisher {
    connection: Connection,
    /// Channels with nothing under way.
    idle: Mutex<Vec<Channel>>,
}

/// A message and where it goes.
pub(super) struct Publication {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

impl Publisher {
    /// Connects, under a `name` that the broker lists the connection by.
    ///
    /// # Errors
    ///
    /// When that fails: why, in words that hold nothing of the broker's own.
    pub(super) async fn open(
        uri: AMQPUri,
        name: &str,
        connector: &Connector,
        connect_timeout: Duration,
    ) -> Result<Self, String> {
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let (runtime, thread) = runtime(connector, connect_timeout);
        let connection = Connection::connect_uri_with_runtime(uri, properties, runtime).await;
        let connection = connection.map_err(|error| describe(&error))?;
        thread.release();
        Ok(Self {
            connection,
            idle: Mutex::default(),
        })
    }

    /// Whether the broker takes nothing at present, for want of memory or disk.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Sends a message and waits for what the broker says of it. When this is dropped, so is the
    /// channel, and a late confirmation with it.
    ///
    /// # Errors
    ///
    /// When the broker closes the channel or the connection instead, or is gone.
    pub(super) async fn publish(&self, message: Publication) -> lapin::Result<Confirmation> {
        let Publication {
            exchange,
            routing_key,
            properties,
            body,
        } = message;
        let channel = self.channel().await?;
        let mandatory = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let sent = channel.basic_publish(exchange, routing_key, mandatory, &body, properties);
        let confirmation = sent.await?.await?;
        self.idle().push(channel);
        Ok(confirmation)
    }

    async fn channel(&self) -> lapin::Result<Channel> {
        loop {
            let Some(channel) = self.idle().pop() else {
                break;
            };
            if channel.status().connected() {
                return Ok(channel);
            }
        }
        let channel = self.connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        Ok(channel)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Channel>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl reconnecting::Connection for Publisher {
    fn is_open(&self) -> bool {
        self.connection.status().connected()
    }
}

/// Why a connection or a channel could not be had, or was lost. The broker's own text is left out:
/// it may hold a routing key, and so a phone number.
pub(super) fn describe(error: &lapin::Error) -> String {
    let ErrorKind::ProtocolError(error) = error.kind() else {
        return error.to_string();
    };
    match error.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => {
            "it does not accept the user name or the password".to_owned()
        }
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
            "it has no such virtual host, or does not let this user into it".to_owned()
        }
        kind => {
            let code = error.get_id();
            format!("it closed the connection with code {code}, {kind}")
        }
    }
}
