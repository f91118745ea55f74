//! Full, failing and read-only disks.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    crash::archived_serials,
    harness::{ARCHIVE, ENDPOINTS, Home, Service, cnam, eventually, hookswitch},
};

/// A command that runs the service with a separate file system, made by `mount`, at its store's
/// folder. The mount ends with the process.
fn on_mount(home: &Home, options: &str) -> Command {
    let data = home.path().join("data");
    fs::create_dir_all(&data).unwrap();
    let script = format!(
        "mount -t tmpfs -o {options} tmpfs {} && exec {} \"$@\"",
        data.display(),
        env!("CARGO_BIN_EXE_hookswitch")
    );
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", &script, "sh"]);
    command
}

/// An event of about 100 KiB.
fn large(serial: u64) -> String {
    let padding = "x".repeat(100 << 10);
    cnam(1, serial).replacen('{', &format!("{{\"padding\":\"{padding}\","), 1)
}

/// Posts large events until one is answered 503. Returns the serials that were answered 200.
fn fill(service: &Service) -> std::collections::BTreeSet<u64> {
    let mut acknowledged = std::collections::BTreeSet::new();
    for serial in 0..1000 {
        match service.zoom(&large(serial)).status {
            200 => assert!(acknowledged.insert(serial)),
            503 => return acknowledged,
            status => panic!("{status}"),
        }
    }
    panic!("the disk never filled up");
}

#[test]
fn a_nearly_full_disk_refuses_new_events_and_delivers_the_stored_ones() {
    let endpoints = ENDPOINTS.replace("reserve = 0", "reserve = \"6MiB\"");
    let home = Home::new(&[&endpoints, ARCHIVE]);
    let service = Service::spawn(&home, on_mount(&home, "size=16m"));
    let acknowledged = fill(&service);
    assert!(acknowledged.len() > 10, "{}", acknowledged.len());
    eventually("the store says that it is full", || {
        service.ready() == (503, "unavailable".to_owned())
    });
    eventually("the stored events are delivered", || {
        archived_serials(&home) == acknowledged
    });
}

#[test]
fn a_full_disk_loses_nothing_and_is_used_again_once_there_is_room() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE]);
    let service = Service::spawn(&home, on_mount(&home, "size=8m"));
    let mut acknowledged = fill(&service);
    let data = home.path().join("data");
    let process = service.id().to_string();
    let grown = Command::new("nsenter")
        .args([
            "--target",
            &process,
            "--user",
            "--mount",
            "--preserve-credentials",
            "mount",
        ])
        .args(["-o", "remount,size=64m", "tmpfs"])
        .arg(&data)
        .status();
    assert!(grown.unwrap().success());
    eventually("events are accepted again", || {
        service.zoom(&cnam(1, 5000)).status == 200
    });
    acknowledged.insert(5000);
    eventually("all events are delivered", || {
        archived_serials(&home).is_superset(&acknowledged)
    });
    assert_eq!(service.ready(), (200, "ready".to_owned()));
}

#[test]
fn a_failed_sync_poisons_the_store_and_ends_the_service() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE]);
    let fault = home.path().join("fault");
    let mut command = hookswitch();
    command
        .env("LD_PRELOAD", faulty_disk(home.path()))
        .env("FAULTY_DISK_FAIL", &fault);
    let mut service = Service::spawn(&home, command);
    for serial in 0..5 {
        assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
    }
    fs::write(&fault, b"").unwrap();
    assert_eq!(service.zoom(&cnam(1, 5)).status, 503);
    assert_eq!(service.wait(), Some(70));
    assert!(service.log().contains("poisoned"), "{}", service.log());

    fs::remove_file(&fault).unwrap();
    let service = home.start();
    assert_eq!(service.zoom(&cnam(1, 6)).status, 200);
    eventually("nothing acknowledged is lost", || {
        archived_serials(&home).is_superset(&[0, 1, 2, 3, 4, 6].into())
    });
}

/// Builds the library that puts a faulty disk under the journal.
pub(crate) fn faulty_disk(folder: &Path) -> PathBuf {
    let source = folder.join("faulty_disk.c");
    fs::write(&source, include_str!("faulty_disk.c")).unwrap();
    let library = folder.join("faulty_disk.so");
    let built = Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .arg("-ldl")
        .status();
    assert!(built.unwrap().success());
    library
}

#[test]
fn an_unwritable_folder_is_reported_at_the_start() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE]);
    let output = on_mount(&home, "ro,size=1m")
        .arg("serve")
        .arg("--config")
        .arg(home.config())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(
        said.contains("data") && said.contains("Read-only file system"),
        "{said}"
    );
}

#[test]
fn two_services_never_share_a_store() {
    let home = Home::new(&[ENDPOINTS, ARCHIVE]);
    let _first = home.start();
    let output = home.run(&["serve"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("in use by another process"), "{said}");
}
