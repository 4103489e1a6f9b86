//! The manifests that depend on the configuration: rights, guard, webhooks. PURE.
//!
//! [`render`] is what `gitlab-runner-webhook manifests` writes. `manifests/generated` is its output for the defaults, held
//! to it by a test. The text is in `templates/`, with the comments that users read; the code fills in what varies.

mod guard;
mod rights;
mod selectors;
mod text;
mod webhooks;

use crate::config::Config;
use text::{fill, flow};

/// First lines of every file that is written: who writes it, and what that means for its reader.
pub const HEADER: &str = "\
# Written by `gitlab-runner-webhook manifests`, from config.yaml: whoever edits this file by hand loses the change when it
# is written again.";

/// One file of the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its path in the folder.
    pub path: &'static str,
    /// What is in it.
    pub content: String,
}

/// Every path that [`render`] may give. One that it does not give this time must not be there: it would say what was.
pub const PATHS: [&str; 10] = [
    "kustomization.yaml",
    "config.yaml",
    "rbac.yaml",
    "guard.yaml",
    "webhooks.yaml",
    "fail-open/kustomization.yaml",
    "fail-open/webhooks.yaml",
    "namespaced-rbac/kustomization.yaml",
    "namespaced-rbac/cluster-role.yaml",
    "namespaced-rbac/roles.yaml",
];

/// The folder for a configuration; `config_file` is the text that it was read from.
pub fn render(config: &Config, config_file: &str) -> Vec<File> {
    let version = ("version", env!("CARGO_PKG_VERSION").to_owned());
    let mut files = vec![
        file("kustomization.yaml", fill(include_str!("templates/kustomization.yaml"), &[header(), version])),
        file("config.yaml", config_file.to_owned()),
        file("rbac.yaml", rights::cluster_role(config)),
        file("guard.yaml", guard::policy(config)),
        file("webhooks.yaml", webhooks::configurations(config)),
        file("fail-open/kustomization.yaml", fill(include_str!("templates/fail-open-kustomization.yaml"), &[header()])),
        file("fail-open/webhooks.yaml", webhooks::fail_open(config)),
    ];
    // A namespace that is found by label may come after the Roles.
    if config.runner_namespaces.selectors.is_empty() {
        files.extend([
            file(
                "namespaced-rbac/kustomization.yaml",
                fill(include_str!("templates/namespaced-kustomization.yaml"), &[header()]),
            ),
            file("namespaced-rbac/cluster-role.yaml", rights::reading_cluster_role(config)),
            file("namespaced-rbac/roles.yaml", rights::roles(config)),
        ]);
    }
    files
}

fn file(path: &'static str, content: String) -> File {
    File { path, content }
}

fn header() -> (&'static str, String) {
    ("header", HEADER.to_owned())
}

/// The names of the cloned Secrets, as a list in YAML.
fn clones(config: &Config) -> String {
    flow(config.clones.iter().map(|clone| clone.secret.as_str()))
}
