//! Partitions: one for each day, created in advance, dropped when retention allows.
//!
//! There is no default partition: it would fill up unnoticed, and then prevent the right one from
//! being created.

use std::collections::BTreeSet;

use jiff::civil::Date;
use tokio_postgres::{GenericClient, Row};

use super::{
    error::PgError,
    pool::{PgConnection, Pool, on},
};

/// The partitioned tables.
const TABLES: [&str; 4] = ["events", "ended", "attempts", "terms"];

/// Serializes the creation of partitions by several replicas.
const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtext('hookswitch.partitions'))";

/// The existing partitions: their tables and days.
const LIST: &str = "SELECT parent.relname::text, to_date(right(part.relname, 8), 'YYYYMMDD')
    FROM pg_inherits JOIN pg_class part ON part.oid = inhrelid
    JOIN pg_class parent ON parent.oid = inhparent
    WHERE inhparent = ANY (SELECT to_regclass(t) FROM unnest($1::text[]) AS t)";

/// The days with partitions of any table, oldest first. A program of an older version creates and
/// drops those of the tables that it knows.
pub(super) async fn days(connection: &PgConnection) -> Result<BTreeSet<Date>, PgError> {
    let there = there(&connection.client).await?;
    Ok(there.into_iter().map(|(day, _)| day).collect())
}

/// The days, of `days`, on which a table has no partition.
pub(super) async fn missing(
    connection: &PgConnection,
    days: impl Iterator<Item = Date>,
) -> Result<Vec<Date>, PgError> {
    let there = there(&connection.client).await?;
    let is_missing = |day: &Date| {
        let mut tables = TABLES.iter();
        tables.any(|table| !there.contains(&(*day, (*table).to_owned())))
    };
    Ok(days.filter(is_missing).collect())
}

async fn there(client: &impl GenericClient) -> Result<BTreeSet<(Date, String)>, PgError> {
    let rows = client.query(LIST, &[&TABLES.as_slice()]).await?;
    let partition = |row: &Row| Ok((row.try_get(1)?, row.try_get(0)?));
    rows.iter().map(partition).collect()
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
    let there = there(&change).await?;
    for day in days {
        for table in TABLES {
            if there.contains(&(*day, table.to_owned())) {
                continue;
            }
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
pub(super) fn names(day: Date) -> [String; 4] {
    TABLES.map(|table| name(table, day))
}
