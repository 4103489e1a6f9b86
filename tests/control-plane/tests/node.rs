//! Whatever ends a node, nothing of it stays behind. Run by `make e2e`.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Starts a pod and tells when it runs.
const POD: &str =
    "\"$KUBECTL\" run pod --image=busybox --image-pull-policy=IfNotPresent --restart=Never -- sleep 1000 &&
    \"$KUBECTL\" wait pod/pod --for=condition=Ready --timeout=60s && echo up && sleep 1000";

struct Node {
    process: Child,
    /// In command lines, folders and cgroups of everything that belongs to it.
    name: String,
}

impl Node {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_control-plane"))
            .args(["node", "--", "sh", "-c", POD])
            .stdout(Stdio::piped())
            .spawn()
            .expect("a node");
        let output = BufReader::new(process.stdout.take().expect("its output"));
        assert!(output.lines().map_while(Result::ok).any(|line| line == "up"), "the pod runs");
        let name = format!("control-plane-{}-", process.id());
        let node = Self { process, name };
        assert!(node.processes() > 10 && node.cgroups() > 0 && node.folders() > 0, "there is something to take down");
        node
    }

    /// Sends a signal and waits until nothing is left.
    fn end(mut self, signal: &str) -> ExitStatus {
        let sent = Command::new("kill").args(["-s", signal, &self.process.id().to_string()]).status();
        assert!(sent.expect("a signal").success());
        let status = self.process.wait().expect("an end");
        let started = Instant::now();
        loop {
            let left = (self.processes(), self.cgroups(), self.folders());
            if left == (0, 0, 0) {
                return status;
            }
            assert!(started.elapsed() < Duration::from_secs(30), "processes, cgroups, folders: {left:?}");
            sleep(Duration::from_millis(50));
        }
    }

    fn processes(&self) -> usize {
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        let ours = |path: &Path| {
            ["cmdline", "cgroup"].iter().any(|file| {
                let bytes = fs::read(path.join(file)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).contains(&self.name)
            })
        };
        entries.filter(|entry| ours(&entry.path())).count()
    }

    fn cgroups(&self) -> usize {
        let root = Path::new("/sys/fs/cgroup");
        let below = fs::read_dir(root).expect("cgroups").flatten().map(|entry| entry.path());
        [root.to_owned()].into_iter().chain(below).map(|folder| self.named(&folder)).sum()
    }

    fn folders(&self) -> usize {
        self.named(&std::env::temp_dir())
    }

    fn named(&self, folder: &Path) -> usize {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&self.name)).count()
    }
}

#[test]
#[ignore = "needs root and containerd: make e2e"]
fn nothing_stays_after_ctrl_c() {
    assert_eq!(Node::start().end("INT").code(), Some(130));
}

#[test]
#[ignore = "needs root and containerd: make e2e"]
fn nothing_stays_after_a_kill() {
    assert_eq!(Node::start().end("KILL").code(), None);
}

#[test]
#[ignore = "needs root and containerd: make e2e"]
fn code_of_the_command_is_that_of_the_node() {
    let node = Command::new(env!("CARGO_BIN_EXE_control-plane")).args(["node", "--", "sh", "-c", "exit 7"]).status();
    assert_eq!(node.expect("a node").code(), Some(7));
}
