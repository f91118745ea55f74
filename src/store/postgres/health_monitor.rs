//! Monitors the database: whether it accepts writes, whether it knows this replica's handlers, and
//! whether leases are renewed in time.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    Shared,
    error::PgError,
    exclusive_lock, leases,
    pool::{PgConnection, on, within},
    schema,
};
use crate::store::{Health, StoreError, Subscription};

/// The longest interval between checks while the database is available.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// The shortest and the longest interval between checks while it is not.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// The limit of the first check.
const FIRST_CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// The limit of a test transaction, which may wait for a standby.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);

/// A write that changes nothing, to test that transactions become durable.
const PROBE: &str = "INSERT INTO tally (handler, open, parked) VALUES (0, 0, 0)";

/// The first check. A database that cannot be reached may come back; a configuration error is
/// final.
pub(super) async fn first_check(shared: &Shared) -> Result<(), StoreError> {
    match within(Instant::now() + FIRST_CHECK_TIMEOUT, recover(shared)).await {
        Ok(()) => {
            accept_events(shared);
        }
        Err(error @ (PgError::Fatal(_) | PgError::TooNew(_))) => {
            return Err(
                error.into_store_error(&format!("opening the store at {}", shared.settings.url))
            );
        }
        Err(error) => shared.mark_unavailable(&error),
    }
    Ok(())
}

/// Checks until the store is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    let follower = shared.health.followers();
    let follower = follower.critical("health-monitor", "monitoring the database");
    let mut pause = FIRST_PAUSE;
    loop {
        let rest = if shared.is_sound() {
            CHECK_INTERVAL.min(shared.leases.period())
        } else {
            pause
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.health_check.notified(), if shared.is_sound() => {}
            () = sleep(rest) => {}
        }
        // While the database is unavailable, the store's health says so.
        if shared.is_sound() {
            follower.started();
        }
        let checked = tokio::select! {
            () = shared.stop.cancelled() => return,
            checked = check(&shared) => checked,
        };
        match checked {
            Ok(()) => {
                follower.progressed();
                if accept_events(&shared) {
                    pause = FIRST_PAUSE;
                }
            }
            Err(PgError::TooNew(version)) => shared.health.set(Health::Poisoned {
                why: PgError::TooNew(version).to_string(),
            }),
            Err(error) => {
                shared.mark_unavailable(&error);
                if shared.is_sound() {
                    follower.failed(&error);
                } else {
                    follower.progressed();
                }
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }
}

/// Accepts events, unless new handlers wait to be registered: the deliveries of an event must find
/// their handlers.
fn accept_events(shared: &Shared) -> bool {
    let requested = shared.registry.requested();
    if requested.is_none() {
        shared.health.set(Health::Sound);
    }
    requested.is_none()
}

async fn check(shared: &Shared) -> Result<(), PgError> {
    if !shared.is_sound() {
        recover(shared).await?;
    }
    on!(shared.claims, connection => shared.leases.renew(&mut connection))?;
    on!(shared.pool, connection => check_store(shared, &mut connection))
}

async fn check_store(shared: &Shared, connection: &mut PgConnection) -> Result<(), PgError> {
    schema::check(connection).await?;
    exclusive_lock::check(connection).await?;
    exclusive_lock::check_whole(connection).await?;
    connection
        .client
        .execute(leases::GIVE_UP, &[&shared.registry.ids()])
        .await?;
    shared.registry.heartbeat(connection).await
}

/// Migrates the tables, registers handlers, and tests that a transaction becomes durable.
async fn recover(shared: &Shared) -> Result<(), PgError> {
    let mut connection = shared.appends.take().await?;
    let work = async {
        exclusive_lock::check(&connection).await?;
        schema::migrate(&mut connection).await?;
        exclusive_lock::check_whole(&connection).await?;
        let requested = shared.registry.requested().take();
        if let Some(requested) = requested {
            let enrolled = shared
                .registry
                .register(&mut connection, requested.clone())
                .await;
            if enrolled.is_err() {
                shared.registry.requested().get_or_insert(requested);
            }
            enrolled?;
        }
        connection.client.batch_execute(PROBE).await?;
        Ok(())
    };
    let done = within(Instant::now() + PROBE_TIMEOUT, work).await;
    connection.give_back(done)
}

/// Registers `subscriptions`: at once, or, while the database is unavailable, before events are
/// accepted again.
pub(super) async fn subscribe(
    shared: &Shared,
    subscriptions: Vec<Subscription>,
) -> Result<(), StoreError> {
    {
        let mut requested = shared.registry.requested();
        if !shared.is_sound() {
            *requested = Some(subscriptions);
            return Ok(());
        }
    }
    let registry = &shared.registry;
    match on!(shared.pool, connection => registry.register(&mut connection, subscriptions.clone()))
    {
        Ok(()) => {}
        Err(error @ PgError::Unavailable(_)) => {
            *shared.registry.requested() = Some(subscriptions);
            shared.mark_unavailable(&error);
        }
        Err(error) => return Err(error.into_store_error("subscribing")),
    }
    shared.maintenance.notify_one();
    shared.wake_all();
    Ok(())
}
