//! The handlers in the database, and those of this replica.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use tokio_postgres::Transaction;

use super::{error::PgError, escape, pool::PgConnection};
use crate::{event::HandlerName, store::Subscription};

/// The id of a handler's row.
pub(super) type HandlerId = i32;

/// Makes all queued deliveries ready of handlers that return, or that become unordered: no
/// settlement may be left to wake them.
const MAKE_READY: &str = "UPDATE deliveries d SET state = 0, behind = NULL
    FROM handlers h, unnest($1::text[], $2::boolean[]) AS n (name, ordered)
    WHERE h.name = n.name AND (NOT h.configured OR h.ordered AND NOT n.ordered)
        AND d.handler = h.id AND d.state = 1";

const REGISTER: &str = "INSERT INTO handlers (name, ordered)
    SELECT name, ordered FROM unnest($1::text[], $2::boolean[]) AS n (name, ordered)
    ORDER BY name
    ON CONFLICT (name) DO UPDATE SET ordered = excluded.ordered, configured = true,
        named_at = clock_timestamp()
    RETURNING name, id";

/// Records that this replica still has these handlers.
const HEARTBEAT: &str = "UPDATE handlers SET named_at = clock_timestamp() WHERE id = ANY($1)
    RETURNING configured";

/// The handlers of this replica.
#[derive(Default)]
pub(super) struct HandlerRegistry {
    active: ArcSwap<Vec<ActiveHandler>>,
    /// The subscriptions that are not in the database yet.
    requested: Mutex<Option<Vec<Subscription>>>,
}

/// A registered handler.
#[derive(Clone, Debug)]
pub(super) struct ActiveHandler {
    pub(super) id: HandlerId,
    pub(super) subscription: Subscription,
}

impl HandlerRegistry {
    /// The registered handlers.
    pub(super) fn active(&self) -> Arc<Vec<ActiveHandler>> {
        self.active.load_full()
    }

    /// The registered handler called `name`.
    pub(super) fn find(&self, name: &HandlerName) -> Option<ActiveHandler> {
        let active = self.active.load();
        let mut active = active.iter();
        active
            .find(|active| active.subscription.handler == *name)
            .cloned()
    }

    /// The subscriptions that wait to be registered. The holder of this lock decides whether the
    /// store accepts events.
    pub(super) fn requested(&self) -> MutexGuard<'_, Option<Vec<Subscription>>> {
        self.requested
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers all handlers, and puts `subscriptions` in force.
    pub(super) async fn register(
        &self,
        connection: &mut PgConnection,
        subscriptions: Vec<Subscription>,
    ) -> Result<(), PgError> {
        let change = connection.client.transaction().await?;
        let ids = register(&change, &subscriptions).await?;
        change.commit().await?;
        let active = subscriptions
            .into_iter()
            .filter_map(|subscription| {
                let id = *ids.get(&*escape::to_sql(subscription.handler.as_str()))?;
                Some(ActiveHandler { id, subscription })
            })
            .collect();
        self.active.store(Arc::new(active));
        Ok(())
    }

    /// The ids of the registered handlers.
    pub(super) fn ids(&self) -> Vec<HandlerId> {
        self.active.load().iter().map(|active| active.id).collect()
    }

    /// Records that this replica still has its handlers.
    pub(super) async fn heartbeat(&self, connection: &mut PgConnection) -> Result<(), PgError> {
        let statement = connection.prepare(HEARTBEAT).await?;
        let named = connection.client.query(&statement, &[&self.ids()]).await?;
        for row in named {
            // Another replica has marked the handlers abandoned, since this one was silent for long.
            if !row.try_get::<_, bool>(0)? {
                let active = self.active();
                let subscriptions = active.iter().map(|active| active.subscription.clone());
                return self.register(connection, subscriptions.collect()).await;
            }
        }
        Ok(())
    }
}

async fn register(
    change: &Transaction<'_>,
    subscriptions: &[Subscription],
) -> Result<HashMap<String, HandlerId>, PgError> {
    let names: Vec<_> = subscriptions
        .iter()
        .map(|one| escape::to_sql(one.handler.as_str()))
        .collect();
    let ordered: Vec<_> = subscriptions.iter().map(|one| one.ordered).collect();
    change.execute(MAKE_READY, &[&names, &ordered]).await?;
    let rows = change.query(REGISTER, &[&names, &ordered]).await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect()
}
