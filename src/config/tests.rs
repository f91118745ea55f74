use std::{collections::BTreeSet, env, fs, path::Path, time::Duration};

use super::*;
use crate::{
    event::families,
    handler::{KINDS, LEFT_OUT},
    provider::PROVIDERS,
    store::{self, ENGINES},
};

/// An environment in which everything is set, some of it as the fixtures want it.
fn env(name: &str) -> Option<String> {
    match name {
        "UNSET" => None,
        "EMPTY" => Some(String::new()),
        "PADDED" => Some("a-secret-with-a-line-end\n".to_owned()),
        "NOT_BASE64" => Some("a-text-of-our-own".to_owned()),
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

/// The lists of a report, each with its placeholder in a fixture's report. They depend on the features
/// of the build, and grow with each new entry.
fn lists() -> [(&'static str, String); 3] {
    let kinds = KINDS.iter().map(|kind| kind.kind);
    let families = families().map(|family| family.name);
    let engines = ENGINES.iter().map(|engine| engine.kind);
    [
        ("{kinds}", diagnostics::list(kinds)),
        ("{families}", diagnostics::list(families)),
        ("{engines}", diagnostics::list(engines)),
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
        assert_eq!(config.endpoints.len(), families().count(), "{path}");
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

/// The keys that the report for `text` lists: `text` has an unknown key that is like no other.
fn known_keys(text: &str) -> Vec<String> {
    let report = read(text).unwrap_err();
    let mut problems = report.problems().iter();
    let unknown = problems.find(|problem| problem.message.contains("zzzzzzzzzzzz"));
    let help = unknown.and_then(|problem| problem.help.as_deref());
    let help = help.unwrap_or_else(|| panic!("no keys are listed for\n{text}\n{report}"));
    let keys = help.split('`').skip(1).step_by(2);
    keys.map(str::to_owned).collect()
}

/// The lines of the reference that show the table of `entry`, comments included: from the header
/// above the line with `entry` to the next header.
fn shown(reference: &str, entry: &str) -> String {
    let lines: Vec<_> = reference
        .lines()
        .map(|line| line.trim_start_matches(['#', ' ']))
        .collect();
    let at = lines.iter().position(|line| line.starts_with(entry));
    let at = at.unwrap_or_else(|| panic!("the reference does not show {entry}"));
    let is_header = |line: &&str| line.starts_with('[');
    let start = lines[..=at].iter().rposition(is_header).unwrap();
    let length = lines[start + 1..].iter().position(is_header);
    let end = length.map_or(lines.len(), |length| start + 1 + length);
    lines[start..end].join("\n")
}

/// The keys are asked for, not listed here, so that a new one cannot be forgotten.
#[test]
fn the_shipped_reference_names_every_key() {
    let reference = fs::read_to_string("config/hookswitch.toml").unwrap();
    let mut missing = Vec::new();
    let mut require = |table: &str, entry: &str, keys: Vec<String>| {
        let shown = shown(&reference, entry);
        let is_shown = |key: &String| {
            let entry = format!("{key} =");
            let mut places = shown.match_indices(&entry).map(|(at, _)| at);
            let is_within_a_word =
                |at| shown[..at].ends_with(|c: char| c == '_' || c.is_alphanumeric());
            let is_dotted = shown.contains(&format!("\n{key}."));
            is_dotted || places.any(|at| !is_within_a_word(at))
        };
        assert!(!keys.is_empty(), "{table} has no keys");
        let keys = keys.into_iter().filter(|key| !is_shown(key));
        missing.extend(keys.map(|key| format!("{key} of {table}")));
    };
    for section in ["log", "server", "admin"] {
        let header = format!("[{section}]");
        let keys = known_keys(&format!("{header}\nzzzzzzzzzzzz = 1\n"));
        require(&header, &header, keys);
    }
    for engine in ENGINES {
        let kind = format!("kind = {:?}", engine.kind);
        let keys = known_keys(&format!("[store]\n{kind}\nzzzzzzzzzzzz = 1\n"));
        require(&format!("[store] with {kind}"), &kind, keys);
    }
    for provider in PROVIDERS {
        let mut families = families().filter(|family| family.provider() == provider.kind);
        let family = families.next().expect("the provider has a family");
        let family = format!("family = {:?}", family.name);
        let keys = known_keys(&format!("[endpoints.x]\n{family}\nzzzzzzzzzzzz = 1\n"));
        require(&format!("[endpoints] with {family}"), &family, keys);
    }
    for handler in KINDS {
        let kind = format!("kind = {:?}", handler.kind);
        let mut keys = known_keys(&format!("[handlers.x]\n{kind}\nzzzzzzzzzzzz = 1\n"));
        // The first handler of the reference shows the keys that every handler has.
        if handler.kind != "log" {
            keys.retain(|key| !dispatch::Settings::KEYS.contains(&key.as_str()));
        }
        require(&format!("[handlers] with {kind}"), &kind, keys);
    }
    // A table inside a table, below a header that takes the unknown key.
    for (table, entry) in [
        ("[server.tls]", "tls = "),
        (
            "[handlers.x]\nkind = \"log\"\n[handlers.x.retry]",
            "retry = ",
        ),
        (
            "[handlers.x]\nkind = \"http\"\n[handlers.x.tls]",
            "tls = { ca",
        ),
        (
            "[handlers.x]\nkind = \"redis\"\n[handlers.x.wait]",
            "wait = ",
        ),
        (
            "[handlers.x]\nkind = \"nats\"\n[handlers.x.auth]",
            "auth = ",
        ),
        (
            "[handlers.x]\nkind = \"nats\"\n[handlers.x.auth.user]",
            "auth = ",
        ),
    ] {
        if !needs_more_features(table) {
            require(
                table,
                entry,
                known_keys(&format!("{table}\nzzzzzzzzzzzz = 1\n")),
            );
        }
    }
    assert!(missing.is_empty(), "not in the reference: {missing:#?}");
}

/// The keys of the table of `schema` whose property `tag` allows `name`.
fn schema_keys(tables: &serde_json::Value, tag: &str, name: &str) -> BTreeSet<String> {
    let mut tables = tables["oneOf"].as_array().unwrap().iter();
    let table = tables.find(|table| {
        let tag = &table["properties"][tag];
        let choices = tag["enum"].as_array();
        tag["const"] == name || choices.is_some_and(|choices| choices.iter().any(|one| one == name))
    });
    let keys = table.unwrap_or_else(|| panic!("the schema lacks {name}"))["properties"].as_object();
    keys.unwrap().keys().cloned().collect()
}

#[test]
fn the_schema_has_the_keys_that_are_read() {
    let schema = schema(KINDS);
    let known = |table: &str| -> BTreeSet<String> {
        known_keys(&format!("{table}\nzzzzzzzzzzzz = 1\n"))
            .into_iter()
            .collect()
    };
    let check = |keys: BTreeSet<String>, table: &str| assert_eq!(keys, known(table), "{table}");
    let sections = &schema["properties"];
    for section in ["log", "server", "admin"] {
        let keys = sections[section]["properties"].as_object().unwrap().keys();
        let keys: BTreeSet<_> = keys.cloned().collect();
        check(keys, &format!("[{section}]"));
    }
    for engine in ENGINES {
        let keys = schema_keys(&sections["store"], "kind", engine.kind);
        check(keys, &format!("[store]\nkind = {:?}", engine.kind));
    }
    for family in families() {
        let endpoints = &sections["endpoints"]["additionalProperties"];
        let keys = schema_keys(endpoints, "family", family.name);
        check(keys, &format!("[endpoints.x]\nfamily = {:?}", family.name));
    }
    for handler in KINDS {
        let handlers = &sections["handlers"]["additionalProperties"];
        let keys = schema_keys(handlers, "kind", handler.kind);
        check(keys, &format!("[handlers.x]\nkind = {:?}", handler.kind));
    }
}

/// The defaults are written out here, since a default that changes changes what a user's file means.
#[test]
fn what_is_left_out_has_its_default() {
    let config = read(SOUND).unwrap();
    assert_eq!(config.log.format, LogFormat::Text);
    assert_eq!(config.log.filter, "info");
    let seconds = Duration::from_secs;
    let server = http::Settings {
        listen: "127.0.0.1:8080".parse().unwrap(),
        tls: None,
        max_connections: 1024,
        max_in_flight: 512,
        max_body: 1 << 20,
        body_memory: 16 << 20,
        first_byte_timeout: seconds(10),
        head_timeout: seconds(30),
        body_timeout: seconds(3),
        drain_timeout: seconds(10),
    };
    assert_eq!(config.server, server);
    assert_eq!(config.admin.listen, "127.0.0.1:9090".parse().unwrap());
    assert!(config.admin.token.is_none());
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
fn a_change_that_requires_a_restart_is_named() {
    let of = |text: &str| read(text).unwrap().restart_required;
    let before = of(&format!("{SOUND}{LOG}"));
    let changes = |text: &str| before.changes(&of(text));
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

#[test]
fn the_hash_is_of_what_the_file_says_and_not_of_its_secrets() {
    let of = |text: &str| read(text).unwrap().hash;
    let crm = |url: &str| {
        format!("[handlers.crm]\nkind = \"http\"\nevents = [\"*\"]\nurl = \"{url}\"\n{SOUND}")
    };
    let before = of(SOUND);
    assert!(before > 0 && before < 1 << 48, "{before}");
    let (store, rest) = SOUND.split_once("\n\n").unwrap();
    let moved = format!("# A remark.\n{rest}\n{}", store.replace(" = ", "="));
    assert_eq!(of(&moved), before);
    assert_ne!(of(&format!("{SOUND}{LOG}")), before);
    assert_ne!(of(&SOUND.replace("\"ZOOM\"", "\"ZOOM_NEW\"")), before);

    let inline = |secret: &str| of(&SOUND.replace("{ env = \"ZOOM\" }", secret));
    assert_ne!(inline("\"hunter2\""), before);
    assert_eq!(inline("\"hunter2\""), inline("\"another secret\""));
    assert_ne!(inline("\"hunter2\""), inline("\"hunter2\", \"hunter3\""));
    let url = |user: &str, query: &str| of(&crm(&format!("https://{user}crm.invalid/{query}")));
    assert_eq!(
        url("me:hunter2@", "?token=a"),
        url("you:x@", "?token=hunter2")
    );
    assert_ne!(url("me:hunter2@", ""), url("me:hunter2@", "elsewhere"));
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
        "require = [\"hunter2\"]",
        "require = { basic = { username = [\"hunter2\"] } }",
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

#[test]
fn a_file_is_checked_for_its_form_where_nothing_that_it_refers_to_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hookswitch.toml");
    let check = |text: &str| {
        fs::write(&path, text).unwrap();
        check_form(&path, KINDS)
    };
    let nothing_there = r#"
[server]
listen = "0.0.0.0:443"
tls = { certificate = "/nonexistent/server.pem", key = "/nonexistent/server-key.pem" }
[store]
kind = "embedded"
path = "/dev/null/store"
[endpoints.zoom]
family = "zoom.number-management"
path = "/zoom"
secret_tokens = [{ file = "/nonexistent/zoom" }, { env = "UNSET" }]
[handlers.crm]
kind = "http"
events = ["*"]
url = { env = "UNSET" }
signing_secret = { env = "UNSET" }
tls = { certificate = "/nonexistent/crm.pem", key = "/nonexistent/crm-key.pem" }
[handlers.provision]
kind = "exec"
events = ["*"]
command = ["/nonexistent/provision"]
environment = { KEY = { env = "UNSET" } }
"#;
    assert_eq!(check(nothing_there).problems(), []);
    for (right, wrong, why) in [
        ("url = {", "ulr = {", "unknown key `ulr`"),
        (
            "{ env = \"UNSET\" }]",
            "{ env = 1 }]",
            "`secret_tokens.env` must be",
        ),
        ("{ env = \"UNSET\" }]", "{ env = \"\" }]", "needs a place"),
        (
            "{ env = \"UNSET\" }]",
            "\"hunter2\"]",
            "a secret stands in the file",
        ),
        ("{ env = \"UNSET\" }]", "{ evn = \"UNSET\" }]", "evn"),
        (
            "[{ file = \"/nonexistent/zoom\" }, { env = \"UNSET\" }]",
            "[]",
            "at least one secret",
        ),
        (
            "\"/nonexistent/provision\"",
            "\"./provision\"",
            "write its whole path",
        ),
    ] {
        let report = check(&nothing_there.replacen(right, wrong, 1));
        assert!(!report.is_sound(), "{wrong}");
        let report = report.render(false);
        assert!(
            report.contains(why) && report.ends_with(": 1 problem\n"),
            "{report}"
        );
        assert!(!report.contains("hunter2"), "{report}");
    }
    assert!(!check_form(&path.with_extension("lost"), KINDS).is_sound());
    assert!(
        read(nothing_there).is_err(),
        "the next read reads everything"
    );
}

#[test]
fn a_place_is_a_line_and_a_character() {
    let report = read("# ä\n[log] # ä").unwrap_err();
    let at = |line, column| Location { line, column };
    assert_eq!(report.location(0), at(1, 1));
    assert_eq!(report.location("# ä".len()), at(1, 4));
    assert_eq!(report.location("# ä\n[log] # ä".len()), at(2, 10));
}

/// The fixtures hold no key, so this makes its own.
#[test]
fn a_certificate_that_its_key_does_not_fit_is_a_problem_at_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let make = || rcgen::generate_simple_self_signed(["hooks.example".to_owned()]).unwrap();
    let (made, other) = (make(), make());
    let write = |name: &str, content: String| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let certificate = &write("server.pem", made.cert.pem());
    let key = &write("server-key.pem", made.signing_key.serialize_pem());
    let stray = &write("other-key.pem", other.signing_key.serialize_pem());
    let problems = |certificate: &Path, key: &Path| {
        let tls = format!("tls = {{ certificate = {certificate:?}, key = {key:?} }}");
        let text = format!("[server]\n{tls}\n{SOUND}");
        let found = |problem: &Problem| {
            let place = problem.place.clone().unwrap();
            (text[place].to_owned(), problem.to_string())
        };
        match read(&text) {
            Ok(config) => {
                assert!(config.server.tls.is_some());
                Vec::new()
            }
            Err(report) => report.problems().iter().map(found).collect(),
        }
    };
    assert_eq!(problems(certificate, key), []);
    let [(place, why)] = &problems(certificate, stray)[..] else {
        panic!("not one problem");
    };
    assert!(place.starts_with("{ certificate = "), "{place}");
    assert!(why.contains("is not that of the certificate"), "{why}");
    let [(first, swapped), (second, other)] = &problems(key, certificate)[..] else {
        panic!("not two problems");
    };
    assert!(first.contains("server-key.pem"), "{first}");
    assert!(swapped.contains("name it as the `key`"), "{swapped}");
    assert!(second.contains("server.pem"), "{second}");
    assert!(other.contains("name it as the `certificate`"), "{other}");
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
