//! Notifies other replicas of work. A notification is a hint: replicas also poll.

use std::{future::poll_fn, pin::pin, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{sleep, timeout},
};
use tokio_postgres::{AsyncMessage, Client, Connection, Socket};

use super::{
    Shared,
    error::PgError,
    pool::{PgConnection, on},
};

/// The payload is the sender's name.
const ANNOUNCE: &str = "SELECT pg_notify('hookswitch', $1)";

/// The least time between two notifications. A notification takes a lock of the whole database at
/// its commit, so there is none for each event, and none within append transactions.
const PAUSE: Duration = Duration::from_millis(50);

/// The limit for connecting to a host.
const PATIENCE: Duration = Duration::from_secs(3);

/// The pause before a lost connection is made again.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// Notifies other replicas of work, until the store is closed.
pub(super) async fn tell(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.replica_wakeup.notified() => {}
        }
        if let Err(error) = notify(&shared).await {
            tracing::debug!("other replicas were not woken: {error}");
        }
        sleep(PAUSE).await;
    }
}

async fn notify(shared: &Shared) -> Result<(), PgError> {
    if !shared.is_sound() {
        return Ok(());
    }
    on!(shared.pool, connection => announce(&mut connection, &shared.replica))
}

/// Notifies every replica but `teller`.
pub(super) async fn announce(connection: &mut PgConnection, teller: &str) -> Result<(), PgError> {
    let statement = connection.prepare(ANNOUNCE).await?;
    connection.client.execute(&statement, &[&teller]).await?;
    Ok(())
}

/// Listens for notifications until the store is closed.
pub(super) async fn listen(shared: Arc<Shared>) {
    while !shared.stop.is_cancelled() {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            ended = listen_to_any(&shared) => {
                if let Err(error) = ended {
                    tracing::debug!("notifications of other replicas are not received: {error}");
                }
            }
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = sleep(RECONNECT_PAUSE) => {}
        }
    }
}

/// Listens on one connection, to the host that accepts writes, until the connection ends.
async fn listen_to_any(shared: &Shared) -> Result<(), PgError> {
    let mut why = Ok(());
    for host in &shared.connector.hosts {
        let connecting = host.connect(shared.connector.tls.clone());
        match timeout(PATIENCE, connecting).await {
            Ok(Ok((client, connection))) => return listen_on(shared, &client, connection).await,
            Ok(Err(error)) => why = Err(PgError::connecting(&error)),
            Err(_) => why = Err(PgError::Unavailable("a host does not answer".to_owned())),
        }
    }
    why
}

async fn listen_on(
    shared: &Shared,
    client: &Client,
    mut connection: Connection<Socket, impl AsyncRead + AsyncWrite + Send + Unpin>,
) -> Result<(), PgError> {
    let mut begin = pin!(client.batch_execute("LISTEN hookswitch"));
    let mut begun = false;
    loop {
        let message = tokio::select! {
            done = begin.as_mut(), if !begun => {
                done?;
                begun = true;
                // Notifications before this point were not received.
                shared.wake_local();
                continue;
            }
            message = poll_fn(|cx| connection.poll_message(cx)) => message,
        };
        match message {
            Some(Ok(AsyncMessage::Notification(notice))) if notice.payload() != shared.replica => {
                shared.wake_local();
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.into()),
            None => return Ok(()),
        }
    }
}
