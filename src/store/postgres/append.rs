//! Group commit: waiting appends are stored in one transaction, and then acknowledged.
//!
//! **Invariant:** an append is acknowledged only after the server has reported the end of the
//! statement that adds its event. That statement is a transaction of its own.
//!
//! **Invariant:** no lock outlives one round trip: all locks are taken and released by one
//! statement.

use std::{
    collections::HashSet,
    pin::pin,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Mutex, mpsc},
    time::timeout,
};
use tokio_postgres::{GenericClient, Statement};
use uuid::Uuid;

use super::{
    Shared,
    batch::InsertBatch,
    error::PgError,
    partition,
    pool::{PgConnection, within},
    registry::ActiveHandler,
    rows, topics,
};
use crate::{
    event::{Notification, OrderingKeys},
    provider::Verified,
    store::{
        APPEND_BUDGET, AppendError,
        pending::{Ack, AckSender, BATCH, BATCH_BYTES, PendingBytes, WAITING},
        terms::TermHasher,
    },
};

/// The most concurrent append transactions of a replica.
pub(super) const COMMITTERS: usize = 2;

/// The most topics in one append transaction, besides those of its last event.
const BATCH_TOPICS: usize = 16 << 10;

/// How long to wait for a transaction after its appends have timed out.
const ABANDONED_AFTER: Duration = Duration::from_secs(10);

/// Adds an [`InsertBatch`], unless the database knows some of its dedupe keys: then it adds
/// nothing. Returns the known keys and the positions of the added events. All replicas add rows in
/// the same order, so that transactions with the same keys or topics wait for each other and cannot
/// deadlock.
///
/// A known key has been committed, as durably as its own sender asked.
pub(super) const ADD: &str = "WITH
    known AS MATERIALIZED (SELECT dedupe FROM seen WHERE dedupe = ANY($1::uuid[])),
    drawn AS MATERIALIZED (SELECT ARRAY(SELECT nextval('positions')
            FROM generate_series(1, cardinality($20::uuid[]))) AS positions
        WHERE NOT EXISTS (SELECT FROM known)),
    to_seen AS (INSERT INTO seen (dedupe, position)
        SELECT dedupe, positions[place] FROM drawn, unnest($1::uuid[], $2::integer[])
            AS t (dedupe, place)),
    to_topics AS (INSERT INTO topics AS t (topic, latest)
        SELECT topic, latest FROM drawn, unnest($3::uuid[], $4::timestamptz[]) AS n (topic, latest)
        ON CONFLICT (topic) DO UPDATE SET latest = excluded.latest
            WHERE excluded.latest > t.latest),
    to_unlearnt AS (INSERT INTO unlearnt (position, day)
        SELECT positions[place], day FROM drawn, unnest($5::integer[], $6::date[])
            AS n (place, day)),
    to_terms AS (INSERT INTO terms (day, term, position)
        SELECT day, term, positions[place] FROM drawn, unnest($34::date[], $35::bigint[],
            $36::integer[]) AS t (day, term, place)),
    to_unindexed AS (INSERT INTO unindexed (day, first, last)
        SELECT day, positions[place], positions[place] FROM drawn, unnest($37::date[],
            $38::integer[]) AS n (day, place)),
    to_deliveries AS (INSERT INTO deliveries
            (handler, position, day, scope, key, keys, state, behind, due_at)
        SELECT handler, positions[place], day, scope, key, keys::bigint[],
            CASE WHEN behind IS NULL THEN 0 ELSE 1 END, positions[behind], due_at
        FROM drawn, unnest($7::integer[], $8::integer[], $9::date[], $10::bigint[], $11::bigint[],
            $12::text[], $13::integer[], $14::timestamptz[])
            AS t (handler, place, day, scope, key, keys, behind, due_at)
        RETURNING handler, scope, keys, position),
    to_further AS (INSERT INTO further_keys (handler, scope, key, position)
        SELECT d.handler, d.scope, k.key, d.position
        FROM to_deliveries d CROSS JOIN unnest(d.keys[2:]) AS k (key) WHERE d.keys IS NOT NULL),
    to_tally AS (INSERT INTO tally (handler, open, parked)
        SELECT handler, open, 0 FROM drawn, unnest($15::integer[], $16::bigint[])
            AS t (handler, open)),
    to_events AS (INSERT INTO events (day, position, id, name, endpoint, key, subject, occurred_at,
            received_at, topics, topic_keys, dedupe, body, further_subjects)
        SELECT day, positions[place], id, name, endpoint, key, subject, occurred_at, received_at,
            topics, ($17::uuid[])[first_topic:last_topic],
            ($18::uuid[])[first_dedupe:last_dedupe], body, further_subjects
        FROM drawn, unnest($19::date[], $20::uuid[], $21::text[], $22::text[], $23::text[],
            $24::text[], $25::timestamptz[], $26::timestamptz[], $27::text[], $28::integer[],
            $29::integer[], $30::integer[], $31::integer[], $32::bytea[], $33::text[])
            WITH ORDINALITY AS e (day, id, name, endpoint, key, subject, occurred_at, received_at,
                topics, first_topic, last_topic, first_dedupe, last_dedupe, body,
                further_subjects, place))
    SELECT ARRAY(SELECT dedupe FROM known), (SELECT positions FROM drawn)";

/// The result of adding notifications.
pub(super) struct Added<'a> {
    pub(super) batch: InsertBatch<'a>,
    /// The positions of the batch's events.
    pub(super) positions: Vec<i64>,
}

/// Adds the new ones of `notifications`, each with its ordering keys, and their deliveries to those
/// of `active` that get them. `statement` is [`ADD`]. If some notifications are duplicates, the
/// statement is repeated without them.
pub(super) async fn add<'a, I: Iterator<Item = (&'a Notification, Option<&'a OrderingKeys>)>>(
    client: &impl GenericClient,
    statement: &Statement,
    notifications: impl Fn() -> I,
    active: &[ActiveHandler],
    hasher: &TermHasher,
) -> Result<Added<'a>, PgError> {
    let mut known = HashSet::new();
    loop {
        let batch = InsertBatch::new(notifications(), known.clone(), active, hasher);
        let row = client.query_one(statement, &batch.columns()).await?;
        let found: Vec<Uuid> = row.try_get(0)?;
        if found.is_empty() {
            let positions = row.try_get(1)?;
            return Ok(Added { batch, positions });
        }
        known.extend(found.into_iter().map(rows::read_dedupe_key));
    }
}

/// The queue of waiting appends, shared by the committers.
pub(super) struct AppendQueue {
    /// Taken when the store closes. The committers end when the channel is closed and empty.
    sender: std::sync::Mutex<Option<mpsc::Sender<PendingAppend>>>,
    receiver: Mutex<mpsc::Receiver<PendingAppend>>,
    pending: PendingBytes,
}

/// One append that has not been acknowledged.
pub(super) struct PendingAppend {
    notification: Notification,
    keys: Option<OrderingKeys>,
    reply: AckSender,
}

impl AppendQueue {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        Self {
            sender: std::sync::Mutex::new(Some(sender)),
            receiver: Mutex::new(receiver),
            pending: PendingBytes::default(),
        }
    }

    /// Queues `event`. The acknowledgement follows when the event is stored, or could not be.
    pub(super) fn put(&self, event: Verified) -> Result<Ack, AppendError> {
        let (notification, keys) = event.into_parts();
        let sender = self.sender().clone().ok_or(AppendError::Closed)?;
        let (reply, answer) = AckSender::new();
        self.pending.add(notification.body.len(), || {
            let append = PendingAppend {
                notification,
                keys,
                reply,
            };
            sender.try_send(append).map_err(|_| AppendError::Overloaded)
        })?;
        Ok(answer)
    }

    /// Refuses new appends. The queued ones are still stored.
    pub(super) fn close(&self) {
        self.sender().take();
    }

    fn sender(&self) -> std::sync::MutexGuard<'_, Option<mpsc::Sender<PendingAppend>>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next batch: as many waiting appends as fit into one transaction; empty when the queue is
    /// closed.
    async fn next(&self) -> Vec<PendingAppend> {
        // One committer waits for the first append, and the others wait for the lock.
        let mut receiver = self.receiver.lock().await;
        let mut batch = Vec::new();
        let (mut bytes, mut topics) = (0, 0);
        let Some(first) = receiver.recv().await else {
            return batch;
        };
        let mut next = Some(first);
        while let Some(waiting) = next {
            bytes += waiting.notification.body.len();
            topics += waiting.notification.topics.len().min(topics::MOST_TOPICS);
            batch.push(waiting);
            let is_full = batch.len() >= BATCH || bytes >= BATCH_BYTES || topics >= BATCH_TOPICS;
            next = if is_full {
                None
            } else {
                receiver.try_recv().ok()
            };
        }
        drop(receiver);
        self.pending.remove(bytes);
        batch
    }
}

/// Stores batches until the queue is closed and empty.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        let waiting = shared.append_queue.next().await;
        if waiting.is_empty() {
            return;
        }
        let bodies = waiting.iter().map(|one| one.notification.body.len());
        let metrics = shared.metrics();
        metrics.journal_batch.observe(waiting.len() as f64);
        let bytes: usize = bodies.sum();
        metrics.journal_batch_bytes.observe(bytes as f64);
        store(&shared, waiting).await;
    }
}

/// Stores and acknowledges all of `waiting`. An event that cannot be stored does not affect the
/// others.
async fn store(shared: &Shared, waiting: Vec<PendingAppend>) {
    let mut batches = vec![waiting];
    while let Some(mut waiting) = batches.pop() {
        match commit(shared, &waiting).await {
            Ok(duplicates) => {
                shared.metrics().duplicates.inc_by(duplicates);
                answer(shared, waiting, &Ok(()));
            }
            Err(PgError::InvalidData(_)) if waiting.len() > 1 => {
                let half = waiting.split_off(waiting.len() / 2);
                batches.extend([half, waiting]);
            }
            Err(PgError::InvalidData(why)) => {
                tracing::error!("an event cannot be stored: {why}");
                answer(shared, waiting, &Err(AppendError::Unavailable(why)));
            }
            Err(error) => {
                shared.mark_unavailable(&error);
                let why = error.to_string();
                answer(shared, waiting, &Err(AppendError::Unavailable(why)));
            }
        }
    }
}

fn answer(shared: &Shared, waiting: Vec<PendingAppend>, result: &Result<(), AppendError>) {
    for waiting in waiting {
        waiting.reply.send(result.clone(), shared.metrics());
    }
}

/// Stores all of `waiting` in one transaction, and returns the number of duplicates.
async fn commit(shared: &Shared, waiting: &[PendingAppend]) -> Result<u64, PgError> {
    let began = Instant::now();
    loop {
        let mut connection = shared.appends.take().await?;
        let committed = with_budget(shared, try_commit(shared, &mut connection, waiting)).await;
        match connection.give_back(committed) {
            // Another replica has stored a duplicate meanwhile, or its transaction was in the way.
            Err(PgError::UniqueViolation(_) | PgError::Conflict(_))
                if began.elapsed() < APPEND_BUDGET => {}
            Err(PgError::NoPartition(_)) if began.elapsed() < APPEND_BUDGET => {
                let arrivals = waiting.iter().map(|one| one.notification.received_at);
                partition::make(&shared.pool, arrivals.map(rows::day)).await?;
            }
            committed => return committed,
        }
    }
}

/// Waits for a transaction longer than its appends do: the transaction may be waiting for a
/// standby, and a cancelled one would be committed here alone. The store accepts no appends
/// meanwhile.
async fn with_budget<T>(
    shared: &Shared,
    work: impl Future<Output = Result<T, PgError>>,
) -> Result<T, PgError> {
    let mut work = pin!(work);
    if let Ok(done) = timeout(APPEND_BUDGET, work.as_mut()).await {
        return done;
    }
    shared.mark_unavailable(&PgError::Unavailable(format!(
        "the database takes longer than {APPEND_BUDGET:?} to store events"
    )));
    within(tokio::time::Instant::now() + ABANDONED_AFTER, work).await
}

async fn try_commit(
    shared: &Shared,
    connection: &mut PgConnection,
    waiting: &[PendingAppend],
) -> Result<u64, PgError> {
    let notifications = || {
        waiting
            .iter()
            .map(|one| (&one.notification, one.keys.as_ref()))
    };
    let statement = connection.prepare(ADD).await?;
    // A batch without new events is committed too: the events that it duplicates may have been
    // committed here, and not on a standby yet.
    let active = shared.registry.active();
    let client = &connection.client;
    let hasher = shared.hasher(client).await?;
    let Added { batch, .. } = add(client, &statement, notifications, &active, hasher).await?;
    if !batch.deliveries.place.is_empty() {
        shared.wake_all();
    }
    Ok(batch.duplicates)
}
