//! Linux namespaces for some processes: a network behind a link that can be cut, a small disk.

use std::{
    io::{BufRead, BufReader},
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
};

/// Namespaces, held by an idle process. The process ends with the test in any case, since it reads
/// from a pipe that only the test holds open.
struct Namespace {
    keeper: Child,
    kind: &'static str,
}

impl Namespace {
    /// A namespace of `kind`, an option of `unshare` and `nsenter`, in which `setup` has run.
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

    /// The beginning of a command that runs inside the namespace.
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

/// A network of two addresses: the test's address, and one in a namespace. Both ends of the link
/// vanish with the namespace.
pub(crate) struct Island {
    namespace: Namespace,
    /// The test's end of the link.
    link: String,
    /// The first of the network's four addresses.
    base: u32,
}

impl Island {
    pub(crate) fn new() -> Self {
        let namespace = Namespace::new("--net", "ip link set lo up");
        let keeper = namespace.id();
        // The network depends on the process id, so that tests can run concurrently.
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

    /// The test's address.
    pub(crate) fn near(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    /// The address inside the namespace.
    pub(crate) fn far(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 2)
    }

    /// The beginning of a command that runs inside the namespace.
    pub(crate) fn enter(&self) -> Command {
        self.namespace.enter()
    }

    /// Drops all packets from now on, which the processes inside cannot notice.
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

/// A separate disk for one folder, visible only inside the namespace.
pub(crate) struct Disk {
    namespace: Namespace,
    folder: String,
}

impl Disk {
    /// A disk of `mebibytes` with the present contents of `folder`.
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

    /// The beginning of a command that runs with the disk.
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
