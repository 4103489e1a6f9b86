//! Which certificates a pod gets, as a patch that only appends. PURE.
//!
//! Whatever is there stays: volumes, mounts and variables of the user win. Nothing is injected that
//! could dangle, for a variable that points at a missing file breaks more than it mends. Applied to
//! its own result, it adds nothing; applied to a pod that got another container since, only that.

use json_patch::Patch;
use serde_json::{Value, json};

use super::{
    kind::{Kind, runs_entrypoint},
    pod::{Place, append, at, has_room, items, mounts_volume, shows, volume},
    review::Warning,
};
use crate::{
    config::Config,
    names::{KEY_CA, KEY_TLS_CERT, KEY_TLS_KEY, MOUNT_JOB_CERTS, MOUNT_MANAGER_CERTS, VOLUME_CERTS},
    snapshot::Snapshot,
    trust::{Ca, Certs},
};

/// Read by gitlab-runner (`common/config.go`): without it, the runner looks for `<host>.crt` only.
const MANAGER_CA: Variables = &[("CI_SERVER_TLS_CA_FILE", KEY_CA)];
/// One is of no use without the other.
const MANAGER_CLIENT_PAIR: Variables =
    &[("CI_SERVER_TLS_CERT_FILE", KEY_TLS_CERT), ("CI_SERVER_TLS_KEY_FILE", KEY_TLS_KEY)];
/// These add to what the program trusts anyway. Those that replace it need a file with the public
/// roots in it, too.
const JOB_NODE: Variables = &[("NODE_EXTRA_CA_CERTS", KEY_CA)];
const JOB_DENO: Variables = &[("DENO_CERT", KEY_CA)];

/// Containers of a job pod that run the job's scripts; the rest are services of the user.
const JOB_CONTAINERS: [&str; 2] = ["build", "helper"];
/// Containers that a service mesh adds.
const MESH_CONTAINERS: [&str; 2] = ["istio-proxy", "linkerd-proxy"];

/// Names of variables, each with the key that its file has; set together or not at all.
type Variables = &'static [(&'static str, &'static str)];

/// What a pod gets, and why.
#[derive(Debug)]
pub(crate) struct Injection {
    /// Additions; empty when there is nothing to add.
    pub(crate) patch: Patch,
    /// For whoever creates the pod.
    pub(crate) warnings: Vec<Warning>,
    /// Why it is so.
    pub(crate) reason: Reason,
}

/// Why a pod gets what it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Something was added.
    Injected,
    /// All of it is there.
    Present,
    /// Neither manager nor job pod.
    OtherPod,
    /// The configuration says no.
    Disabled,
    /// A pod for Windows nodes.
    Windows,
    /// The watch has not delivered its first list.
    CertsNotLoaded,
    /// There is no such Secret, or it has no `ca.crt`.
    CertsMissing,
    /// `ca.crt` is not PEM.
    CertsInvalid,
    /// The user mounts something else where the certificates would be.
    ForeignMount,
    /// The pod is built so that nothing can be appended.
    Blocked,
    /// No container that would get certificates.
    NoContainer,
}

impl Reason {
    /// The reason as metric label, log field and audit annotation.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Present => "present",
            Self::OtherPod => "other-pod",
            Self::Disabled => "disabled",
            Self::Windows => "windows",
            Self::CertsNotLoaded => "certs-not-loaded",
            Self::CertsMissing => "certs-missing",
            Self::CertsInvalid => "certs-invalid",
            Self::ForeignMount => "foreign-mount",
            Self::Blocked => "blocked",
            Self::NoContainer => "no-container",
        }
    }
}

/// What is known of `certsSecretName` in the pod's namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CertsView {
    /// The watch has not delivered its first list.
    NotLoaded,
    /// There is no such Secret.
    Absent,
    /// It is there.
    Present(Certs),
}

impl CertsView {
    /// Looks it up.
    pub(crate) fn of(snapshot: &Snapshot, namespace: &str) -> Self {
        match snapshot.certs.get(namespace) {
            _ if !snapshot.certs_loaded => Self::NotLoaded,
            None => Self::Absent,
            Some(certs) => Self::Present(*certs),
        }
    }
}

/// Decides what a pod gets.
pub(crate) fn inject(pod: &Value, kind: Kind, namespace: &str, certs: CertsView, config: &Config) -> Injection {
    let (enabled, again) = match kind {
        Kind::Manager => (config.inject.manager, "recreate the pod"),
        Kind::Job => (config.inject.jobs, "retry the job"),
        Kind::Pause | Kind::Other => return Injection::none(Reason::OtherPod),
    };
    if !enabled {
        return Injection::none(Reason::Disabled);
    }
    if is_windows(pod) {
        return Injection::none(Reason::Windows);
    }
    let secret = &config.certs_secret_name;
    let refuse = |reason, problem: String| Injection {
        warnings: vec![Warning::new(format!("no CA injected: {problem} and {again}"))],
        ..Injection::none(reason)
    };
    let certs = match certs {
        CertsView::Present(certs) => certs,
        CertsView::NotLoaded => {
            let problem = format!("Secret {namespace}/{secret} is not loaded yet; wait a moment");
            return refuse(Reason::CertsNotLoaded, problem);
        }
        CertsView::Absent => {
            let problem = format!("Secret {namespace}/{secret} is missing; create it with ca.crt");
            return refuse(Reason::CertsMissing, problem);
        }
    };
    match certs.ca {
        Ca::Valid => Order::new(kind, secret.as_str(), certs, config).carry_out(pod),
        Ca::Missing => refuse(Reason::CertsMissing, format!("Secret {namespace}/{secret} has no ca.crt; add it")),
        Ca::Invalid => {
            refuse(Reason::CertsInvalid, format!("ca.crt in Secret {namespace}/{secret} is not PEM; mend it"))
        }
    }
}

impl Injection {
    fn none(reason: Reason) -> Self {
        Self { patch: Patch::default(), warnings: Vec::new(), reason }
    }
}

fn is_windows(pod: &Value) -> bool {
    let spec = at(pod, &["spec"]);
    [at(spec, &["os", "name"]), at(spec, &["nodeSelector", "kubernetes.io/os"])]
        .iter()
        .any(|os| os.as_str() == Some("windows"))
}

/// What one kind of pod is to get.
struct Order<'a> {
    kind: Kind,
    secret: &'a str,
    mount: &'static str,
    /// Keys of the Secret that our volume shows, and no others.
    keys: Vec<&'static str>,
    variables: Vec<Variables>,
}

/// What one container lacks.
#[derive(Default)]
struct Additions {
    mount: Option<Value>,
    variables: Vec<Value>,
    warnings: Vec<Warning>,
}

/// Why a container gets nothing.
enum Obstacle {
    /// The user mounts something else there.
    ForeignMount,
    /// There is nowhere to append to.
    Blocked(&'static str),
}

impl<'a> Order<'a> {
    fn new(kind: Kind, secret: &'a str, certs: Certs, config: &Config) -> Self {
        let (mount, mut keys) = (MOUNT_JOB_CERTS, vec![KEY_CA]);
        if kind == Kind::Job {
            return Self { kind, secret, mount, keys, variables: vec![JOB_NODE, JOB_DENO] };
        }
        let mut variables = vec![MANAGER_CA];
        if certs.client_pair && config.inject.client_certificate {
            keys.extend([KEY_TLS_CERT, KEY_TLS_KEY]);
            variables.push(MANAGER_CLIENT_PAIR);
        }
        Self { kind, secret, mount: MOUNT_MANAGER_CERTS, keys, variables }
    }

    fn carry_out(&self, pod: &Value) -> Injection {
        let containers = at(pod, &["spec", "containers"]);
        let mut operations = Vec::new();
        let mut warnings = Vec::new();
        let mut reason = Reason::NoContainer;
        let mut uses_our_volume = false;
        for (index, container) in items(containers).enumerate() {
            if !self.concerns(container, containers) {
                continue;
            }
            match self.additions(pod, container) {
                Ok(additions) => {
                    if reason == Reason::NoContainer {
                        reason = Reason::Present;
                    }
                    uses_our_volume |= additions.mount.is_some();
                    warnings.extend(additions.warnings);
                    let index = index.to_string();
                    let path = ["spec", "containers", &index];
                    let mounts = additions.mount.into_iter().collect();
                    operations.extend(append(container, &path, "volumeMounts", mounts));
                    operations.extend(append(container, &path, "env", additions.variables));
                }
                Err(obstacle) => {
                    reason = obstacle.reason();
                    warnings.extend(self.warning(&obstacle));
                }
            }
        }
        if uses_our_volume && volume(pod, VOLUME_CERTS).is_none() {
            operations.splice(0..0, append(at(pod, &["spec"]), &["spec"], "volumes", vec![self.volume()]));
        }
        if !operations.is_empty() {
            reason = Reason::Injected;
        }
        warnings.dedup();
        // A pod may have hundreds of containers.
        warnings.truncate(4);
        Injection { patch: Patch(operations), warnings, reason }
    }

    /// Whether this one of the ordinary containers gets certificates.
    fn concerns(&self, container: &Value, all: &Value) -> bool {
        let is_one_of = |names: &[&str]| at(container, &["name"]).as_str().is_some_and(|name| names.contains(&name));
        if self.kind == Kind::Job {
            is_one_of(&JOB_CONTAINERS)
        } else if items(all).any(runs_entrypoint) {
            runs_entrypoint(container)
        } else {
            !is_one_of(&MESH_CONTAINERS)
        }
    }

    fn additions(&self, pod: &Value, container: &Value) -> Result<Additions, Obstacle> {
        if !has_room(container, "volumeMounts") || !has_room(container, "env") {
            return Err(Obstacle::Blocked("its volumeMounts or env is not a list"));
        }
        let ours = json!({"name": VOLUME_CERTS, "mountPath": self.mount, "readOnly": true});
        let (added, shown_by) = match Place::of(pod, container, self.mount) {
            Place::Free if self.may_add_volume(pod)? => (Some(&ours), None),
            Place::Free => (Some(&ours), Some(&ours)),
            Place::Mounted { mount } if shows(pod, mount, self.secret, KEY_CA) => (None, Some(mount)),
            Place::Mounted { .. } | Place::Below => return Err(Obstacle::ForeignMount),
            Place::Within => return Err(Obstacle::Blocked("the mount would lie within another volume")),
        };
        let mut additions = Additions { mount: added.cloned(), ..Additions::default() };
        for variables in &self.variables {
            let shown = |key| shown_by.is_none_or(|mount| shows(pod, mount, self.secret, key));
            if variables.iter().all(|(_, key)| shown(key)) {
                self.set(container, variables, &mut additions);
            }
        }
        Ok(additions)
    }

    /// Sets variables that belong together, unless the user set one of them.
    fn set(&self, container: &Value, variables: Variables, additions: &mut Additions) {
        let file = |key: &str| format!("{}/{key}", self.mount);
        let former =
            |name: &str| items(at(container, &["env"])).find(|variable| at(variable, &["name"]).as_str() == Some(name));
        let is_ours = |variable: &Value, key: &str| at(variable, &["value"]).as_str() == Some(&file(key));
        let mut of_user = variables
            .iter()
            .filter(|(name, key)| former(name).is_some_and(|variable| !is_ours(variable, key)))
            .peekable();
        if of_user.peek().is_some() {
            if self.kind == Kind::Manager {
                additions.warnings.extend(of_user.map(|(name, key)| {
                    Warning::new(format!("{name} is set already and is kept; the mounted file is {}", file(key)))
                }));
            }
            return;
        }
        let missing = variables.iter().filter(|(name, _)| former(name).is_none());
        let added: Vec<Value> = missing.map(|(name, key)| json!({"name": name, "value": file(key)})).collect();
        if !added.is_empty() && variables == MANAGER_CLIENT_PAIR {
            additions.warnings.push(Warning::new(format!(
                "CI jobs receive tls.key of Secret {}; certs.inject.clientCertificate: false stops that",
                self.secret
            )));
        }
        additions.variables.extend(added);
    }

    /// Whether our volume is still to be added. It may be there from an earlier invocation.
    fn may_add_volume(&self, pod: &Value) -> Result<bool, Obstacle> {
        match volume(pod, VOLUME_CERTS) {
            Some(volume) if self.is_ours(volume) => Ok(false),
            Some(_) => Err(Obstacle::Blocked("it has another volume of our name")),
            None if mounts_volume(pod, VOLUME_CERTS) => Err(Obstacle::Blocked("it mounts a volume of our name")),
            None if has_room(at(pod, &["spec"]), "volumes") => Ok(true),
            None => Err(Obstacle::Blocked("its volumes is not a list")),
        }
    }

    /// A volume that shows more than we would, such as `tls.key` to a job, is not ours.
    fn is_ours(&self, volume: &Value) -> bool {
        let source = at(volume, &["secret"]);
        let shown: Option<Vec<&str>> = items(at(source, &["items"])).map(|item| at(item, &["key"]).as_str()).collect();
        at(source, &["secretName"]).as_str() == Some(self.secret)
            && shown.is_some_and(|shown| shown.contains(&KEY_CA) && shown.iter().all(|key| self.keys.contains(key)))
    }

    fn volume(&self) -> Value {
        let items: Vec<Value> = self.keys.iter().map(|key| json!({"key": key, "path": key})).collect();
        json!({
            "name": VOLUME_CERTS,
            "secret": {"secretName": self.secret, "items": items, "optional": true},
        })
    }

    fn warning(&self, obstacle: &Obstacle) -> Option<Warning> {
        match (obstacle, self.kind) {
            (Obstacle::Blocked(why), _) => {
                Some(Warning::new(format!("no CA injected into a container of this pod: {why}")))
            }
            // GitLab's documentation tells users to do so.
            (Obstacle::ForeignMount, Kind::Job) => None,
            (Obstacle::ForeignMount, _) => Some(Warning::new(format!(
                "CI_SERVER_TLS_* not set: {} is not mounted from Secret {}",
                self.mount, self.secret
            ))),
        }
    }
}

impl Obstacle {
    fn reason(&self) -> Reason {
        match self {
            Self::ForeignMount => Reason::ForeignMount,
            Self::Blocked(_) => Reason::Blocked,
        }
    }
}

#[cfg(test)]
#[path = "inject_tests.rs"]
mod tests;
