//! The tables: made, and brought up to date, by whoever comes first.
//!
//! A migration is a numbered file of SQL, one line of [`MIGRATIONS`], and a promise: which version
//! of the tables a program must know at least to go on working beside it. Additive ones leave that
//! as it was, so that replicas of two versions run side by side during an upgrade.

use tokio_postgres::{GenericClient, Transaction};

use super::{
    error::PgError,
    pool::{PgConnection, SCHEMA},
};

/// One step from a version of the tables to the next.
struct Migration {
    sql: &'static str,
    /// The least version that a program must know to work on the tables after it.
    needs: i32,
}

/// All of them; the first one makes version 1.
const MIGRATIONS: &[Migration] = &[
    Migration {
        sql: include_str!("001.sql"),
        needs: 1,
    },
    // A program of version 1 does not wait for the end of a move.
    Migration {
        sql: include_str!("002.sql"),
        needs: 1,
    },
    // A program of version 2 knows of no ordering keys, and would deliver in another order.
    Migration {
        sql: include_str!("003.sql"),
        needs: 3,
    },
    // A program of version 3 does not wake what is queued in a line.
    Migration {
        sql: include_str!("004.sql"),
        needs: 4,
    },
    Migration {
        sql: include_str!("005.sql"),
        needs: 4,
    },
    Migration {
        sql: include_str!("006.sql"),
        needs: 4,
    },
];

/// The version of the tables that this program knows.
pub(super) const VERSION: i32 = MIGRATIONS.len() as i32;

/// Held while the tables are made, and until the transaction ends.
const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtext('hookswitch.migrations'))";

/// What stands before version 1.
const BEGINNING: &str = "CREATE TABLE schema_version (
    id integer PRIMARY KEY CHECK (id = 1),
    version integer NOT NULL,
    needs integer NOT NULL
);
INSERT INTO schema_version VALUES (1, 0, 0)";

/// Brings the tables up to date, making them where there are none.
pub(super) async fn migrate(connection: &mut PgConnection) -> Result<(), PgError> {
    migrate_to(connection, VERSION).await
}

/// Brings them to a version that this program knows.
pub(super) async fn migrate_to(connection: &mut PgConnection, wanted: i32) -> Result<(), PgError> {
    let change = connection.client.transaction().await?;
    change.batch_execute(LOCK).await?;
    make_schema(&change).await?;
    let (mut version, needs) = read(&change).await?;
    if needs > VERSION {
        return Err(PgError::TooNew(version));
    }
    for migration in MIGRATIONS
        .iter()
        .take(usize::try_from(wanted).unwrap_or(0))
        .skip(usize::try_from(version).unwrap_or(0))
    {
        change.batch_execute(migration.sql).await?;
        version += 1;
        change
            .execute(
                "UPDATE schema_version SET version = $1, needs = $2",
                &[&version, &migration.needs],
            )
            .await?;
        tracing::info!(version, "the tables of the store were brought up to date");
    }
    Ok(change.commit().await?)
}

async fn make_schema(change: &Transaction<'_>) -> Result<(), PgError> {
    // Asked first: to make what is there already needs rights that need not be granted.
    let there = change
        .query_one(
            "SELECT to_regnamespace($1) IS NOT NULL, to_regclass($1 || '.schema_version') IS NOT NULL",
            &[&SCHEMA],
        )
        .await?;
    if !there.try_get::<_, bool>(0)? {
        change
            .batch_execute(&format!("CREATE SCHEMA {SCHEMA}"))
            .await?;
    }
    if !there.try_get::<_, bool>(1)? {
        change.batch_execute(BEGINNING).await?;
    }
    Ok(())
}

async fn read(client: &impl GenericClient) -> Result<(i32, i32), PgError> {
    let row = client
        .query_one("SELECT version, needs FROM schema_version", &[])
        .await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Looks whether this program can work on the tables, without changing anything.
pub(super) async fn check(connection: &PgConnection) -> Result<(), PgError> {
    let there = connection
        .client
        .query_one(
            "SELECT to_regclass($1 || '.schema_version') IS NOT NULL",
            &[&SCHEMA],
        )
        .await?;
    if !there.try_get::<_, bool>(0)? {
        return Err(PgError::NoTables);
    }
    // An older one is brought up to date by the service, not by a command.
    match read(&connection.client).await? {
        (0, _) => Err(PgError::NoTables),
        (version, needs) if needs > VERSION => Err(PgError::TooNew(version)),
        _ => Ok(()),
    }
}
