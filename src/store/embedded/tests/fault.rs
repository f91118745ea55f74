//! A disk that is full, or fails.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    Context, Disk, Embedded, Place,
    rebuild::{lose_the_views, start},
};
use crate::store::{
    AppendError, Deliveries, Health, Monitored, Verdict,
    tests::{at, event, eventually, ids},
};

/// A disk whose calls fail when told to.
#[derive(Default)]
pub(super) struct Faulty {
    pub(super) write: AtomicBool,
    sync: AtomicBool,
    truncate: AtomicBool,
    /// Fails the writes of the preallocator, as a full disk does.
    pub(super) fill: AtomicBool,
    /// How often the preallocator asked for the free space.
    pub(super) preallocator_looks: AtomicU64,
    /// Free space, where it is not the real one.
    pub(super) free: AtomicU64,
    /// How often others asked for it.
    looks: AtomicU64,
    /// How often a file was synced.
    syncs: AtomicU64,
}

impl Disk for Faulty {
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        if !is_preallocator() && self.write.load(Ordering::SeqCst) {
            // Part of it arrives, as on a disk that fills up.
            SYSTEM.write(file, &bytes[..bytes.len() / 2], offset)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        if is_preallocator() && self.fill.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        SYSTEM.write(file, bytes, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        if self.sync.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.syncs.fetch_add(1, Ordering::SeqCst);
        SYSTEM.sync(file)
    }

    fn truncate(&self, file: &File, length: u64) -> io::Result<()> {
        if self.truncate.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(5));
        }
        SYSTEM.truncate(file, length)
    }

    fn free(&self, path: &Path) -> io::Result<u64> {
        let looks = if is_preallocator() {
            &self.preallocator_looks
        } else {
            &self.looks
        };
        looks.fetch_add(1, Ordering::SeqCst);
        match self.free.load(Ordering::SeqCst) {
            0 => SYSTEM.free(path),
            free => Ok(free),
        }
    }
}

/// Whether the preallocator calls.
fn is_preallocator() -> bool {
    std::thread::current().name() == Some("preallocator")
}

const SYSTEM: super::SystemDisk = super::SystemDisk;

pub(super) fn faulty() -> (Place, Arc<Faulty>) {
    let mut place = Place::new();
    let disk = Arc::new(Faulty::default());
    place.disk = disk.clone();
    (place, disk)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_poisons_the_store_for_good() {
    let (place, disk) = faulty();
    let store = place.open();
    let health = store.store.health();
    store.append(&event(1)).await.unwrap();
    disk.sync.store(true, Ordering::SeqCst);
    assert!(matches!(
        store.append(&event(2)).await,
        Err(AppendError::Poisoned(_))
    ));
    disk.sync.store(false, Ordering::SeqCst);
    let looks = disk.looks.load(Ordering::SeqCst);
    while disk.looks.load(Ordering::SeqCst) < looks + 2 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(matches!(
        store.append(&event(3)).await,
        Err(AppendError::Poisoned(_))
    ));
    assert!(matches!(&*health.borrow(), Health::Poisoned { .. }));
    assert_eq!(place.metrics.store_sound.get(), 0);
    store.subscribe(&["crm"]).await;
    assert_eq!(
        store.drain("crm").await.len(),
        1,
        "what is stored is still delivered"
    );
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_one_batch_and_leaves_nothing_of_it() {
    let (place, disk) = faulty();
    let store = place.open();
    store.append(&event(1)).await.unwrap();
    let length = || std::fs::metadata(place.journal().segment(1)).unwrap().len();
    let before = length();
    disk.write.store(true, Ordering::SeqCst);
    assert!(matches!(
        store.append(&event(2)).await,
        Err(AppendError::Unavailable(_))
    ));
    assert_eq!(length(), before);
    disk.write.store(false, Ordering::SeqCst);
    let mut health = store.store.health();
    health
        .wait_for(|health| *health == Health::Sound)
        .await
        .unwrap();
    store.append(&event(3)).await.unwrap();
    store.subscribe(&["crm"]).await;
    assert_eq!(store.drain("crm").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_cannot_be_undone_poisons_the_store() {
    let (place, disk) = faulty();
    let store = place.open();
    disk.write.store(true, Ordering::SeqCst);
    disk.truncate.store(true, Ordering::SeqCst);
    assert!(matches!(
        store.append(&event(1)).await,
        Err(AppendError::Poisoned(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_refused_while_free_space_is_under_the_reserve() {
    let (mut place, disk) = faulty();
    place.settings.reserve = 1000;
    disk.free.store(999, Ordering::SeqCst);
    let store = place.open();
    assert_eq!(place.metrics.disk_reserve_bytes.get(), 1000);
    let mut health = store.store.health();
    assert!(matches!(&*health.borrow(), Health::Unavailable { .. }));
    assert!(matches!(
        store.append(&event(1)).await,
        Err(AppendError::Unavailable(_))
    ));
    disk.free.store(1100, Ordering::SeqCst);
    let sound = |health: &Health| *health == Health::Sound;
    health.wait_for(sound).await.unwrap();
    let refused = store.append(&event(1)).await;
    assert!(
        matches!(refused, Err(AppendError::Unavailable(_))),
        "it is larger than the room"
    );
    disk.free.store(1 << 40, Ordering::SeqCst);
    health
        .wait_for(|health| *health == Health::Sound)
        .await
        .unwrap();
    store.append(&event(1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_too_large_is_refused_and_the_next_is_not() {
    let place = Place::new();
    let store = place.open();
    let mut large = event(1);
    large.body = vec![b'x'; 33 << 20].into();
    assert!(matches!(
        store.append(&large).await,
        Err(AppendError::Unavailable(_))
    ));
    large.body = vec![b'x'; 20 << 20].into();
    store.append(&large).await.unwrap();
    store.append(&event(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_a_background_thread_poisons_the_store() {
    let place = Place::new();
    let store = place.open();
    store.append(&event(1)).await.unwrap();
    store.close().await;
    for kept in place.kept("ledger") {
        std::fs::remove_file(kept).unwrap();
    }
    // Called by the indexer, which makes the ledger again.
    let context = Context {
        metrics: place.metrics.clone(),
        clock: place.clock,
        rebuild: Arc::new(|_, _| panic!("on purpose")),
    };
    let store = Embedded::open(&place.settings, context, place.disk.clone()).unwrap();
    let mut health = store.health();
    store.subscribe(Vec::new()).await.unwrap();
    let poisoned = health.wait_for(|health| matches!(health, Health::Poisoned { .. }));
    let patience = std::time::Duration::from_secs(60);
    tokio::time::timeout(patience, poisoned)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(place.metrics.store_sound.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_is_synced_without_further_events() {
    let (place, disk) = faulty();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    store.append(&event(1)).await.unwrap();
    let claims = store.claim("crm", at(10)).await;
    let before = disk.syncs.load(Ordering::SeqCst);
    let end = store.store.shared.core.progress.end();
    store.settle("crm", &claims[0], Verdict::Done).await;
    eventually("the end of the journal has moved, by a sync", async || {
        let synced = disk.syncs.load(Ordering::SeqCst) > before;
        (synced && store.store.shared.core.progress.end() > end).then_some(())
    })
    .await;
}

/// A disk whose power can fail. What it has of a file then is what the last sync has left, by the file's number.
#[derive(Default)]
struct Powered(Mutex<HashMap<u64, Vec<u8>>>);

impl Disk for Powered {
    fn sync(&self, file: &File) -> io::Result<()> {
        let mut synced = self.0.lock().unwrap();
        SYSTEM.sync(file)?;
        let metadata = file.metadata()?;
        let mut bytes = vec![0; metadata.len() as usize];
        file.read_exact_at(&mut bytes, 0)?;
        synced.insert(metadata.ino(), bytes);
        Ok(())
    }
}

impl Powered {
    /// A store as the loss of power at this moment would leave it, without what is made from the journal.
    fn truncate(&self, place: &Place) -> Place {
        let after = place.crash();
        let synced = self.0.lock().unwrap();
        for number in place.journal().segments().unwrap() {
            let file = fs::metadata(place.journal().segment(number)).unwrap().ino();
            fs::write(after.journal().segment(number), &synced[&file]).unwrap();
        }
        lose_the_views(&after);
        after
    }
}

/// One outcome after the other, so that the journal's writer is never idle for long, and no event, whose sync
/// would take the outcomes along.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_loss_costs_outcomes_of_the_last_second_only() {
    const OUTCOMES: u64 = 60;
    const PAUSE: Duration = Duration::from_millis(50);
    /// What is promised, and as much again for a machine that is busy.
    const LOST: Duration = Duration::from_secs(2);
    let disk = Arc::new(Powered::default());
    let mut place = Place::new();
    place.disk = disk.clone();
    let store = place.open();
    store.subscribe(&["crm"]).await;
    store.append_all((0..OUTCOMES).map(event)).await;
    let mut settled = Vec::new();
    for claim in store.claim("crm", at(10)).await {
        store.settle("crm", &claim, Verdict::Done).await;
        settled.push((claim.notification.id, Instant::now()));
        tokio::time::sleep(PAUSE).await;
    }
    let cut_at = Instant::now();
    let after = disk.truncate(&place);
    settled.retain(|(_, at)| *at + LOST < cut_at);
    assert!(!settled.is_empty());
    let store = start(&after, &["crm"]).await;
    let again = ids(&store.claim("crm", at(10)).await);
    for (id, at) in settled {
        let ago = cut_at - at;
        assert!(
            !again.contains(&id),
            "settled {ago:?} before the power failed"
        );
    }
}
