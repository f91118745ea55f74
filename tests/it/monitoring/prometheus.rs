//! A real Prometheus that scrapes a service.

use std::{collections::BTreeSet, fs, net::SocketAddr, process::Command};

use serde_json::Value;

use super::{file, text};
use crate::{
    harness::{eventually, request},
    support::server::Server,
};

/// The token of the service's admin server.
pub(super) const TOKEN: &str = "a-token-for-prometheus";

/// Prometheus with the shipped rules, configured as docs/operations.md says.
pub(super) struct Prometheus(Server);

impl Prometheus {
    /// Scrapes `target`. It scrapes and evaluates each second, so that a test need not wait long.
    pub(super) fn start(target: SocketAddr) -> Self {
        let documented = text("docs/operations.md");
        let (_, documented) = documented.split_once("```yaml\nrule_files:").unwrap();
        let (documented, _) = documented.split_once("```").unwrap();
        let server = Server::start(|dir, port| {
            let rules = text("config/prometheus-rules.yml");
            let rules = rules.replace("interval: 3m", "interval: 1s");
            fs::write(dir.join("hookswitch-rules.yml"), rules).unwrap();
            fs::write(dir.join("hookswitch-token"), TOKEN).unwrap();
            let config = format!(
                "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files:{documented}"
            );
            let config = config
                .replace("/etc/prometheus", dir.to_str().unwrap())
                .replace("127.0.0.1:9090", &target.to_string());
            let path = dir.join("prometheus.yml");
            fs::write(&path, config).unwrap();
            let mut command = Command::new("prometheus");
            command
                .arg(format!("--config.file={}", path.display()))
                .arg(format!("--storage.tsdb.path={}/data", dir.display()))
                .arg(format!("--web.listen-address=127.0.0.1:{port}"));
            command
        });
        // The port is open before the storage is.
        eventually("Prometheus answers queries", || {
            let answer = request(server.address(), "GET", "/-/ready", &[], b"");
            answer.is_ok_and(|answer| answer.status == 200)
        });
        Self(server)
    }

    /// The result of `expression` now, one value for each series.
    pub(super) fn query(&self, expression: &str) -> Vec<Value> {
        let form = format!("query={}", percent_encode(expression));
        let data = self.ask("POST", "/api/v1/query", &form);
        data["result"].as_array().unwrap().clone()
    }

    /// The names of all series.
    pub(super) fn names(&self) -> BTreeSet<String> {
        let data = self.ask("GET", "/api/v1/label/__name__/values", "");
        serde_json::from_value(data).unwrap()
    }

    /// The rules, with how their last evaluation went.
    pub(super) fn rules(&self) -> Vec<Value> {
        let data = self.ask("GET", "/api/v1/rules", "");
        let groups = data["groups"].as_array().unwrap().iter();
        let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
        rules.cloned().collect()
    }

    fn ask(&self, method: &str, path: &str, form: &str) -> Value {
        let kind = ("content-type", "application/x-www-form-urlencoded");
        let answer = request(self.0.address(), method, path, &[kind], form.as_bytes()).unwrap();
        let body = match answer.header("transfer-encoding") {
            Some("chunked") => without_chunks(&answer.body),
            _ => answer.body,
        };
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(answer["status"], "success", "{path} {form}: {answer}");
        answer["data"].clone()
    }
}

fn percent_encode(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// The body that was sent as `chunks`, each of which has its length before it.
fn without_chunks(mut chunks: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = chunks.windows(2).position(|two| two == b"\r\n").unwrap();
        let length = std::str::from_utf8(&chunks[..end]).unwrap();
        let length = usize::from_str_radix(length, 16).unwrap();
        let start = end + "\r\n".len();
        body.extend_from_slice(&chunks[start..start + length]);
        chunks = &chunks[start + length + "\r\n".len()..];
        if length == 0 {
            return body;
        }
    }
}

/// Asserts that `promtool` with `arguments` succeeds.
pub(super) fn promtool(arguments: &[&str]) {
    let mut command = Command::new("promtool");
    command
        .args(arguments)
        .current_dir(file("tests/it/monitoring"));
    let output = command.output().expect("promtool runs");
    assert!(output.status.success(), "{command:?}: {output:?}");
}
