//! Partitions: one for each day, made before it is needed, dropped when nothing in it is.
//!
//! There is none for what belongs nowhere: it would fill up unseen, and keep the right one from
//! being made.

use std::collections::BTreeSet;

use jiff::civil::Date;

use super::{
    error::PgError,
    pool::{PgConnection, Pool, on},
};

/// The tables that have them.
const TABLES: [&str; 3] = ["events", "ended", "attempts"];

/// Held while partitions are made, so that two replicas do not make the same ones.
const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtext('hookswitch.partitions'))";

/// The partitions that there are.
const LIST: &str = "SELECT to_date(right(relname, 8), 'YYYYMMDD') FROM pg_inherits
    JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = 'events'::regclass ORDER BY 1";

/// The days that have partitions, oldest first.
pub(super) async fn days(connection: &PgConnection) -> Result<Vec<Date>, PgError> {
    let rows = connection.client.query(LIST, &[]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Makes sure that there are partitions for `days`.
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
            // To attach a table takes a lock that appends can do with; to create a partition in
            // place takes one that they cannot.
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
