//! What the program is told: one YAML file for the behaviour, flags for the process.

mod error;
mod file;
mod labels;
mod names;
mod settings;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kube::core::Selector;

pub use error::ConfigError;
pub use names::{ConfigurationName, DeploymentName, NameError, NamespaceName, PolicyName, SecretName, ServiceName};
pub use settings::{LogFormat, Settings, TlsMode};

/// The behaviour, checked: whatever is in here can be acted on.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which namespaces get clones and certificates.
    pub runner_namespaces: NamespaceSelection,
    /// Which further namespaces get the trust bundle, for job pods, and no clone: whoever runs jobs there must not read the
    /// runner's token.
    pub trust_namespaces: NamespaceSelection,
    /// What is cloned into each runner namespace. Each Secret name is there once.
    pub clones: Vec<CloneSpec>,
    /// The Secret in each runner namespace that holds `ca.crt` and, optionally, `tls.crt` and `tls.key`.
    pub certs_secret_name: SecretName,
    /// Whether the trust bundle for replacing variables holds the public roots, too.
    pub public_roots: PublicRoots,
    /// Which pods get certificates.
    pub inject: Inject,
    /// Which variables job pods get.
    pub variables: Variables,
    /// What happens to a pod whose clone is missing or stale.
    pub gate: GateConfig,
    /// Deployments in each runner namespace whose pods are replaced when the content of a clone there changes. None as
    /// a rule.
    pub restart: BTreeSet<DeploymentName>,
}

impl Config {
    /// The namespaces that get a trust bundle.
    pub fn with_trust(&self) -> [&NamespaceSelection; 2] {
        [&self.runner_namespaces, &self.trust_namespaces]
    }
}

/// Namespaces: those named, and those whose labels match one of the selectors.
#[derive(Clone, Debug, Default)]
pub struct NamespaceSelection {
    /// Namespaces by name.
    pub names: BTreeSet<NamespaceName>,
    /// Namespaces by label.
    pub selectors: Vec<Selector>,
}

impl NamespaceSelection {
    /// Whether it can select no namespace at all.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.selectors.is_empty()
    }
}

/// One Secret that is cloned from its source namespace into every runner namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneSpec {
    /// Name of the source and of every clone.
    pub secret: SecretName,
    /// Namespace of the source.
    pub from: NamespaceName,
    /// What happens to clones when the source is deleted.
    pub on_source_deleted: OnSourceDeleted,
    /// What happens when a Secret of that name is there that is not ours and differs.
    pub on_foreign_target: OnForeignTarget,
    /// Labels that each clone carries beside ours.
    pub labels: BTreeMap<String, String>,
    /// Whether this is `certsSecretName`, cloned because `certs.from` says so.
    pub holds_certs: bool,
    /// Whether the clone records the version of its source, for Deployments that are restarted by that.
    pub records_source_version: bool,
}

impl CloneSpec {
    /// The source as `<namespace>/<name>`: the value of the annotation on each clone.
    pub fn source(&self) -> String {
        format!("{}/{}", self.from, self.secret)
    }
}

/// What happens to clones when the source is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnSourceDeleted {
    /// They stay as they are; the state says that the source is missing.
    #[default]
    Keep,
    /// Those that are ours are deleted.
    Delete,
}

/// What happens when a Secret of the clone's name is there that is not ours and differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnForeignTarget {
    /// It becomes our clone: its content is replaced.
    #[default]
    Adopt,
    /// It is left alone and reported as a conflict.
    Refuse,
}

/// Which pods get certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "one for each kind of pod and file")]
pub struct Inject {
    /// Manager pods: mount, `CI_SERVER_TLS_CA_FILE`.
    pub manager: bool,
    /// Manager pods: also `CI_SERVER_TLS_CERT_FILE` and `CI_SERVER_TLS_KEY_FILE` when the Secret
    /// holds both. The runner hands that key on to every job.
    pub client_certificate: bool,
    /// Job pods: the trust bundle in containers `build` and `helper`.
    pub jobs: bool,
    /// Job pods: the trust bundle in service containers, too.
    pub services: bool,
}

/// Where public roots in the trust bundle come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PublicRoots {
    /// Mozilla's, compiled in.
    #[default]
    Builtin,
    /// Nowhere: replacing variables are not set.
    None,
}

/// Names of environment variables that job pods get. One the user set is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variables {
    /// Add to what a program trusts anyway: they name `ca.crt`.
    pub additive: Vec<String>,
    /// Add to it, too: they name the directory. `SSL_CERT_DIR` names those of images, too.
    pub directory: Vec<String>,
    /// Options of a JVM: they name the trust store, which replaces what it trusts.
    pub java: Vec<String>,
    /// Replace what a program trusts: they name `bundle.crt`.
    pub replacing: Vec<String>,
}

/// What happens to a pod whose clone is missing or stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateConfig {
    /// How long pods are turned away, from the moment the clone fell out of step. Zero: there is no gate.
    pub give_up_after: Duration,
    /// What happens after that.
    pub then: GateThen,
}

/// What happens when the gate gives up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GateThen {
    /// The pod is let in, with a warning.
    #[default]
    Admit,
    /// The pod is turned away as before.
    Deny,
}
