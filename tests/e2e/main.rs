//! `make e2e`: the program as users install it, in containers, on a real cluster.
//!
//! Acts on the cluster that `KUBECONFIG` names: one that `make e2e` starts for it, or one of yours that has
//! nothing in the namespaces of the story. `E2E_IMAGE` and `E2E_BUSYBOX_IMAGE` name images; see CONTRIBUTING.md.
//!
//! Nothing here is timed: each step waits for a state, and gives up after minutes.

#![allow(clippy::indexing_slicing, reason = "what an object does not have reads as null")]

mod cluster;
mod pods;
mod story;

use std::process::ExitCode;

use crate::{cluster::Cluster, story::Story};

fn main() -> ExitCode {
    let cluster = match Cluster::from_environment() {
        Ok(cluster) => cluster,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            return ExitCode::from(2);
        }
    };
    match Story::begin(&cluster).and_then(Story::tell) {
        Ok(()) => {
            println!("\ne2e: passed");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\ne2e: FAILED: {error:#}\n");
            cluster.explain();
            ExitCode::FAILURE
        }
    }
}
