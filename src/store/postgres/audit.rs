//! The audit log, and the paused handlers.

use tokio_postgres::Row;

use super::{error::PgError, escape, operator::OperatorConnection};
use crate::{
    event::HandlerName,
    store::{Action, AuditEntry, AuditLog, AuditRecord, Pause, StoreError},
};

const RECORD: &str = "INSERT INTO audit (at, who, action, target, reason)
    VALUES ($1, $2, $3, $4, $5)";

/// Stores the entry only if the pause is new.
const PAUSE: &str = "WITH
    paused AS (INSERT INTO pauses (handler, since, who, reason) VALUES ($6, $1, $2, $5)
        ON CONFLICT DO NOTHING RETURNING handler)
    INSERT INTO audit (at, who, action, target, reason)
        SELECT $1, $2, $3, $4, $5 FROM paused";

const RESUME: &str = "WITH
    resumed AS (DELETE FROM pauses WHERE handler = $6 RETURNING handler)
    INSERT INTO audit (at, who, action, target, reason)
        SELECT $1, $2, $3, $4, $5 FROM resumed";

const LIST: &str = "SELECT id, at, who, action, target, reason FROM audit
    WHERE id < $1 ORDER BY id DESC LIMIT $2";

const PAUSES: &str = "SELECT handler, since, who, reason FROM pauses ORDER BY handler";

impl OperatorConnection {
    /// Runs `statement` with the members of `entry`, and `handler` where there is one.
    fn store(
        &self,
        statement: &str,
        entry: &AuditEntry,
        handler: Option<&HandlerName>,
    ) -> Result<u64, StoreError> {
        let (who, action) = (escape::to_sql(&entry.who), entry.action.as_str());
        let (target, reason) = (escape::to_sql(&entry.target), escape::to_sql(&entry.reason));
        let handler = handler.map(|handler| escape::to_sql(handler.as_str()));
        let mut parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
            vec![&entry.at, &who, &action, &target, &reason];
        if let Some(handler) = &handler {
            parameters.push(handler);
        }
        let storing = self.connection.client.execute(statement, &parameters);
        let stored = self.runtime.block_on(storing);
        stored.map_err(|error| PgError::from(error).into_store_error("writing the audit log"))
    }
}

impl AuditLog for OperatorConnection {
    fn record(&mut self, entry: &AuditEntry) -> Result<(), StoreError> {
        self.store(RECORD, entry, None).map(drop)
    }

    fn audit(&self, before: Option<i64>, limit: usize) -> Result<Vec<AuditRecord>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let before = before.unwrap_or(i64::MAX);
        let listing = async {
            let rows = self
                .connection
                .client
                .query(LIST, &[&before, &limit])
                .await?;
            rows.iter().map(record).collect::<Result<_, PgError>>()
        };
        let listed = self.runtime.block_on(listing);
        listed.map_err(|error| error.into_store_error("reading the audit log"))
    }

    fn pauses(&self) -> Result<Vec<Pause>, StoreError> {
        let listing = async {
            let rows = self.connection.client.query(PAUSES, &[]).await?;
            rows.iter().map(pause).collect::<Result<_, PgError>>()
        };
        let listed = self.runtime.block_on(listing);
        listed.map_err(|error| error.into_store_error("reading the paused handlers"))
    }

    fn set_paused(
        &mut self,
        handler: &HandlerName,
        entry: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let statement = match entry.action {
            Action::Pause => PAUSE,
            _ => RESUME,
        };
        let stored = self.store(statement, entry, Some(handler))?;
        Ok(stored > 0)
    }
}

fn record(row: &Row) -> Result<AuditRecord, PgError> {
    Ok(AuditRecord {
        id: row.try_get(0)?,
        at: row.try_get(1)?,
        who: escape::get(row, 2)?,
        action: escape::get(row, 3)?,
        target: escape::get(row, 4)?,
        reason: escape::get(row, 5)?,
    })
}

fn pause(row: &Row) -> Result<Pause, PgError> {
    Ok(Pause {
        handler: HandlerName::new(escape::get(row, 0)?),
        since: row.try_get(1)?,
        who: escape::get(row, 2)?,
        reason: escape::get(row, 3)?,
    })
}
