//! Stores the topics of events with very many topics.
//!
//! Adding 80,000 rows to `topics` takes most of the time of an append. So an append leaves the
//! topics of such an event in `events.topic_keys`, and marks the event in `unlearnt`. A claim
//! stores the topics before it hands out the event, so that `superseded` is right for the
//! deliveries that wait for the event. Maintenance stores the topics of events that nobody claims.
//!
//! Each slice of topics is a transaction, so that a concurrent append with one of the topics waits
//! for one slice at most. Two that store the topics of one event take turns.

use tokio_postgres::types::ToSql;

use super::{
    Shared,
    error::PgError,
    pool::{PgConnection, on},
};

/// The most topics of an event that its append stores.
pub(super) const MOST_TOPICS: usize = 1024;

/// The most topics in one transaction.
const SLICE: i32 = 4096;

/// Stores the next slice of an event's topics; returns no row when all are stored.
pub(super) const LEARN: &str = "WITH
    slice AS MATERIALIZED (UPDATE unlearnt u SET learnt = u.learnt + $2::integer FROM events e
        WHERE u.position = $1 AND e.day = u.day AND e.position = u.position
            AND u.learnt < cardinality(e.topic_keys)
        RETURNING e.topic_keys[u.learnt - $2 + 1 : u.learnt] AS topics, e.occurred_at),
    to_topics AS (INSERT INTO topics AS t (topic, latest)
        SELECT topic, occurred_at FROM slice CROSS JOIN unnest(topics) AS k (topic) ORDER BY topic
        ON CONFLICT (topic) DO UPDATE SET latest = excluded.latest
            WHERE excluded.latest > t.latest)
    SELECT FROM slice";

const LEARNT: &str = "DELETE FROM unlearnt WHERE position = $1";

const UNLEARNT: &str = "SELECT position FROM unlearnt ORDER BY position";

/// Stores the topics of the event at `position`, if that has not been done.
pub(super) async fn store_topics(shared: &Shared, position: i64) -> Result<(), PgError> {
    on!(shared.pool, connection => store_on(&mut connection, position))
}

/// Stores the topics of all marked events.
pub(super) async fn store_all_topics(connection: &mut PgConnection) -> Result<(), PgError> {
    for row in connection.client.query(UNLEARNT, &[]).await? {
        store_on(connection, row.try_get(0)?).await?;
    }
    Ok(())
}

async fn store_on(connection: &mut PgConnection, position: i64) -> Result<(), PgError> {
    let statement = connection.prepare(LEARN).await?;
    let slice: &[&(dyn ToSql + Sync)] = &[&position, &SLICE];
    while connection
        .client
        .query_opt(&statement, slice)
        .await?
        .is_some()
    {}
    connection.client.execute(LEARNT, &[&position]).await?;
    Ok(())
}
