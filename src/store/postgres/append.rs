//! Group commit: what is waiting goes out in one transaction; then, and only then, everyone who
//! waited is told.
//!
//! **Invariant:** nobody is told that an event is stored before its COMMIT has returned, with every
//! statement before it.
//!
//! **Invariant:** a transaction has its say in one round trip, so that no lock of it waits for us.

use std::{
    collections::HashSet,
    pin::pin,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::timeout,
};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    Parts,
    batch::{self, Batch},
    fault::Fault,
    partition,
    pool::{Session, within},
    roster::HandlerId,
    rows,
};
use crate::{
    event::{DedupeKey, Notification},
    store::{APPEND_BUDGET, AppendError},
};

/// Transactions of a replica that can be under way at once.
pub(super) const COMMITTERS: usize = 2;

/// The most events in one transaction.
const BATCH_EVENTS: usize = 1024;

/// The most bytes of bodies in one transaction, besides its last event.
const BATCH_BYTES: usize = 4 << 20;

/// The most events that wait: several transactions' worth.
const WAITING_EVENTS: usize = 4096;

/// The most bytes that wait, so that large bodies cannot take all memory.
const WAITING_BYTES: usize = 16 << 20;

/// How long a transaction is waited for when nobody waits for its events any more.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(10);

/// A line of the tally that changes nothing, so that each transaction has something to write.
const NOTHING: (HandlerId, i64) = (0, 0);

/// Draws a position for each of a number of events, and says which dedupe keys are known. What is
/// seen here has been committed, and waited for as its own sender asked.
pub(super) const LOOK: &str = "SELECT
    ARRAY(SELECT nextval('positions') FROM generate_series(1, $1::integer)),
    ARRAY(SELECT dedupe FROM seen WHERE dedupe = ANY($2::uuid[]))";

pub(super) const ADD_SEEN: &str = "INSERT INTO seen (dedupe, position)
    SELECT * FROM unnest($1::uuid[], $2::bigint[])";

pub(super) const ADD_EVENTS: &str = "INSERT INTO events (day, position, id, name, endpoint, key,
        lane, subject, occurred_at, received_at, topics, topic_keys, dedupe, body)
    SELECT day, position, id, name, endpoint, key, lane, subject, occurred_at, received_at, topics,
        topic_keys::uuid[], dedupe::uuid[], body
    FROM unnest($1::date[], $2::bigint[], $3::uuid[], $4::text[], $5::text[], $6::text[],
        $7::bigint[], $8::text[], $9::timestamptz[], $10::timestamptz[], $11::text[], $12::text[],
        $13::text[], $14::bytea[])
        AS e (day, position, id, name, endpoint, key, lane, subject, occurred_at, received_at,
            topics, topic_keys, dedupe, body)";

pub(super) const ADD_TOPICS: &str = "INSERT INTO topics AS t (topic, latest)
    SELECT * FROM unnest($1::uuid[], $2::timestamptz[])
    ON CONFLICT (topic) DO UPDATE SET latest = excluded.latest WHERE excluded.latest > t.latest";

pub(super) const ADD_DELIVERIES: &str = "INSERT INTO deliveries
        (handler, position, day, lane, state, due_at)
    SELECT * FROM unnest($1::integer[], $2::bigint[], $3::date[], $4::bigint[], $5::smallint[],
        $6::timestamptz[])";

pub(super) const ADD_TALLY: &str = "INSERT INTO tally (handler, open, parked)
    SELECT handler, open, 0 FROM unnest($1::integer[], $2::bigint[]) AS t (handler, open)";

/// The way to the committers.
pub(super) struct Inbox {
    /// Taken when the store is closed: the committers end when nobody can send any more.
    sender: std::sync::Mutex<Option<mpsc::Sender<Waiting>>>,
    receiver: Mutex<mpsc::Receiver<Waiting>>,
    waiting_bytes: AtomicUsize,
}

/// What an append comes to.
pub(super) type Answer = oneshot::Receiver<Result<(), AppendError>>;

/// One append that has not been answered.
pub(super) struct Waiting {
    notification: Notification,
    since: Instant,
    reply: oneshot::Sender<Result<(), AppendError>>,
}

impl Inbox {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_EVENTS);
        Self {
            sender: std::sync::Mutex::new(Some(sender)),
            receiver: Mutex::new(receiver),
            waiting_bytes: AtomicUsize::new(0),
        }
    }

    /// Has `notification` stored. The answer comes when it has been, or was not.
    pub(super) fn put(&self, notification: Notification) -> Result<Answer, AppendError> {
        let sender = self.sender().clone().ok_or(AppendError::Closed)?;
        let bytes = notification.body.len();
        let waiting = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let append = Waiting {
            notification,
            since: Instant::now(),
            reply,
        };
        // One event is taken however large it is, when nothing else waits.
        let sent = if waiting > 0 && waiting + bytes > WAITING_BYTES {
            Err(AppendError::Overloaded)
        } else {
            sender.try_send(append).map_err(|_| AppendError::Overloaded)
        };
        match sent {
            Ok(()) => Ok(answer),
            Err(error) => {
                self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// No more is taken; what waits is still handed out.
    pub(super) fn close(&self) {
        self.sender().take();
    }

    fn sender(&self) -> std::sync::MutexGuard<'_, Option<mpsc::Sender<Waiting>>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits, as much as goes into one transaction; nothing once the inbox is closed.
    async fn next(&self) -> Vec<Waiting> {
        // Whoever waits for the first event holds the lock: the others wait for their turn.
        let mut receiver = self.receiver.lock().await;
        let mut taken = Vec::new();
        let mut bytes = 0;
        let Some(first) = receiver.recv().await else {
            return taken;
        };
        let mut next = Some(first);
        while let Some(waiting) = next {
            bytes += waiting.notification.body.len();
            taken.push(waiting);
            let is_full = taken.len() >= BATCH_EVENTS || bytes >= BATCH_BYTES;
            next = if is_full {
                None
            } else {
                receiver.try_recv().ok()
            };
        }
        drop(receiver);
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        taken
    }
}

/// Stores what waits until the inbox is closed and empty.
pub(super) async fn run(parts: Arc<Parts>) {
    loop {
        let waiting = parts.inbox.next().await;
        if waiting.is_empty() {
            return;
        }
        parts.metrics().journal_batch.observe(waiting.len() as f64);
        store(&parts, waiting).await;
    }
}

/// Stores all of `waiting` and answers each. Where something in it cannot be stored, the rest is.
async fn store(parts: &Parts, waiting: Vec<Waiting>) {
    let mut batches = vec![waiting];
    while let Some(mut waiting) = batches.pop() {
        match commit(parts, &waiting).await {
            Ok(copies) => {
                parts.metrics().duplicates.inc_by(copies);
                answer(parts, waiting, &Ok(()));
            }
            Err(Fault::Unfit(_)) if waiting.len() > 1 => {
                let half = waiting.split_off(waiting.len() / 2);
                batches.extend([half, waiting]);
            }
            Err(Fault::Unfit(why)) => {
                tracing::error!("an event cannot be stored: {why}");
                answer(parts, waiting, &Err(AppendError::Unavailable(why)));
            }
            Err(fault) => {
                parts.lose(&fault);
                let why = fault.to_string();
                answer(parts, waiting, &Err(AppendError::Unavailable(why)));
            }
        }
    }
}

fn answer(parts: &Parts, waiting: Vec<Waiting>, result: &Result<(), AppendError>) {
    for waiting in waiting {
        if result.is_ok() {
            let took = waiting.since.elapsed().as_secs_f64();
            parts.metrics().append_seconds.observe(took);
        }
        // Whoever waited may have run out of patience; the event is stored all the same.
        waiting.reply.send(result.clone()).ok();
    }
}

/// Stores all of `waiting` in one transaction, and says how many were copies.
async fn commit(parts: &Parts, waiting: &[Waiting]) -> Result<u64, Fault> {
    let began = Instant::now();
    loop {
        let mut taken = parts.appends.take().await?;
        let committed = patiently(parts, try_commit(parts, &mut taken, waiting)).await;
        match taken.give_back(committed) {
            // Somebody else has stored a copy since we looked, or was in the way.
            Err(Fault::Twice(_) | Fault::Collided(_)) if began.elapsed() < APPEND_BUDGET => {}
            Err(Fault::NoPartition(_)) if began.elapsed() < APPEND_BUDGET => {
                let arrivals = waiting.iter().map(|one| one.notification.received_at);
                partition::make(&parts.pool, arrivals.map(rows::day)).await?;
            }
            committed => return committed,
        }
    }
}

/// Waits for a transaction longer than those who wait for it do, since it may be waiting for a
/// standby: to cut it short would have it committed here alone. No more events are taken meanwhile.
async fn patiently<T>(
    parts: &Parts,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let mut work = pin!(work);
    if let Ok(done) = timeout(APPEND_BUDGET, work.as_mut()).await {
        return done;
    }
    parts.lose(&Fault::Away(format!(
        "the database takes longer than {APPEND_BUDGET:?} to store events"
    )));
    within(tokio::time::Instant::now() + GIVEN_UP_AFTER, work).await
}

async fn try_commit(
    parts: &Parts,
    session: &mut Session,
    waiting: &[Waiting],
) -> Result<u64, Fault> {
    let notifications = || waiting.iter().map(|waiting| &waiting.notification);
    let look = session.prepare(LOOK).await?;
    let count = i32::try_from(waiting.len()).unwrap_or(i32::MAX);
    let keys = batch::dedupe_keys(notifications());
    let looked = session.client.query_one(&look, &[&count, &keys]).await?;
    let positions: Vec<i64> = looked.try_get(0)?;
    let known: Vec<Uuid> = looked.try_get(1)?;
    let known: HashSet<_> = known
        .into_iter()
        .map(|key| DedupeKey::from_bytes(*key.as_bytes()))
        .collect();
    let active = parts.roster.active();
    let batch = Batch::new(notifications(), known, &positions, &active);
    write(session, &batch).await?;
    if !batch.deliveries.position.is_empty() {
        parts.stir();
    }
    Ok(batch.copies)
}

/// Adds `batch` in one transaction, all of whose statements are sent before the first is answered.
/// After one that fails the others do, and its COMMIT takes it back.
///
/// A batch of copies alone is committed as well: what they are copies of may have been committed
/// here, and be on no standby yet.
async fn write(session: &mut Session, batch: &Batch<'_>) -> Result<(), Fault> {
    let Batch {
        events,
        seen,
        topics,
        deliveries,
        added,
        ..
    } = batch;
    let counted = added.iter().map(|(handler, count)| (*handler, *count));
    let (handlers, counts): (Vec<_>, Vec<_>) = counted.chain([NOTHING]).unzip();
    let add_seen = session.prepare(ADD_SEEN).await?;
    let add_events = session.prepare(ADD_EVENTS).await?;
    let add_topics = session.prepare(ADD_TOPICS).await?;
    let add_deliveries = session.prepare(ADD_DELIVERIES).await?;
    let add_tally = session.prepare(ADD_TALLY).await?;
    let client = &session.client;
    let seen: &[&(dyn ToSql + Sync)] = &[&seen.dedupe, &seen.position];
    let topics: &[&(dyn ToSql + Sync)] = &[&topics.topic, &topics.latest];
    let tally: &[&(dyn ToSql + Sync)] = &[&handlers, &counts];
    let events: &[&(dyn ToSql + Sync)] = &events.columns();
    let deliveries: &[&(dyn ToSql + Sync)] = &[
        &deliveries.handler,
        &deliveries.position,
        &deliveries.day,
        &deliveries.lane,
        &deliveries.state,
        &deliveries.due_at,
    ];
    // In this order: locks on dedupe keys are taken before those on topics, by everybody.
    let (begun, seen, topics, events, deliveries, tally, committed) = tokio::join!(
        biased;
        client.batch_execute("BEGIN"),
        client.execute(&add_seen, seen),
        client.execute(&add_topics, topics),
        client.execute(&add_events, events),
        client.execute(&add_deliveries, deliveries),
        client.execute(&add_tally, tally),
        client.batch_execute("COMMIT"),
    );
    begun?;
    seen?;
    topics?;
    events?;
    deliveries?;
    tally?;
    Ok(committed?)
}
