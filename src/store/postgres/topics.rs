//! Learning the topics of events that have very many.
//!
//! Adding 80,000 rows to `topics` takes most of what an append may take. So an append leaves the
//! topics of such an event in `events.topic_keys`, and notes in `unlearnt` that they are still to be
//! learnt. Whoever claims the event learns them before it is handed out: what waits for the event in
//! order, and was superseded by it, is told so. The upkeep learns what nobody claims.
//!
//! They are learnt in slices, each a transaction of its own, so that an append that reports one of
//! the topics again waits for no longer than a slice takes. Two that learn the same event take turns.

use tokio_postgres::types::ToSql;

use super::{
    Shared,
    error::PgError,
    pool::{PgConnection, on},
};

/// The most topics of an event that its append learns.
pub(super) const MOST_TOPICS: usize = 1024;

/// The most topics that are learnt in one transaction.
const SLICE: i32 = 4096;

/// Learns the next slice of an event's topics; no row once there is none.
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

/// Learns the topics of the event at `position`, if that is still to be done.
pub(super) async fn store_topics(shared: &Shared, position: i64) -> Result<(), PgError> {
    on!(shared.pool, connection => store_on(&mut connection, position))
}

/// Learns the topics of all events of which that is still to be done.
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
