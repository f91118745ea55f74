//! One connection to a broker.

use bytes::Bytes;
use rumqttc::{
    AsyncClient, ClientError, ConnectReturnCode, ConnectionError, Event, EventLoop, Incoming,
    MqttOptions, PubAckReason, Publish, PublishNoticeError, PublishOptions, PublishProperties,
    PublishResult, QoS, StateError,
};
use tokio_util::task::AbortOnDropHandle;

use crate::handler::broker::reconnecting;

/// A connection. A lost connection is not restored: its unacknowledged messages are in the store alone,
/// which hands them out again.
pub(super) struct Publisher {
    client: AsyncClient,
    /// The largest packet that the broker accepts, in bytes.
    largest: Option<u32>,
    /// The task that reads and writes until the connection is lost.
    task: AbortOnDropHandle<()>,
}

/// A message and its topic.
pub(super) struct Publication {
    pub(super) topic: String,
    pub(super) retain: bool,
    pub(super) properties: PublishProperties,
    pub(super) body: Bytes,
}

/// Why a message was not acknowledged.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the message is {length} bytes long; the broker takes {largest}")]
    TooLarge { length: usize, largest: u32 },
    #[error("the broker keeps no messages for later subscribers; set `retain` to false")]
    NotRetained,
    #[error("the topic is not one that can be published to")]
    NoTopic,
    #[error("the connection was lost before the broker confirmed the message")]
    Lost,
}

impl Publisher {
    /// Connects, for `concurrency` messages at once.
    ///
    /// # Errors
    ///
    /// When the connection fails. The error contains none of the broker's texts.
    pub(super) async fn open(options: MqttOptions, concurrency: usize) -> Result<Self, String> {
        let (client, mut events) = AsyncClient::builder(options).capacity(concurrency).build();
        let largest = loop {
            match events.poll().await {
                Ok(Event::Incoming(Incoming::ConnAck(accepted))) => {
                    break accepted.properties.and_then(|said| said.max_packet_size);
                }
                Ok(_) => {}
                Err(error) => return Err(describe(&error)),
            }
        };
        Ok(Self {
            client,
            largest,
            task: AbortOnDropHandle::new(tokio::spawn(speak(events))),
        })
    }

    /// Sends a message and waits for its acknowledgement. If this is dropped, the message may still be
    /// sent, before any later one.
    ///
    /// # Errors
    ///
    /// When the message cannot be sent, or the connection is lost first.
    pub(super) async fn publish(&self, message: Publication) -> Result<PubAckReason, Failure> {
        if let Some(largest) = self.largest {
            let length = message.length();
            if u32::try_from(length).map_or(true, |length| length > largest) {
                return Err(Failure::TooLarge { length, largest });
            }
        }
        let Publication {
            topic,
            retain,
            properties,
            body,
        } = message;
        let options = PublishOptions::at_least_once()
            .retain(retain)
            .properties(properties);
        let notice = self.client.publish_tracked(topic, body, options).await;
        match notice?.wait_async().await? {
            PublishResult::Qos1(confirmation) => Ok(confirmation.reason),
            PublishResult::Qos0Flushed
            | PublishResult::Qos2Completed(_)
            | PublishResult::Qos2PubRecRejected(_) => Err(Failure::Lost),
        }
    }
}

impl Publication {
    /// The size of its packet, in bytes.
    fn length(&self) -> usize {
        let packet = Publish {
            pkid: u16::MAX,
            ..Publish::new(
                self.topic.clone(),
                QoS::AtLeastOnce,
                self.body.clone(),
                Some(self.properties.clone()),
            )
        };
        packet.size()
    }
}

impl reconnecting::Connection for Publisher {
    fn is_open(&self) -> bool {
        !self.task.is_finished()
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::InvalidRequest(_) => Self::NoTopic,
            _ => Self::Lost,
        }
    }
}

impl From<PublishNoticeError> for Failure {
    fn from(error: PublishNoticeError) -> Self {
        match error {
            PublishNoticeError::RetainNotSupported => Self::NotRetained,
            _ => Self::Lost,
        }
    }
}

/// Reads and writes until the connection is lost. That drops `events` with the senders of pending
/// acknowledgements, which ends the attempts that wait for one.
async fn speak(mut events: EventLoop) {
    loop {
        if let Err(error) = events.poll().await {
            tracing::debug!("a connection to a broker was lost: {}", describe(&error));
            return;
        }
    }
}

/// Why there is no connection, without the broker's own text.
fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized,
        ) => "it does not accept the user name or the password".to_owned(),
        ConnectionError::ConnectionRefused(code) => format!("it refused the connection: {code:?}"),
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
            format!("it closed the connection: {reason_code:?}")
        }
        ConnectionError::NotConnAck(_) => "it does not speak MQTT 5".to_owned(),
        error => error.to_string(),
    }
}
