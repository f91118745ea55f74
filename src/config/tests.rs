use std::{collections::BTreeMap, env, fs, path::Path, time::Duration};

use serde::Deserialize;

use super::*;
use crate::{
    handler::{AnyEvent, BuildContext, BuildError, Delivery, Handler, HandlerKind, Kind, Outcome},
    quantity,
    secret::Secret,
};

/// Kinds with settings of every sort, and no effect.
const KINDS: &[Kind] = &[
    Kind::of::<Log>(),
    Kind::of::<File>(),
    Kind::of::<Http>(),
    Kind::of::<Exec>(),
];

struct Deaf;

impl Handler for Deaf {
    type Event = AnyEvent;

    async fn handle(&self, _: Delivery<'_, AnyEvent>) -> Outcome {
        Outcome::Done
    }
}

macro_rules! kind {
    ($kind:ident, $name:literal, $example:literal, { $($(#[$meta:meta])* $field:ident: $type:ty,)* }) => {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "these settings are read and have no effect")]
        struct $kind { $($(#[$meta])* $field: $type,)* }

        impl HandlerKind for $kind {
            const KIND: &'static str = $name;
            const EXAMPLE: &'static str = $example;
            type Handler = Deaf;

            fn build(self, context: &BuildContext) -> Result<Deaf, BuildError> {
                match context.name.as_str() {
                    "unbuildable" => Err(BuildError("it cannot work; change it".to_owned())),
                    _ => Ok(Deaf),
                }
            }
        }
    };
}

kind!(Log, "log", "[handlers.log]\nkind = \"log\"\nevents = [\"*\"]", {
    #[serde(default)]
    mask: Option<bool>,
});
kind!(File, "file", "[handlers.archive]\nkind = \"file\"\nevents = [\"*\"]\npath = \"data/events.ndjson\"", {
    path: std::path::PathBuf,
    sync: Option<bool>,
    rotate: Option<Rotate>,
});
kind!(Http, "http", "[handlers.crm]\nkind = \"http\"\nevents = [\"*\"]\nurl = \"https://crm.example.com/hooks\"", {
    url: String,
    format: Option<Format>,
    signing_secret: Option<Secret>,
    headers: Option<BTreeMap<String, Secret>>,
    #[serde(default, with = "quantity::duration")]
    connect_timeout: Duration,
});
kind!(Exec, "exec", "[handlers.script]\nkind = \"exec\"\nevents = [\"*\"]\ncommand = [\"/usr/local/bin/on-event\"]", {
    command: Vec<String>,
    env: Option<BTreeMap<String, String>>,
    working_directory: Option<std::path::PathBuf>,
});

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Format {
    Structured,
    Binary,
    Raw,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[expect(dead_code, reason = "these settings are read and have no effect")]
enum Rotate {
    #[serde(rename = "size")]
    Size(String),
    #[serde(rename = "every")]
    Every(String),
}

/// An environment in which everything is set but the two variables that the fixtures want otherwise.
fn env(name: &str) -> Option<String> {
    match name {
        "UNSET" => None,
        "EMPTY" => Some(String::new()),
        "PADDED" => Some("a-secret-with-a-line-end\n".to_owned()),
        _ => Some("a-secret-of-the-environment".to_owned()),
    }
}

fn read(text: &str) -> Result<Config, Report> {
    parse(Path::new("hookswitch.toml"), text, KINDS, env)
}

const SOUND: &str = r#"
[store]
kind = "embedded"
path = "data"

[endpoints.numbers]
family = "zoom.number-management"
path = "/zoom"
secret_tokens = [{ env = "ZOOM" }]
"#;

/// Set `HOOKSWITCH_UPDATE=1` to write the reports anew; then read what changed.
#[test]
fn every_fixture_gets_exactly_its_report() {
    let update = env::var_os("HOOKSWITCH_UPDATE").is_some();
    let mut cases = 0;
    let mut wrong = Vec::new();
    for entry in fs::read_dir("fixtures/config").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        cases += 1;
        let report = match load(&path, KINDS, env) {
            Ok(_) => panic!("{} is sound", path.display()),
            Err(report) => report.render(false),
        };
        assert!(!report.contains("hunter2"), "a secret got out:\n{report}");
        let expected = path.with_extension("report");
        if update {
            fs::write(&expected, &report).unwrap();
        }
        if fs::read_to_string(&expected).unwrap_or_default() != report {
            wrong.push(report);
        }
    }
    assert!(cases >= 20, "only {cases} fixtures were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_sound_file_is_read() {
    let config = read(SOUND).unwrap();
    assert_eq!(config.server, http::Settings::default());
    assert_eq!(config.endpoints.len(), 1);
}
