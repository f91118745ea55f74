//! The service on PostgreSQL, whose database and replicas fail and return.

use std::{collections::BTreeSet, fs};

use serde_json::Value;

use crate::{
    harness::{ARCHIVE, ENDPOINTS, Home, Identity, Service, certificate, cnam, eventually},
    support::postgres::{Database, PASSWORD, Postgres},
};

/// A folder for a service on the database at `url`.
fn home(url: &str) -> Home {
    home_with(url, "")
}

/// The same with `handlers` besides the archive.
pub(crate) fn home_with(url: &str, handlers: &str) -> Home {
    Home::new(&[&config(&format!("url = \"{url}\"")), handlers])
}

/// A configuration with the settings `store` of the database.
fn config(store: &str) -> String {
    let (before, after) = ENDPOINTS.split_once("[store]").unwrap();
    let (_, after) = after.split_once("\n\n").unwrap();
    let store = format!("[store]\nkind = \"postgres\"\n{store}\nlease = \"5s\"\n\n");
    [before, &store, after, ARCHIVE].concat()
}

/// The serial numbers of the events in the archives of `homes`.
fn archived(homes: &[&Home]) -> BTreeSet<String> {
    let events = homes.iter().flat_map(|home| home.archived());
    let said = |event: Value| event["data"]["payload"]["object"]["cnam"].to_string();
    events.map(said).collect()
}

fn said(serials: impl Iterator<Item = u64>) -> BTreeSet<String> {
    serials
        .map(|serial| format!("\"serial {serial}\""))
        .collect()
}

fn accepts_events(service: &Service) -> bool {
    service.ready().0 == 200
}

#[test]
fn events_are_delivered_and_commands_show_them() {
    let database = Database::new();
    let home = home(&database.url());
    let service = home.start();
    let sent = home.run(&[
        "send",
        "--all",
        "--to",
        &format!("http://{}", service.address),
    ]);
    assert!(sent.status.success(), "{sent:?}");
    eventually("all events are delivered", || {
        let events = home.json(&["events", "list"]);
        let events = events.as_array().unwrap();
        !events.is_empty() && events.iter().all(|event| event["open"] == 0)
    });
    let events = home.json(&["events", "list"]);
    assert_eq!(events.as_array().unwrap().len(), home.archived().len());
    let id = events[0]["id"].as_str().unwrap();
    let shown = home.json(&["events", "show", id]);
    assert_eq!(shown["deliveries"][0]["state"], "done");
    assert!(!service.log().contains(PASSWORD));
}

#[test]
fn a_service_accepts_events_while_its_database_is_up() {
    let mut postgres = Postgres::start(&[]);
    let database = postgres.create_database();
    let home = home(&postgres.url(&database));
    postgres.server().stop("QUIT");
    let service = home.start();
    eventually("the service is not ready", || {
        service.ready() == (503, "unavailable".to_owned())
    });
    assert_eq!(service.zoom(&cnam(1, 1)).status, 503);
    for serial in [2, 3] {
        postgres.restart(&[]);
        eventually("events are accepted again", || accepts_events(&service));
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
        postgres.server().stop("QUIT");
        eventually("the end of the database is noticed", || {
            service.zoom(&cnam(1, 4)).status == 503
        });
        assert_eq!(service.ready(), (503, "unavailable".to_owned()));
    }
    postgres.restart(&[]);
    eventually("stored events are delivered", || {
        archived(&[&home]).is_superset(&said([2, 3].into_iter()))
    });
    assert!(!service.log().contains(PASSWORD));
}

#[test]
fn another_replica_delivers_what_a_dead_one_stored() {
    let database = Database::new();
    let homes = [home(&database.url()), home(&database.url())];
    let (mut dying, other) = (homes[0].start(), homes[1].start());
    for serial in 0..40 {
        let service = if serial % 2 == 0 { &dying } else { &other };
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    dying.kill();
    for serial in 40..50 {
        assert_eq!(other.zoom(&cnam(1, serial)).status, 200);
    }
    eventually("every event is delivered", || {
        archived(&[&homes[0], &homes[1]]) == said(0..50)
    });
    eventually("nothing is left", || {
        database.sql("SELECT count(*) FROM hookswitch.deliveries") == "0"
    });
}

#[test]
fn a_wrong_password_ends_the_start_and_is_not_shown() {
    let database = Database::new();
    let home = home(&database.url().replace(PASSWORD, "not-the-password"));
    for command in [&["serve"][..], &["events", "list"]] {
        let output = home.run(command);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(69), "{stderr}");
        assert!(
            stderr.contains("password authentication failed"),
            "{stderr}"
        );
        assert!(!stderr.contains("not-the-password"), "{stderr}");
    }
}

/// The connections over TLS, from the database's own statistics.
const CLIENTS: &str = "SELECT string_agg(DISTINCT client_dn, ' ') FROM pg_stat_ssl
    JOIN pg_stat_activity USING (pid) WHERE ssl";

#[test]
fn a_client_certificate_is_presented_to_the_database() {
    let client = Identity::new();
    let (authority, key) = certificate();
    let own = (authority.as_str(), key.as_str());
    let postgres = Postgres::start_with_tls(own, &client.authority, |data| {
        // The test itself connects without TLS.
        let rules = "hostssl all all all scram-sha-256 clientcert=verify-full\n\
                     hostnossl all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(data.join("pg_hba.conf"), rules).unwrap();
    });
    let database = postgres.create_database();
    let url = postgres.url(&database).replace("127.0.0.1", "localhost");
    let url = url.replace("sslmode=disable", "sslmode=verify-full");
    let home = Home::new(&[]);
    fs::write(home.path().join("ca.pem"), authority).unwrap();
    let known = format!("url = \"{url}\"\ntls.ca = \"{{dir}}/ca.pem\"\n");

    home.configure(&[&config(&known)]);
    let refused = home.run(&["serve"]);
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(69), "{stderr}");
    assert!(
        stderr.contains("connection requires a valid client certificate"),
        "{stderr}"
    );

    let shown = client.settings(home.path());
    let believing = format!("url = \"{}\"", url.replace("verify-full", "require"));
    for (serial, store) in (1..).zip([known, believing]) {
        home.configure(&[&config(&format!("{store}\n{shown}"))]);
        let service = home.start();
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
        eventually("the event is delivered", || {
            archived(&[&home]) == said(1..serial + 1)
        });
        assert_eq!(postgres.sql(&database, CLIENTS), "/CN=hookswitch");
    }
}
