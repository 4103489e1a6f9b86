//! What a machine needs for a node, looked for before anything is started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use image_archive::Program;

use crate::Error;

/// Programs, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 8] = [
    ("containerd", "containerd"),
    ("containerd-shim-runc-v2", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("mount", "mount"),
];

/// Where distributions keep CNI plugins.
const CNI_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];
const CNI_PLUGINS: [&str; 3] = ["bridge", "host-local", "loopback"];

/// How a node is cut off from the machine.
pub(super) const UNSHARE: [&str; 9] =
    ["unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"];

/// Tries, in such namespaces, all that a node does to the kernel.
const PROBE: &str = r#"
try() {
    what=$1
    shift
    said=$("$@" 2>&1) || { echo "$what: ${said:-no reason given}"; exit 1; }
}
group=/sys/fs/cgroup
[ -e $group/cgroup.controllers ] || group=$group/memory
group=$group/control-plane-probe-$1
try "it cannot read the kernel's log, as kubelet does" sh -c 'exec </dev/kmsg'
try "it cannot mount file systems" mount -t tmpfs tmpfs /run
try "it cannot create cgroups" mkdir "$group"
rmdir "$group"
try "it has no network namespaces of its own" ip link set lo up
try "its kernel has no bridges" ip link add probe type bridge
try "its kernel has no virtual Ethernet" ip link add probe0 type veth peer name probe1
try "it cannot forward packets" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
try "its kernel has no nftables with address translation" nft '
    add table ip probe
    add chain ip probe nat { type nat hook prerouting priority dstnat; }
    add chain ip probe post { type nat hook postrouting priority srcnat; }
    add chain ip probe filter { type filter hook input priority filter; }
    add rule ip probe nat fib daddr type local dnat to numgen random mod 2 map { 0 : 10.0.0.1, 1 : 10.0.0.2 }
    add rule ip probe post meta mark and 0x4000 != 0 masquerade
    add rule ip probe filter ct state new reject'
"#;

/// Whether a node can run here.
///
/// # Errors
/// [`Error::Machine`], with what is missing and how to get it.
pub fn check() -> Result<(), Error> {
    if !cfg!(target_os = "linux") {
        return Err(Error::Machine("it needs Linux".to_owned()));
    }
    if !root(&fs::read_to_string("/proc/self/status").unwrap_or_default()) {
        return Err(Error::Machine("it needs root: try sudo, or name another cluster with KUBECONFIG".to_owned()));
    }
    let packages = missing_packages();
    if !packages.is_empty() {
        return Err(Error::Machine(format!(
            "programs are missing; on Debian and Ubuntu: apt-get install --no-install-recommends {}",
            packages.join(" ")
        )));
    }
    let hidden = ["/run", "/var/run", "/var/log", "/var/lib/kubelet"];
    let folder = std::env::temp_dir();
    if hidden.iter().any(|hidden| folder.starts_with(hidden)) {
        return Err(Error::TemporaryFolder(folder));
    }
    let done = Command::new(UNSHARE[0])
        .args(&UNSHARE[1..])
        .args(["sh", "-c", PROBE, "sh", &std::process::id().to_string()])
        .env("PATH", path())
        .stdin(Stdio::null())
        .output();
    let done = done.map_err(Error::on("start", Path::new(UNSHARE[0])))?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(if done.stdout.is_empty() { &done.stderr } else { &done.stdout });
    Err(Error::Machine(said.trim().to_owned()))
}

/// Debian packages with what a node needs and this machine has not.
pub fn missing_packages() -> Vec<&'static str> {
    packages(|program| find(program).is_some(), cni_plugins().is_some(), busybox().is_some())
}

fn packages(there: impl Fn(&str) -> bool, cni: bool, busybox: bool) -> Vec<&'static str> {
    let missing = PROGRAMS.iter().filter(|(program, _)| !there(program));
    let mut packages: Vec<_> = missing.map(|(_, package)| *package).collect();
    if !cni {
        packages.push("containernetworking-plugins");
    }
    if !busybox {
        packages.push("busybox-static");
    }
    // Programs of one package stand together.
    packages.dedup();
    packages
}

/// The folder with the CNI plugins.
pub(super) fn cni_plugins() -> Option<PathBuf> {
    let mut folders = CNI_FOLDERS.iter().map(PathBuf::from);
    folders.find(|folder| CNI_PLUGINS.iter().all(|plugin| folder.join(plugin).is_file()))
}

/// A static busybox, and its architecture: the one that needs no other file in an image.
pub(super) fn busybox() -> Option<(PathBuf, &'static str)> {
    let path = find("busybox")?;
    let program = Program::read(&fs::read(&path).ok()?)?;
    program.is_static.then_some((path, program.architecture))
}

pub(super) fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&path()).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// The search path with the folders of administrators, which not every shell names.
pub(super) fn path() -> String {
    format!("{}:/usr/local/sbin:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Whether `/proc/self/status` is that of root.
fn root(status: &str) -> bool {
    // Real, effective, saved and file system ids.
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    ids.split_whitespace().nth(1) == Some("0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_package_is_named_once() {
        assert_eq!(packages(|_| true, true, true), [""; 0]);
        assert_eq!(packages(|program| program != "ctr", true, false), ["containerd", "busybox-static"]);
        let all = packages(|_| false, false, false);
        assert_eq!(all.len(), 8, "{all:?}");
        assert!(all.iter().all(|package| all.iter().filter(|other| *other == package).count() == 1), "{all:?}");
    }

    #[test]
    fn the_effective_user_counts() {
        assert!(root("Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t0\t0\t0\t0\n"));
        assert!(!root("Name:\tx\nUid:\t0\t1000\t0\t0\nGid:\t0\t0\t0\t0\n"));
        assert!(!root(""));
    }
}
