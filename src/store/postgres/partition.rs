//! Partitions: one for each day, created in advance, dropped when retention allows.
//!
//! There is no default partition: it would fill up unnoticed, and then prevent the right one from
//! being created.

use std::collections::BTreeSet;

use jiff::civil::Date;

use super::{
    error::PgError,
    pool::{PgConnection, Pool, on},
};

/// The partitioned tables.
const TABLES: [&str; 3] = ["events", "ended", "attempts"];

/// Serializes the creation of partitions by several replicas.
const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtext('hookswitch.partitions'))";

/// The existing partitions.
const LIST: &str = "SELECT to_date(right(relname, 8), 'YYYYMMDD') FROM pg_inherits
    JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = 'events'::regclass ORDER BY 1";

/// The days with partitions, oldest first.
pub(super) async fn days(connection: &PgConnection) -> Result<Vec<Date>, PgError> {
    let rows = connection.client.query(LIST, &[]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Creates the missing partitions for `days`.
pub(super) async fn make(pool: &Pool, days: impl Iterator<Item = Date>) -> Result<(), PgError> {
    let days: BTreeSet<_> = days.collect();
    on!(pool, connection => make_on(&mut connection, &days))
}

pub(super) async fn make_on(
    connection: &mut PgConnection,
    days: &BTreeSet<Date>,
) -> Result<(), PgError> {
    let change = connection.client.transaction().await?;
    change.batch_execute(LOCK).await?;
    let there = change.query(LIST, &[]).await?;
    let there: BTreeSet<Date> = there
        .iter()
        .map(|row| row.try_get(0))
        .collect::<Result<_, _>>()?;
    for day in days.difference(&there) {
        for table in TABLES {
            // Attaching a table takes a lock that does not block appends. Creating a partition in
            // place takes one that does.
            let name = name(table, *day);
            change
                .batch_execute(&format!(
                    "CREATE TABLE {name} (LIKE {table} INCLUDING ALL);
                     ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES IN ('{day}')"
                ))
                .await?;
        }
    }
    Ok(change.commit().await?)
}

/// The name of the partition of `table` for `day`.
pub(super) fn name(table: &str, day: Date) -> String {
    format!("{table}_{}", day.strftime("%Y%m%d"))
}

/// The names of all partitions for `day`.
pub(super) fn names(day: Date) -> [String; 3] {
    TABLES.map(|table| name(table, day))
}
