//! Counts of deliveries.

use jiff::Timestamp;
use tokio_postgres::Row;

use super::{error::PgError, escape, pool::PgConnection};
use crate::{event::HandlerName, store::HandlerSummary, telemetry::Metrics};

/// The counts of each handler, and when its oldest open delivery was received.
pub(super) const STATISTICS: &str = "SELECT h.name, coalesce(t.open, 0)::bigint,
        coalesce(t.parked, 0)::bigint, o.received_at, h.configured
    FROM handlers h
    LEFT JOIN (SELECT handler, sum(open) AS open, sum(parked) AS parked FROM tally
        GROUP BY handler) t ON t.handler = h.id
    LEFT JOIN LATERAL (SELECT e.received_at
        FROM (SELECT day, position FROM deliveries d WHERE d.handler = h.id
            ORDER BY d.handler, d.position LIMIT 1) d
        JOIN events e ON e.day = d.day AND e.position = d.position) o ON true
    ORDER BY h.name";

/// Adds up the changes of counts, so that few rows are left.
pub(super) const ADD_UP: &str =
    "WITH changes AS (DELETE FROM tally RETURNING handler, open, parked)
    INSERT INTO tally (handler, open, parked)
    SELECT handler, sum(open), sum(parked) FROM changes WHERE handler <> 0 GROUP BY handler";

/// Sets the gauges.
pub(super) async fn measure(
    connection: &mut PgConnection,
    metrics: &Metrics,
    now: Timestamp,
) -> Result<(), PgError> {
    let statement = connection.prepare(STATISTICS).await?;
    for row in connection.client.query(&statement, &[]).await? {
        summary(&row)?.export(metrics, now);
    }
    Ok(())
}

/// All handlers with the counts of their deliveries, by name.
pub(super) async fn handlers(connection: &PgConnection) -> Result<Vec<HandlerSummary>, PgError> {
    let rows = connection.client.query(STATISTICS, &[]).await?;
    rows.iter().map(summary).collect()
}

fn summary(row: &Row) -> Result<HandlerSummary, PgError> {
    let count = |column| Ok::<_, PgError>(row.try_get::<_, i64>(column)?.max(0).cast_unsigned());
    Ok(HandlerSummary {
        handler: HandlerName::new(escape::get(row, 0)?),
        configured: row.try_get(4)?,
        open: count(1)?,
        parked: count(2)?,
        oldest_open: row.try_get(3)?,
    })
}
