//! The subcommands, run as a person or a script would.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::harness::{
    ARCHIVE, ENDPOINTS, Engine, Home, certificate, cnam, eventually, hookswitch, on_every_engine,
};

on_every_engine![
    send_posts_to_every_endpoint_and_prints_the_answers,
    send_with_another_secret_fails_with_a_hint,
    healthcheck_asks_the_admin_server,
    stored_events_can_be_listed_and_shown,
    a_replay_of_everything_needs_a_selection,
    a_missing_store_is_reported,
    logs_contain_no_content_of_requests,
];

fn shipped(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("config")
        .join(name)
}

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn every_shipped_configuration_is_valid() {
    // The reference shows every kind, and a lean build lacks most.
    let all = ["local.toml", "container.toml", "hookswitch.toml"];
    let names = all.iter().take(if cfg!(feature = "full") { 3 } else { 2 });
    for name in names {
        let output = hookswitch()
            .args(["check", "--config"])
            .arg(shipped(name))
            .env("RINGCENTRAL_VERIFICATION_TOKEN", "x")
            .env("ZOOM_SECRET_TOKEN", "x")
            .env("HOOKSWITCH_ADMIN_TOKEN", "x")
            .env("AMQP_PASSWORD", "x")
            .env("CRM_AUTHORIZATION", "Bearer x")
            .env("MQTT_PASSWORD", "x")
            .env("NATS_PASSWORD", "x")
            .env("REDIS_PASSWORD", "x")
            .env("PROVISION_API_KEY", "x")
            .env("SQS_ACCESS_KEY_ID", "x")
            .env("SQS_SECRET_ACCESS_KEY", "x")
            .env("WAREHOUSE_PASSWORD", "x")
            .env(
                "CRM_SIGNING_SECRET",
                "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            )
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
    }
}

#[test]
fn an_invalid_configuration_is_reported_whole_with_exit_code_64() {
    let home = Home::new(&[
        &ENDPOINTS.replace("family = \"zoom", "famly = \"zoom"),
        "[handlers.x]\nkind = \"http\"\n",
    ]);
    for command in ["check", "serve"] {
        let output = home.run(&[command]);
        let (stdout, stderr) = text(&output);
        assert_eq!(
            (output.status.code(), stdout.as_str()),
            (Some(64), ""),
            "{stderr}"
        );
        assert!(
            stderr.contains("famly") && stderr.contains("handlers.x"),
            "{stderr}"
        );
        assert!(!stderr.contains("a-token-for-tests"), "{stderr}");
    }
}

#[test]
fn a_configuration_is_checked_without_secrets_and_for_machines() {
    let check = |arguments: &[&str], config: &Path| {
        let arguments = [&["check"], arguments].concat();
        let mut command = hookswitch();
        command.env_remove("ZOOM_SECRET_TOKEN");
        command.args(arguments).arg("--config").arg(config);
        command.output().unwrap()
    };
    let shipped = shipped("container.toml");
    let output = check(&[], &shipped);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    let output = check(&["--without-secrets"], &shipped);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output).0.contains("were not read"), "{output:?}");

    let output = check(&["--without-secrets", "--json"], &shipped);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let file = shipped.to_str().unwrap();
    let sound = serde_json::json!({ "file": file, "sound": true, "problems": [] });
    assert_eq!((output.status.code(), json), (Some(0), sound));

    let home = Home::new(&[&ENDPOINTS.replace("[store]", "[stor]")]);
    let output = check(&["--json"], &home.config());
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(text(&output).1, "", "the report is on standard output");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["sound"], false);
    let start = serde_json::json!({ "line": 8, "column": 2 });
    let end = serde_json::json!({ "line": 8, "column": 6 });
    let problem = serde_json::json!({
        "severity": "error", "message": "unknown section [stor]",
        "help": "did you mean [store]?", "start": start, "end": end,
    });
    assert_eq!(json["problems"][0], problem);
}

#[test]
fn event_names_are_listed_without_a_configuration() {
    let names = |more: &[&str]| {
        let mut command = hookswitch();
        command.args(["events", "names", "--config", "/nonexistent"]);
        let output = command.args(more).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        text(&output).0
    };
    let table = names(&[]);
    assert!(table.trim_start().starts_with("EVENT"), "{table}");
    let rows: Vec<Value> = serde_json::from_str(&names(&["--json"])).unwrap();
    assert_eq!(table.lines().count(), rows.len() + 1);
    for event in ["ringcentral.extension-info.update", "zoom.unrecognized"] {
        let row = rows.iter().find(|row| row["event"] == event).unwrap();
        assert!(row["meaning"].as_str().unwrap().ends_with('.'), "{row}");
        assert!(table.contains(event), "{table}");
    }
}

#[test]
fn a_pattern_that_misses_names_by_tense_is_warned_of() {
    let events = "[\"ringcentral.*.updated\"]";
    let home = Home::new(&[ENDPOINTS, &ARCHIVE.replace("[\"*\"]", events)]);
    let missed = "does not take `ringcentral.extension-info.update`";
    let output = home.run(&["check"]);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output).1.contains(missed), "{output:?}");
    let service = home.start();
    assert!(service.log().contains(missed), "{}", service.log());
}

fn send_posts_to_every_endpoint_and_prints_the_answers(engine: Engine) {
    let home = engine.home(&[ENDPOINTS, ARCHIVE]);
    let service = home.start();
    let base = format!("http://{}", service.address);
    let sent = home.json(&["send", "--all", "--copies", "2", "--to", &base]);
    let sent = sent.as_array().unwrap();
    assert!(
        sent.iter().all(|line| line["problem"].is_null()),
        "{sent:?}"
    );
    assert_eq!(
        sent.iter()
            .filter(|line| line["message"] == "handshake")
            .count(),
        3
    );
    let events = (sent.len() - 3) / 2;
    assert!(events >= 18, "{events}");
    eventually("each event is archived once", || {
        home.archived().len() == events
    });

    let again = home.run(&["send", "number-management", "--to", &base]);
    assert!(again.status.success());
    let (table, _) = text(&again);
    assert!(
        table.contains("ENDPOINT") && table.contains("handshake"),
        "{table}"
    );
    eventually("a second run is of new events", || {
        home.archived().len() > events
    });
}

fn send_with_another_secret_fails_with_a_hint(engine: Engine) {
    let home = engine.home(&[ENDPOINTS]);
    let service = home.start();
    let base = format!("http://{}", service.address);
    home.configure(&[&ENDPOINTS.replace("a-secret-for-tests", "another")]);
    let output = home.run(&["send", "number-management", "--to", &base]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output)
            .0
            .contains("refused; does the service use this configuration's secret?")
    );
}

#[test]
fn send_without_a_server_fails_with_a_hint() {
    let home = Home::new(&[ENDPOINTS]);
    let output = home.run(&["send", "--all", "--to", "http://127.0.0.1:9"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output)
            .1
            .contains("is `hookswitch serve` running there?"),
        "{output:?}"
    );
}

#[test]
fn the_help_names_every_exit_code_of_the_documents() {
    let operations = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let operations = fs::read_to_string(operations).unwrap();
    let (_, table) = operations.split_once("| exit code | meaning |\n").unwrap();
    let rows = table
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('|'));
    let codes: Vec<_> = rows
        .map(|row| row.split('|').nth(1).unwrap().trim())
        .collect();
    assert_eq!(codes.len(), 6, "{codes:?}");
    for command in [&["--help"][..], &["serve", "--help"], &["check", "--help"]] {
        let (help, _) = text(&hookswitch().args(command).output().unwrap());
        let (_, help) = help.split_once("Exit codes:").unwrap();
        let named = help
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        assert_eq!(named.collect::<Vec<_>>(), codes, "{help}");
    }
}

#[test]
fn an_untrusted_certificate_and_a_missing_server_have_different_errors() {
    let tls = "[server]\ntls = { certificate = \"{dir}/server.pem\", key = \"{dir}/key.pem\" }\n";
    let home = Home::new(&[&ENDPOINTS.replace("[server]\n", tls)]);
    let (made, key) = certificate();
    fs::write(home.path().join("server.pem"), made).unwrap();
    fs::write(home.path().join("key.pem"), key).unwrap();
    let service = home.start();
    let base = format!("https://{}", service.address);
    let send = |more: &[&str]| {
        let arguments = ["send", "--all", "--handshake", "--to", &base];
        home.run(&[&arguments, more].concat())
    };
    let output = send(&[]);
    let (_, stderr) = text(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr.contains("a certificate that is not trusted"),
        "{stderr}"
    );
    assert!(!stderr.contains("no server answered"), "{stderr}");
    assert_eq!(send(&["--insecure"]).status.code(), Some(0));
}

/// Runs `hookswitch` as a user without files: as another user if the tests run as root.
fn run_as_a_stranger(home: &Home, command: &str, hidden: &Path) -> Output {
    let is_root = rustix::process::geteuid().is_root();
    let open = fs::metadata(hidden).unwrap().permissions();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mode = if is_root { 0o700 } else { 0o000 };
    fs::set_permissions(hidden, fs::Permissions::from_mode(mode)).unwrap();
    let mut stranger = hookswitch();
    if is_root {
        stranger.uid(65534).gid(65534);
    }
    stranger
        .args(command.split(' '))
        .arg("--config")
        .arg(home.config());
    let output = stranger.output().unwrap();
    fs::set_permissions(hidden, open).unwrap();
    output
}

#[test]
fn a_store_of_another_user_and_a_missing_store_have_different_errors() {
    let home = Home::new(&[ENDPOINTS]);
    drop(home.start());
    let output = run_as_a_stranger(&home, "events list", &home.path().join("data"));
    let (_, stderr) = text(&output);
    assert_eq!(output.status.code(), Some(69), "{stderr}");
    assert!(
        stderr.contains("run the command as the user of the service"),
        "{stderr}"
    );

    let output = run_as_a_stranger(&home, "serve", &home.path().join("data"));
    let (_, stderr) = text(&output);
    assert_eq!(output.status.code(), Some(69), "{stderr}");
    assert!(
        stderr.contains("cannot write") && stderr.contains("[store] path"),
        "{stderr}"
    );
    let user = if rustix::process::geteuid().is_root() {
        "65534"
    } else {
        "the user"
    };
    assert!(stderr.contains(user), "{stderr}");
}

#[test]
fn a_json_log_has_no_other_text() {
    let json = "[log]\nformat = \"json\"\n";
    let home = Home::new(&[json, ENDPOINTS]);
    let mut serve = hookswitch();
    serve.arg("serve").arg("--config").arg(home.config());
    let mut serve = serve
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(serve.stderr.take().unwrap());
    let mut record = String::new();
    while !record.contains("has started") {
        record.clear();
        assert!(
            stderr.read_line(&mut record).unwrap() > 0,
            "no record of the start"
        );
    }
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["version"], env!("CARGO_PKG_VERSION"));
    assert!(
        record["address"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.1:"),
        "{record}"
    );
    let stopped = Command::new("kill").arg(serve.id().to_string()).status();
    assert!(stopped.unwrap().success());
    let output = serve.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output).0, "");
}

#[test]
fn the_hint_to_try_it_appears_only_while_secrets_are_inline() {
    let introduction = |config: &str| {
        let home = Home::new(&[config]);
        let mut serve = hookswitch();
        serve.arg("serve").arg("--config").arg(home.config());
        serve.env("TOKEN_OF_THE_TEST", "a-token-for-tests");
        let serve = serve.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut serve = serve.spawn().unwrap();
        // The log line of the start comes first. The printed text comes before any later log line.
        let mut stdout = BufReader::new(serve.stdout.take().unwrap());
        let mut text = String::new();
        while !text.contains("operators ") {
            assert!(stdout.read_line(&mut text).unwrap() > 0, "{text}");
        }
        let stopped = Command::new("kill").arg(serve.id().to_string()).status();
        assert!(stopped.unwrap().success());
        stdout.read_to_string(&mut text).unwrap();
        assert!(serve.wait().unwrap().success());
        text
    };
    assert!(introduction(ENDPOINTS).contains("Try it"));
    let by_reference = "{ env = \"TOKEN_OF_THE_TEST\" }";
    let production = ENDPOINTS
        .replace("\"a-token-for-tests\"", by_reference)
        .replace("\"a-secret-for-tests\"", by_reference);
    assert!(!introduction(&production).contains("Try it"));
}

fn healthcheck_asks_the_admin_server(engine: Engine) {
    let home = engine.home(&[ENDPOINTS]);
    let service = home.start();
    let fixed = ENDPOINTS.replacen(
        "[admin]\nlisten = \"127.0.0.1:0\"",
        &format!("[admin]\nlisten = \"{}\"", service.admin),
        1,
    );
    home.configure(&[&fixed]);
    let output = home.run(&["healthcheck"]);
    assert_eq!(
        (output.status.code(), text(&output).0.as_str()),
        (Some(0), "ready\n")
    );
    drop(service);
    assert_eq!(home.run(&["healthcheck"]).status.code(), Some(1));
}

fn stored_events_can_be_listed_and_shown(engine: Engine) {
    let home = engine.home(&[ENDPOINTS, ARCHIVE]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    assert_eq!(
        service
            .zoom(r#"{"event":"number_management.peering_number_cnam_updated"}"#)
            .status,
        200
    );
    eventually("both events are archived", || home.archived().len() == 2);
    let list = home.json(&["events", "list"]);
    assert_eq!(list[0]["name"], "zoom.number-management.unreadable");
    assert_eq!(
        list[1]["name"],
        "zoom.number-management.peering-number-cnam-updated"
    );
    let shown = home.json(&["events", "show", list[1]["id"].as_str().unwrap()]);
    assert_eq!(shown["body"]["payload"]["object"]["cnam"], "serial 1");
    let shown = home.json(&["events", "show", list[0]["id"].as_str().unwrap()]);
    assert!(
        shown["problem"].as_str().unwrap().contains("payload"),
        "{shown}"
    );
    let filtered = home.json(&["events", "list", "--name", "*.unreadable"]);
    assert_eq!(filtered.as_array().unwrap().len(), 1);

    let output = home.run(&["events", "show", "01890a5d-ac96-774b-bcce-b302099a8057"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).1.contains("there is no event"), "{output:?}");
}

fn a_replay_of_everything_needs_a_selection(engine: Engine) {
    let home = engine.home(&[ENDPOINTS, ARCHIVE]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("the event is archived", || home.archived().len() == 1);
    eventually("the ledger has it", || {
        home.json(&["events", "list"]).as_array().unwrap().len() == 1
    });
    assert_eq!(home.run(&["replay"]).status.code(), Some(1));
    let replayed = home.json(&["replay", "--name", "zoom.*"]);
    assert_eq!(replayed, serde_json::json!([["archive", 1]]));
    eventually("the event is archived again", || home.archived().len() == 2);
    assert_eq!(home.archived()[0]["id"], home.archived()[1]["id"]);
}

fn a_missing_store_is_reported(engine: Engine) {
    let home = engine.home(&[ENDPOINTS]);
    let output = home.run(&["events", "list"]);
    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output).1.contains("there is no store"), "{output:?}");
    assert!(!home.path().join("data").exists(), "looking makes nothing");
}

fn logs_contain_no_content_of_requests(engine: Engine) {
    let home = engine.home(&[
        ENDPOINTS,
        "[handlers.log]\nkind = \"log\"\nevents = [\"*\"]\n",
    ]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    assert_eq!(
        service
            .post("/zoom/number-management", &[], cnam(1, 2).as_bytes())
            .status,
        401
    );
    eventually("the event is logged", || {
        service.log().contains("peering-number-cnam-updated")
    });
    eventually("the refusal is logged", || {
        service.log().contains("missing_credential")
    });
    let log = service.log();
    for secret in ["2025550001", "serial 1", "acct-1", "a-secret-for-tests"] {
        assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
}

#[test]
fn kinds_of_handlers_are_listed_and_described() {
    let run = |arguments: &[&str]| {
        hookswitch()
            .arg("handlers")
            .args(arguments)
            .output()
            .unwrap()
    };
    let list = text(&run(&["list"])).0;
    assert!(list.lines().count() >= 11, "{list}");
    for line in list.lines() {
        let (kind, summary) = line.split_once(' ').unwrap();
        let described = run(&["describe", kind]);
        if summary.contains("Not in this build.") {
            assert_eq!(described.status.code(), Some(1));
            let how = format!("--features {kind}");
            assert!(summary.contains(&how), "{line}");
            assert!(text(&described).1.contains(&how), "{described:?}");
        } else {
            let example = format!("kind = {kind:?}");
            assert!(text(&described).0.contains(&example), "{described:?}");
        }
    }
    let unknown = run(&["describe", "nothing"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        text(&unknown).1.contains("log, file, http, exec"),
        "{unknown:?}"
    );
}

#[test]
fn schemas_and_completions_are_printed() {
    let unknown = hookswitch()
        .args(["schema", "zoom.nothing"])
        .output()
        .unwrap();
    assert_eq!(unknown.status.code(), Some(1));
    let (_, error) = text(&unknown);
    let (_, families) = error.trim().split_once("there are ").unwrap();
    assert!(families.contains("zoom.number-management"), "{families}");
    for family in families.split(", ") {
        let output = hookswitch().args(["schema", family]).output().unwrap();
        let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(schema["type"], "object", "{schema}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = hookswitch().args(["completions", shell]).output().unwrap();
        assert!(text(&output).0.contains("healthcheck"));
    }
}
