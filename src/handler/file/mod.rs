//! `file`: one CloudEvent a line, appended to a file.
//!
//! **Invariant:** with `sync`, an event that is done is on stable storage, and so is the name of
//! its file.
//!
//! Lines that wait together go out in one write and one sync. Whoever comes first writes for all,
//! on a thread of its own, so that an attempt that is dropped leaves no half-written line.

mod rotation;
mod writer;

use std::{
    io, mem,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::{Mutex as AsyncMutex, oneshot};

use super::{
    AnyEvent, BuildContext, BuildError, Delivery, Handler, HandlerKind, Outcome,
    cloud_event::CloudEvent,
};
use rotation::Rotate;
use writer::Writer;

/// Appends each event to a file, one CloudEvent a line.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// The file. It is created with its directories where it is missing, and only its owner and group
    /// can read it. Each handler has a file of its own.
    path: PathBuf,
    /// Whether an event counts as delivered only once it is on stable storage. `false` is faster, and
    /// loses the last lines when the power fails.
    #[serde(default = "synced")]
    sync: bool,
    /// When the file is rotated, by `size`, `every` or both: it is renamed, with the time in UTC in its
    /// name, and a new one is begun. Without it, the file grows for ever.
    #[serde(default, deserialize_with = "rotation::deserialize")]
    rotate: Rotate,
}

const fn synced() -> bool {
    true
}

impl HandlerKind for Settings {
    const KIND: &'static str = "file";
    const EXAMPLE: &'static str = r#"
[handlers.archive]
kind = "file"
events = ["*"]
path = "data/events.ndjson"
sync = true
rotate = { size = "64MiB", keep = { size = "1GiB" } }
"#;
    /// Those that are under way together are synced together.
    const CONCURRENCY: NonZeroUsize = NonZeroUsize::new(64).unwrap();
    type Handler = Lines;

    fn build(self, context: &mut BuildContext) -> Result<Lines, BuildError> {
        context.claim_file("path", &self.path);
        let path: Arc<Path> = self.path.into();
        let is_something_else = path.metadata().is_ok_and(|found| !found.is_file());
        if path.file_name().is_none() || is_something_else {
            let path = path.display();
            return Err(BuildError(format!(
                "{path} is not a regular file; name the file that events are appended to"
            )));
        }
        let writer = Writer::new(path.clone(), self.sync, self.rotate);
        Ok(Lines {
            path,
            waiting: Arc::default(),
            writer: Arc::new(AsyncMutex::new(writer)),
        })
    }
}

/// The handler.
#[derive(Debug)]
pub(super) struct Lines {
    path: Arc<Path>,
    /// What is to be written by whoever has the writer next.
    waiting: Arc<Waiting>,
    writer: Arc<AsyncMutex<Writer>>,
}

/// Lines that nobody has written yet.
#[derive(Debug, Default)]
struct Waiting(Mutex<Vec<Line>>);

/// An event that is to be written.
#[derive(Debug)]
struct Line {
    /// With its line end.
    text: Vec<u8>,
    /// When its attempt began.
    at: Timestamp,
    written: oneshot::Sender<Result<(), Arc<io::Error>>>,
}

impl Handler for Lines {
    type Event = AnyEvent;

    async fn handle(&self, delivery: Delivery<'_, AnyEvent>) -> Outcome {
        let (written, mut answer) = oneshot::channel();
        let mut text = CloudEvent::new(delivery.notification, delivery.context).to_line();
        text.push(b'\n');
        self.waiting.add(Line {
            text,
            at: delivery.context.started_at,
            written,
        });
        let answer = tokio::select! {
            biased;
            // Somebody else has written it: we leave the queue, so that the next one in it has lines.
            answer = &mut answer => answer,
            mut writer = self.writer.clone().lock_owned() => {
                // Not waited for but through `answer`: the writer belongs to the thread until all is
                // written, whatever becomes of this attempt. Lines that come until the thread runs go
                // with this one.
                let waiting = self.waiting.clone();
                tokio::task::spawn_blocking(move || waiting.write_all(&mut writer));
                answer.await
            }
        };
        let why = match answer {
            Ok(Ok(())) => return Outcome::Done,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the writer ended before it answered".to_owned(),
        };
        Outcome::retry(format!("cannot write to {}: {why}", self.path.display()))
    }
}

impl Line {
    /// Whether its attempt has not been given up. Where it has, the event comes again.
    fn is_awaited(&self) -> bool {
        !self.written.is_closed()
    }
}

impl Waiting {
    fn add(&self, line: Line) {
        let mut waiting = self.lock();
        // A disk that hangs must not make the list grow with each attempt that comes again.
        if waiting.len() == waiting.capacity() {
            waiting.retain(Line::is_awaited);
        }
        waiting.push(line);
    }

    /// Writes what waits, until nothing does, and tells each attempt how that went.
    fn write_all(&self, writer: &mut Writer) {
        loop {
            let mut batch = mem::take(&mut *self.lock());
            batch.retain(Line::is_awaited);
            if batch.is_empty() {
                return;
            }
            write(writer, batch);
        }
    }

    /// A panic while the list was locked leaves it as sound as it was.
    fn lock(&self) -> MutexGuard<'_, Vec<Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes `batch` and tells each of its attempts how that went.
fn write(writer: &mut Writer, batch: Vec<Line>) {
    let now = batch.iter().map(|line| line.at).max().unwrap_or_default();
    let text: Vec<_> = batch.iter().map(|line| line.text.as_slice()).collect();
    let result = writer.append(&text.concat(), now).map_err(Arc::new);
    for line in batch {
        // An attempt that has been dropped meanwhile does without its answer.
        line.written.send(result.clone()).ok();
    }
}

/// The directory that `path` is in; the current one for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::Value;

    use super::*;
    use crate::handler::sample;

    fn build(settings: &str) -> Result<Lines, BuildError> {
        let settings = toml::de::ValueDeserializer::parse(settings).unwrap();
        Settings::deserialize(settings)
            .unwrap()
            .build(&mut sample::build_context())
    }

    async fn deliver(handler: &Lines, body: &str) -> Outcome {
        let notification = sample::notification(body);
        let context = sample::context();
        let delivery = Delivery {
            event: AnyEvent,
            notification: &notification,
            context: &context,
        };
        handler.handle(delivery).await
    }

    fn bodies(path: &Path) -> Vec<Value> {
        let data = |line: &str| serde_json::from_str::<Value>(line).unwrap()["data"].clone();
        fs::read_to_string(path)
            .unwrap()
            .lines()
            .map(data)
            .collect()
    }

    #[tokio::test]
    async fn each_event_is_a_line_in_a_file_that_is_made_where_there_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/events.ndjson");
        let archive = build(&format!("{{ path = {path:?} }}")).unwrap();
        for body in ["1", "{\"a\":\n2}"] {
            assert!(matches!(deliver(&archive, body).await, Outcome::Done));
        }
        assert_eq!(
            bodies(&path),
            [serde_json::json!(1), serde_json::json!({"a": 2})]
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn events_that_come_together_are_all_written_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.ndjson");
        let archive = Arc::new(build(&format!("{{ path = {path:?} }}")).unwrap());
        let mut deliveries = tokio::task::JoinSet::new();
        for number in 0..200 {
            let archive = archive.clone();
            deliveries.spawn(async move { deliver(&archive, &number.to_string()).await });
        }
        for outcome in deliveries.join_all().await {
            assert!(matches!(outcome, Outcome::Done));
        }
        let mut numbers: Vec<_> = bodies(&path)
            .iter()
            .map(|body| body.as_i64().unwrap())
            .collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..200).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn an_attempt_that_is_dropped_while_it_waits_writes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.ndjson");
        let archive = build(&format!("{{ path = {path:?} }}")).unwrap();
        let held = archive.writer.clone().lock_owned().await;
        let mut dropped = Box::pin(deliver(&archive, "1"));
        tokio::select! {
            biased;
            _ = &mut dropped => panic!("it wrote without the writer"),
            () = std::future::ready(()) => {}
        }
        drop(dropped);
        drop(held);
        assert!(matches!(deliver(&archive, "2").await, Outcome::Done));
        assert_eq!(bodies(&path), [serde_json::json!(2)]);
    }

    #[tokio::test]
    async fn whose_line_somebody_else_has_written_does_not_wait_for_the_writer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.ndjson");
        let archive = build(&format!("{{ path = {path:?} }}")).unwrap();
        let mut held = archive.writer.clone().lock_owned().await;
        let mut attempt = Box::pin(deliver(&archive, "1"));
        tokio::select! {
            biased;
            _ = &mut attempt => panic!("it wrote without the writer"),
            () = std::future::ready(()) => {}
        }
        archive.waiting.write_all(&mut held);
        assert!(matches!(attempt.await, Outcome::Done));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_is_a_retry_and_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("not-a-directory");
        fs::write(&path, "").unwrap();
        let archive = build(&format!("{{ path = {:?} }}", path.join("events.ndjson"))).unwrap();
        let Outcome::Retry { after: None, why } = deliver(&archive, "1").await else {
            panic!("not a retry");
        };
        let why = why.to_string();
        assert!(why.starts_with("cannot write to "), "{why}");
        assert!(why.contains("events.ndjson: "), "{why}");

        fs::remove_file(&path).unwrap();
        assert!(matches!(deliver(&archive, "1").await, Outcome::Done));
    }

    #[tokio::test]
    async fn a_full_disk_is_a_retry() {
        // The one file that is always full. It is no regular file, so it cannot be built.
        let path: Arc<Path> = Path::new("/dev/full").into();
        assert!(build("{ path = \"/dev/full\" }").is_err());
        let archive = Lines {
            path: path.clone(),
            waiting: Arc::default(),
            writer: Arc::new(AsyncMutex::new(Writer::new(path, false, Rotate::default()))),
        };
        let Outcome::Retry { after: None, why } = deliver(&archive, "1").await else {
            panic!("not a retry");
        };
        assert!(why.to_string().contains("No space left on device"), "{why}");
    }

    #[test]
    fn what_cannot_be_appended_to_is_not_built() {
        let problem = build("{ path = \"/\" }").unwrap_err().to_string();
        assert!(problem.contains("is not a regular file"), "{problem}");
    }
}
