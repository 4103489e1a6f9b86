//! Programs in the background that cannot outlive this process, and the folder they write to.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Error;

/// Starts "$@" and ends with it. Each line read from standard input names a signal for it; the
/// end of the input, which is the end of the harness however that comes about, kills the whole
/// process group. A group rather than a process id, because an id may belong to somebody else by
/// then.
pub(crate) const SUPERVISOR: &str = r#"
exec 3<&0
"$@" 3<&- </dev/null &
program=$!
(while read -r signal <&3; do kill -s "$signal" "$program"; done; kill -s KILL 0) &
watcher=$!
exec 3<&- </dev/null
wait "$program"
code=$?
kill -s KILL "$watcher" 2>/dev/null
exit "$code"
"#;

/// Removes "$1" at the end of its input, unless told to keep it, and the cgroups that containers of a
/// node below "$1" left behind. Several times, because programs that die at the same moment may still
/// be writing there.
const JANITOR: &str = r#"
while read -r word; do [ "$word" = keep ] && exit 0; done
for i in 1 2 3 4 5; do
    rm -rf -- "$1"
    left=$1
    for group in /sys/fs/cgroup/"${1##*/}" /sys/fs/cgroup/*/"${1##*/}"; do
        [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir -- {} \;
        [ ! -d "$group" ] || left=$group
    done
    [ -e "$left" ] || exit 0
    sleep 1
done
"#;

const GRACE: Duration = Duration::from_secs(10);

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    supervisor: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `binary`; what it prints is appended to `<folder>/<name>.log`.
    pub(crate) fn start(name: &'static str, binary: &Path, arguments: &[String], folder: &Path) -> Result<Self, Error> {
        let log = log_file(folder, name);
        let open = || OpenOptions::new().create(true).append(true).open(&log).map_err(Error::on("open", &log));
        let supervisor = shell(SUPERVISOR)
            .arg(binary)
            .args(arguments)
            .current_dir(folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", folder)
            .stdout(open()?)
            .stderr(open()?)
            .spawn()
            .map_err(Error::on("start", binary))?;
        Ok(Self { name, supervisor, log })
    }

    /// An error with the tail of its log, once the program has ended.
    pub(crate) fn running(&mut self) -> Result<(), Error> {
        match self.supervisor.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(Error::Exited { component: self.name, status, log: tail(&self.log, TAIL) }),
            Err(error) => Err(Error::file("watch", Path::new(self.name), error)),
        }
    }

    /// Asks the program to end, and kills it when it has not done so after ten seconds.
    pub(crate) async fn terminate(mut self) {
        if let Some(input) = &mut self.supervisor.stdin {
            // An error means that it is gone already.
            let _ = input.write_all(b"TERM\n");
        }
        let started = Instant::now();
        while started.elapsed() < GRACE && self.running().is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Lets go of the program without waiting for its end; [`Drop`] waits.
    pub(crate) fn release(&mut self) {
        drop(self.supervisor.stdin.take());
    }
}

impl Drop for Process {
    /// By KILL: nothing of what it holds is needed afterwards, and KILL is the same in every way
    /// to end.
    fn drop(&mut self) {
        self.release();
        let _ = self.supervisor.wait();
    }
}

/// A private temporary folder. Dropping it removes it, and so does the end of this process.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    janitor: Mutex<Child>,
}

impl Folder {
    pub(crate) fn create() -> Result<Self, Error> {
        let path = fresh_folder()?;
        let janitor = shell(JANITOR)
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::on("start the janitor of", &path))?;
        Ok(Self { path, janitor: Mutex::new(janitor) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the folder where it is, for people to look at.
    pub(crate) fn keep(&self) {
        let input = self.janitor.lock().unwrap_or_else(PoisonError::into_inner).stdin.take();
        if let Some(mut input) = input {
            let _ = input.write_all(b"keep\n");
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let janitor = self.janitor.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(janitor.stdin.take());
        let _ = janitor.wait();
    }
}

fn fresh_folder() -> Result<PathBuf, Error> {
    let parent = std::env::temp_dir();
    let mut number = 0;
    loop {
        let path = parent.join(format!("control-plane-{}-{number}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(Error::file("create the folder", &path, error)),
        }
    }
}

/// A shell in a process group of its own, so that Ctrl-C in a terminal reaches only the harness.
/// Its input is a pipe that closes with the harness: Rust's pipes are not inherited by others.
pub(crate) fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).stdin(Stdio::piped()).process_group(0);
    command
}

/// How many lines of a log an error shows.
pub(crate) const TAIL: usize = 40;

pub(crate) fn log_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.log"))
}

/// The last `lines` lines of a file; nothing if there is no such file.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Whether a program says in its log that its port belongs to somebody else.
pub(crate) fn port_was_taken(error: &Error) -> bool {
    matches!(error, Error::Exited { log, .. } if log.contains("address already in use"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(folder: &Folder, text: &str) -> Process {
        let arguments = ["-c".to_owned(), text.to_owned()];
        Process::start("etcd", Path::new("/bin/sh"), &arguments, folder.path()).expect("a start")
    }

    #[test]
    fn end_is_noticed_with_code_and_log() {
        let folder = Folder::create().expect("a folder");
        let mut process = script(&folder, "echo out; echo err >&2; exit 7");
        // Not wait(), which closes the pipe first.
        let error = loop {
            match process.running() {
                Ok(()) => std::thread::sleep(Duration::from_millis(10)),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("etcd ended (exit status: 7)") && error.ends_with("out\nerr"), "{error}");
    }

    #[test]
    fn drop_kills_what_ignores_signals() {
        let folder = Folder::create().expect("a folder");
        let mut process = script(&folder, "trap '' TERM INT HUP; while :; do sleep 60; done");
        process.running().expect("a running program");
        drop(process);
    }

    #[tokio::test]
    async fn terminate_lets_it_clean_up() {
        let folder = Folder::create().expect("a folder");
        let mut process = script(&folder, "trap 'echo bye; exit 0' TERM; echo hello; while :; do sleep 0.01; done");
        while tail(&process.log, 1) != "hello" {
            process.running().expect("a running program");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        process.terminate().await;
        assert_eq!(tail(&log_file(folder.path(), "etcd"), 1), "bye");
    }

    #[test]
    fn folder_goes_or_stays() {
        let gone = Folder::create().expect("a folder").path().to_owned();
        assert!(!gone.exists());
        let folder = Folder::create().expect("a folder");
        folder.keep();
        let kept = folder.path().to_owned();
        drop(folder);
        assert!(kept.exists());
        fs::remove_dir(kept).expect("an empty folder");
    }
}
