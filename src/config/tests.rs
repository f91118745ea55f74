use std::{env, fs, path::Path};

use super::*;
use crate::{
    handler::{KINDS, LEFT_OUT},
    store::{self, ENGINES},
};

/// An environment in which everything is set, some of it as the fixtures want it.
fn env(name: &str) -> Option<String> {
    match name {
        "UNSET" => None,
        "EMPTY" => Some(String::new()),
        "PADDED" => Some("a-secret-with-a-line-end\n".to_owned()),
        "NOT_BASE64" => Some("whsec_!!!".to_owned()),
        "CLEAR_STORE_URL" => {
            Some("postgres://me:hunter2@db.example.com/hookswitch?sslmode=disable".to_owned())
        }
        #[cfg(feature = "nats")]
        "NKEY" => nkeys::KeyPair::new_user().seed().ok(),
        "CRM_SIGNING_SECRET" => Some("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned()),
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

const LOG: &str = "[handlers.log]\nkind = \"log\"\nevents = [\"*\"]\n";

/// What a report lists depends on what hookswitch was built with. The lists, behind the words that
/// stand for them in a fixture's report.
fn lists() -> [(&'static str, String); 2] {
    let kinds = KINDS.iter().map(|kind| kind.kind);
    let engines = ENGINES.iter().map(|engine| engine.kind);
    [
        ("{kinds}", wording::list(kinds)),
        ("{engines}", wording::list(engines)),
    ]
}

/// Whether `text` has a handler or a store that this hookswitch was built without.
fn needs_more_features(text: &str) -> bool {
    let is_left_out = |kind: &str| LEFT_OUT.contains(&kind) || store::LEFT_OUT.contains(&kind);
    let mut kinds = text
        .lines()
        .filter_map(|line| line.strip_prefix("kind = \"")?.strip_suffix('"'));
    kinds.any(is_left_out)
}

/// Set `HOOKSWITCH_UPDATE=1` to write the reports anew, with the features that are on by default; then
/// read what changed.
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
        if needs_more_features(&fs::read_to_string(&path).unwrap()) {
            continue;
        }
        cases += 1;
        let report = match load(&path, KINDS, env) {
            Ok(config) if config.warnings.problems().is_empty() => {
                panic!("there is nothing to say of {}", path.display())
            }
            Ok(config) => config.warnings.render(false),
            Err(report) => report.render(false),
        };
        assert!(!report.contains("hunter2"), "a secret got out:\n{report}");
        let expected = path.with_extension("report");
        if update {
            let mut short = report.clone();
            for (word, list) in lists() {
                short = short.replace(&list, word);
            }
            fs::write(&expected, short).unwrap();
        }
        let mut expected = fs::read_to_string(&expected).unwrap_or_default();
        for (word, list) in lists() {
            expected = expected.replace(word, &list);
        }
        if expected != report {
            wrong.push(report);
        }
    }
    assert!(cases >= 20, "only {cases} fixtures were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
#[cfg(not(feature = "kafka"))]
fn a_kind_that_was_left_out_of_the_build_is_told_from_one_that_is_unknown() {
    let handler = "[handlers.bus]\nkind = \"kafka\"\nevents = [\"*\"]\n";
    let report = read(&format!("{SOUND}{handler}")).unwrap_err();
    let report = report.render(false);
    assert!(
        report.contains("built without the kind of handler \"kafka\""),
        "{report}"
    );
    assert!(report.contains("--features kafka"), "{report}");
}

#[test]
fn every_shipped_file_is_sound() {
    for name in ["local", "hookswitch", "container"] {
        let path = format!("config/{name}.toml");
        if needs_more_features(&fs::read_to_string(&path).unwrap()) {
            continue;
        }
        let config = load(Path::new(&path), KINDS, env).unwrap();
        assert_eq!(config.endpoints.len(), 3, "{path}");
        assert_eq!(config.warnings.problems(), [], "{path}");
    }
}

#[test]
#[cfg(feature = "full")]
fn the_shipped_reference_shows_every_default() {
    let config = load(Path::new("config/hookswitch.toml"), KINDS, env).unwrap();
    assert_eq!(config.log, super::Log::default());
    assert_eq!(config.server, http::Settings::default());
    assert_eq!(config.admin.listen, admin::Settings::default().listen);
    let plain = read(&format!("{SOUND}{LOG}")).unwrap();
    let of = |config: &Config| {
        let log = config.handlers.iter();
        let log = log.filter(|handler| handler.name.as_str() == "log");
        log.map(|handler| format!("{:?}", handler.settings))
            .collect::<String>()
    };
    assert_eq!(of(&config), of(&plain));
}

/// The keys are asked for, not listed here, so that a new one cannot be forgotten.
#[test]
fn the_shipped_reference_names_every_key() {
    let reference = fs::read_to_string("config/hookswitch.toml").unwrap();
    let mut keys = 0;
    for (section, whole) in [
        ("log", String::new()),
        ("server", String::new()),
        ("server.tls", String::new()),
        ("admin", String::new()),
        ("store", "kind = \"embedded\"\n".to_owned()),
        (
            "endpoints.x",
            "family = \"zoom.number-management\"\n".to_owned(),
        ),
        (
            "endpoints.x",
            "family = \"ringcentral.phone-number\"\n".to_owned(),
        ),
        ("handlers.x.retry", String::new()),
    ] {
        let text = format!("[handlers.x]\nkind = \"log\"\n[{section}]\n{whole}zzzzzzzzzzzz = 1\n");
        let text = text.replace("[handlers.x]\nkind = \"log\"\n[endpoints", "[endpoints");
        let report = read(&text).unwrap_err();
        let unknown = report
            .problems()
            .iter()
            .find(|problem| problem.message.contains("zzzzzzzzzzzz"));
        let help = unknown.and_then(|problem| problem.help.clone());
        let help = help.unwrap_or_else(|| panic!("nothing said of [{section}]: {report}"));
        for key in help.split('`').skip(1).step_by(2) {
            let is_named = reference
                .lines()
                .any(|line| line.contains(&format!("{key} =")));
            assert!(is_named, "`{key}` of [{section}] is not in the reference");
            keys += 1;
        }
    }
    for key in dispatch::Settings::KEYS {
        assert!(
            reference.contains(&format!("{key} =")),
            "`{key}` is not in the reference"
        );
    }
    assert!(keys > 20, "only {keys} keys were found");
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = read(SOUND).unwrap();
    assert_eq!(config.log, super::Log::default());
    assert_eq!(config.server, http::Settings::default());
    assert!(config.handlers.is_empty());
}

#[test]
fn how_many_deliveries_are_under_way_is_up_to_the_file_and_else_to_the_kind() {
    let file = "kind = \"file\"\nevents = [\"*\"]\npath = ";
    let text =
        format!("{LOG}[handlers.a]\n{file}\"a\"\n[handlers.b]\n{file}\"b\"\nconcurrency = 3\n");
    let handlers = read(&format!("{SOUND}{text}")).unwrap().handlers;
    let concurrency = handlers
        .iter()
        .map(|handler| handler.settings.concurrency.get());
    assert_eq!(concurrency.collect::<Vec<_>>(), [8, 64, 3]);
}

#[test]
fn endpoints_and_handlers_keep_the_order_of_the_file() {
    let text = format!(
        "{SOUND}{LOG}[endpoints.a]\nfamily = \"ringcentral.phone-number\"\npath = \"/a\"\n\
         verification_tokens = [\"local\"]\n[handlers.a]\nkind = \"log\"\nevents = [\"zoom.*\"]\n"
    );
    let config = read(&text).unwrap();
    let endpoints: Vec<_> = config
        .endpoints
        .iter()
        .map(|endpoint| endpoint.name.as_str())
        .collect();
    let handlers: Vec<_> = config
        .handlers
        .iter()
        .map(|handler| handler.name.as_str())
        .collect();
    assert_eq!(
        (endpoints, handlers),
        (vec!["numbers", "a"], vec!["log", "a"])
    );
}

#[test]
fn a_file_that_is_not_there_or_is_no_text_has_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hookswitch.toml");
    let report = load(&path, KINDS, env).unwrap_err().to_string();
    assert!(report.contains("cannot be read: No such file"), "{report}");
    fs::write(&path, b"[log]\n# \xff").unwrap();
    let report = load(&path, KINDS, env).unwrap_err().to_string();
    assert!(report.contains("not UTF-8 text: byte 8"), "{report}");
}

#[test]
fn what_cannot_change_while_running_is_named() {
    let fixed = |text: &str| read(text).unwrap().fixed;
    let before = fixed(&format!("{SOUND}{LOG}"));
    let changes = |text: &str| before.changes(&fixed(text));
    assert_eq!(
        changes(&format!("# Moved down a line.\n{SOUND}{LOG}")),
        [""; 0]
    );
    assert_eq!(changes(SOUND), [""; 0], "handlers come and go");
    let limits = "[server]\nmax_connections = 9\n[admin]\nlisten = \"127.0.0.1:2\"\n";
    assert_eq!(
        changes(&format!("{limits}{SOUND}")),
        ["[server]", "[admin]"]
    );
    let quiet = format!("[log]\nfilter = \"warn\"\n{SOUND}");
    assert_eq!(changes(&quiet), ["[log]"]);
    let store = SOUND.replace("\"data\"", "\"elsewhere\"");
    assert_eq!(changes(&store), ["[store]"]);
}

/// Whatever stands in a file, reading it ends, and its report can be rendered.
#[test]
fn a_file_cut_anywhere_has_a_report() {
    for name in ["several-problems", "secret-forms", "syntax", "names"] {
        let text = fs::read_to_string(format!("fixtures/config/{name}.toml")).unwrap();
        for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
            let report = read(&text[..end]).unwrap_err().to_string();
            assert!(report.contains("error: "), "{report}");
            assert!(!report.contains("\"hunt"), "a secret got out:\n{report}");
        }
    }
}

/// Each line is wrong in another way, and none may show the secret.
#[test]
fn a_secret_is_shown_by_no_report() {
    for line in [
        "secret_tokens = [\"hunter2\"",
        "secret_tokens = [\"hunter2]",
        "secret_tokens = [hunter2]",
        "secret_tokens = hunter2",
        "secret_tokens : \"hunter2\"",
        "secret_tokens \"hunter2\"",
        "secret_tokens = \"\"\"hunter2\"",
        "secret_tokens = [\n  \"hunter2\",\n  \"hunter2\n]",
        "secret_tokens = \"hunter2\" # = [\"hunter2\"]",
        "secret_tokns \"hunter2\"",
        "secret_tokens = [[\"hunter2\"]]",
        "secret_tokens = [{ env = [\"hunter2\"] }]",
        "secret_tokens = [{ value = \"hunter2\" }]",
        "secret_tokens = { token = \"hunter2\" }",
        "sekrit = \"hunter2\"",
        "require = { bearer = \"hunter2\" }",
        "require = { bearer = { token = [\"hunter2\"] } }",
        "require = { bearr = { x = \"hunter2\" } }",
        "require = { header = { name = \"a b\", value = \"hunter2\" } }",
        "require = \"hunter2\"",
    ] {
        let text =
            format!("[endpoints.a]\nfamily = \"zoom.number-management\"\npath = 1\n{line}\n");
        let report = read(&text).unwrap_err().to_string();
        assert!(!report.contains("hunter2"), "{line}\n{report}");
    }
}

#[test]
fn a_password_or_token_in_a_url_is_shown_by_no_report() {
    let url = "https://me:hunter2@crm.example.com/hooks?key=hunter2";
    let handler = format!("{{ kind = \"http\", events = [\"teams\"], url = \"{url}\" }}");
    let text = format!("handlers.crm = {handler}\n{SOUND}");
    let report = read(&text).unwrap_err().to_string();
    assert!(report.contains("@crm.example.com/hooks?"), "{report}");
    assert!(!report.contains("hunter2"), "{report}");
}

/// As the fixture of this has it for absolute paths.
#[test]
fn one_file_is_one_whether_its_path_begins_here_or_at_the_root() {
    let here = env::current_dir().unwrap().join("nonexistent/x.ndjson");
    let handler = |name: &str, path: &Path| {
        format!("[handlers.{name}]\nkind = \"file\"\nevents = [\"*\"]\npath = {path:?}\n")
    };
    let first = handler("first", Path::new("nonexistent/x.ndjson"));
    let report = read(&format!("{SOUND}{first}{}", handler("second", &here))).unwrap_err();
    let report = report.to_string();
    assert!(report.contains("two handlers write to /"), "{report}");
    let other = handler("second", Path::new("nonexistent/y.ndjson"));
    assert!(read(&format!("{SOUND}{first}{other}")).is_ok());
}

#[test]
fn color_is_for_those_who_ask() {
    let report = read("").unwrap_err();
    assert!(!report.render(false).contains('\x1b'));
    assert!(report.render(true).contains('\x1b'));
}

#[test]
fn a_problem_reported_by_a_reader_of_lists_points_at_the_item() {
    let text = format!("{SOUND}{}", LOG.replace("\"*\"", "\"zoom.*\", \"teams.*\""));
    let report = read(&text).unwrap_err();
    let places: Vec<_> = report
        .problems()
        .iter()
        .filter_map(|problem| problem.place.clone())
        .collect();
    assert_eq!(places.len(), 1);
    assert_eq!(&text[places[0].clone()], "\"teams.*\"");
}
