//! Creates and migrates the tables. The first replica to come does it.
//!
//! A migration is a numbered SQL file and one line of [`MIGRATIONS`], which names the least version
//! that a program must know to work on the migrated tables. An additive migration leaves that
//! version unchanged, so that replicas of two versions work side by side during an upgrade.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::{GenericClient, Transaction};

use super::{
    error::PgError,
    pool::{PgConnection, SCHEMA},
};

/// A step from one version of the tables to the next.
struct Migration {
    sql: &'static str,
    /// The least version that a program must know to work on the tables after this step.
    needs: i32,
}

/// All migrations. The first one creates version 1.
const MIGRATIONS: &[Migration] = &[
    Migration {
        sql: include_str!("001.sql"),
        needs: 1,
    },
    // A program of version 1 does not wait for the end of a transfer.
    Migration {
        sql: include_str!("002.sql"),
        needs: 1,
    },
    // A program of version 2 does not know ordering keys, and would deliver in another order.
    Migration {
        sql: include_str!("003.sql"),
        needs: 3,
    },
    // A program of version 3 does not wake queued deliveries of an ordering group.
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
    Migration {
        sql: include_str!("007.sql"),
        needs: 4,
    },
    Migration {
        sql: include_str!("008.sql"),
        needs: 4,
    },
];

/// The version of the tables that this program knows.
pub(super) const VERSION: i32 = MIGRATIONS.len() as i32;

/// Serializes migrations until the end of the transaction.
const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtext('hookswitch.migrations'))";

/// The state before version 1.
const BEGINNING: &str = "CREATE TABLE schema_version (
    id integer PRIMARY KEY CHECK (id = 1),
    version integer NOT NULL,
    needs integer NOT NULL
);
INSERT INTO schema_version VALUES (1, 0, 0)";

/// Migrates the tables, and creates them if they do not exist.
pub(super) async fn migrate(connection: &mut PgConnection) -> Result<(), PgError> {
    migrate_to(connection, VERSION).await
}

/// How long a migration waits for a table that other replicas use. Their statements wait behind it, and
/// an append has a second. A shorter time than PostgreSQL's `deadlock_timeout` also keeps a deadlock
/// from lasting that long.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '150ms'";

/// The pause before a migration begins again.
const PAUSE: Duration = Duration::from_millis(100);

/// Migrates the tables to version `wanted`.
pub(super) async fn migrate_to(connection: &mut PgConnection, wanted: i32) -> Result<(), PgError> {
    let began = Instant::now();
    loop {
        match try_migrate(connection, wanted).await {
            Err(error) if error.is_retryable(began) => sleep(PAUSE).await,
            migrated => return migrated,
        }
    }
}

async fn try_migrate(connection: &mut PgConnection, wanted: i32) -> Result<(), PgError> {
    let change = connection.client.transaction().await?;
    change.batch_execute(LOCK).await?;
    change.batch_execute(LOCK_TIMEOUT).await?;
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
        tracing::info!(version, "the tables of the store were migrated");
    }
    Ok(change.commit().await?)
}

async fn make_schema(change: &Transaction<'_>) -> Result<(), PgError> {
    // Creating objects needs privileges, which may be missing where the objects exist already.
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

/// Checks that this program can work on the tables, and changes nothing.
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
    // Services migrate older tables. Commands do not.
    match read(&connection.client).await? {
        (0, _) => Err(PgError::NoTables),
        (version, needs) if needs > VERSION => Err(PgError::TooNew(version)),
        _ => Ok(()),
    }
}
