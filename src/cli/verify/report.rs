//! The report of `verify`, as text and as JSON.

use std::io::{self, Write};

use jiff::Timestamp;
use serde::Serialize;

use super::saved_request::{Length, SavedRequest};
use crate::{
    cli::output::{count, print_json},
    config::Config,
    event::{Family, Notification},
    http::{Accepted, Endpoint, Rejection},
    provider::{Examination, Verified},
};

/// The report. Its shape is documented in `docs/operations.md`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    file: String,
    pub(super) accepted: bool,
    /// The status of the answer.
    status: u16,
    /// The `answer` label of metrics.
    answer: &'static str,
    /// Why the request is refused.
    pub(super) problems: Vec<Problem>,
    /// When the request came.
    pub(super) checked_at: Timestamp,
    /// How that is known.
    #[serde(skip)]
    clock: &'static str,
    endpoint: Option<String>,
    secret: Option<SecretUsed>,
    signed_at: Option<Timestamp>,
    event: Option<EventReport>,
    /// What is odd, and no reason for a refusal.
    notes: Vec<String>,
}

/// What is wrong, and what to do.
#[derive(Debug, Serialize)]
pub(super) struct Problem {
    message: String,
    help: Option<String>,
}

/// The secret that fits.
#[derive(Clone, Copy, Debug, Serialize)]
struct SecretUsed {
    /// Its place in the configuration, from 1.
    number: usize,
    of: usize,
}

/// The event of the request.
#[derive(Debug, Serialize)]
struct EventReport {
    name: String,
    key: Option<String>,
    /// The phone numbers and extensions that the event is about.
    subjects: Vec<String>,
    occurred_at: Option<Timestamp>,
    ordering: Ordering,
    /// The values by which duplicates are recognized.
    dedupe: Vec<&'static str>,
    /// The handlers that get the event.
    handlers: Vec<String>,
}

/// How many ordering keys an event has.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Ordering {
    /// The event has no order.
    None,
    /// So many keys.
    Keys(usize),
    /// All keys of its scope.
    All,
}

impl Problem {
    pub(super) fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: Some(help.into()),
        }
    }

    /// The text before the last semicolon says what is wrong, the text after it what to do.
    pub(super) fn of(text: &str) -> Self {
        let (message, help) = match text.rsplit_once("; ") {
            Some((message, help)) => (message, Some(help.to_owned())),
            None => (text, None),
        };
        Self {
            message: message.to_owned(),
            help,
        }
    }
}

impl Report {
    pub(super) fn new(file: String, checked_at: Timestamp, clock: &'static str) -> Self {
        Self {
            file,
            accepted: false,
            status: 0,
            answer: "",
            problems: Vec::new(),
            checked_at,
            clock,
            endpoint: None,
            secret: None,
            signed_at: None,
            event: None,
            notes: Vec::new(),
        }
    }

    pub(super) fn accept(&mut self, accepted: &Accepted) {
        self.accepted = true;
        self.status = 200;
        self.answer = accepted.label();
    }

    pub(super) fn reject(&mut self, rejection: &Rejection) {
        self.status = rejection.status().as_u16();
        self.answer = rejection.label();
    }

    pub(super) fn set_endpoint(&mut self, endpoint: &Endpoint, saved: &SavedRequest) {
        self.endpoint = Some(endpoint.name.to_string());
        let path = saved.target.as_ref().map(|target| target.path());
        if let Some(path) = path.filter(|path| *path != endpoint.path) {
            let expected = &endpoint.path;
            self.notes.push(format!(
                "the request has the path {path}, and the endpoint has {expected}"
            ));
        }
        if let Length::Surplus(bytes) = saved.length {
            self.notes.push(format!(
                "the file has {} after the body that `content-length` announces; a server does not take them \
                 for part of it",
                count(bytes as u64, "byte")
            ));
        }
    }

    pub(super) fn add_examination(&mut self, examination: &Examination) {
        self.secret = examination.secret.map(|index| SecretUsed {
            number: index + 1,
            of: examination.secrets,
        });
        self.signed_at = examination.freshness.map(|fresh| fresh.signed_at);
    }

    pub(super) fn add_event(
        &mut self,
        event: Verified,
        examination: &Examination,
        endpoint: &Endpoint,
        config: &Config,
    ) {
        let (notification, ordering_keys) = event.into_parts();
        let Notification {
            name,
            key,
            subjects,
            occurred_at,
            ..
        } = notification;
        let takers = config.handlers.iter();
        let takers = takers.filter(|handler| handler.subscription().takes(&name));
        let handlers = takers.map(|handler| handler.name.to_string()).collect();
        let family = Family::of_event(&name).map(|family| family.name);
        if let Some(family) = family.filter(|family| *family != endpoint.family.name) {
            let expected = endpoint.family.name;
            self.notes.push(format!(
                "the event is of the family {family}, and the endpoint is for {expected}; it is stored and \
                 delivered all the same"
            ));
        }
        self.event = Some(EventReport {
            name: name.to_string(),
            key: key.map(|key| key.to_string()),
            subjects,
            occurred_at,
            ordering: match ordering_keys {
                None => Ordering::None,
                Some(keys) if keys.is_whole() => Ordering::All,
                Some(keys) => Ordering::Keys(keys.keys().len()),
            },
            dedupe: examination.dedupe.clone(),
            handlers,
        });
    }

    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            return print_json(self);
        }
        let mut text = io::stdout().lock();
        let (file, status, answer) = (&self.file, self.status, self.answer);
        let verdict = match self.accepted {
            true => "accepted",
            false => "refused",
        };
        writeln!(text, "{file} would be {verdict}: {status} {answer}")?;
        for Problem { message, help } in &self.problems {
            writeln!(text, "\n{:<11} {message}", "why")?;
            if let Some(help) = help {
                writeln!(text, "{:<11} {help}", "what to do")?;
            }
        }
        writeln!(text)?;
        for (name, value) in self.facts() {
            writeln!(text, "{name:<11} {value}")?;
        }
        Ok(())
    }

    /// What else is known, line by line.
    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = vec![(
            "received",
            format!("{:.0}, {}", self.checked_at, self.clock),
        )];
        let mut add = |name, value: Option<String>| facts.extend(value.map(|value| (name, value)));
        add("endpoint", self.endpoint.clone());
        let secret = |SecretUsed { number, of }| format!("number {number} of {of}");
        add("secret", self.secret.map(secret));
        add("signed", self.signed_at.map(|at| at.to_string()));
        if let Some(event) = &self.event {
            let list = |names: &[String]| match names {
                [] => "none".to_owned(),
                names => names.join(", "),
            };
            add("event", Some(event.name.clone()));
            add("about", Some(list(&event.subjects)));
            add("occurred", event.occurred_at.map(|at| at.to_string()));
            add("key", event.key.clone());
            add("order", Some(event.ordering.to_string()));
            add(
                "duplicates",
                Some(format!("by {}", event.dedupe.join(", "))),
            );
            add("handlers", Some(list(&event.handlers)));
        }
        facts.extend(self.notes.iter().map(|note| ("note", note.clone())));
        facts
    }
}

impl std::fmt::Display for Ordering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("in any order"),
            Self::Keys(keys) => f.write_str(&count(*keys as u64, "ordering key")),
            Self::All => f.write_str("all ordering keys of the scope"),
        }
    }
}
