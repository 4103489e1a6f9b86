//! `control-plane build`, `run` and `node`, for the Makefile and for people.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use control_plane::node::{self, Options};
use control_plane::{Binaries, Component, ControlPlane, Error};

const USAGE: &str = "\
usage: control-plane build [--node]  builds what is missing and prints the folder; --node: kubelet and kube-proxy, too
       control-plane run [--nodes]   runs until it is stopped; --nodes: pods become Running, without containers
       control-plane node [--keep] [--load ARCHIVE]... [-- COMMAND...]
                                     a node with containers; needs root. Runs the command beside it with KUBECONFIG
                                     set, or until it is stopped. --load: images as `docker save` writes them;
                                     --keep: leaves logs and data behind
       control-plane node --check    says whether this machine can run one: exit code 0, or 3 and the reason
       control-plane node --packages Debian packages that are missing for it";

/// Exit code when the machine cannot run a node, whatever the program does.
const CANNOT: u8 = 3;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(|argument| argument.to_str().unwrap_or_default()).collect();
    let result = match words.as_slice() {
        ["build"] => build(&Component::CONTROL_PLANE),
        ["build", "--node"] => build(&[Component::CONTROL_PLANE.as_slice(), &Component::NODE].concat()),
        ["run"] => run(false).await,
        ["run", "--nodes"] => run(true).await,
        ["node", "--check"] => node::check().map(|()| ExitCode::SUCCESS),
        ["node", "--packages"] => {
            println!("{}", node::missing_packages().join(" "));
            Ok(ExitCode::SUCCESS)
        }
        ["node", ..] => match options(&arguments[1..]) {
            Some(options) => node::run(options).await,
            None => return usage(),
        },
        // The second half of the same command, in the namespaces that the first has made.
        ["node-inside", folder, ..] => match options(&arguments[2..]) {
            Some(options) => node::enter(Path::new(folder), &options).await,
            None => return usage(),
        },
        _ => return usage(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("control-plane: {error}");
        ExitCode::from(if matches!(error, Error::Machine(_)) { CANNOT } else { 1 })
    })
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn options(arguments: &[OsString]) -> Option<Options> {
    let mut options = Options::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.to_str()? {
            "--keep" => options.keep = true,
            "--load" => options.load.push(PathBuf::from(arguments.next()?)),
            "--" => {
                options.command = arguments.by_ref().cloned().collect();
                if options.command.is_empty() {
                    return None;
                }
            }
            _ => return None,
        }
    }
    Some(options)
}

fn build(components: &[Component]) -> Result<ExitCode, Error> {
    for folder in Binaries::find(components)?.folders() {
        println!("{}", folder.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends with the process only, which takes everything with it.
async fn run(nodes: bool) -> Result<ExitCode, Error> {
    let control_plane = ControlPlane::builder().nodes(nodes).start().await?;
    println!("export KUBECONFIG={}", control_plane.admin_kubeconfig().display());
    std::future::pending().await
}
