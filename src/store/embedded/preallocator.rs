//! One segment file made ahead of its use: full of zeros, and on stable storage.
//!
//! A sync of a file that grows makes the file system write its own journal too, and with it
//! whatever else is dirty, the ledger above all. A sync of zeros overwritten needs none of that and
//! takes half the time. It is only a faster way: without a spare a segment begins empty, and grows.
//!
//! The file is `spare.new` until a segment takes it. One that a crash or a closed store has left is
//! removed, never used: it may hold anything.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::Duration,
};

use super::{disk, journal::JournalConfig};
use crate::store::StoreError;

/// How many segments must find room besides the reserve before a spare is made: it must never be
/// what fills the disk.
const ROOM_SEGMENTS: u64 = 4;

/// How much is zeroed at once, in bytes: little, so that the journal's own syncs never wait long
/// behind it.
const CHUNK_BYTES: usize = 256 << 10;

/// The pause between two chunks, for the same reason.
const PAUSE: Duration = Duration::from_millis(5);

/// How long to wait when there was no room for a spare, or it could not be made.
const PATIENCE: Duration = Duration::from_secs(10);

/// A segment file that nobody uses yet.
#[derive(Debug)]
pub(super) struct PreallocatedSegment {
    /// It, full of zeros.
    pub(super) file: File,
    /// Where it is.
    pub(super) path: PathBuf,
}

/// The thread that makes spares, one at a time and only when asked to. Dropping this ends it and
/// removes the spare that nobody took.
pub(super) struct Preallocator {
    /// `None` when the thread is to end.
    requests: Option<Sender<()>>,
    made: Receiver<PreallocatedSegment>,
    /// Whether a spare was ordered that has not been taken.
    is_requested: bool,
    ready: Option<PreallocatedSegment>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Preallocator {
    /// Starts the thread, and removes what an earlier one has left.
    pub(super) fn start(config: JournalConfig) -> Result<Self, StoreError> {
        let path = config.directory.path().join("spare.new");
        remove(&path).map_err(StoreError::writing(&path))?;
        let (requests, inbox) = channel();
        let (outbox, made) = channel();
        let maker = PreallocatorThread {
            path: path.clone(),
            config,
            requests: inbox,
        };
        let thread = super::start("preallocator", move || maker.run(&outbox))?;
        Ok(Self {
            requests: Some(requests),
            made,
            is_requested: false,
            ready: None,
            path,
            thread: Some(thread),
        })
    }

    /// Asks for a spare, unless there is one or it has been asked for. Does not wait for it.
    pub(super) fn request(&mut self) {
        if let Some(requests) = &self.requests
            && !self.is_requested
        {
            self.is_requested = requests.send(()).is_ok();
        }
    }

    /// Whether [`Preallocator::take`] would give one.
    pub(super) fn is_ready(&mut self) -> bool {
        if self.ready.is_none() {
            self.ready = self.made.try_recv().ok();
        }
        self.ready.is_some()
    }

    /// The spare, if it is ready.
    pub(super) fn take(&mut self) -> Option<PreallocatedSegment> {
        if !self.is_ready() {
            return None;
        }
        self.is_requested = false;
        self.ready.take()
    }

    /// Removes the spare if it is ready: its room is needed.
    pub(super) fn give_up(&mut self) {
        if self.take().is_some()
            && let Err(error) = remove(&self.path)
        {
            tracing::warn!("a spare segment of the journal cannot be removed: {error}");
        }
    }
}

impl Drop for Preallocator {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
        if let Err(error) = remove(&self.path) {
            tracing::warn!("a spare segment of the journal is left behind: {error}");
        }
    }
}

/// The thread's own part.
struct PreallocatorThread {
    config: JournalConfig,
    path: PathBuf,
    requests: Receiver<()>,
}

/// Why there is no spare yet.
enum Unmade {
    /// The thread is to end.
    Stopped,
    /// There is too little room.
    NoSpace,
    /// The system would not do it.
    Failed(io::Error),
}

impl PreallocatorThread {
    fn run(self, outbox: &Sender<PreallocatedSegment>) {
        super::lower_priority();
        while self.requests.recv().is_ok() {
            let Some(file) = self.insist() else { return };
            let path = self.path.clone();
            if outbox.send(PreallocatedSegment { file, path }).is_err() {
                return;
            }
        }
    }

    /// Makes a spare, however long it takes to find room for it; `None` when the thread is to end.
    fn insist(&self) -> Option<File> {
        loop {
            match self.make() {
                Ok(file) => return Some(file),
                Err(Unmade::Stopped) => return None,
                Err(Unmade::NoSpace) => tracing::debug!("no room for a spare segment"),
                Err(Unmade::Failed(error)) => {
                    tracing::debug!("a spare segment of the journal could not be made: {error}");
                    // What a failed write or sync has left of it is not to be trusted.
                    remove(&self.path).ok();
                }
            }
            self.wait(PATIENCE).ok()?;
        }
    }

    fn make(&self) -> Result<File, Unmade> {
        let JournalConfig {
            segment_bytes,
            reserve_bytes,
            disk,
            directory,
            ..
        } = &self.config;
        let free = disk.free(directory.path())?.saturating_sub(*reserve_bytes);
        if free < ROOM_SEGMENTS * segment_bytes {
            return Err(Unmade::NoSpace);
        }
        let file = disk::create_file(&self.path)?;
        let zeros = vec![0; CHUNK_BYTES];
        let mut at = 0;
        while at < *segment_bytes {
            let size = zeros.len().min((segment_bytes - at) as usize);
            disk.write(&file, zeros.get(..size).unwrap_or_default(), at)?;
            disk.sync(&file)?;
            at += size as u64;
            self.wait(PAUSE)?;
        }
        file.sync_all()?;
        Ok(file)
    }

    /// Waits for `time`, or until the thread is to end.
    fn wait(&self, time: Duration) -> Result<(), Unmade> {
        match self.requests.recv_timeout(time) {
            // Nothing is ordered while an order is being carried out.
            Ok(()) | Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(Unmade::Stopped),
        }
    }
}

impl From<io::Error> for Unmade {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Removes the file at `path` if there is one.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
