//! Looks after the way to the database: whether it can be written to, that our handlers are known
//! there, that our leases do not run out.

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

/// The longest time between two looks while all is well.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The pauses between two attempts while it is not.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// How long the first look may take.
const FIRST_LOOK: Duration = Duration::from_secs(10);

/// How long a trial of a transaction may wait for a standby.
const TRIAL: Duration = Duration::from_secs(60);

/// Writes something that changes nothing, to see that it can be done.
const TRY: &str = "INSERT INTO tally (handler, open, parked) VALUES (0, 0, 0)";

/// The first look. A database that is away will come; one that is wrong will not mend itself.
pub(super) async fn begin(shared: &Shared) -> Result<(), StoreError> {
    match within(Instant::now() + FIRST_LOOK, recover(shared)).await {
        Ok(()) => {
            accept_events(shared);
        }
        Err(error @ (PgError::Fatal(_) | PgError::TooNew(_))) => {
            return Err(
                error.into_store_error(&format!("opening the store at {}", shared.settings.url))
            );
        }
        Err(error) => shared.lose(&error),
    }
    Ok(())
}

/// Looks until the store is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    let follower = shared.health.followers();
    let follower = follower.critical("health-monitor", "looking after the database");
    let mut pause = FIRST_PAUSE;
    loop {
        let rest = if shared.is_sound() {
            LOOK_EVERY.min(shared.leases.period())
        } else {
            pause
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.health_check.notified(), if shared.is_sound() => {}
            () = sleep(rest) => {}
        }
        // While it is away, that is said elsewhere.
        if shared.is_sound() {
            follower.started();
        }
        let looked = tokio::select! {
            () = shared.stop.cancelled() => return,
            looked = look(&shared) => looked,
        };
        match looked {
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
                shared.lose(&error);
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

/// Lets events in, unless it has just been asked for handlers that have no rows yet: an event must
/// find who gets it.
fn accept_events(shared: &Shared) -> bool {
    let asked = shared.registry.asked();
    if asked.is_none() {
        shared.health.set(Health::Sound);
    }
    asked.is_none()
}

async fn look(shared: &Shared) -> Result<(), PgError> {
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
    shared.registry.name(connection).await
}

/// Makes the tables where there are none, our handlers known, and sure that a transaction can be
/// made to last.
async fn recover(shared: &Shared) -> Result<(), PgError> {
    let mut taken = shared.appends.take().await?;
    let work = async {
        exclusive_lock::check(&taken).await?;
        schema::migrate(&mut taken).await?;
        exclusive_lock::check_whole(&taken).await?;
        let asked = shared.registry.asked().take();
        if let Some(asked) = asked {
            let enrolled = shared.registry.register(&mut taken, asked.clone()).await;
            if enrolled.is_err() {
                shared.registry.asked().get_or_insert(asked);
            }
            enrolled?;
        }
        taken.client.batch_execute(TRY).await?;
        Ok(())
    };
    let done = within(Instant::now() + TRIAL, work).await;
    taken.give_back(done)
}

/// Puts `subscriptions` in force: at once, or, where the database is away, before it is back for
/// events.
pub(super) async fn subscribe(
    shared: &Shared,
    subscriptions: Vec<Subscription>,
) -> Result<(), StoreError> {
    {
        let mut asked = shared.registry.asked();
        if !shared.is_sound() {
            *asked = Some(subscriptions);
            return Ok(());
        }
    }
    let registry = &shared.registry;
    match on!(shared.pool, connection => registry.register(&mut connection, subscriptions.clone()))
    {
        Ok(()) => {}
        Err(error @ PgError::Unavailable(_)) => {
            *shared.registry.asked() = Some(subscriptions);
            shared.lose(&error);
        }
        Err(error) => return Err(error.into_store_error("subscribing")),
    }
    shared.maintenance.notify_one();
    shared.wake_all();
    Ok(())
}
