//! A transfer into a database whose disk fills up.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
};

use sha2::{Digest, Sha256};

use super::{listed, migrate, said, stop};
use crate::{
    harness::{ARCHIVE, ENDPOINTS, Home, cnam},
    postgres::home_with,
    replicas::namespace::Disk,
    support::postgres::Postgres,
};

/// The number of events in the store: 15 MiB in total.
const EVENTS: u64 = 150;

/// An event of about 100 KiB that cannot be compressed.
fn large(serial: u64) -> String {
    let noise = (0_u64..1600).map(|part| {
        let digest = Sha256::digest(format!("{serial} {part}"));
        digest
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    });
    let noise: String = noise.collect();
    cnam(1, serial).replacen('{', &format!("{{\"noise\":\"{noise}\","), 1)
}

/// A server with a database called `small` on a separate disk.
fn small_database() -> (Postgres, Disk) {
    let mut small = None;
    let postgres = Postgres::start_under(&[], |data| {
        let folder = data.with_file_name("small");
        let owner = fs::metadata(data).unwrap();
        fs::create_dir(&folder).unwrap();
        chown(&folder, Some(owner.uid()), Some(owner.gid())).unwrap();
        let disk = Disk::new(&folder, 16);
        let runner = disk.enter();
        small = Some((folder, disk));
        runner
    });
    let (folder, disk) = small.unwrap();
    let space = format!("CREATE TABLESPACE small LOCATION '{}'", folder.display());
    postgres.sql("postgres", &space);
    postgres.sql("postgres", "CREATE DATABASE small TABLESPACE small");
    (postgres, disk)
}

#[test]
fn a_full_disk_is_reported_and_the_transfer_continues_once_there_is_room() {
    let old = Home::new(&[ENDPOINTS, ARCHIVE]);
    let service = old.start();
    for serial in 0..EVENTS {
        assert_eq!(service.zoom(&large(serial)).status, 200);
    }
    stop(service);
    let (postgres, disk) = small_database();
    let new = home_with(&postgres.url("small"), "");
    let cut_short = migrate(&old, &new);
    assert_eq!(cut_short.status.code(), Some(69), "{cut_short:?}");
    for wanted in [
        "adding events to the database",
        "No space left on device",
        "run it again",
    ] {
        assert!(said(&cut_short).contains(wanted), "{cut_short:?}");
    }
    let moved = listed(&new).len() as u64;
    assert!((1..EVENTS).contains(&moved), "{moved} were moved");

    disk.grow(200);
    let whole = migrate(&old, &new);
    assert!(whole.status.success(), "{whole:?}");
    assert_eq!(listed(&new), listed(&old));
}
