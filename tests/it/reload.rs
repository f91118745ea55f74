//! Reloads by SIGHUP: validated and applied as a whole, without dropping a request.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    crash::{Load, archived_serials},
    harness::{
        ARCHIVE, ENDPOINTS, Engine, Home, ZOOM_SECRET, certificate, cnam, eventually,
        on_every_engine,
    },
};

on_every_engine![
    a_reload_under_load_drops_no_request_and_a_bad_file_changes_nothing,
    a_new_secret_replaces_the_old_one,
];

const SECOND: &str =
    "[handlers.second]\nkind = \"file\"\nevents = [\"zoom.*\"]\npath = \"{dir}/second.ndjson\"\n";

fn a_reload_under_load_drops_no_request_and_a_bad_file_changes_nothing(engine: Engine) {
    let home = engine.home(&[ENDPOINTS, ARCHIVE]);
    let service = home.start();
    let serials = Arc::new(AtomicU64::new(0));
    let load = Load::start(&service, &serials);
    let reloads =
        |result: &str| service.metric(&format!("hookswitch_reloads_total{{result=\"{result}\"}}"));
    for turn in 1..=5_u32 {
        home.configure(&[ENDPOINTS, ARCHIVE, SECOND]);
        service.signal("HUP");
        eventually("the reload is applied", || {
            reloads("applied") >= f64::from(turn * 2 - 1)
        });
        home.configure(&[ENDPOINTS, ARCHIVE, "[handlers.wrong]\nkind = \"nothing\"\n"]);
        service.signal("HUP");
        eventually("the reload is refused", || {
            reloads("refused") >= f64::from(turn)
        });
        home.configure(&[ENDPOINTS, ARCHIVE]);
        service.signal("HUP");
        eventually("the reload is applied", || {
            reloads("applied") >= f64::from(turn * 2)
        });
        eventually("events come in", || {
            serials.load(Ordering::Relaxed) >= 8 + u64::from(turn) * 21
        });
    }
    let others = load.others.clone();
    let acknowledged = load.stop();
    assert_eq!(*others.lock().unwrap(), [0u16; 0]);
    assert!(acknowledged.len() > 100);
    eventually("everything acknowledged is archived", || {
        archived_serials(&home).is_superset(&acknowledged)
    });
    assert!(
        service.log().contains("nothing"),
        "the log shows the report: {}",
        service.log()
    );
}

fn a_new_secret_replaces_the_old_one(engine: Engine) {
    let home = engine.home(&[ENDPOINTS]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    home.configure(&[&ENDPOINTS.replace(ZOOM_SECRET, "the-next-secret")]);
    service.signal("HUP");
    eventually("the old secret is refused", || {
        service.zoom(&cnam(1, 2)).status == 401
    });
}

#[test]
fn the_hash_is_that_of_the_configuration_in_force() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE]);
    let service = home.start();
    let hash = || service.metric("hookswitch_config_hash");
    let before = hash();
    assert!(before > 0.0, "{before}");
    home.configure(&[ENDPOINTS, ARCHIVE, SECOND]);
    service.signal("HUP");
    eventually("it is another one", || hash() != before);
    let with_second = hash();
    home.configure(&[ENDPOINTS, "[handlers.wrong]\nkind = \"nothing\"\n"]);
    service.signal("HUP");
    eventually("the reload is refused", || {
        service.metric("hookswitch_reloads_total{result=\"refused\"}") == 1.0
    });
    assert_eq!(hash(), with_second);
    home.configure(&[ENDPOINTS, ARCHIVE]);
    service.signal("HUP");
    eventually("it is the first one again", || hash() == before);
    let phase = |phase: &str| service.metric(&format!("hookswitch_phase{{phase=\"{phase}\"}}"));
    eventually("it serves", || phase("serving") == 1.0);
    assert_eq!(
        phase("starting") + phase("recovering") + phase("draining"),
        0.0
    );
}

#[test]
fn a_change_that_needs_a_restart_is_refused() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE]);
    let service = home.start();
    home.configure(&[
        &ENDPOINTS.replace("{dir}/data", "{dir}/elsewhere"),
        ARCHIVE,
        SECOND,
    ]);
    service.signal("HUP");
    eventually("the log names what needs a restart", || {
        service.log().contains("[store]")
    });
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("the old configuration delivers", || {
        archived_serials(&home).len() == 1
    });
    assert!(!home.path().join("second.ndjson").exists());
}

#[test]
fn a_certificate_that_its_key_does_not_fit_is_an_error_of_the_configuration() {
    let tls = "[server]\ntls = { certificate = \"{dir}/server.pem\", key = \"{dir}/key.pem\" }\n";
    let endpoints = ENDPOINTS.replace("[server]\n", tls);
    let home = Home::new(&[&endpoints]);
    let (made, key) = certificate();
    let key_file = home.path().join("key.pem");
    fs::write(home.path().join("server.pem"), made).unwrap();
    fs::write(&key_file, &key).unwrap();
    let service = home.start();
    let reloads =
        |result: &str| service.metric(&format!("hookswitch_reloads_total{{result=\"{result}\"}}"));

    fs::write(&key_file, certificate().1).unwrap();
    home.configure(&[&endpoints, ARCHIVE]);
    service.signal("HUP");
    eventually("the reload is refused", || reloads("refused") >= 1.0);
    eventually("the log says why", || {
        service.log().contains("is not that of the certificate")
    });
    let log = service.log();
    assert!(!log.contains("was reloaded"), "{log}");
    for command in ["check", "serve"] {
        assert_eq!(home.run(&[command]).status.code(), Some(64), "{command}");
    }

    fs::write(&key_file, key).unwrap();
    service.signal("HUP");
    eventually("the reload is applied", || reloads("applied") >= 1.0);
    eventually("the log says so", || service.log().contains("was reloaded"));
}

#[test]
fn open_deliveries_of_a_removed_handler_are_parked_and_can_be_replayed() {
    let unreachable =
        "[handlers.crm]\nkind = \"http\"\nevents = [\"*\"]\nurl = \"http://127.0.0.1:9/\"\n";
    let home = Home::new(&[ENDPOINTS, unreachable]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    eventually("the delivery is open", || {
        service.metric(r#"hookswitch_deliveries_total{handler="crm",outcome="retry"}"#) > 0.0
    });
    home.configure(&[ENDPOINTS, ARCHIVE]);
    service.signal("HUP");
    eventually("the delivery is parked", || {
        home.json(&["parked", "list"])[0]["handler"] == "crm"
    });
    home.json(&["replay", "--handler", "archive", "--since", "1h"]);
    eventually("the new handler has it", || {
        archived_serials(&home).len() == 1
    });
}

#[test]
fn a_cleartext_credential_is_warned_of_once_in_every_command() {
    let crm = |name: &str| {
        format!(
            "[handlers.{name}]\nkind = \"http\"\nevents = [\"*\"]\nurl = \"http://crm.invalid/\"\n\
             headers = {{ authorization = \"hunter2\" }}\n"
        )
    };
    let warning = |name: &str| format!("[handlers.{name}] sends `authorization` to crm.invalid");
    let home = Home::new(&[ENDPOINTS, &crm("first")]);
    let checked = home.run(&["check"]);
    let said = String::from_utf8(checked.stderr).unwrap();
    assert_eq!(checked.status.code(), Some(0), "{said}");
    assert_eq!(said.matches(&warning("first")).count(), 1, "{said}");
    assert!(
        said.contains("begin `url` with \"https://\"") && !said.contains("hunter2"),
        "{said}"
    );
    assert!(
        String::from_utf8(checked.stdout)
            .unwrap()
            .contains("is sound")
    );

    let service = home.start();
    let count = |name: &str| service.log().matches(&warning(name)).count();
    assert_eq!(count("first"), 1, "{}", service.log());
    home.configure(&[ENDPOINTS, &crm("second")]);
    service.signal("HUP");
    eventually("the reload warns", || count("second") == 1);
    assert_eq!(count("first"), 1, "{}", service.log());
    assert!(
        service.log().contains("begin `url` with \"https://\"")
            && !service.log().contains("hunter2"),
        "{}",
        service.log()
    );
}
