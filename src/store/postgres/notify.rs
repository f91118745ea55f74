//! Waking the other replicas, and being woken by them. A hint in both directions: everybody looks
//! for work now and then without one.

use std::{future::poll_fn, pin::pin, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{sleep, timeout},
};
use tokio_postgres::{AsyncMessage, Client, Connection, Socket};

use super::{
    Parts,
    fault::Fault,
    pool::{Session, on},
};

/// The channel has our name; what is said on it is who says it.
const ANNOUNCE: &str = "SELECT pg_notify('hookswitch', $1)";

/// The least time between two notices. Each one takes a lock that all of the database share when
/// it is committed, so there is none for each event, and none within the transactions of events.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a host may take until it is connected to.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long until a lost connection is made again.
const MADE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Tells the others that there is work, now and then, until the store is closed.
pub(super) async fn tell(parts: Arc<Parts>) {
    loop {
        tokio::select! {
            () = parts.stop.cancelled() => return,
            () = parts.news.notified() => {}
        }
        if let Err(fault) = notify(&parts).await {
            tracing::debug!("other replicas were not woken: {fault}");
        }
        sleep(PAUSE).await;
    }
}

async fn notify(parts: &Parts) -> Result<(), Fault> {
    if !parts.is_sound() {
        return Ok(());
    }
    on!(parts.pool, session => announce(&mut session, &parts.replica))
}

/// Tells every replica but `teller` that there is work.
pub(super) async fn announce(session: &mut Session, teller: &str) -> Result<(), Fault> {
    let statement = session.prepare(ANNOUNCE).await?;
    session.client.execute(&statement, &[&teller]).await?;
    Ok(())
}

/// Listens for the others until the store is closed.
pub(super) async fn listen(parts: Arc<Parts>) {
    while !parts.stop.is_cancelled() {
        tokio::select! {
            () = parts.stop.cancelled() => return,
            ended = listen_to_any(&parts) => {
                if let Err(fault) = ended {
                    tracing::debug!("other replicas are not listened to: {fault}");
                }
            }
        }
        tokio::select! {
            () = parts.stop.cancelled() => return,
            () = sleep(MADE_AGAIN_AFTER) => {}
        }
    }
}

/// Listens on one connection until it ends: to the host that takes writes.
async fn listen_to_any(parts: &Parts) -> Result<(), Fault> {
    let mut why = Ok(());
    for host in &parts.connector.hosts {
        let connecting = host.connect(parts.connector.tls.clone());
        match timeout(PATIENCE, connecting).await {
            Ok(Ok((client, connection))) => return listen_on(parts, &client, connection).await,
            Ok(Err(error)) => why = Err(Fault::connecting(&error)),
            Err(_) => why = Err(Fault::Away("a host does not answer".to_owned())),
        }
    }
    why
}

async fn listen_on(
    parts: &Parts,
    client: &Client,
    mut connection: Connection<Socket, impl AsyncRead + AsyncWrite + Send + Unpin>,
) -> Result<(), Fault> {
    let mut begin = pin!(client.batch_execute("LISTEN hookswitch"));
    let mut begun = false;
    loop {
        let message = tokio::select! {
            done = begin.as_mut(), if !begun => {
                done?;
                begun = true;
                // What came before cannot have been heard.
                parts.stir_here();
                continue;
            }
            message = poll_fn(|cx| connection.poll_message(cx)) => message,
        };
        match message {
            Some(Ok(AsyncMessage::Notification(notice))) if notice.payload() != parts.replica => {
                parts.stir_here();
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.into()),
            None => return Ok(()),
        }
    }
}
