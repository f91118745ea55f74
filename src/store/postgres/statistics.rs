//! Counts of deliveries.

use jiff::Timestamp;

use super::{error::PgError, escape, pool::PgConnection};
use crate::{store::statistics::HandlerStatistics, telemetry::Metrics};

/// The counts of each handler, and when its oldest open delivery was received.
pub(super) const STATISTICS: &str = "SELECT h.name, coalesce(t.open, 0)::bigint,
        coalesce(t.parked, 0)::bigint, o.received_at
    FROM handlers h
    LEFT JOIN (SELECT handler, sum(open) AS open, sum(parked) AS parked FROM tally
        GROUP BY handler) t ON t.handler = h.id
    LEFT JOIN LATERAL (SELECT e.received_at
        FROM (SELECT day, position FROM deliveries d WHERE d.handler = h.id
            ORDER BY d.handler, d.position LIMIT 1) d
        JOIN events e ON e.day = d.day AND e.position = d.position) o ON true";

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
        let statistics = HandlerStatistics {
            handler: escape::get(&row, 0)?,
            open: row.try_get(1)?,
            parked: row.try_get(2)?,
            oldest: row.try_get(3)?,
        };
        statistics.export(metrics, now);
    }
    Ok(())
}
