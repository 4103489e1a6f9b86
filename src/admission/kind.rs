//! Classifies a pod: manager, job, pause or other. PURE.
//!
//! Labels such as `app` cannot tell: Big Bang puts `app: gitlab-runner` on job pods, too. What the
//! runner's Kubernetes executor and the runner chart always write can.

use super::pod_view::{ContainerView, PodView, VolumeView};
use crate::config::Config;

/// On each job pod since GitLab Runner 17.9; no configuration or CI job can override it.
pub const LABEL_JOB: &str = "job.runner.gitlab.com/pod";
/// On each job pod of any version, `runner-<token>-project-<id>-concurrent-<n>`.
const LABEL_JOB_LEGACY: &str = "pod";
/// On each pause pod of the autoscaler, since GitLab Runner 18.11.
const LABEL_PAUSE: &str = "runner.gitlab.com/pause-pod";
/// The container of a job pod that runs the job's script.
pub(super) const BUILD: &str = "build";
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
    /// Tells the kind of a pod.
    pub fn of(pod: &PodView<'_>, config: &Config) -> Self {
        let label = |name: &str| pod.metadata.labels.get(name);
        if label(LABEL_PAUSE) == Some("true") {
            Self::Pause
        } else if label(LABEL_JOB).is_some()
            || pod.metadata.annotations.job.is_some()
            || label(LABEL_JOB_LEGACY).is_some_and(|name| name.starts_with("runner-"))
                && pod.containers().any(|container| &*container.name == BUILD)
        {
            Self::Job
        } else if pod.containers().any(runs_entrypoint)
            || pod.spec.volumes.iter().any(|volume| holds_clone(volume, config))
            || pod.containers().any(|container| runs_runner(container) && reads_clone(container, config))
        {
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
pub fn runs_entrypoint(container: &ContainerView<'_>) -> bool {
    container.command.iter().chain(container.args.iter()).any(|word| word.contains(ENTRYPOINT))
}

/// Whether this container runs gitlab-runner without the chart: by its words, or by its image.
fn runs_runner(container: &ContainerView<'_>) -> bool {
    let image = container.image.rsplit('/').next().unwrap_or_default();
    container.command.iter().chain(container.args.iter()).any(|word| word.contains("gitlab-runner "))
        || container.command.iter().any(|word| word.ends_with("gitlab-runner"))
        || image.starts_with("gitlab-runner") && !image.starts_with("gitlab-runner-helper")
}

/// Whether a volume shows a clone with a runner's token.
fn holds_clone(volume: &VolumeView<'_>, config: &Config) -> bool {
    volume.secrets().any(|secret| is_token(&secret.name, config))
}

/// Whether a variable of a container comes from a clone with a runner's token.
fn reads_clone(container: &ContainerView<'_>, config: &Config) -> bool {
    let env = container.env.iter().map(|variable| &*variable.value_from.secret_key_ref.name);
    let mut names = env.chain(container.env_from.iter().map(|from| &*from.secret_ref.name));
    names.any(|name| is_token(name, config))
}

/// A clone of `certsSecretName` says nothing: anybody may want certificates.
fn is_token(secret: &str, config: &Config) -> bool {
    config.clones.iter().any(|clone| !clone.holds_certs && clone.secret.as_str() == secret)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kinds() {
        let entrypoint = json!(["/usr/bin/dumb-init", "--", "/bin/bash", "/configmaps/entrypoint"]);
        let clone = "gitlab-gitlab-runner-secret";
        let token = json!([{"name": "T", "valueFrom": {"secretKeyRef": {"name": clone, "key": "runner-token"}}}]);
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
            (json!({"spec": {"containers": [{"image": "r/gitlab-runner:v19", "env": token}]}}), PodKind::Manager),
            (
                json!({"spec": {"containers": [{"command": ["sh", "-c", "gitlab-runner register && run"], "env": token}]}}),
                PodKind::Manager,
            ),
            (
                json!({"spec": {"containers": [{"command": ["/usr/bin/gitlab-runner"], "envFrom": [{"secretRef": {"name": clone}}]}]}}),
                PodKind::Manager,
            ),
            (json!({"spec": {"containers": [{"image": "r/gitlab-runner-helper:v19", "env": token}]}}), PodKind::Other),
            (json!({"spec": {"containers": [{"image": "curl", "env": token}]}}), PodKind::Other),
            (json!({"spec": {"containers": [{"image": "r/gitlab-runner:v19"}]}}), PodKind::Other),
            // A helm test of Big Bang.
            (json!({"metadata": {"labels": {"app": "gitlab-runner"}}}), PodKind::Other),
            // A job that mounts the clone is still a job.
            (
                json!({"metadata": {"labels": job}, "spec": {"volumes": [{"secret": {"secretName": clone}}]}}),
                PodKind::Job,
            ),
        ];
        for (pod, kind) in table {
            assert_eq!(PodKind::of(&PodView::of(&pod).unwrap(), &Config::default()), kind, "{pod}");
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
        let of = |pod: &serde_json::Value| PodKind::of(&PodView::of(pod).unwrap(), &config);
        assert_eq!(of(&with("gitlab-runner-certs")), PodKind::Other);
        assert_eq!(of(&with("gitlab-gitlab-runner-secret")), PodKind::Manager);
    }

    #[test]
    fn null_is_like_absent_and_another_type_is_refused() {
        for pod in [
            json!({}),
            json!({"metadata": null, "spec": null}),
            json!({"metadata": {"labels": null, "annotations": null}, "spec": {"containers": null, "volumes": null}}),
            json!({"spec": {"containers": [{"command": null, "args": null, "env": null}], "volumes": [{"projected": null}]}}),
        ] {
            assert_eq!(PodKind::of(&PodView::of(&pod).unwrap(), &Config::default()), PodKind::Other, "{pod}");
        }
        let pod = json!({
            "metadata": {"labels": {"pod": "x"}},
            "spec": {
                "containers": [{"command": ["x"], "env": [{"name": "X"}], "volumeMounts": [{"readOnly": true}]}],
                "volumes": [{"secret": {"secretName": "x"}, "projected": {"sources": []}}],
            },
        });
        assert!(PodView::of(&pod).is_ok());
        for place in [
            "/metadata",
            "/metadata/labels",
            "/metadata/labels/pod",
            "/spec",
            "/spec/containers",
            "/spec/containers/0",
            "/spec/containers/0/command",
            "/spec/containers/0/command/0",
            "/spec/containers/0/env",
            "/spec/containers/0/env/0",
            "/spec/containers/0/volumeMounts/0/readOnly",
            "/spec/volumes/0/secret",
            "/spec/volumes/0/projected/sources",
        ] {
            for other in [json!(7), json!("x"), json!([[]]), json!({"x": {}}), json!(true)] {
                let is_same = std::mem::discriminant(&other) == std::mem::discriminant(pod.pointer(place).unwrap());
                // Of an object, other fields are skipped; in a list, an element is of another type.
                let may_be = is_same && !other.is_array();
                let mut pod = pod.clone();
                *pod.pointer_mut(place).unwrap() = other.clone();
                let skips = place == "/metadata/labels" && other.is_object();
                assert!(may_be && !skips || PodView::of(&pod).is_err(), "{place}: {other}");
            }
        }
    }
    #[test]
    fn each_kind_has_its_word() {
        let kinds = [PodKind::Manager, PodKind::Job, PodKind::Pause, PodKind::Other];
        assert_eq!(kinds.map(PodKind::as_str), ["manager", "job", "pause", "other"]);
    }
}
