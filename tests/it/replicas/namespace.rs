//! Places that only some processes are in: a network behind a cable that can be pulled, a disk that
//! is small.

use std::{
    io::{BufRead, BufReader},
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
};

/// Namespaces, kept by a process that does nothing else. It ends with the test, however that ends:
/// it reads from a pipe that only the test holds open.
struct Namespace {
    keeper: Child,
    kind: &'static str,
}

impl Namespace {
    /// One of `kind`, an option of `unshare` and `nsenter`, in which `setup` has run.
    fn new(kind: &'static str, setup: &str) -> Self {
        let mut keeper = Command::new("unshare")
            .args([kind, "--", "sh", "-e", "-c"])
            .arg(format!("{setup}\necho made\nexec cat"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut stdout = BufReader::new(keeper.stdout.take().unwrap());
        stdout.read_line(&mut said).unwrap();
        assert_eq!(
            said, "made\n",
            "these tests make namespaces: run them as root, or in a container with --privileged"
        );
        Self { keeper, kind }
    }

    fn id(&self) -> u32 {
        self.keeper.id()
    }

    /// What runs the rest of its arguments in here.
    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        let target = self.id().to_string();
        command.args([self.kind, "--target", &target, "--"]);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.keeper.kill());
        drop(self.keeper.wait());
    }
}

/// A network of two addresses: the test's and the one in a namespace of its own. Both ends of the
/// cable are gone with the namespace.
pub(crate) struct Island {
    namespace: Namespace,
    /// Our end of the cable.
    link: String,
    /// The first address of the network, in which there are four.
    base: u32,
}

impl Island {
    pub(crate) fn new() -> Self {
        let namespace = Namespace::new("--net", "ip link set lo up");
        let keeper = namespace.id();
        // A network for each process id, as far as they go: tests may run beside each other.
        let base = u32::from(Ipv4Addr::new(10, 213, 0, 0)) + (keeper % (1 << 14)) * 4;
        let island = Self {
            link: format!("hs{keeper}"),
            namespace,
            base,
        };
        let (link, near, far) = (&island.link, island.near(), island.far());
        let keeper = keeper.to_string();
        ip([
            "link", "add", link, "type", "veth", "peer", "eth0", "netns", &keeper,
        ]);
        ip(["address", "add", &format!("{near}/30"), "dev", link]);
        let inside = format!("ip address add {far}/30 dev eth0 && ip link set eth0 up");
        let made = island.enter().args(["sh", "-c", &inside]).status();
        assert!(made.unwrap().success());
        island.mend();
        island
    }

    /// Our address.
    pub(crate) fn near(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    /// The address inside.
    pub(crate) fn far(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 2)
    }

    /// What runs the rest of its arguments inside.
    pub(crate) fn enter(&self) -> Command {
        self.namespace.enter()
    }

    /// Nothing gets through from now on, and nobody inside is told.
    pub(crate) fn cut(&self) {
        ip(["link", "set", &self.link, "down"]);
    }

    pub(crate) fn mend(&self) {
        ip(["link", "set", &self.link, "up"]);
    }
}

fn ip<const N: usize>(arguments: [&str; N]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
}

/// A disk of its own for one folder, which only those see who entered.
pub(crate) struct Disk {
    namespace: Namespace,
    folder: String,
}

impl Disk {
    /// One of `mebibytes`, with what is in `folder` now.
    pub(crate) fn new(folder: &Path, mebibytes: u32) -> Self {
        let folder = folder.to_str().unwrap().to_owned();
        let setup = format!(
            "cp -a {folder} {folder}.before\n\
             mount -t tmpfs -o size={mebibytes}m tmpfs {folder}\n\
             cp -a {folder}.before/. {folder}"
        );
        Self {
            namespace: Namespace::new("--mount", &setup),
            folder,
        }
    }

    /// What runs the rest of its arguments where the disk is seen.
    pub(crate) fn enter(&self) -> Command {
        self.namespace.enter()
    }

    pub(crate) fn grow(&self, mebibytes: u32) {
        let size = format!("remount,size={mebibytes}m");
        let grown = self
            .enter()
            .args(["mount", "-o", &size, "tmpfs", &self.folder])
            .status();
        assert!(grown.unwrap().success());
    }
}
