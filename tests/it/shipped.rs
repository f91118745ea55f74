//! The shipped deployment files, checked by the programs that read them.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    harness::{
        ARCHIVE, ENDPOINTS, Home, Service, ZOOM_SECRET, as_pairs, cnam, eventually, request,
        unix_now, zoom_headers,
    },
    support::server::{Server, free_port},
};

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("config")
        .join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(shipped(name)).unwrap()
}

/// Asserts that `command` succeeds without a warning.
fn accepts(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.trim().is_empty(),
        "{command:?}: {output:?}"
    );
}

#[test]
fn yaml_is_well_formed() {
    let rules = "{extends: default, rules: {line-length: {max: 110}, document-start: disable}}";
    accepts(
        Command::new("yamllint")
            .args(["--strict", "-d", rules])
            .args(["compose.yaml", "kubernetes.yaml", "prometheus-rules.yml"].map(shipped))
            .arg(shipped("../.github/workflows/ci.yml")),
    );
}

#[test]
fn the_image_and_ci_have_the_oldest_supported_rust() {
    let image = concat!("rust:", env!("CARGO_PKG_RUST_VERSION"), "-bookworm");
    for file in ["../Dockerfile", "../.github/workflows/ci.yml"] {
        assert!(text(file).contains(image), "{file} should have {image}");
    }
}

#[test]
fn compose_accepts_its_file() {
    accepts(
        Command::new("docker-compose")
            .arg("--file")
            .arg(shipped("compose.yaml"))
            .args(["config", "--quiet"]),
    );
}

#[test]
fn systemd_accepts_the_unit_and_rates_it_secure() {
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("hookswitch.service");
    let installed = text("hookswitch.service").replace(
        "/usr/local/bin/hookswitch",
        env!("CARGO_BIN_EXE_hookswitch"),
    );
    fs::write(&unit, installed).unwrap();
    accepts(Command::new("systemd-analyze").arg("verify").arg(&unit));
    // In tenths: 0 is fully hardened, 100 is not at all. A unit without hardening has 96.
    accepts(
        Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--threshold=16"])
            .arg(&unit),
    );
}

#[test]
fn kubernetes_has_the_configuration_of_a_replica() {
    let replica = text("replica.toml");
    let from = replica.find("[log]").unwrap();
    let indented: String = replica[from..]
        .lines()
        .map(|line| format!("    {line}").trim_end().to_owned() + "\n")
        .collect();
    assert!(
        text("kubernetes.yaml").contains(&indented),
        "copy config/replica.toml from [log] on into the ConfigMap of config/kubernetes.yaml"
    );
}

/// A service that can be restarted on the same addresses.
struct Replica {
    home: Home,
    service: Option<Service>,
    server: SocketAddr,
    admin: SocketAddr,
}

impl Replica {
    fn start() -> Self {
        let [server, admin] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let listeners = ENDPOINTS
            .replacen("127.0.0.1:0", &server.to_string(), 1)
            .replacen("127.0.0.1:0", &admin.to_string(), 1);
        let home = Home::new(&[&listeners, ARCHIVE]);
        Self {
            service: Some(home.start()),
            home,
            server,
            admin,
        }
    }

    fn kill(&mut self) {
        self.service.take().unwrap().kill();
    }

    fn restart(&mut self) {
        self.service = Some(self.home.start());
    }

    fn has(&self, count: usize) -> bool {
        self.home.archived().len() >= count
    }
}

/// The shipped load balancer, with `replicas` in place of Docker's DNS.
fn balancer(replicas: [&Replica; 2]) -> Server {
    let servers = replicas.map(|replica| {
        let port = replica.admin.port();
        format!("server replica-{port} {} port {port}", replica.server)
    });
    let template = "server-template replica 8 hookswitch:8080 resolvers docker init-addr none";
    let shipped = text("haproxy.cfg");
    assert!(shipped.contains(template), "{shipped}");
    let config = shipped.replace(template, &servers.join("\n    "));
    Server::start(|folder, port| {
        let file = folder.join("haproxy.cfg");
        let bind = format!("bind 127.0.0.1:{port}");
        fs::write(&file, config.replace("bind :8080", &bind)).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-f").arg(file);
        command
    })
}

#[test]
fn a_dead_replica_behind_the_load_balancer_costs_no_request() {
    accepts(
        Command::new("haproxy")
            .args(["-c", "-q", "-f"])
            .arg(shipped("haproxy.cfg")),
    );
    let mut one = Replica::start();
    let mut other = Replica::start();
    let balancer = balancer([&one, &other]);
    let mut serial = 0;
    let mut post = || {
        serial += 1;
        let body = cnam(1, serial);
        let headers = zoom_headers(body.as_bytes(), ZOOM_SECRET, unix_now());
        let path = "/zoom/number-management";
        let answer = request(
            balancer.address(),
            "POST",
            path,
            &as_pairs(&headers),
            body.as_bytes(),
        );
        answer.unwrap()
    };
    // Servers are taken to be up until a check says otherwise, so the first request goes through.
    eventually("both replicas get requests", || {
        assert_eq!(post().status, 200);
        one.has(1) && other.has(1)
    });
    for _ in 0..2 {
        one.kill();
        for _ in 0..50 {
            // The first of these find that nobody listens, before a check has found it.
            let answer = post();
            assert_eq!(answer.status, 200, "{}", balancer.log());
            assert!(answer.len() < 1024, "{}", answer.head);
        }
        let before = one.home.archived().len();
        one.restart();
        eventually("the replica gets requests again", || {
            assert_eq!(post().status, 200);
            one.has(before + 1)
        });
        std::mem::swap(&mut one, &mut other);
    }
    let acknowledged = usize::try_from(serial).unwrap();
    eventually("each event has been delivered", || {
        one.home.archived().len() + other.home.archived().len() >= acknowledged
    });
}
