//! What is to be done today after `kubectl apply -k`. Goes away, with its one call, when the program issues its
//! serving certificate by itself.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::cluster::Cluster;

/// Issues a serving certificate and hands it to the cluster, by the script that users run.
pub fn issue(cluster: &Cluster) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = Command::new("sh")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/certs/issue.sh"))
        .args(["--kubectl", "--days", "1", "--out"])
        .arg(folder.path())
        .env("KUBECTL", cluster.program())
        .output()
        .context("certs/issue.sh")?;
    ensure!(output.status.success(), "certs/issue.sh failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
