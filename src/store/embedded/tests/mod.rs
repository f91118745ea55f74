//! What only the embedded store promises: of its files, its disk, and what has become of them.

mod backfill;
mod dedup_index;
mod fault;
mod format;
mod ledger;
mod preallocator;
mod rebuild;
mod recovery;
mod retention;
mod source;
mod upgrade;

use std::{path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use tempfile::TempDir;

use super::{
    Disk, Embedded, Engine, Operator, Settings, SystemDisk, record::Record, segment::Position,
};
use crate::{
    store::{
        Context, StoreError,
        tests::{self as suite, clock},
    },
    telemetry::Metrics,
};

/// The verbs of the suite, on a store whose engine is known.
type Opened = suite::Opened<Embedded>;

/// A place for the suite.
pub(in crate::store) fn place() -> suite::Place {
    let Place { dir, settings, .. } = Place::new();
    suite::Place::new(settings, dir)
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
        Ok(Opened::new(Arc::new(store), self.metrics.clone()))
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

    fn records(&self) -> Box<dyn Operator> {
        self.settings.operator(clock).unwrap()
    }

    fn journal(&self) -> super::Directory {
        self.settings.journal()
    }

    /// The files beside the segments, or beside the ledger, whose names contain `part`.
    fn kept(&self, part: &str) -> Vec<std::path::PathBuf> {
        let path = &self.settings.path;
        [path.clone(), path.join("journal")]
            .iter()
            .flat_map(|dir| std::fs::read_dir(dir).unwrap())
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().contains(part))
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

/// Returns when the journal has all records that were sent by then.
async fn written(store: &Opened) {
    let nothing = Record::inventory(Position::default(), Position::default());
    let answer = store.store.shared.journal.put_durably(nothing);
    answer.await.unwrap().unwrap();
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
