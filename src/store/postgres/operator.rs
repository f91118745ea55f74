//! The operator's side: a connection of its own, which works beside running services.

use std::sync::LazyLock;

use jiff::Timestamp;
use tokio::runtime::Runtime;
use tokio_postgres::{Row, types::ToSql};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::{
    Settings,
    error::PgError,
    escape, listing, ordering, parked,
    pool::{Durability, PgConnection},
    replay, rows, schema, statistics,
};
use crate::{
    event::{EventId, HandlerName},
    store::{
        DeliveryDetails, DeliveryState, EventDetails, EventFilter, EventList, HandlerSummary,
        Operator, ParkedFilter, ParkedList, ParkedReason, ReplaySelection, ReplaySummary,
        StoreError, shorten,
    },
};

/// The number of deliveries that one statement skips.
const SLICE: usize = 500;

/// An open delivery with a blocker is shown as queued, whether or not a claim has queued it.
static DELIVERIES: LazyLock<String> = LazyLock::new(|| {
    let blocker = ordering::blocker("d");
    format!(
        "SELECT h.name, CASE WHEN b.id IS NULL THEN 0 ELSE 1 END::smallint, d.attempts, d.due_at,
            d.replay, NULL AS why, h.id, b.id, NULL AS ended_at
        FROM handlers h JOIN deliveries d ON d.handler = h.id AND d.position = $2
        LEFT JOIN LATERAL (SELECT e.id FROM deliveries b
            JOIN events e ON e.day = b.day AND e.position = b.position
            WHERE h.ordered AND b.handler = h.id AND b.position = {blocker}) b ON true
        UNION ALL
        SELECT h.name, x.state, x.attempts, NULL, x.replay, x.why, h.id, NULL, x.ended_at
        FROM ended x JOIN handlers h ON h.id = x.handler WHERE x.day = $1 AND x.position = $2
        ORDER BY 1"
    )
});

const FAILURES: &str = "SELECT started_at, took_ms, why FROM attempts
    WHERE day = $1 AND position = $2 AND handler = $3 ORDER BY started_at";

/// Skips the deliveries that are still parked.
const SKIP: &str = "WITH
    skipped AS (UPDATE ended x SET state = 4, ended_at = $3, why = $4
        FROM unnest($1::uuid[], $2::text[]) AS t (id, name)
        JOIN events e ON e.id = t.id JOIN handlers h ON h.name = t.name
        WHERE x.day = e.day AND x.position = e.position AND x.handler = h.id AND x.state = 2
        RETURNING x.handler),
    counted AS (INSERT INTO tally (handler, open, parked)
        SELECT handler, 0, -count(*) FROM skipped GROUP BY handler)
    SELECT count(*) FROM skipped";

/// An operator's connection to a store.
pub(super) struct OperatorConnection {
    pub(super) runtime: Runtime,
    pub(super) connection: PgConnection,
}

impl OperatorConnection {
    /// Connects to the store.
    ///
    /// # Errors
    ///
    /// When the store does not exist or cannot be read.
    pub(super) fn open(settings: &Settings) -> Result<Self, StoreError> {
        let looking = async |connection: &mut PgConnection| schema::check(connection).await;
        Self::connect(settings, looking)
    }

    /// Connects to the database, and has `prepare` check or create the store in it.
    pub(super) fn connect(
        settings: &Settings,
        prepare: impl AsyncFnOnce(&mut PgConnection) -> Result<(), PgError>,
    ) -> Result<Self, StoreError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(StoreError::io("starting a runtime"))?;
        let connector = settings.connector(TaskTracker::new())?;
        let opening = async {
            let mut connection = connector.connect(Durability::Full).await?;
            prepare(&mut connection).await?;
            Ok(connection)
        };
        let address = &settings.url;
        match runtime.block_on(opening) {
            Ok(connection) => Ok(Self {
                runtime,
                connection,
            }),
            Err(PgError::NoTables) => Err(StoreError::Absent(address.to_string())),
            Err(error) => Err(error.into_store_error(&format!("opening the store at {address}"))),
        }
    }
}

impl Operator for OperatorConnection {
    fn events(&self, filter: &EventFilter) -> Result<EventList, StoreError> {
        let listing = listing::list(&self.connection, filter);
        let listed = self.runtime.block_on(listing);
        listed.map_err(|error| error.into_store_error("reading events"))
    }

    fn event(&self, id: EventId) -> Result<Option<EventDetails>, StoreError> {
        let found = self.runtime.block_on(find_event(&self.connection, id));
        found.map_err(|error| error.into_store_error("reading an event"))
    }

    fn parked(&self, filter: &ParkedFilter) -> Result<ParkedList, StoreError> {
        let listing = parked::list(&self.connection, filter);
        let listed = self.runtime.block_on(listing);
        listed.map_err(|error| error.into_store_error("reading parked deliveries"))
    }

    fn parked_reasons(&self) -> Result<Vec<ParkedReason>, StoreError> {
        let counted = self.runtime.block_on(parked::reasons(&self.connection));
        counted.map_err(|error| error.into_store_error("counting parked deliveries"))
    }

    fn handlers(&self) -> Result<Vec<HandlerSummary>, StoreError> {
        let counting = statistics::handlers(&self.connection);
        let counted = self.runtime.block_on(counting);
        counted.map_err(|error| error.into_store_error("counting deliveries"))
    }

    fn plan(&self, selection: &ReplaySelection) -> Result<ReplaySummary, StoreError> {
        self.runtime
            .block_on(replay::plan(&self.connection, selection))
    }

    fn replay(
        &mut self,
        selection: &ReplaySelection,
        reason: &str,
        now: Timestamp,
        progress: &mut dyn FnMut(u64),
    ) -> Result<ReplaySummary, StoreError> {
        let making = replay::make(&mut self.connection, selection, reason, now, progress);
        self.runtime.block_on(making)
    }

    fn skip(
        &mut self,
        parked: &[(EventId, HandlerName)],
        reason: &str,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let skipping = skip(&self.connection, parked, reason, now);
        let skipped = self.runtime.block_on(skipping);
        skipped.map_err(|error| error.into_store_error("skipping parked deliveries"))
    }
}

async fn find_event(
    connection: &PgConnection,
    id: EventId,
) -> Result<Option<EventDetails>, PgError> {
    let client = &connection.client;
    let found = rows::find(client, &[id]).await?.pop();
    let Some((notification, day, position)) = found else {
        return Ok(None);
    };
    let mut deliveries = Vec::new();
    for row in client
        .query(DELIVERIES.as_str(), &[&day, &position])
        .await?
    {
        let handler: i32 = row.try_get(6)?;
        let failed = client.query(FAILURES, &[&day, &position, &handler]).await?;
        deliveries.push(delivery(&row, &failed)?);
    }
    Ok(Some(EventDetails {
        notification,
        deliveries,
    }))
}

fn delivery(row: &Row, failed: &[Row]) -> Result<DeliveryDetails, PgError> {
    let failures = failed.iter().map(|row| rows::attempt(row, 0));
    Ok(DeliveryDetails {
        handler: HandlerName::new(escape::get(row, 0)?),
        state: DeliveryState::numbered(row.try_get(1)?),
        waits_for: row.try_get::<_, Option<Uuid>>(7)?.map(rows::event_id),
        attempts: row.try_get::<_, i32>(2)?.cast_unsigned(),
        due_at: row.try_get(3)?,
        ended_at: row.try_get(8)?,
        replay: escape::find(row, 4)?,
        why: escape::find(row, 5)?,
        failures: failures.collect::<Result<_, _>>()?,
    })
}

async fn skip(
    connection: &PgConnection,
    parked: &[(EventId, HandlerName)],
    reason: &str,
    now: Timestamp,
) -> Result<u64, PgError> {
    let reason = escape::to_sql(shorten(reason));
    let mut skipped = 0;
    for parked in parked.chunks(SLICE) {
        let ids: Vec<_> = parked.iter().map(|(id, _)| rows::uuid(*id)).collect();
        let handlers = parked.iter().map(|(_, handler)| handler.as_str());
        let handlers: Vec<_> = handlers.map(escape::to_sql).collect();
        let parameters: &[&(dyn ToSql + Sync)] = &[&ids, &handlers, &now, &reason];
        let row = connection.client.query_one(SKIP, parameters).await?;
        skipped += row.try_get::<_, i64>(0)?.cast_unsigned();
    }
    Ok(skipped)
}
