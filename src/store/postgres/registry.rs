//! Which handlers there are, and which of them this replica has.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use tokio_postgres::Transaction;

use super::{error::PgError, escape, pool::PgConnection};
use crate::{event::HandlerName, store::Subscription};

/// A handler's row.
pub(super) type HandlerId = i32;

/// What was ready and then queued is all ready again for handlers that come back, or that leave
/// order behind: nobody may be left to say whose turn it is.
const REVIVE: &str = "UPDATE deliveries d SET state = 0, behind = NULL
    FROM handlers h, unnest($1::text[], $2::boolean[]) AS n (name, ordered)
    WHERE h.name = n.name AND (NOT h.configured OR h.ordered AND NOT n.ordered)
        AND d.handler = h.id AND d.state = 1";

const REGISTER: &str = "INSERT INTO handlers (name, ordered)
    SELECT name, ordered FROM unnest($1::text[], $2::boolean[]) AS n (name, ordered)
    ORDER BY name
    ON CONFLICT (name) DO UPDATE SET ordered = excluded.ordered, configured = true,
        named_at = clock_timestamp()
    RETURNING name, id";

/// Says that handlers are still named.
const NAME: &str = "UPDATE handlers SET named_at = clock_timestamp() WHERE id = ANY($1)
    RETURNING configured";

/// This replica's handlers.
#[derive(Default)]
pub(super) struct HandlerRegistry {
    active: ArcSwap<Vec<ActiveHandler>>,
    /// What was asked for last, which may not be in the database yet.
    asked: Mutex<Option<Vec<Subscription>>>,
}

/// A handler that has its row.
#[derive(Clone, Debug)]
pub(super) struct ActiveHandler {
    pub(super) id: HandlerId,
    pub(super) asked: Subscription,
}

impl HandlerRegistry {
    /// Those that have their rows.
    pub(super) fn active(&self) -> Arc<Vec<ActiveHandler>> {
        self.active.load_full()
    }

    /// The handler called `name`, if it has its row.
    pub(super) fn find(&self, name: &HandlerName) -> Option<ActiveHandler> {
        let active = self.active.load();
        let mut active = active.iter();
        active.find(|active| active.asked.handler == *name).cloned()
    }

    /// What was asked for and has no rows yet. Whoever holds this decides alone whether events are
    /// let in.
    pub(super) fn asked(&self) -> MutexGuard<'_, Option<Vec<Subscription>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives each handler its row, and puts `subscriptions` in force.
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
            .filter_map(|asked| {
                let id = *ids.get(&*escape::to_sql(asked.handler.as_str()))?;
                Some(ActiveHandler { id, asked })
            })
            .collect();
        self.active.store(Arc::new(active));
        Ok(())
    }

    /// Their rows.
    pub(super) fn ids(&self) -> Vec<HandlerId> {
        self.active.load().iter().map(|active| active.id).collect()
    }

    /// Says to everybody that this replica still names its handlers.
    pub(super) async fn name(&self, connection: &mut PgConnection) -> Result<(), PgError> {
        let statement = connection.prepare(NAME).await?;
        let named = connection.client.query(&statement, &[&self.ids()]).await?;
        for row in named {
            // We have not been heard of for so long that the others gave us up.
            if !row.try_get::<_, bool>(0)? {
                let active = self.active();
                let subscriptions = active.iter().map(|active| active.asked.clone());
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
        .map(|asked| escape::to_sql(asked.handler.as_str()))
        .collect();
    let ordered: Vec<_> = subscriptions.iter().map(|asked| asked.ordered).collect();
    change.execute(REVIVE, &[&names, &ordered]).await?;
    let rows = change.query(REGISTER, &[&names, &ordered]).await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect()
}
