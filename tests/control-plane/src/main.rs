//! `control-plane build` and `control-plane run`, for the Makefile and for people.

use std::process::ExitCode;

use control_plane::{Binaries, Component, ControlPlane, Error};

const USAGE: &str = "usage: control-plane build [--node]  builds what is missing and prints the folder; --node: kubelet and kube-proxy, too
       control-plane run [--nodes]   runs until it is stopped; --nodes: pods become Running";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["build"] => build(&Component::CONTROL_PLANE),
        ["build", "--node"] => build(&[Component::CONTROL_PLANE.as_slice(), &Component::NODE].concat()),
        ["run"] => run(false).await,
        ["run", "--nodes"] => run(true).await,
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("control-plane: {error}");
            ExitCode::FAILURE
        }
    }
}

fn build(components: &[Component]) -> Result<(), Error> {
    for folder in Binaries::find(components)?.folders() {
        println!("{}", folder.display());
    }
    Ok(())
}

/// Ends with the process only, which takes everything with it.
async fn run(nodes: bool) -> Result<(), Error> {
    let control_plane = ControlPlane::builder().nodes(nodes).start().await?;
    println!("export KUBECONFIG={}", control_plane.admin_kubeconfig().display());
    std::future::pending().await
}
