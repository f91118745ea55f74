//! What the embedded store promises, seen from outside where that is possible.

mod copies;
mod delivery;
mod fault;
mod format;
mod operator;
mod recovery;
mod retention;
mod spare;

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;

use super::{Disk, Embedded, Engine, Records, Settings, SystemDisk};
use crate::{
    event::{DedupeKey, EventId, HandlerName, Key, Notification, Pattern, Topic},
    provider::Verified,
    store::{AppendError, Claim, Context, Settlement, Store, StoreError, Subscription, Verdict},
    telemetry::Metrics,
};

/// When the tests take place: seconds since 1970.
const NOON: i64 = 1_760_000_000;

/// `seconds` after [`NOON`].
fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOON + seconds).unwrap()
}

/// Event number `n`: its own key, its own dedupe key, received `n` milliseconds after noon.
fn event(n: u64) -> Notification {
    let received_at = at(0) + SignedDuration::from_millis(n as i64);
    Notification {
        id: EventId::new(received_at),
        endpoint: "desk".into(),
        name: "ringcentral.phone-number.created".into(),
        key: Some(Key::new(format!("ringcentral.phone-number/{n}"))),
        subject: Some("+15550100".to_owned()),
        occurred_at: Some(received_at),
        received_at,
        topics: vec![Topic::new(format!("topic {n}"))],
        dedupe: vec![DedupeKey::new("ringcentral", "uuid", &n.to_le_bytes())],
        body: Bytes::from(format!("{{\"event\":\"{n}\",\"padding\":\"{n:0>300}\"}}")),
    }
}

/// Event number `n` of key `key`.
fn keyed(n: u64, key: &str) -> Notification {
    Notification {
        key: Some(Key::from(key)),
        ..event(n)
    }
}

/// What `handler` asks for: everything, in order.
fn everything(handler: &str) -> Subscription {
    Subscription {
        handler: handler.into(),
        patterns: vec![Pattern::new("*").unwrap()],
        ordered: true,
    }
}

/// A directory for one store, and what it is opened with.
struct Place {
    dir: TempDir,
    settings: Settings,
    metrics: Arc<Metrics>,
    disk: Arc<dyn Disk>,
    clock: fn() -> Timestamp,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            path: dir.path().join("data"),
            retain: Duration::from_secs(3600),
            reserve: 0,
            segment: 64 << 20,
        };
        Self {
            dir,
            settings,
            metrics: Arc::default(),
            disk: Arc::new(SystemDisk),
            clock,
        }
    }

    fn try_open(&self) -> Result<Opened, StoreError> {
        let context = Context {
            metrics: self.metrics.clone(),
            clock: self.clock,
            rebuild: Arc::new(|_, _| {}),
        };
        let store = Embedded::open(&self.settings, context, self.disk.clone())?;
        Ok(Opened { store })
    }

    fn open(&self) -> Opened {
        self.try_open().unwrap()
    }

    /// A store as a crash at this moment would leave it.
    fn crash(&self) -> Self {
        let mut copy = Self::new();
        copy.settings = Settings {
            path: copy.dir.path().join("data"),
            ..self.settings.clone()
        };
        copy_dir(&self.settings.path, &copy.settings.path);
        copy
    }

    fn records(&self) -> Box<dyn Records> {
        self.settings.records().unwrap()
    }

    fn journal(&self) -> super::Directory {
        self.settings.journal()
    }

    /// The files beside the segments, or beside the ledger, whose names contain `word`.
    fn kept(&self, word: &str) -> Vec<std::path::PathBuf> {
        let path = &self.settings.path;
        [path.clone(), path.join("journal")]
            .iter()
            .flat_map(|dir| std::fs::read_dir(dir).unwrap())
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().contains(word))
            .collect()
    }

    /// Changes the bytes of segment `number` in place.
    fn damage(&self, number: u32, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.journal().segment(number);
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A clock that stands.
fn clock() -> Timestamp {
    at(0)
}

/// An open store, with the verbs that tests use.
struct Opened {
    store: Embedded,
}

impl Opened {
    async fn append(&self, notification: &Notification) -> Result<(), AppendError> {
        let event = Verified::unproven(notification.clone());
        self.store.append(event).await
    }

    async fn append_all(&self, notifications: impl IntoIterator<Item = Notification>) {
        for notification in notifications {
            self.append(&notification).await.unwrap();
        }
    }

    async fn subscribe(&self, handlers: &[&str]) {
        let subscriptions = handlers.iter().map(|name| everything(name)).collect();
        self.store.subscribe(subscriptions).await.unwrap();
    }

    /// What can be claimed now that everything has been indexed.
    async fn claim(&self, handler: &str, now: Timestamp) -> Vec<Claim> {
        self.settle_down().await;
        self.claim_once(handler, 10_000, now).await
    }

    async fn claim_once(&self, handler: &str, at_most: usize, now: Timestamp) -> Vec<Claim> {
        let handler = HandlerName::from(handler);
        let claims = self.store.claim(&handler, at_most, now).await.unwrap();
        claims.claims
    }

    /// Returns when the ledger knows all that the journal holds.
    async fn settle_down(&self) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        let parts = &self.store.parts;
        // Positions, not numbers of records: a journal that has lost its end counts fewer than the
        // ledger has read.
        loop {
            let known = parts.ledger.run("asking", |books| books.reached());
            if known.await.unwrap().through >= parts.progress.end() {
                return;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "the ledger never catches up"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn settle(&self, handler: &str, claim: &Claim, verdict: Verdict) {
        let settlement = Settlement {
            handler: handler.into(),
            lease: claim.lease,
            verdict,
            started_at: at(100),
            finished_at: at(101),
        };
        self.store.settle(vec![settlement]).await.unwrap();
    }

    /// Claims and finishes until nothing is left, and says what came, in the order it came in.
    async fn drain(&self, handler: &str) -> Vec<EventId> {
        let mut got = Vec::new();
        loop {
            let claims = self.claim(handler, at(1_000_000)).await;
            if claims.is_empty() {
                return got;
            }
            for claim in claims {
                got.push(claim.notification.id);
                self.settle(handler, &claim, Verdict::Done).await;
            }
        }
    }

    async fn close(self) {
        self.store.close().await.unwrap();
    }
}

fn retry(seconds: i64) -> Verdict {
    Verdict::Retry {
        due_at: at(seconds),
        why: "it is busy".to_owned(),
    }
}

fn parked() -> Verdict {
    Verdict::Parked {
        why: "it will never do".to_owned(),
    }
}

/// The ids of what was claimed.
fn ids(claims: &[Claim]) -> Vec<EventId> {
    claims.iter().map(|claim| claim.notification.id).collect()
}
