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
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{Core, disk};

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

/// Preallocates one segment at a time, on request, on a thread of its own. Dropping it ends the
/// thread and removes an unused file.
pub(super) struct Preallocator {
    core: Arc<Core>,
    path: PathBuf,
    running: Option<Running>,
}

/// A thread that preallocates a segment.
struct Running {
    thread: JoinHandle<Option<File>>,
    /// Dropping it ends the thread.
    stop: Sender<()>,
}

impl Preallocator {
    /// Removes a file that an earlier process has left.
    pub(super) fn new(core: Arc<Core>) -> Self {
        let path = core.directory.path().join("spare.new");
        let preallocator = Self {
            core,
            path,
            running: None,
        };
        preallocator.remove();
        preallocator
    }

    /// The path of a preallocated segment.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Requests a segment, unless one is ready or requested. Does not wait.
    pub(super) fn request(&mut self) {
        if self.running.is_some() {
            return;
        }
        let (stop, stopped) = channel();
        let (core, path) = (self.core.clone(), self.path.clone());
        let make = move || make_eventually(&core, &path, &stopped);
        match super::start("preallocator", make) {
            Ok(thread) => self.running = Some(Running { thread, stop }),
            Err(error) => tracing::debug!("a segment cannot be preallocated: {error}"),
        }
    }

    /// Whether [`take`](Self::take) returns a segment.
    pub(super) fn is_ready(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.thread.is_finished())
    }

    /// The preallocated segment's file, filled with zeros, if it is ready.
    pub(super) fn take(&mut self) -> Option<File> {
        let ready = self.running.take_if(|running| running.thread.is_finished());
        ready?.thread.join().ok()?
    }

    /// Removes a ready segment, since its space is needed.
    pub(super) fn give_up(&mut self) {
        if self.take().is_some() {
            self.remove();
        }
    }

    fn remove(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("a preallocated segment cannot be removed: {error}");
            }
            _ => {}
        }
    }
}

impl Drop for Preallocator {
    fn drop(&mut self) {
        if let Some(Running { thread, stop }) = self.running.take() {
            drop(stop);
            thread.join().ok();
        }
        self.remove();
    }
}

/// Preallocates a segment at `path`, and retries until that succeeds. Returns `None` when `stopped`
/// is disconnected.
fn make_eventually(core: &Core, path: &Path, stopped: &Receiver<()>) -> Option<File> {
    super::lower_priority();
    loop {
        match make(core, path, stopped) {
            Ok(made) => return made,
            Err(error) => {
                tracing::debug!("a segment cannot be preallocated: {error}");
                // A file after a failed write or sync cannot be trusted.
                fs::remove_file(path).ok();
            }
        }
        wait(stopped, RETRY_PAUSE)?;
    }
}

fn make(core: &Core, path: &Path, stopped: &Receiver<()>) -> io::Result<Option<File>> {
    let (disk, settings) = (&core.disk, &core.settings);
    let free = disk.free(core.directory.path())?;
    if free.saturating_sub(settings.reserve) < FREE_SEGMENTS * settings.segment {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let file = disk::create_file(path)?;
    let zeros = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < settings.segment {
        let size = zeros.len().min((settings.segment - at) as usize);
        disk.write(&file, zeros.get(..size).unwrap_or_default(), at)?;
        disk.sync(&file)?;
        at += size as u64;
        if wait(stopped, PAUSE).is_none() {
            return Ok(None);
        }
    }
    file.sync_all()?;
    Ok(Some(file))
}

/// Waits for `time`. Returns `None` when `stopped` is disconnected.
fn wait(stopped: &Receiver<()>, time: Duration) -> Option<()> {
    (stopped.recv_timeout(time) == Err(RecvTimeoutError::Timeout)).then_some(())
}
