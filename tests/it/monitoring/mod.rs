//! The shipped alert rules and dashboard, in a real Prometheus that scrapes the real binary.

mod prometheus;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    documents::has_heading,
    harness::{ARCHIVE, ENDPOINTS, Home, Service, cnam, eventually},
};
use prometheus::{Prometheus, TOKEN, promtool};

const RULES: &str = "config/prometheus-rules.yml";
const TESTS: [&str; 2] = [
    "tests/it/monitoring/rules.yml",
    "tests/it/monitoring/silence.yml",
];

/// A handler whose receiver is down. It parks each delivery after one attempt.
const CRM: &str = r#"
[handlers.crm]
kind = "http"
events = ["zoom.*"]
url = "http://127.0.0.1:9/"
retry = { attempts = 1 }
"#;

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(file(path)).unwrap()
}

/// A service with a parked delivery and other traffic, and its Prometheus.
fn monitored() -> (Home, Service, Prometheus) {
    let admin = "[admin]\n";
    let guarded = ENDPOINTS.replace(admin, &format!("{admin}token = \"{TOKEN}\"\n"));
    let home = Home::new(&[&guarded, ARCHIVE, CRM]);
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 1)).status, 200);
    let path = "/ringcentral/phone-number";
    assert_eq!(service.ringcentral(path, "{}").status, 200);
    assert_eq!(service.post(path, &[], b"{}").status, 401);
    eventually("a delivery is parked", || !home.parked().is_empty());
    let prometheus = Prometheus::start(service.admin);
    (home, service, prometheus)
}

/// The values behind `key` in lines of YAML.
fn values<'a>(yaml: &'a str, key: &str) -> BTreeSet<&'a str> {
    let lines = yaml.lines().map(|line| line.trim_start_matches([' ', '-']));
    lines.filter_map(|line| line.strip_prefix(key)).collect()
}

/// The names that begin with `hookswitch_` in `text`.
fn metrics(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c| !is_name(c));
    let named = words.filter(|word| word.starts_with("hookswitch_"));
    named.map(ToOwned::to_owned).collect()
}

/// The values of `key` anywhere in `json`.
fn members(json: &Value, key: &str, found: &mut Vec<String>) {
    match json {
        Value::Object(members_of) => {
            for (name, value) in members_of {
                match value.as_str() {
                    Some(text) if name == key => found.push(text.to_owned()),
                    _ => members(value, key, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| members(item, key, found)),
        _ => {}
    }
}

#[test]
fn the_alert_rules_pass_their_tests() {
    promtool(&["check", "rules", file(RULES).to_str().unwrap()]);
    for tests in TESTS {
        promtool(&["test", "rules", file(tests).to_str().unwrap()]);
    }
}

#[test]
fn each_alert_is_explained_and_tested_firing_and_not() {
    let (rules, operations) = (text(RULES), text("docs/operations.md"));
    let tests = TESTS.map(text).concat();
    let alerts = values(&rules, "alert: ");
    assert!(alerts.len() > 15, "{alerts:?}");
    for alert in alerts {
        let selector = format!("alertname=\"{alert}\"");
        let cases = tests
            .split("- expr: ")
            .filter(|case| case.contains(&selector));
        let (not, firing): (Vec<_>, Vec<_>) =
            cases.partition(|case| case.contains("exp_samples: []"));
        assert!(!firing.is_empty(), "no test in which {alert} fires");
        assert!(!not.is_empty(), "no test in which {alert} does not fire");
        let row = format!("\n| `{alert}` | ");
        assert!(operations.contains(&row), "docs/operations.md lacks {row}");
    }
    for runbook in values(&rules, "runbook: ") {
        let (document, heading) = runbook.split_once('#').unwrap();
        assert!(has_heading(&file(document), heading), "{runbook}");
    }
}

#[test]
fn an_alert_is_raised_while_its_cause_lasts() {
    let (home, mut service, prometheus) = monitored();
    let alert = |name: &str, state: &str| {
        let labels = format!("alertname=\"{name}\",alertstate=\"{state}\"");
        prometheus.query(&format!("ALERTS{{{labels}}}"))
    };
    eventually("all rules have been evaluated", || {
        let rules = prometheus.rules();
        rules.iter().all(|rule| rule["health"] != "unknown")
    });
    for rule in prometheus.rules() {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    eventually("the parked delivery is reported", || {
        !alert("HookswitchParked", "firing").is_empty()
    });
    let parked = &alert("HookswitchParked", "firing")[0]["metric"];
    assert_eq!(parked["handler"], "crm");
    assert_eq!(parked["severity"], "warning");

    home.json(&["parked", "skip", "--handler", "crm", "--reason", "a test"]);
    eventually("the alert is over", || {
        alert("HookswitchParked", "firing").is_empty()
    });
    assert!(alert("HookswitchDown", "pending").is_empty());
    service.kill();
    eventually("the end of the service is noticed", || {
        !alert("HookswitchDown", "pending").is_empty()
    });
}

#[test]
fn the_rules_and_the_dashboard_ask_for_what_there_is() {
    let dashboard = text("config/grafana-dashboard.json");
    let mut queries = Vec::new();
    let json: Value = serde_json::from_str(&dashboard).unwrap();
    members(&json, "expr", &mut queries);
    assert!(queries.len() > 30, "{queries:?}");

    let (_home, _service, prometheus) = monitored();
    for query in queries {
        let range = query
            .replace("$__rate_interval", "1m")
            .replace("$__range", "1h")
            .replace("$job", "hookswitch");
        assert!(!range.contains('$'), "an unknown variable in {query}");
        // An expression that does not parse fails the test.
        eventually(&format!("there is something for {query}"), || {
            !prometheus.query(&range).is_empty()
        });
    }
    let names = prometheus.names();
    for source in [dashboard, text(RULES)] {
        for metric in metrics(&source) {
            assert!(names.contains(&metric), "there is no metric {metric}");
        }
    }
}
