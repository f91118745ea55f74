//! RabbitMQ for tests, and a reader of its queues. The broker has a process namespace of its own, so
//! that its helper processes end with it.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::{OnceLock, mpsc},
    thread,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;

use crate::{
    harness::{Identity, certificate, eventually},
    support::server::{Server, free_port},
};

/// The largest message that the broker accepts, in bytes.
pub(crate) const LONGEST_MESSAGE: usize = 20_000;

/// A user that may only connect. `guest`, with the password `guest`, may do everything.
pub(crate) const RESTRICTED: (&str, &str) = ("restricted", "restricted-password");

/// A running broker. Killed when dropped, and when the test's process ends in any other way.
pub(crate) struct RabbitMq {
    server: Server,
    ports: Ports,
    /// The CA certificate of the broker, PEM.
    pub(crate) authority: String,
    /// The client's certificate and key.
    pub(crate) client: Identity,
}

/// The ports of its other listeners.
#[derive(Clone, Copy)]
struct Ports {
    tls: u16,
    distribution: u16,
    names: u16,
}

impl RabbitMq {
    /// The broker of all tests that leave it intact, since its start is slow.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<RabbitMq> = OnceLock::new();
        SHARED.get_or_init(|| {
            let (up, is_up) = mpsc::channel();
            // The server ends with the thread that started it, so this thread does not end.
            thread::spawn(move || {
                up.send(Self::start()).unwrap();
                loop {
                    thread::park();
                }
            });
            is_up.recv().unwrap()
        })
    }

    pub(crate) fn start() -> Self {
        let ports = Ports {
            tls: free_port(),
            distribution: free_port(),
            names: free_port(),
        };
        let mut authority = String::new();
        let client = Identity::new();
        let server = Server::start(|dir, port| {
            let (certificate, key) = certificate();
            fs::write(dir.join("certificate.pem"), &certificate).unwrap();
            fs::write(dir.join("key.pem"), key).unwrap();
            authority = certificate;
            fs::write(dir.join("client-ca.pem"), &client.authority).unwrap();
            fs::write(dir.join("definitions.json"), definitions().to_string()).unwrap();
            fs::write(dir.join("rabbitmq.conf"), config(dir, port, ports)).unwrap();
            fs::write(dir.join("enabled_plugins"), "[].").unwrap();
            command(dir, port, ports)
        });
        Self {
            server,
            ports,
            authority,
            client,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The address with TLS.
    pub(crate) fn tls_address(&self) -> SocketAddr {
        SocketAddr::new(self.address().ip(), self.ports.tls)
    }

    /// Kills the broker, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.server.kill();
        // The other processes of its namespace end a moment later.
        let Ports {
            distribution,
            names,
            ..
        } = self.ports;
        for port in [self.address().port(), distribution, names] {
            while TcpStream::connect(("127.0.0.1", port)).is_ok() {
                thread::sleep(Duration::from_millis(10)); // Between two looks at the port.
            }
        }
    }

    /// Restarts the killed broker on the same data.
    pub(crate) fn restart(&mut self) {
        let ports = self.ports;
        self.server.restart(|dir, port| command(dir, port, ports));
    }

    /// Runs `rabbitmqctl`.
    pub(crate) fn control(&self, arguments: &[&str]) {
        let mut control = Command::new("/usr/lib/rabbitmq/bin/rabbitmqctl");
        environment(
            &mut control,
            self.server.dir(),
            self.address().port(),
            self.ports,
        );
        let output = control.args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

fn command(dir: &Path, port: u16, ports: Ports) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--map-root-user", "--pid", "--fork", "--kill-child"])
        .arg("/usr/lib/rabbitmq/bin/rabbitmq-server");
    environment(&mut command, dir, port, ports);
    command
}

fn environment(command: &mut Command, dir: &Path, port: u16, ports: Ports) {
    command
        .env("HOME", dir)
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("ERL_EPMD_PORT", ports.names.to_string())
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .env("RABBITMQ_CONFIG_FILE", dir.join("rabbitmq.conf"))
        .env("RABBITMQ_DIST_PORT", ports.distribution.to_string())
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", dir.join("enabled_plugins"))
        .env("RABBITMQ_LOG_BASE", dir.join("logs"))
        .env("RABBITMQ_MNESIA_BASE", dir.join("mnesia"))
        .env("RABBITMQ_NODENAME", format!("test{port}@localhost"))
        .env("RABBITMQ_PID_FILE", dir.join("pid"))
        // One thread that sleeps when it has nothing to do.
        .env(
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
        )
        // The broker is started without a shell, so that its process is a child of this one.
        .env("RUNNING_UNDER_SYSTEMD", "1");
}

fn config(dir: &Path, port: u16, ports: Ports) -> String {
    let (dir, tls) = (dir.display(), ports.tls);
    format!(
        "listeners.tcp.1 = 127.0.0.1:{port}
listeners.ssl.1 = 127.0.0.1:{tls}
ssl_options.cacertfile = {dir}/client-ca.pem
ssl_options.certfile = {dir}/certificate.pem
ssl_options.keyfile = {dir}/key.pem
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
load_definitions = {dir}/definitions.json
max_message_size = {LONGEST_MESSAGE}
disk_free_limit.absolute = 1MB
log.console = true
log.file = false
"
    )
}

fn definitions() -> Value {
    let user = |name: &str, password: &str| {
        let salt = b"salt";
        let digest = Sha256::digest([salt, password.as_bytes()].concat());
        let hash = BASE64_STANDARD.encode([salt, digest.as_slice()].concat());
        json!({
            "name": name, "password_hash": hash, "tags": [],
            "hashing_algorithm": "rabbit_password_hashing_sha256",
        })
    };
    let permission = |user: &str, what: &str| json!({ "user": user, "vhost": "/", "configure": what, "write": what, "read": what });
    json!({
        "users": [user("guest", "guest"), user(RESTRICTED.0, RESTRICTED.1)],
        "vhosts": [{ "name": "/" }],
        "permissions": [permission("guest", ".*"), permission(RESTRICTED.0, "^$")],
    })
}

/// A client that declares queues and reads from them.
pub(crate) struct Reader {
    runtime: Runtime,
    channel: Channel,
    _connection: Connection,
}

/// A message that a reader got.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Vec<u8>,
}

impl Reader {
    pub(crate) fn new(broker: &RabbitMq) -> Self {
        let runtime = Runtime::new().unwrap();
        let uri = format!("amqp://{}", broker.address());
        let (connection, channel) = runtime.block_on(async {
            let connection = Connection::connect(&uri, ConnectionProperties::default());
            let connection = connection.await.unwrap();
            let channel = connection.create_channel().await.unwrap();
            (connection, channel)
        });
        Self {
            runtime,
            channel,
            _connection: connection,
        }
    }

    /// Declares a durable queue with at most `limit` messages.
    pub(crate) fn queue(&self, name: &str, limit: Option<i32>) {
        let durable = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let mut arguments = FieldTable::default();
        if let Some(limit) = limit {
            let overflow = AMQPValue::LongString("reject-publish".into());
            arguments.insert("x-max-length".into(), AMQPValue::LongInt(limit));
            arguments.insert("x-overflow".into(), overflow);
        }
        let declared = self.channel.queue_declare(name.into(), durable, arguments);
        self.runtime.block_on(declared).unwrap();
    }

    /// Declares a topic exchange, and binds the queue of the same name to it.
    pub(crate) fn exchange(&self, name: &str, pattern: &str) {
        let (nothing, kind) = (FieldTable::default(), ExchangeKind::Topic);
        let options = ExchangeDeclareOptions::default();
        let declared = (self.channel).exchange_declare(name.into(), kind, options, nothing.clone());
        self.runtime.block_on(declared).unwrap();
        let options = QueueBindOptions::default();
        let (queue, exchange) = (name.into(), name.into());
        let bound = (self.channel).queue_bind(queue, exchange, pattern.into(), options, nothing);
        self.runtime.block_on(bound).unwrap();
    }

    /// Gets a message from a queue.
    pub(crate) fn take(&self, queue: &str) -> Option<Message> {
        let at_once = BasicGetOptions { no_ack: true };
        let got = self.channel.basic_get(queue.into(), at_once);
        let delivery = self.runtime.block_on(got).unwrap()?.delivery;
        Some(Message {
            exchange: delivery.exchange.to_string(),
            routing_key: delivery.routing_key.to_string(),
            properties: delivery.properties,
            body: delivery.data,
        })
    }

    /// Waits for a message.
    pub(crate) fn wait(&self, queue: &str) -> Message {
        let mut message = None;
        eventually("a message is in the queue", || {
            message = self.take(queue);
            message.is_some()
        });
        message.unwrap()
    }
}

impl Message {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn content_type(&self) -> String {
        self.properties.content_type().clone().unwrap().to_string()
    }

    /// The headers, all of them strings.
    pub(crate) fn headers(&self) -> Vec<(String, String)> {
        let headers = self.properties.headers().clone().unwrap();
        let text = |value: &AMQPValue| match value {
            AMQPValue::LongString(text) => text.to_string(),
            other => panic!("not a text: {other:?}"),
        };
        let pairs = headers.inner().iter();
        pairs
            .map(|(name, value)| (name.to_string(), text(value)))
            .collect()
    }
}
