//! A whole node: containers, kubelet, Services, on a machine that may run something else, too.
//!
//! Everything runs in namespaces of its own. In the network namespace nothing leaves, in the mount
//! namespace nothing of ours stays, and when the first process of the process namespace ends, the kernel
//! ends all others: kubelet, containers and whatever holds them. So the node goes with the process that
//! started it, even when that is killed. What remains for the janitor is a folder and empty cgroups;
//! an empty `/var/lib/kubelet`, if there was none before, stays.
//!
//! `control-plane node -- COMMAND` runs a command beside it:
//!
//! ```text
//! control-plane node            checks, makes namespaces, waits, cleans up          outside.rs
//!   sh                          the first process in there: mounts, reaps
//!     control-plane node-inside network, containerd, control plane, kubelet, proxy  inside.rs
//!       COMMAND                 with KUBECONFIG
//! ```

mod inside;
mod outside;
mod requirements;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::credentials::Authority;
use crate::{Component, NODE};

pub use inside::enter;
pub use outside::run;
pub use requirements::{check, missing_packages};

/// The node's own address, in its network namespace.
pub(crate) const NODE_ADDRESS: &str = "10.10.0.1";
const NODE_RANGE: &str = "10.10.0.1/24";
const POD_RANGE: &str = "10.11.0.0/16";

/// What to run a node for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Image archives that containerd loads, beside `busybox`.
    pub load: Vec<PathBuf>,
    /// Whether the folder with logs and data stays.
    pub keep: bool,
    /// What to run beside it; nothing means until Ctrl-C.
    pub command: Vec<OsString>,
}

/// Kubeconfigs and certificates that only a node needs; returns what the API server is told about them.
pub(crate) fn credentials(authority: &Authority, folder: &Path, url: &str) -> Result<Vec<String>, Error> {
    authority.user(Component::Kubelet.name(), &format!("system:node:{NODE}"), Some("system:nodes"), url)?;
    authority.user(Component::KubeProxy.name(), "system:kube-proxy", None, url)?;
    authority.user(KUBELET_CLIENT, "kube-apiserver-kubelet-client", Some("system:masters"), url)?;
    let file = |end: &str| folder.join(format!("{KUBELET_CLIENT}.{end}")).display().to_string();
    Ok(vec![
        "--bind-address=0.0.0.0".to_owned(),
        format!("--advertise-address={NODE_ADDRESS}"),
        "--endpoint-reconciler-type=lease".to_owned(),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--kubelet-client-certificate={}", file("crt")),
        format!("--kubelet-client-key={}", file("key")),
    ])
}

/// Whom the API server is towards kubelet, for logs and `kubectl exec`.
const KUBELET_CLIENT: &str = "kubelet-client";
