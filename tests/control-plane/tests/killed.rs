//! Whatever ends the harness, nothing of it stays behind.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// Process id, parent and process group, from `/proc/<id>/stat`.
fn processes() -> Vec<(u32, u32, u32)> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter_map(|stat| {
            let (id, rest) = stat.split_once(' ')?;
            // The name in parentheses may contain anything.
            let mut fields = rest.rsplit_once(") ")?.1.split(' ').skip(1);
            Some((id.parse().ok()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .collect()
}

#[test]
fn nothing_stays_after_a_kill() {
    let mut harness = Command::new(env!("CARGO_BIN_EXE_control-plane"))
        .args(["run", "--nodes"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a harness");
    let mut line = String::new();
    BufReader::new(harness.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    let kubeconfig = line.trim().strip_prefix("export KUBECONFIG=").expect("a kubeconfig");
    let folder = Path::new(kubeconfig).parent().expect("a folder");
    assert!(folder.is_dir());

    let children = processes().into_iter().filter(|(_, parent, _)| *parent == harness.id());
    let groups: Vec<u32> = children.map(|(id, _, _)| id).collect();
    let left = || processes().into_iter().filter(|(_, _, group)| groups.contains(group)).count();
    // Five programs with two shells each, and the janitor.
    assert_eq!((groups.len(), left()), (6, 16));

    harness.kill().expect("a kill");
    harness.wait().expect("an end");
    while left() > 0 || folder.exists() {
        sleep(Duration::from_millis(30));
    }
}
