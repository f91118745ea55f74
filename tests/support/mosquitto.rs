//! Mosquitto for tests, and a subscriber.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use rumqttc::{AsyncClient, Event, Incoming, MqttOptions, Publish, QoS, SessionMode};
use tokio::runtime::Runtime;

use crate::{
    harness::{Identity, certificate, eventually},
    support::server::{Server, free_port},
};

/// The largest packet that the broker accepts, in bytes.
pub(crate) const LONGEST_PACKET: usize = 20_000;

/// A broker on which every client may publish below `telephony`.
pub(crate) struct Mosquitto {
    pub(crate) server: Server,
    pub(crate) tls_port: u16,
    /// The address of its listener with mutual TLS.
    pub(crate) mutual_port: u16,
    /// The CA certificate of the broker, PEM.
    pub(crate) authority: String,
    /// The client's certificate and key.
    pub(crate) client: Identity,
}

impl Mosquitto {
    pub(crate) fn start() -> Self {
        Self::with("", "topic readwrite telephony/#\n")
    }

    /// A broker with `more` configuration lines and with `rights` for every client.
    pub(crate) fn with(more: &str, rights: &str) -> Self {
        let (tls_port, mutual_port) = (free_port(), free_port());
        let client = Identity::new();
        let mut authority = String::new();
        let server = Server::start(|dir, port| {
            let (certificate, key) = certificate();
            fs::write(dir.join("certificate.pem"), &certificate).unwrap();
            fs::write(dir.join("key.pem"), key).unwrap();
            authority = certificate;
            fs::write(dir.join("client-ca.pem"), &client.authority).unwrap();
            fs::write(dir.join("rights"), rights).unwrap();
            let passwords = dir.join("passwords");
            fs::write(&passwords, "").unwrap();
            let written = Command::new("mosquitto_passwd")
                .arg("-b")
                .arg(&passwords)
                .args(["hookswitch", "its-password"])
                .status();
            assert!(written.unwrap().success());
            let folder = dir.display();
            let config = format!(
                "user root
per_listener_settings false
allow_anonymous true
password_file {folder}/passwords
acl_file {folder}/rights
max_packet_size {LONGEST_PACKET}
persistence true
persistence_location {folder}/
log_dest stdout
{more}
listener {port} 127.0.0.1
listener {tls_port} 127.0.0.1
certfile {folder}/certificate.pem
keyfile {folder}/key.pem
listener {mutual_port} 127.0.0.1
certfile {folder}/certificate.pem
keyfile {folder}/key.pem
cafile {folder}/client-ca.pem
require_certificate true
"
            );
            fs::write(dir.join("mosquitto.conf"), config).unwrap();
            command(dir)
        });
        Self {
            server,
            tls_port,
            mutual_port,
            authority,
            client,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    pub(crate) fn restart(&mut self) {
        self.server.restart(|dir, _| command(dir));
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new("mosquitto");
    command.arg("-c").arg(dir.join("mosquitto.conf"));
    command
}

/// A subscriber with a persistent session.
pub(crate) struct Subscriber {
    seen: Arc<Mutex<Vec<Publish>>>,
    _runtime: Runtime,
}

impl Subscriber {
    pub(crate) fn new(broker: &Mosquitto, filter: &str) -> Self {
        let runtime = Runtime::new().unwrap();
        let address = broker.address();
        let target = (address.ip().to_string(), address.port());
        let mut options = MqttOptions::new("subscriber", target);
        options.set_session_mode(SessionMode::Persistent);
        options.set_max_packet_size(Some(1 << 20));
        let (client, mut events) = AsyncClient::builder(options).capacity(8).build();
        let seen = Arc::<Mutex<Vec<Publish>>>::default();
        let collected = seen.clone();
        let (filter, subscribed) = (filter.to_owned(), mpsc::channel());
        runtime.spawn(async move {
            client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Incoming::Publish(message))) => {
                        collected.lock().unwrap().push(message);
                    }
                    Ok(Event::Incoming(Incoming::SubAck(_))) => subscribed.0.send(()).unwrap(),
                    Ok(_) => {}
                    // The broker is down; pause before the next attempt.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        });
        subscribed.1.recv().unwrap();
        Self {
            seen,
            _runtime: runtime,
        }
    }

    pub(crate) fn messages(&self) -> Vec<Publish> {
        self.seen.lock().unwrap().clone()
    }

    /// Waits for the first message on `topic`.
    pub(crate) fn wait(&self, topic: &str) -> Publish {
        let mut message = None;
        eventually("a message has come", || {
            let found = self
                .messages()
                .into_iter()
                .find(|message| message.topic == topic);
            message = found;
            message.is_some()
        });
        message.unwrap()
    }
}
