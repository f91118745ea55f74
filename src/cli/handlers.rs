//! `handlers list` and `handlers describe`: the kinds of handlers, as the schema describes their settings.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use anyhow::bail;
use serde_json::Value;

use super::{Exit, audit, parked};
use crate::{
    app, config, dispatch,
    event::HandlerName,
    handler::{self, LEFT_OUT},
    store::{Action, Operator},
};

/// The width of a line, in characters.
const WIDTH: usize = 100;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the kinds of handlers
    List,
    /// Describe the settings of a kind of handler, with an example
    Describe(Describe),
    /// Have a handler begin no attempt, on every replica and over restarts; its events are stored and
    /// wait
    Pause(Pause),
    /// Have a paused handler go on
    Resume(Pause),
}

#[derive(Debug, clap::Args)]
pub(super) struct Pause {
    /// The handler's name in the configuration
    name: String,
    /// The reason, for the audit log
    #[arg(long, default_value = "by hand")]
    reason: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct Describe {
    /// The kind, such as `http`
    kind: String,

    /// The form of the description
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Format {
    /// Text for a terminal
    #[default]
    Text,
    /// A commented table for a configuration
    Toml,
    /// A section of a document
    Markdown,
}

/// `operator` opens the store, which the kinds do not need.
pub(super) fn run(
    command: &Command,
    builder: &app::Builder,
    operator: impl FnOnce() -> anyhow::Result<Box<dyn Operator>>,
) -> anyhow::Result<Exit> {
    let kinds = builder.kinds();
    let text = match command {
        Command::List => list(kinds),
        Command::Describe(args) => describe(kinds, args)?,
        Command::Pause(args) => set_paused(args, Action::Pause, &mut *operator()?)?,
        Command::Resume(args) => set_paused(args, Action::Resume, &mut *operator()?)?,
    };
    write!(io::stdout().lock(), "{text}")?;
    Ok(Exit::Success)
}

/// Pauses or resumes a handler. A running service obeys within a second.
fn set_paused(args: &Pause, action: Action, operator: &mut dyn Operator) -> anyhow::Result<String> {
    let name = &args.name;
    parked::handler(operator, Some(name))?;
    let entry = audit::entry(action, name.clone(), &args.reason);
    let changed = operator.set_paused(&HandlerName::from(name.as_str()), &entry)?;
    Ok(match (action, changed) {
        (Action::Pause, true) => format!("{name} is paused; its events are stored and wait\n"),
        (Action::Pause, false) => format!("{name} is paused already\n"),
        (_, true) => format!("{name} goes on\n"),
        (_, false) => format!("{name} is not paused\n"),
    })
}

fn list(kinds: &[handler::Kind]) -> String {
    let schema = config::schema(kinds);
    let mut text = String::new();
    for kind in kinds {
        let reference = Reference::new(kind, &schema);
        text += &format!("{:6}  {}\n", kind.kind, reference.summary());
    }
    for kind in LEFT_OUT {
        text += &format!("{kind:6}  Not in this build. {}\n", how_to_build(kind));
    }
    text
}

fn how_to_build(kind: &str) -> String {
    format!("Build one with `cargo build --release --features {kind}`.")
}

fn describe(kinds: &[handler::Kind], args: &Describe) -> anyhow::Result<String> {
    if LEFT_OUT.contains(&args.kind.as_str()) {
        let how = how_to_build(&args.kind);
        bail!("the kind {:?} is not in this build. {how}", args.kind);
    }
    let Some(kind) = kinds.iter().find(|kind| kind.kind == args.kind) else {
        let known: Vec<_> = kinds.iter().map(|kind| kind.kind).collect();
        let known = known.join(", ");
        bail!("there is no kind {:?}; there are {known}", args.kind);
    };
    let schema = config::schema(kinds);
    let reference = Reference::new(kind, &schema);
    Ok(match args.format {
        Format::Text => reference.text(),
        Format::Toml => reference.toml(),
        Format::Markdown => reference.markdown(),
    })
}

/// The reference of one kind.
struct Reference {
    description: String,
    example: &'static str,
    /// In the order of the example.
    keys: Vec<Key>,
}

/// A key of the table, or of a table within it.
struct Key {
    /// The path of the key, such as `tls.ca`.
    name: String,
    description: String,
    is_required: bool,
    /// The default, as TOML writes it.
    default: Option<String>,
}

impl Reference {
    /// Reads the reference of `kind` from the schema of the configuration.
    fn new(kind: &handler::Kind, schema: &Value) -> Self {
        let handlers = schema.pointer("/properties/handlers/additionalProperties/oneOf");
        let mut handlers = handlers.and_then(Value::as_array).into_iter().flatten();
        let name = |table: &Value| table.pointer("/properties/kind/const").cloned();
        let table = handlers.find(|table| name(table).is_some_and(|name| name == kind.kind));
        let table = table.cloned().unwrap_or_default();
        let mut keys = Vec::new();
        add_keys(&table, "", schema, &mut keys);
        keys.retain(|key| key.name != "kind");
        let mut reference = Self {
            description: text(&table),
            example: kind.example.trim(),
            keys,
        };
        reference.sort_as_in_the_example();
        reference
    }

    /// Sorts the keys as in the example. Those that every handler has come last.
    fn sort_as_in_the_example(&mut self) {
        let shown = self.example.lines().filter_map(key_of);
        let own = shown.filter(|key| !dispatch::Settings::KEYS.contains(key));
        let order: Vec<_> = own
            .chain(dispatch::Settings::KEYS.iter().copied())
            .collect();
        self.keys
            .sort_by_key(|key| order.iter().position(|name| *name == key.outer()));
    }

    /// The first sentence.
    fn summary(&self) -> &str {
        let first = self.description.lines().next();
        first
            .filter(|first| !first.is_empty())
            .unwrap_or("A kind of this program's own.")
    }

    fn text(&self) -> String {
        let mut text = self.paragraphs();
        for key in &self.keys {
            let note = key.note().map(|note| format!(" ({note})"));
            text += &format!("\n  {}{}\n", key.name, note.unwrap_or_default());
            text += &wrapped(&key.description, "      ");
        }
        text + "\nFor example:\n\n" + self.example + "\n"
    }

    /// The description, with a blank line between paragraphs.
    fn paragraphs(&self) -> String {
        let paragraphs = self.description.lines();
        let paragraphs = paragraphs.map(|paragraph| wrapped(paragraph, ""));
        paragraphs.collect::<Vec<_>>().join("\n")
    }

    /// The example, with the description of each key above its line. The keys that every handler has
    /// are described where the example shows more of them than `events`.
    fn toml(&self) -> String {
        let mut text = wrapped(&self.description, "# ");
        let shows_common = self.example.contains("\nretry = ");
        let mut previous = None;
        for line in self.example.lines() {
            let shown = key_of(line).filter(|shown| previous != Some(*shown));
            let keys = self
                .keys
                .iter()
                .filter(|key| Some(key.name.as_str()) == shown);
            for key in keys.filter(|key| shows_common || !key.is_common()) {
                let note = key.note().filter(|_| !key.default_is_shown(line));
                let note = note.map(|note| format!(" {}.", capitalized(&note)));
                let comment = format!("{}{}", key.description, note.unwrap_or_default());
                text += &wrapped(&comment, "# ");
            }
            previous = key_of(line).or(previous);
            text += line;
            text.push('\n');
        }
        text
    }

    fn markdown(&self) -> String {
        let mut text = self.paragraphs();
        text += "\n| key | default | meaning |\n|---|---|---|\n";
        for key in self.keys.iter().filter(|key| !key.is_common()) {
            let default = match (&key.default, key.is_required) {
                (_, true) => "required".to_owned(),
                (Some(default), _) => format!("`{default}`"),
                (None, false) => String::new(),
            };
            let description = key.description.replace('\n', " ").replace('|', "\\|");
            // Writing to a text cannot fail.
            writeln!(text, "| `{}` | {default} | {description} |", key.name).ok();
        }
        text
    }
}

impl Key {
    /// The key of the table itself that this key is, or is within.
    fn outer(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }

    /// Whether every handler has this key.
    fn is_common(&self) -> bool {
        dispatch::Settings::KEYS.contains(&self.outer())
    }

    fn note(&self) -> Option<String> {
        match &self.default {
            _ if self.is_required => Some("required".to_owned()),
            Some(default) => Some(format!("default: {default}")),
            None => None,
        }
    }

    fn default_is_shown(&self, line: &str) -> bool {
        let default = self.default.as_deref();
        default.is_some_and(|default| line == format!("{} = {default}", self.name))
    }
}

/// Adds the keys of `table`, with `prefix` before their names.
fn add_keys(table: &Value, prefix: &str, root: &Value, keys: &mut Vec<Key>) {
    let required = table.get("required").and_then(Value::as_array);
    let properties = table.get("properties").and_then(Value::as_object);
    for (name, schema) in properties.into_iter().flatten() {
        let is_required = required.is_some_and(|required| required.iter().any(|key| key == name));
        let name = format!("{prefix}{name}");
        keys.push(Key {
            description: text(schema),
            is_required: is_required && prefix.is_empty(),
            default: schema.get("default").and_then(toml_of),
            name: name.clone(),
        });
        if let Some(inner) = inner_table(schema, root) {
            add_keys(inner, &format!("{name}."), root, keys);
        }
    }
}

/// The table that `schema` refers to, if it is one of fixed keys. A secret is none.
fn inner_table<'a>(schema: &'a Value, root: &'a Value) -> Option<&'a Value> {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        return inner_table(root.pointer(reference.strip_prefix('#')?)?, root);
    }
    if schema.get("properties").is_some_and(Value::is_object) {
        return Some(schema);
    }
    let choices = ["allOf", "anyOf"]
        .iter()
        .filter_map(|key| schema.get(key)?.as_array());
    let mut tables = choices
        .flatten()
        .filter(|choice| choice.get("$ref").is_some());
    tables.find_map(|choice| inner_table(choice, root))
}

/// The key that a line of TOML sets, also in a comment.
fn key_of(line: &str) -> Option<&str> {
    let line = line.strip_prefix("# ").unwrap_or(line);
    let (key, _) = line.split_once(" = ")?;
    let is_key = key
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    is_key.then_some(key)
}

/// A default as TOML writes it.
fn toml_of(default: &Value) -> Option<String> {
    match default {
        // The keys of a table have defaults of their own.
        Value::Null | Value::Array(_) | Value::Object(_) => None,
        Value::String(text) => Some(format!("{text:?}")),
        other => Some(other.to_string()),
    }
}

/// The paragraphs of a schema's description, one a line.
fn text(schema: &Value) -> String {
    let description = schema.get("description").and_then(Value::as_str);
    let paragraphs = description.unwrap_or_default().split("\n\n");
    let paragraphs = paragraphs.map(|paragraph| paragraph.replace('\n', " "));
    paragraphs.collect::<Vec<_>>().join("\n")
}

/// `text` in lines that begin with `prefix`.
fn wrapped(text: &str, prefix: &str) -> String {
    let mut lines = String::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            let length = prefix.len() + line.chars().count() + 1 + word.chars().count();
            if !line.is_empty() && length > WIDTH {
                lines += &format!("{prefix}{line}\n");
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line += word;
        }
        lines += &format!("{prefix}{line}\n");
    }
    lines
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(characters).collect()
}
