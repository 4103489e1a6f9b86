//! The outer half: checks, namespaces, waiting, cleaning up.

use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Options;
use super::requirements::{UNSHARE, check, path};
use crate::process::{Folder, SUPERVISOR, shell};
use crate::{Binaries, Component, Error};

/// The first process of the namespaces. "$1" is the folder for what would otherwise be the machine's own: its parts are
/// mounted over the machine's, never the other way round, because "$1" is deleted in the end. kubelet's folder cannot be
/// chosen in all its parts, so an empty `/var/lib/kubelet` is made where there is none, and stays.
const FIRST: &str = r#"
set -e
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p "$1/kubelet" "$1/log" "$1/tmp" /var/lib/kubelet
mount --bind "$1/kubelet" /var/lib/kubelet
mount --bind "$1/log" /var/log
groups=/sys/fs/cgroup
if [ -e $groups/cgroup.controllers ]; then
    # Those that cannot be handed down are missed by kubelet, which says so.
    for controller in $(cat $groups/cgroup.controllers); do
        echo "+$controller" >$groups/cgroup.subtree_control || true
    done 2>/dev/null
    mkdir "$groups/${1##*/}"
else
    for group in $groups/*; do
        [ ! -e "$group/cgroup.procs" ] || mkdir -p "$group/${1##*/}"
    done
fi
export TMPDIR="$1/tmp"
shift
"$@" &
wait $!
"#;

/// Exit code after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// Runs a node, and the command beside it; returns the command's exit code.
///
/// # Errors
/// [`Error::Machine`] when this machine cannot; others when programs are missing and cannot be built.
/// What goes wrong inside is told by the exit code, and on standard error.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    check()?;
    // Built out here, where the network is.
    let mut needed = Component::CONTROL_PLANE.to_vec();
    needed.extend(Component::NODE);
    let found = tokio::task::spawn_blocking(move || Binaries::find(&needed)).await;
    found.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;

    let folder = Folder::create()?;
    if options.keep {
        folder.keep();
        eprintln!("node: logs and data stay in {}", folder.path().display());
    }
    supervise(start(&options, folder.path())?).await
}

fn start(options: &Options, folder: &Path) -> Result<Child, Error> {
    let own = std::env::current_exe().map_err(Error::on("find", Path::new("/proc/self/exe")))?;
    let mut command = shell(SUPERVISOR);
    command.args(UNSHARE).args(["sh", "-c", FIRST, "sh"]).arg(folder).arg(&own).arg("node-inside").arg(folder);
    for archive in &options.load {
        command.arg("--load").arg(absolute(archive)?);
    }
    if !options.command.is_empty() {
        command.arg("--").args(&options.command);
    }
    command.env("PATH", path());
    command.spawn().map_err(Error::on("start", &own))
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    path.canonicalize().map_err(Error::on("find", path))
}

/// Waits for the end, however it comes. Closing the supervisor's input ends everything in the namespaces.
async fn supervise(mut supervisor: Child) -> Result<ExitCode, Error> {
    let mut signals = Signals::listen()?;
    let failed = |error| Error::file("wait for", Path::new("the node"), error);
    let mut interrupted = false;
    loop {
        // Not wait(), which closes the input first.
        if let Some(status) = supervisor.try_wait().map_err(failed)? {
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            return Ok(ExitCode::from(if interrupted { INTERRUPTED } else { code }));
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
            () = signals.any(), if !interrupted => {
                eprintln!("node: interrupted; taking everything down");
                interrupted = true;
                drop(supervisor.stdin.take());
            }
        }
    }
}

struct Signals([Signal; 3]);

impl Signals {
    fn listen() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(Error::on("listen to", Path::new("signals")));
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(listen);
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    async fn any(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
