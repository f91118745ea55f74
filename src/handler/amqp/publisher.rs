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
/// **Invariant:** no two messages are in flight on one channel. So a confirmation, a returned message and
/// the end of a channel belong to its one message. The library matches returned messages to confirmations by
/// their order of arrival, which is wrong when the broker confirms several at once.
pub(super) struct Publisher {
    connection: Connection,
    /// Channels without a message in flight.
    idle: Mutex<Vec<Channel>>,
}

/// A message and its routing.
pub(super) struct Publication {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

impl Publisher {
    /// Connects. The broker lists the connection under `name`.
    ///
    /// # Errors
    ///
    /// When the connection fails. The error contains none of the broker's texts.
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

    /// Whether the broker accepts no messages, since it is short of memory or disk.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Sends a message and waits for its confirmation. If this is dropped, the channel is dropped with it,
    /// and a late confirmation is ignored.
    ///
    /// # Errors
    ///
    /// When the broker closes the channel or the connection, or is gone.
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

/// Why there is no connection or no channel. The broker's own text is left out: it may contain a routing key,
/// and so a phone number.
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
