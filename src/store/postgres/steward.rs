//! Looks after the way to the database: whether it can be written to, that our handlers are known
//! there, that our leases do not run out.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    Parts,
    fault::Fault,
    leases,
    pool::{Session, on, within},
    schema, sole,
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
pub(super) async fn begin(parts: &Parts) -> Result<(), StoreError> {
    match within(Instant::now() + FIRST_LOOK, recover(parts)).await {
        Ok(()) => {
            welcome(parts);
        }
        Err(fault @ (Fault::Hopeless(_) | Fault::TooNew(_))) => {
            return Err(fault.during(&format!("opening the store at {}", parts.settings.url)));
        }
        Err(fault) => parts.lose(&fault),
    }
    Ok(())
}

/// Looks until the store is closed.
pub(super) async fn run(parts: Arc<Parts>) {
    let follower = parts.condition.followers();
    let follower = follower.vital("steward", "looking after the database");
    let mut pause = FIRST_PAUSE;
    loop {
        let rest = if parts.is_sound() {
            LOOK_EVERY.min(parts.leases.period())
        } else {
            pause
        };
        tokio::select! {
            () = parts.stop.cancelled() => return,
            () = parts.alarm.notified(), if parts.is_sound() => {}
            () = sleep(rest) => {}
        }
        // While it is away, that is said elsewhere.
        if parts.is_sound() {
            follower.begins();
        }
        let looked = tokio::select! {
            () = parts.stop.cancelled() => return,
            looked = look(&parts) => looked,
        };
        match looked {
            Ok(()) => {
                follower.gets_on();
                if welcome(&parts) {
                    pause = FIRST_PAUSE;
                }
            }
            Err(Fault::TooNew(version)) => parts.condition.set(Health::Poisoned {
                why: Fault::TooNew(version).to_string(),
            }),
            Err(fault) => {
                parts.lose(&fault);
                if parts.is_sound() {
                    follower.fails(&fault);
                } else {
                    follower.gets_on();
                }
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }
}

/// Lets events in, unless it has just been asked for handlers that have no rows yet: an event must
/// find who gets it.
fn welcome(parts: &Parts) -> bool {
    let asked = parts.roster.asked();
    if asked.is_none() {
        parts.condition.set(Health::Sound);
    }
    asked.is_none()
}

async fn look(parts: &Parts) -> Result<(), Fault> {
    if !parts.is_sound() {
        recover(parts).await?;
    }
    on!(parts.claims, session => parts.leases.renew(&mut session))?;
    on!(parts.pool, session => look_around(parts, &mut session))
}

async fn look_around(parts: &Parts, session: &mut Session) -> Result<(), Fault> {
    schema::check(session).await?;
    sole::check(session).await?;
    sole::check_whole(session).await?;
    session
        .client
        .execute(leases::GIVE_UP, &[&parts.roster.ids()])
        .await?;
    parts.roster.name(session).await
}

/// Makes the tables where there are none, our handlers known, and sure that a transaction can be
/// made to last.
async fn recover(parts: &Parts) -> Result<(), Fault> {
    let mut taken = parts.appends.take().await?;
    let work = async {
        sole::check(&taken).await?;
        schema::migrate(&mut taken).await?;
        sole::check_whole(&taken).await?;
        let asked = parts.roster.asked().take();
        if let Some(asked) = asked {
            let enrolled = parts.roster.enrol(&mut taken, asked.clone()).await;
            if enrolled.is_err() {
                parts.roster.asked().get_or_insert(asked);
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
    parts: &Parts,
    subscriptions: Vec<Subscription>,
) -> Result<(), StoreError> {
    {
        let mut asked = parts.roster.asked();
        if !parts.is_sound() {
            *asked = Some(subscriptions);
            return Ok(());
        }
    }
    let roster = &parts.roster;
    match on!(parts.pool, session => roster.enrol(&mut session, subscriptions.clone())) {
        Ok(()) => {}
        Err(fault @ Fault::Away(_)) => {
            *parts.roster.asked() = Some(subscriptions);
            parts.lose(&fault);
        }
        Err(fault) => return Err(fault.during("subscribing")),
    }
    parts.chores.notify_one();
    parts.stir();
    Ok(())
}
