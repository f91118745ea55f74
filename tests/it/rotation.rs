//! The rotation of the files of a `file` handler.

use std::{collections::BTreeSet, fs, os::unix::fs::symlink, path::PathBuf};

use jiff::Timestamp;

use crate::harness::{ENDPOINTS, Home, cnam, eventually, unix_now};

/// A folder with an archive that is rotated by `rotate`.
struct Archive(Home);

impl Archive {
    fn new(rotate: &str) -> Self {
        let home = Home::new(&[
            ENDPOINTS,
            "[handlers.archive]\nkind = \"file\"\nevents = [\"*\"]\n",
            "path = \"{dir}/archive/events.ndjson\"\n",
            &format!("rotate = {rotate}\n"),
        ]);
        fs::create_dir(home.path().join("archive")).unwrap();
        Self(home)
    }

    /// Starts the service and has it archive events with the serial numbers 1 to `last`, one after the
    /// other.
    fn fill(&self, last: u64) {
        let service = self.0.start();
        for serial in 1..=last {
            assert_eq!(service.zoom(&cnam(1, serial)).status, 200);
        }
        eventually("all events are archived", || {
            service.metric("hookswitch_deliveries_total{handler=\"archive\",outcome=\"done\"}")
                == last as f64
        });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("archive").join(name)
    }

    /// The names of all files in the folder.
    fn names(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.path("")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect()
    }

    /// The serial numbers of the kept events.
    fn serials(&self) -> BTreeSet<u64> {
        let text = |name: &String| fs::read_to_string(self.path(name)).unwrap();
        let lines: String = self.names().iter().map(text).collect();
        let serials = lines.split("serial ").skip(1);
        let serials = serials.map(|rest| rest.split('"').next().unwrap());
        serials.map(|serial| serial.parse().unwrap()).collect()
    }

    /// The size of the rotated files in bytes.
    fn rotated_bytes(&self) -> u64 {
        let names = self.names();
        let rotated = names.iter().filter(|name| *name != "events.ndjson");
        let bytes = |name: &String| fs::metadata(self.path(name)).unwrap().len();
        rotated.map(bytes).sum()
    }
}

#[test]
fn the_newest_files_are_kept_up_to_a_number() {
    let archive = Archive::new("{ size = 1, keep = { files = 3 } }");
    archive.fill(10);
    assert_eq!(archive.serials(), BTreeSet::from([7, 8, 9, 10]));
}

#[test]
fn the_newest_files_are_kept_up_to_a_size() {
    let archive = Archive::new("{ size = 1, keep = { size = \"4KiB\" } }");
    archive.fill(20);
    assert!(archive.rotated_bytes() <= 4096, "{:?}", archive.names());
    let serials = archive.serials();
    let first = *serials.first().unwrap();
    assert_eq!(serials, (first..=20).collect());
    assert!((3..=19).contains(&serials.len()), "{serials:?}");
}

#[test]
fn files_are_kept_up_to_an_age() {
    let archive = Archive::new("{ every = \"day\", keep = { age = \"30d\" } }");
    let name = |days: i64| {
        let at = Timestamp::from_second(unix_now() - days * 24 * 3600).unwrap();
        at.strftime("events-%Y%m%dT%H%M%SZ.ndjson").to_string()
    };
    let (old, older, young) = (name(31), name(300), name(29));
    for name in [&old, &older, &young] {
        fs::write(archive.path(name), "").unwrap();
    }
    archive.fill(1);
    let left = BTreeSet::from([young, "events.ndjson".to_owned()]);
    assert_eq!(archive.names(), left);
}

#[test]
fn nothing_but_rotated_files_is_removed() {
    let archive = Archive::new("{ size = 1, keep = { files = 1, age = \"1s\", size = 1 } }");
    let others = [
        "events-20200101T000000Z.ndjson.gz",
        "events-20200101T000000Z-copy.ndjson",
        "events-20200101T000000.ndjson",
        "events-old.ndjson",
        "events.ndjson.1",
        "other-20200101T000000Z.ndjson",
    ];
    for name in others {
        fs::write(archive.path(name), "").unwrap();
    }
    fs::create_dir(archive.path("events-20200101T000000Z.ndjson")).unwrap();
    symlink(
        "events-old.ndjson",
        archive.path("events-20200102T000000Z.ndjson"),
    )
    .unwrap();
    let before = archive.names();
    fs::write(archive.path("events-20200103T000000Z.ndjson"), "").unwrap();
    fs::write(archive.path("events-20200103T000000Z-7.ndjson"), "").unwrap();
    archive.fill(5);
    let mut after = archive.names();
    assert!(after.remove("events.ndjson"));
    assert_eq!(after, before);
}
