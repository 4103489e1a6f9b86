//! A limit of memory, as a container has one.

use std::{fs, path::PathBuf};

use crate::wait;

/// A control group with a limit. Removed when dropped; what is in it must have ended.
#[derive(Debug)]
pub struct MemoryLimit {
    folder: PathBuf,
    is_v2: bool,
}

impl MemoryLimit {
    /// `None` where this process may make no control group: without root, or with a file system that is read-only.
    pub fn new(bytes: u64) -> Option<Self> {
        let name = format!("gitlab-runner-webhook-{}-{}", std::process::id(), wait::unique());
        let v1 = (PathBuf::from("/sys/fs/cgroup/memory"), false, "memory.limit_in_bytes");
        let v2 = (PathBuf::from("/sys/fs/cgroup"), true, "memory.max");
        let is_v2 = v2.0.join("cgroup.controllers").exists();
        [v1, v2].into_iter().filter(|(_, of_v2, _)| *of_v2 == is_v2).find_map(|(parent, is_v2, limit)| {
            let folder = parent.join(&name);
            fs::create_dir(&folder).ok()?;
            let made = Self { folder, is_v2 };
            fs::write(made.folder.join(limit), bytes.to_string()).ok().map(|()| made)
        })
    }

    /// Puts a process under the limit. What it took before does not count.
    ///
    /// # Panics
    /// When there is no such process.
    pub fn hold(&self, pid: u32) {
        fs::write(self.folder.join("cgroup.procs"), pid.to_string()).expect("a process");
    }

    /// The most that was taken at once, pages of files included, in bytes. It never exceeds the limit.
    ///
    /// # Panics
    /// When the kernel does not count.
    pub fn peak(&self) -> u64 {
        let file = if self.is_v2 { "memory.peak" } else { "memory.max_usage_in_bytes" };
        let peak = fs::read_to_string(self.folder.join(file)).expect("a counter");
        peak.trim().parse().expect("a number")
    }

    /// How many processes were killed for want of memory.
    ///
    /// # Panics
    /// When the kernel does not count.
    pub fn kills(&self) -> u64 {
        let file = if self.is_v2 { "memory.events" } else { "memory.oom_control" };
        let counters = fs::read_to_string(self.folder.join(file)).expect("counters");
        let kills = counters.lines().find_map(|line| line.strip_prefix("oom_kill ")).expect("kills");
        kills.trim().parse().expect("a number")
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}
