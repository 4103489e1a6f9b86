//! `make demo`: the program on a real control plane, step by step, each step seen and measured.
//!
//! Exits with 0 only when every step was seen to happen. `--keep` leaves everything up to play with.

mod console;
mod scenario;
mod watcher;

use std::{
    any::Any,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use test_support::{
    Cluster, Setup, Tool,
    control_plane::{Binaries, Component, ControlPlane, KUBERNETES_VERSION},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{console::Console, scenario::Scenario};

const USAGE: &str = "usage: demo [--keep]

  --keep  leaves the control plane and the program up until Ctrl-C";

/// Lines of the program's log that a failure shows.
const LOG_TAIL: usize = 30;

/// Exit code after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// What has been started so far.
#[derive(Default)]
struct Stage {
    tool: OnceLock<Tool>,
    cluster: OnceLock<Cluster>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let keep = match arguments.as_slice() {
        [] => false,
        ["--keep"] => true,
        ["--help" | "-h"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    // Whatever the test support gives up on is told once, below, with the program's log.
    std::panic::set_hook(Box::new(|_| ()));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run(keep));
    // Does not wait for a build of the control plane that was interrupted.
    runtime.shutdown_background();
    code
}

/// Plays the demo, tells how it ended, and takes everything down again.
async fn run(keep: bool) -> ExitCode {
    let stage = Arc::new(Stage::default());
    let mut play = tokio::spawn(play(Arc::clone(&stage), keep));
    let code = tokio::select! {
        ended = &mut play => {
            let ended = ended.unwrap_or_else(|error| Err(anyhow!("{}", words(error.into_panic().as_ref()))));
            match ended {
                Ok(()) if keep => {
                    interrupted().await;
                    println!();
                    ExitCode::SUCCESS
                }
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tell_failure(&error, &stage);
                    ExitCode::FAILURE
                }
            }
        }
        () = interrupted() => {
            play.abort();
            let _ = play.await;
            println!("\nInterrupted; taking everything down.");
            ExitCode::from(INTERRUPTED)
        }
    };
    let stopped = tokio::spawn(take_down(stage)).await;
    match stopped.unwrap_or_else(|error| Err(anyhow!("{}", words(error.into_panic().as_ref())))) {
        Ok(()) => code,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn play(stage: Arc<Stage>, keep: bool) -> Result<()> {
    let mut console = Console::default();
    println!("gitlab-runner-webhook keeps the runner's token and the company's CA where runner pods need them.");
    println!(
        "Here it does so on a real control plane, Kubernetes {KUBERNETES_VERSION} on loopback, without containers."
    );
    println!("Each step is checked on real objects; its time runs from the request to the effect.");
    console.chapter("The stage", &[]);
    let binary = binary()?;
    let kubectl = programs(&mut console).await?;
    let cluster = cluster(&mut console).await;
    let cluster = stage.cluster.get_or_init(|| cluster);
    let tool = started(cluster, &binary, &mut console).await;
    let tool = stage.tool.get_or_init(|| tool);

    let mut scenario = Scenario::new(cluster, tool, &kubectl, console).await?;
    scenario.tell().await?;
    scenario.end(keep).await
}

/// Finds, or builds, what the control plane consists of; returns kubectl.
async fn programs(console: &mut Console) -> Result<PathBuf> {
    console.step("The programs of the control plane are found, or built from Go modules");
    let started = Instant::now();
    let found = tokio::task::spawn_blocking(|| Binaries::find(&Component::CONTROL_PLANE)).await??;
    let kubectl = found.path(Component::Kubectl).context("kubectl is a part of the control plane")?.to_owned();
    console.seen("etcd, kube-apiserver, kube-controller-manager, ... are there", started.elapsed());
    Ok(kubectl)
}

/// A control plane with the shipped manifests in it.
async fn cluster(console: &mut Console) -> Cluster {
    console.step("The control plane starts, and manifests/overlays/local is applied");
    let started = Instant::now();
    let cluster = Cluster::start_as(ControlPlane::builder().nodes(true), Setup::default()).await;
    console.seen("etcd, API server, controllers, scheduler and a node are ready", started.elapsed());
    cluster
}

/// The program, running.
async fn started(cluster: &Cluster, binary: &str, console: &mut Console) -> Tool {
    console.step("gitlab-runner-webhook starts");
    console.note("with the token of its own ServiceAccount and the shipped RBAC, never as admin");
    console.note("and with no certificate: it makes a CA, keeps it in a Secret, and issues its own");
    let tool = cluster.tool(binary).await.self_managed().spawn();
    let ready = tool.ready().await;
    console.measured(
        "ready: it serves HTTPS, and every watch is loaded",
        "program started -> ready",
        ready - tool.started,
    );
    tool
}

/// The program, which cargo puts beside the folder of the examples.
fn binary() -> Result<String> {
    let example = std::env::current_exe().context("where the demo lies")?;
    let binary = example.ancestors().nth(2).unwrap_or(Path::new(".")).join("gitlab-runner-webhook");
    if !binary.is_file() {
        bail!("{} is missing: run `make demo`, which builds it", binary.display());
    }
    binary.into_os_string().into_string().map_err(|path| anyhow!("{} is not UTF-8", path.display()))
}

async fn take_down(stage: Arc<Stage>) -> Result<()> {
    let Some(stage) = Arc::into_inner(stage) else { bail!("something still uses the control plane") };
    if let Some(tool) = stage.tool.into_inner() {
        let started = Instant::now();
        let status = tool.stop().await;
        ensure!(status.success(), "gitlab-runner-webhook ended with {status} after SIGTERM");
        println!("Stopped by SIGTERM in {}; the control plane goes, too.", console::millis(started.elapsed()));
    }
    Ok(())
}

fn tell_failure(error: &anyhow::Error, stage: &Stage) {
    eprintln!("\ndemo: FAILED: {error:#}");
    let Some(tool) = stage.tool.get() else { return };
    let mut lines = tool.log_lines();
    // A dry run asks again and again.
    lines.dedup_by_key(|line| ["/message", "/span/name", "/span/reason"].map(|part| line.pointer(part).cloned()));
    let from = lines.len().saturating_sub(LOG_TAIL);
    eprintln!("\nThe last lines of gitlab-runner-webhook's log:");
    for line in lines.iter().skip(from) {
        eprintln!("{line}");
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
}

/// Waits for Ctrl-C, or a request to end from elsewhere.
async fn interrupted() {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = kinds.map(signal) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => (),
        _ = terminate.recv() => (),
        _ = hangup.recv() => (),
    }
}
