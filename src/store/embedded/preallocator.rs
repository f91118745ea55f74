//! Preallocates the next segment's file: filled with zeros, on stable storage.
//!
//! Syncing a growing file makes the file system write its own journal too, and with it other dirty
//! data such as the ledger. Syncing overwritten zeros avoids this and takes half the time. It is
//! only an optimization: without a preallocated file a segment begins empty, and grows.
//!
//! The file is called `spare.new` until a segment takes it. A file that a crash or an earlier
//! process has left may contain anything, so it is removed and never used.

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

/// The number of segments that must fit into the free space, besides the reserve, before one is
/// preallocated: preallocation must not fill the disk.
const FREE_SEGMENTS: u64 = 4;

/// The number of bytes that are zeroed at once: few, so that the journal's own syncs never wait
/// long behind them.
const CHUNK_BYTES: usize = 256 << 10;

/// The pause between two chunks, for the same reason.
const PAUSE: Duration = Duration::from_millis(5);

/// The pause after a lack of space or a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// A segment's file that is not in use.
#[derive(Debug)]
pub(super) struct PreallocatedSegment {
    /// The file, filled with zeros.
    pub(super) file: File,
    /// The file's path.
    pub(super) path: PathBuf,
}

/// A thread that preallocates one segment at a time, on request. Dropping this handle ends the
/// thread and removes an unused file.
pub(super) struct Preallocator {
    /// `None` ends the thread.
    requests: Option<Sender<()>>,
    made: Receiver<PreallocatedSegment>,
    /// Whether a segment was requested and not taken.
    is_requested: bool,
    ready: Option<PreallocatedSegment>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Preallocator {
    /// Starts the thread, and removes a file that an earlier process has left.
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

    /// Requests a segment, unless one is ready or requested. Does not wait.
    pub(super) fn request(&mut self) {
        if let Some(requests) = &self.requests
            && !self.is_requested
        {
            self.is_requested = requests.send(()).is_ok();
        }
    }

    /// Whether [`take`](Self::take) returns a segment.
    pub(super) fn is_ready(&mut self) -> bool {
        if self.ready.is_none() {
            self.ready = self.made.try_recv().ok();
        }
        self.ready.is_some()
    }

    /// The preallocated segment, if it is ready.
    pub(super) fn take(&mut self) -> Option<PreallocatedSegment> {
        if !self.is_ready() {
            return None;
        }
        self.is_requested = false;
        self.ready.take()
    }

    /// Removes a ready segment, since its space is needed.
    pub(super) fn give_up(&mut self) {
        if self.take().is_some()
            && let Err(error) = remove(&self.path)
        {
            tracing::warn!("a preallocated segment cannot be removed: {error}");
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
            tracing::warn!("a preallocated segment cannot be removed: {error}");
        }
    }
}

/// The state of the thread.
struct PreallocatorThread {
    config: JournalConfig,
    path: PathBuf,
    requests: Receiver<()>,
}

/// Why no segment was preallocated.
enum Unmade {
    /// The thread is to end.
    Stopped,
    /// There is too little space.
    NoSpace,
    /// The system reported an error.
    Failed(io::Error),
}

impl PreallocatorThread {
    fn run(self, outbox: &Sender<PreallocatedSegment>) {
        super::lower_priority();
        while self.requests.recv().is_ok() {
            let Some(file) = self.make_eventually() else {
                return;
            };
            let path = self.path.clone();
            if outbox.send(PreallocatedSegment { file, path }).is_err() {
                return;
            }
        }
    }

    /// Preallocates a segment, and retries until there is space. Returns `None` when the thread is
    /// to end.
    fn make_eventually(&self) -> Option<File> {
        loop {
            match self.make() {
                Ok(file) => return Some(file),
                Err(Unmade::Stopped) => return None,
                Err(Unmade::NoSpace) => {
                    tracing::debug!("there is too little space to preallocate a segment")
                }
                Err(Unmade::Failed(error)) => {
                    tracing::debug!("a segment cannot be preallocated: {error}");
                    // A file after a failed write or sync cannot be trusted.
                    remove(&self.path).ok();
                }
            }
            self.wait(RETRY_PAUSE).ok()?;
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
        if free < FREE_SEGMENTS * segment_bytes {
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
            // No request arrives while one is carried out.
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

/// Removes the file at `path`, if it exists.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
