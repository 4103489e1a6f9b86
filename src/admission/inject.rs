//! Which certificates a pod gets, as a patch that only appends. PURE.
//!
//! Whatever is there stays: volumes, mounts and variables of the user win. Nothing is injected that
//! could dangle, for a variable that points at a missing file breaks more than it repairs. Applied to
//! its own result, it adds nothing; applied to a pod that got another container since, only that.

mod job;
mod manager;
mod trust_volume;

use std::collections::BTreeSet;

use json_patch::Patch;
use serde_json::{Value, json};

pub use manager::host;

use super::{
    decision::Warning,
    kind::{PodKind, runs_entrypoint},
    pod::{append, is_windows, mounts_volume, volume},
    pod_view::{ContainerView, PodView, VariableView, VolumeView},
};
use crate::{
    config::Config,
    names::{CONFIGMAP_TRUST, LABEL_INJECT},
    snapshot::Snapshot,
    trust::Certs,
};

/// What a pod gets, and why.
#[derive(Debug)]
pub(crate) struct Injection {
    /// Additions; empty when there is nothing to add.
    pub(crate) patch: Patch,
    /// For whoever creates the pod.
    pub(crate) warnings: Vec<Warning>,
    /// Why it is so.
    pub(crate) reason: InjectReason,
}

/// Why a pod gets what it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InjectReason {
    /// Something was added.
    Injected,
    /// All of it is there.
    Present,
    /// Neither manager nor job pod.
    OtherPod,
    /// The configuration says no.
    Disabled,
    /// A label of the pod says no.
    OptedOut,
    /// A pod for Windows nodes.
    Windows,
    /// The watch has not delivered its first list.
    CertsNotLoaded,
    /// There is no such Secret, or no CA in it.
    CertsMissing,
    /// A key that should hold CAs holds something else.
    CertsInvalid,
    /// The trust bundle is not there yet.
    TrustPending,
    /// The user mounts something else where the certificates would be.
    ForeignMount,
    /// The pod is built so that nothing can be appended.
    Blocked,
    /// No container that would get certificates.
    NoContainer,
}

impl InjectReason {
    /// The reason as metric label, log field and audit annotation.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Present => "present",
            Self::OtherPod => "other-pod",
            Self::Disabled => "disabled",
            Self::OptedOut => "opted-out",
            Self::Windows => "windows",
            Self::CertsNotLoaded => "certs-not-loaded",
            Self::CertsMissing => "certs-missing",
            Self::CertsInvalid => "certs-invalid",
            Self::TrustPending => "trust-pending",
            Self::ForeignMount => "foreign-mount",
            Self::Blocked => "blocked",
            Self::NoContainer => "no-container",
        }
    }
}

/// Decides what a pod that is being created in `namespace` gets.
pub(crate) fn inject(
    pod: &PodView<'_>,
    kind: PodKind,
    namespace: &str,
    snapshot: &Snapshot,
    config: &Config,
) -> Injection {
    let enabled = match kind {
        PodKind::Manager => config.inject.manager,
        PodKind::Job => config.inject.jobs,
        PodKind::Pause | PodKind::Other => return Injection::none(InjectReason::OtherPod),
    };
    if !enabled {
        return Injection::none(InjectReason::Disabled);
    }
    // The label on a namespace is for the webhook configuration: its pods never get here.
    if pod.metadata.labels.get(LABEL_INJECT) == Some("false") {
        return Injection::none(InjectReason::OptedOut);
    }
    if is_windows(pod) {
        return Injection::none(InjectReason::Windows);
    }
    match injector(kind, namespace, snapshot, config) {
        Ok(injector) => carry_out(injector.as_ref(), pod),
        Err(refusal) => {
            let again = if kind == PodKind::Job { "retry the job" } else { "recreate the pod" };
            let warning = Warning::new(format!("no CA injected: {} and {again}", refusal.problem));
            Injection { warnings: vec![warning], ..Injection::none(refusal.reason) }
        }
    }
}

impl Injection {
    fn none(reason: InjectReason) -> Self {
        Self { patch: Patch::default(), warnings: Vec::new(), reason }
    }
}

/// Why no pod in the namespace gets anything, and what to do about it.
struct Refusal {
    reason: InjectReason,
    problem: String,
}

/// What one kind of pod is to get.
trait Injector {
    /// Whether this one of the ordinary containers gets certificates; `has_entrypoint`: one of them runs the chart's entrypoint.
    fn concerns(&self, container: &ContainerView<'_>, has_entrypoint: bool) -> bool;
    /// What one container lacks.
    fn additions(&self, pod: &PodView<'_>, container: &ContainerView<'_>) -> Result<Additions, Obstacle>;
    /// The volumes that the mounts of [`Additions`] may show.
    fn volumes(&self) -> Vec<Volume>;
}

/// A volume's name, and the volume.
type Volume = (&'static str, Value);

/// What one container lacks.
#[derive(Default)]
struct Additions {
    mounts: Vec<Value>,
    /// The names of the volumes that these show.
    shown: BTreeSet<&'static str>,
    variables: Vec<Value>,
    /// Names of variables that the user set to something else.
    kept: Vec<String>,
    warnings: Vec<Warning>,
}

impl Additions {
    fn mount(&mut self, volume: &'static str, path: &str) {
        self.mounts.push(json!({"name": volume, "mountPath": path, "readOnly": true}));
        self.shown.insert(volume);
    }

    /// Sets a variable, unless the user did.
    fn set(&mut self, container: &ContainerView<'_>, name: &str, value: &str) {
        match variable(container, name) {
            None => self.variables.push(json!({"name": name, "value": value})),
            Some(former) if *former.value == *value => {}
            Some(former) => self.kept.push(former.name.to_string()),
        }
    }
}

/// Why a container gets nothing.
enum Obstacle {
    /// The user mounts something else there.
    ForeignMount(&'static str),
    /// There is nowhere to append to.
    Blocked(&'static str),
}

fn injector<'a>(
    kind: PodKind,
    namespace: &'a str,
    snapshot: &Snapshot,
    config: &'a Config,
) -> Result<Box<dyn Injector + 'a>, Refusal> {
    let secret = &config.certs_secret_name;
    let refuse = |reason, problem: String| Err(Refusal { reason, problem });
    let missing = |what: &str| refuse(InjectReason::CertsMissing, format!("Secret {namespace}/{secret} {what}"));
    let certs = snapshot.certs.get(namespace);
    let with = |trust| -> Result<Box<dyn Injector + 'a>, Refusal> {
        Ok(match kind {
            PodKind::Job => Box::new(job::JobInjector::new(trust, config)),
            _ => Box::new(manager::ManagerInjector::new(trust, certs, config)),
        })
    };
    match (snapshot.trust.get(namespace), certs) {
        // What another revision publishes is right, whatever Secret it is made of.
        (Some(trust), _) if snapshot.is_passive => with(*trust),
        // Not known yet whether its Secret is there. Known to be missing: the bundle is about to be deleted, and not used.
        (Some(trust), None) if !snapshot.knows_certs(namespace) => with(*trust),
        (Some(trust), Some(certs)) if certs.has_ca || certs.unreadable.is_some() => with(*trust),
        _ if !snapshot.knows_certs(namespace) => refuse_not_loaded(namespace, config),
        (_, None) => missing("is missing; create it with ca.crt"),
        (_, Some(Certs { unreadable: Some(key), .. })) => {
            refuse(InjectReason::CertsInvalid, format!("{key} in Secret {namespace}/{secret} cannot be read; fix it"))
        }
        (_, Some(certs)) if !certs.has_ca => missing("has no CA; add ca.crt"),
        (_, Some(Certs { too_large: true, .. })) => {
            refuse(InjectReason::CertsInvalid, format!("Secret {namespace}/{secret} has too many CAs; remove some"))
        }
        _ => refuse(
            InjectReason::TrustPending,
            format!("ConfigMap {namespace}/{CONFIGMAP_TRUST} is being published; wait a moment"),
        ),
    }
}

fn refuse_not_loaded<T>(namespace: &str, config: &Config) -> Result<T, Refusal> {
    let secret = &config.certs_secret_name;
    let problem = format!("Secret {namespace}/{secret} is not loaded yet; wait a moment");
    Err(Refusal { reason: InjectReason::CertsNotLoaded, problem })
}

fn carry_out(injector: &dyn Injector, pod: &PodView<'_>) -> Injection {
    let containers = &pod.spec.containers;
    let has_entrypoint = containers.iter().any(runs_entrypoint);
    let mut operations = Vec::new();
    let mut warnings = Vec::new();
    let mut kept = BTreeSet::new();
    let mut reason = InjectReason::NoContainer;
    let mut shown = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        if !injector.concerns(container, has_entrypoint) {
            continue;
        }
        match injector.additions(pod, container) {
            Ok(additions) => {
                if reason == InjectReason::NoContainer {
                    reason = InjectReason::Present;
                }
                shown.extend(additions.shown);
                warnings.extend(additions.warnings);
                kept.extend(additions.kept);
                if !additions.variables.is_empty() && container.env_from.iter().next().is_some() {
                    // Nobody here may read what it names, and `env` overrules it.
                    warnings.push(Warning::new(
                        "envFrom is overruled where the same variable is injected; to keep yours, set it in env",
                    ));
                }
                let index = index.to_string();
                let path = ["spec", "containers", &index];
                operations.extend(append(container.volume_mounts.is_there(), &path, "volumeMounts", additions.mounts));
                operations.extend(append(container.env.is_there(), &path, "env", additions.variables));
            }
            Err(obstacle) => {
                reason = obstacle.reason();
                let why = obstacle.why();
                warnings.push(Warning::new(format!("no CA injected into a container of this pod: {why}")));
            }
        }
    }
    let is_new = |(name, _): &Volume| shown.contains(name) && volume(pod, name).is_none();
    let ours = injector.volumes().into_iter().filter(is_new).map(|(_, volume)| volume).collect();
    operations.splice(0..0, append(pod.spec.volumes.is_there(), &["spec"], "volumes", ours));
    if !operations.is_empty() {
        reason = InjectReason::Injected;
    }
    warnings.dedup();
    // A pod may have hundreds of containers.
    warnings.truncate(3);
    warnings.extend(kept_warning(&kept));
    Injection { patch: Patch(operations), warnings, reason }
}

/// Whether a volume of this name is ours or can be added. It may be there from an earlier invocation.
fn may_add_volume(pod: &PodView<'_>, name: &str, is_ours: impl Fn(&VolumeView<'_>) -> bool) -> Result<(), Obstacle> {
    match volume(pod, name) {
        Some(volume) if is_ours(volume) => Ok(()),
        Some(_) => Err(Obstacle::Blocked("it has another volume of our name")),
        None if mounts_volume(pod, name) => Err(Obstacle::Blocked("it mounts a volume of our name")),
        None => Ok(()),
    }
}

/// One warning that names the user's variables, as many of them as fit.
fn kept_warning(names: &BTreeSet<String>) -> Option<Warning> {
    let mut length = 0;
    let shown: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .take_while(|name| {
            length += name.len() + ", ".len();
            length <= 80
        })
        .collect();
    let more = match names.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!names.is_empty()).then(|| Warning::new(format!("already set, so kept: {}{more}", shown.join(", "))))
}

/// The variable of this name in a container. The last of several counts, as kubelet has it.
fn variable<'a>(container: &'a ContainerView<'_>, name: &str) -> Option<&'a VariableView<'a>> {
    container.env.iter().rfind(|variable| &*variable.name == name)
}

fn has_name(container: &ContainerView<'_>, names: &[&str]) -> bool {
    names.contains(&&*container.name)
}

/// Whether a service mesh added this container.
fn is_of_mesh(container: &ContainerView<'_>) -> bool {
    has_name(container, &["istio-proxy", "istio-init", "istio-validation"]) || container.name.starts_with("linkerd-")
}

impl Obstacle {
    fn why(&self) -> &'static str {
        let (Self::ForeignMount(why) | Self::Blocked(why)) = self;
        why
    }

    fn reason(&self) -> InjectReason {
        match self {
            Self::ForeignMount(_) => InjectReason::ForeignMount,
            Self::Blocked(_) => InjectReason::Blocked,
        }
    }
}

#[cfg(test)]
#[path = "inject_tests.rs"]
mod tests;
