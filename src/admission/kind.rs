//! Which pod it is. PURE.
//!
//! Labels such as `app` cannot tell: Big Bang puts `app: gitlab-runner` on job pods, too. What the
//! runner's Kubernetes executor and the runner chart always write can.

use serde_json::Value;

use crate::{
    config::Config,
    json::{at, items},
};

/// On each job pod since GitLab Runner 17.9; no configuration or CI job can override it.
pub const LABEL_JOB: &str = "job.runner.gitlab.com/pod";
/// On each job pod since GitLab Runner 15.9.
pub(super) const ANNOTATION_JOB: &str = "job.runner.gitlab.com/id";
/// On each job pod of any version, `runner-<token>-project-<id>-concurrent-<n>`.
const LABEL_JOB_LEGACY: &str = "pod";
/// On each pause pod of the autoscaler, since GitLab Runner 18.11.
const LABEL_PAUSE: &str = "runner.gitlab.com/pause-pod";
/// What the runner chart starts in the manager pod.
const ENTRYPOINT: &str = "/configmaps/entrypoint";

/// The kinds of pod that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodKind {
    /// Runs gitlab-runner.
    Manager,
    /// Made by the runner's Kubernetes executor for one CI job.
    Job,
    /// Reserves room for job pods; never touched.
    Pause,
    /// Anything else.
    Other,
}

impl PodKind {
    /// Looks at a pod of any shape: at admission nothing has been validated yet.
    pub fn of(pod: &Value, config: &Config) -> Self {
        let label = |name: &str| text(at(pod, &["metadata", "labels", name]));
        if label(LABEL_PAUSE) == Some("true") {
            Self::Pause
        } else if label(LABEL_JOB).is_some()
            || text(at(pod, &["metadata", "annotations", ANNOTATION_JOB])).is_some()
            || label(LABEL_JOB_LEGACY).is_some_and(|name| name.starts_with("runner-")) && has_build(pod)
        {
            Self::Job
        } else if containers(pod).any(runs_entrypoint) || volumes(pod).any(|volume| holds_clone(volume, config)) {
            Self::Manager
        } else {
            Self::Other
        }
    }

    /// The word for it in logs and audit annotations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Job => "job",
            Self::Pause => "pause",
            Self::Other => "other",
        }
    }
}

/// Whether this container runs the runner chart's entrypoint.
pub fn runs_entrypoint(container: &Value) -> bool {
    let mut words = items(at(container, &["command"])).chain(items(at(container, &["args"])));
    words.any(|word| text(word).is_some_and(|word| word.contains(ENTRYPOINT)))
}

/// Whether a volume shows a clone with a runner's token: directly, or among the sources of a projected volume. A clone
/// of `certsSecretName` says nothing: anybody may want certificates.
fn holds_clone(volume: &Value, config: &Config) -> bool {
    let holds_token =
        |name: &str| config.clones.iter().any(|clone| !clone.holds_certs && clone.secret.as_str() == name);
    let is_clone = |name: &Value| text(name).is_some_and(holds_token);
    is_clone(at(volume, &["secret", "secretName"]))
        || items(at(volume, &["projected", "sources"])).any(|source| is_clone(at(source, &["secret", "name"])))
}

fn has_build(pod: &Value) -> bool {
    containers(pod).any(|container| text(at(container, &["name"])) == Some("build"))
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    items(at(pod, &["spec", "containers"]))
}

fn volumes(pod: &Value) -> impl Iterator<Item = &Value> {
    items(at(pod, &["spec", "volumes"]))
}

fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kinds() {
        let entrypoint = json!(["/usr/bin/dumb-init", "--", "/bin/bash", "/configmaps/entrypoint"]);
        let clone = "gitlab-gitlab-runner-secret";
        let job = json!({"job.runner.gitlab.com/pod": "runner-x", "app": "gitlab-runner"});
        let table = [
            (json!({"metadata": {"labels": job}}), PodKind::Job),
            (json!({"metadata": {"annotations": {"job.runner.gitlab.com/id": "7"}}}), PodKind::Job),
            (
                json!({"metadata": {"labels": {"pod": "runner-x-project-1"}}, "spec": {"containers": [{"name": "build"}]}}),
                PodKind::Job,
            ),
            (
                json!({"metadata": {"labels": {"pod": "runner-x-project-1"}}, "spec": {"containers": [{"name": "web"}]}}),
                PodKind::Other,
            ),
            (
                json!({"metadata": {"labels": {"pod": "web"}}, "spec": {"containers": [{"name": "build"}]}}),
                PodKind::Other,
            ),
            (
                json!({"metadata": {"labels": {"runner.gitlab.com/pause-pod": "true", "job.runner.gitlab.com/pod": "x"}}}),
                PodKind::Pause,
            ),
            (json!({"spec": {"containers": [{"command": entrypoint}]}}), PodKind::Manager),
            (json!({"spec": {"containers": [{}, {"args": ["-c", "exec /configmaps/entrypoint"]}]}}), PodKind::Manager),
            (json!({"spec": {"volumes": [{"secret": {"secretName": clone}}]}}), PodKind::Manager),
            (
                json!({"spec": {"volumes": [{}, {"projected": {"sources": [{"configMap": {}}, {"secret": {"name": clone}}]}}]}}),
                PodKind::Manager,
            ),
            (json!({"spec": {"volumes": [{"secret": {"secretName": "other"}}]}}), PodKind::Other),
            // A helm test of Big Bang.
            (json!({"metadata": {"labels": {"app": "gitlab-runner"}}}), PodKind::Other),
            // A job that mounts the clone is still a job.
            (
                json!({"metadata": {"labels": job}, "spec": {"volumes": [{"secret": {"secretName": clone}}]}}),
                PodKind::Job,
            ),
        ];
        for (pod, kind) in table {
            assert_eq!(PodKind::of(&pod, &Config::default()), kind, "{pod}");
        }
    }

    #[test]
    fn a_pod_with_cloned_certificates_is_no_manager() {
        let config = Config::from_yaml("certs: {from: infra}").unwrap();
        let with = |secret: &str| {
            let volumes =
                json!([{"secret": {"secretName": secret}}, {"projected": {"sources": [{"secret": {"name": secret}}]}}]);
            json!({"spec": {"volumes": volumes}})
        };
        assert_eq!(PodKind::of(&with("gitlab-runner-certs"), &config), PodKind::Other);
        assert_eq!(PodKind::of(&with("gitlab-gitlab-runner-secret"), &config), PodKind::Manager);
    }

    #[test]
    fn any_shape_is_some_kind() {
        let odd = [json!(null), json!([]), json!("x"), json!(7), json!({}), json!([null, 1, "x", {}])];
        for value in &odd {
            for pod in [
                value.clone(),
                json!({"metadata": value, "spec": value}),
                json!({"metadata": {"labels": value, "annotations": value}, "spec": {"containers": value, "volumes": value}}),
                json!({"metadata": {"labels": {"pod": value, "runner.gitlab.com/pause-pod": value}}}),
                json!({"spec": {"containers": [{"command": value, "args": value}], "volumes": [{"projected": {"sources": value}}]}}),
            ] {
                assert_eq!(PodKind::of(&pod, &Config::default()), PodKind::Other, "{pod}");
            }
        }
    }
}
