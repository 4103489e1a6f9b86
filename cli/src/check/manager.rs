//! A manager pod, as far as it is judged. PURE.

use std::collections::BTreeMap;

use gitlab_runner_webhook::{
    admission::{PodKind, PodView, host, runs_entrypoint},
    config::Config,
    names::{LABEL_INJECT, VOLUME_CERTS},
};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::json::{at, items};

/// The value of a variable that is taken from somewhere else in the cluster: nobody looks there.
const FROM_ELSEWHERE: &str = "taken from elsewhere (valueFrom)";

/// A pod that runs gitlab-runner, or the template of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    /// `pod gitlab-runner-abc`, `Deployment gitlab-runner`.
    pub shown: String,
    /// What brings it up anew.
    pub restart: String,
    /// `CI_SERVER_URL`.
    pub url: Option<String>,
    /// `CI_SERVER_TLS_CA_FILE`.
    pub ca_file: Option<String>,
    /// Whether it lets its jobs come to their end before it stops: SIGQUIT asks for that.
    pub is_graceful: bool,
    /// The namespace of its jobs, where that is another one than its own, as far as can be seen.
    pub jobs_in: Option<String>,
    /// The ConfigMap with its configuration.
    pub config_map: Option<String>,
    /// Whether it is a pod: a template shows nothing of what is injected.
    pub is_pod: bool,
    /// Whether its label says that nothing is injected.
    pub opted_out: bool,
    /// When its container began to run.
    pub started: Option<Timestamp>,
    /// Keys of each Secret that its volumes cannot do without; none named: the Secret alone.
    pub demands: BTreeMap<String, Vec<String>>,
}

impl Manager {
    /// Reads a pod, or a Deployment; `None`: it runs no gitlab-runner.
    pub fn of(object: &Value, config: &Config) -> Option<Self> {
        let template = at(object, &["spec", "template"]);
        let is_pod = template.is_null();
        let pod = if is_pod { object } else { template };
        let view = PodView::of(pod).ok().filter(|view| PodKind::of(view, config) == PodKind::Manager)?;
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let (name, namespace) =
            (text(at(object, &["metadata", "name"]))?, text(at(object, &["metadata", "namespace"]))?);
        let containers = at(pod, &["spec", "containers"]);
        let index = view.containers().position(runs_entrypoint).unwrap_or_default();
        let container = items(containers).nth(index)?;
        let variable = |name: &str| {
            // Of two with one name, the last one counts.
            let entry =
                items(at(container, &["env"])).filter(|entry| at(entry, &["name"]).as_str() == Some(name)).last()?;
            let elsewhere = || (!at(entry, &["valueFrom"]).is_null()).then(|| FROM_ELSEWHERE.to_owned());
            text(at(entry, &["value"])).or_else(elsewhere)
        };
        let statuses = items(at(object, &["status", "containerStatuses"]));
        let status = statuses.filter(|status| at(status, &["name"]) == at(container, &["name"])).last();
        let started = status.and_then(|status| at(status, &["state", "running", "startedAt"]).as_str()?.parse().ok());
        Some(Self {
            restart: if is_pod { restart(pod, &namespace, &name) } else { rollout(&namespace, &name) },
            shown: format!("{} {namespace}/{name}", if is_pod { "pod" } else { "Deployment" }),
            url: variable("CI_SERVER_URL"),
            ca_file: variable("CI_SERVER_TLS_CA_FILE"),
            is_graceful: items(at(container, &["lifecycle", "preStop", "exec", "command"]))
                .any(|word| word.as_str().is_some_and(|word| word.contains("QUIT") && !word.contains("unregister"))),
            jobs_in: variable("KUBERNETES_NAMESPACE").filter(|jobs| *jobs != namespace && jobs != FROM_ELSEWHERE),
            config_map: config_map(pod),
            is_pod,
            opted_out: at(pod, &["metadata", "labels", LABEL_INJECT]).as_str() == Some("false"),
            started,
            demands: demands(pod),
        })
    }

    /// The host of its GitLab, when it is reached by TLS.
    pub fn tls_host(&self) -> Option<&str> {
        let url = self.url.as_deref()?;
        host(url).filter(|_| url.to_ascii_lowercase().starts_with("https://"))
    }
}

/// The chart's ConfigMap, by the place where it is mounted.
fn config_map(pod: &Value) -> Option<String> {
    let mounts = items(at(pod, &["spec", "containers"])).flat_map(|container| items(at(container, &["volumeMounts"])));
    let mount = mounts.into_iter().find(|mount| at(mount, &["mountPath"]).as_str() == Some("/configmaps"))?;
    let mut volumes = items(at(pod, &["spec", "volumes"]));
    let volume = volumes.find(|volume| at(volume, &["name"]) == at(mount, &["name"]))?;
    let direct = at(volume, &["configMap", "name"]).as_str();
    let projected =
        || items(at(volume, &["projected", "sources"])).find_map(|one| at(one, &["configMap", "name"]).as_str());
    direct.or_else(projected).map(str::to_owned)
}

/// The namespace of jobs that a configuration of GitLab Runner names.
pub fn jobs_namespace(toml: &str) -> Option<&str> {
    toml.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        let value = value.trim().strip_prefix('"')?.split_once('"')?.0;
        (key.trim() == "namespace" && !value.is_empty()).then_some(value)
    })
}

/// What kubelet needs before it starts the pod. What we inject is optional.
fn demands(pod: &Value) -> BTreeMap<String, Vec<String>> {
    let mut demands: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for volume in items(at(pod, &["spec", "volumes"])).filter(|volume| at(volume, &["name"]) != VOLUME_CERTS) {
        let direct = [(at(volume, &["secret"]), "secretName")].into_iter();
        let projected = items(at(volume, &["projected", "sources"])).map(|source| (at(source, &["secret"]), "name"));
        for (source, name) in direct.chain(projected) {
            let Some(secret) = at(source, &[name]).as_str() else { continue };
            if at(source, &["optional"]).as_bool() != Some(true) {
                let keys = items(at(source, &["items"])).filter_map(|item| at(item, &["key"]).as_str());
                demands.entry(secret.to_owned()).or_default().extend(keys.map(str::to_owned));
            }
        }
    }
    demands
}

fn restart(pod: &Value, namespace: &str, name: &str) -> String {
    let owner = items(at(pod, &["metadata", "ownerReferences"])).next();
    let hash = at(pod, &["metadata", "labels", "pod-template-hash"]).as_str();
    let of = |field: &str| owner.and_then(|owner| at(owner, &[field]).as_str());
    match (of("kind"), of("name"), hash) {
        (Some("ReplicaSet"), Some(owner), Some(hash)) => {
            let deployment = owner.strip_suffix(hash).map_or(owner, |name| name.trim_end_matches('-'));
            rollout(namespace, deployment)
        }
        (Some("StatefulSet"), Some(owner), _) => format!("kubectl rollout restart statefulset/{owner} -n {namespace}"),
        _ => format!("kubectl delete pod/{name} -n {namespace}   # whatever made it makes it anew"),
    }
}

fn rollout(namespace: &str, deployment: &str) -> String {
    format!("kubectl rollout restart deployment/{deployment} -n {namespace}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(path: &str) -> Value {
        let yaml = match path {
            "certs" => include_str!("../../../tests/fixtures/deployments/gitlab-runner-with-certs.yaml"),
            _ => include_str!("../../../tests/fixtures/deployments/gitlab-runner.yaml"),
        };
        yaml.split("\n---")
            .map(|text| serde_saphyr::from_str::<Value>(text).unwrap())
            .find(|it| it["kind"] == "Deployment")
            .unwrap()
    }

    #[test]
    fn the_charts_deployment() {
        let manager = Manager::of(&deployment("certs"), &Config::default()).unwrap();
        assert_eq!(manager.shown, "Deployment gitlab-runner/gitlab-runner");
        assert_eq!(manager.restart, "kubectl rollout restart deployment/gitlab-runner -n gitlab-runner");
        assert_eq!(manager.demands["gitlab-gitlab-runner-secret"], ["runner-registration-token", "runner-token"]);
        assert!(manager.demands["gitlab-runner-certs"].is_empty() && manager.tls_host().is_none());
        let without = Manager::of(&deployment(""), &Config::default()).unwrap();
        assert!(!without.demands.contains_key("gitlab-runner-certs"));
    }

    #[test]
    fn a_pod_of_a_deployment() {
        let mut pod = deployment("certs")["spec"]["template"].clone();
        pod["metadata"]["name"] = json!("gitlab-runner-5d4-x");
        pod["metadata"]["namespace"] = json!("gitlab-runner");
        pod["metadata"]["labels"]["pod-template-hash"] = json!("5d4");
        pod["metadata"]["ownerReferences"] = json!([{"kind": "ReplicaSet", "name": "gitlab-runner-5d4"}]);
        pod["spec"]["containers"][0]["env"] = json!([
            {"name": "CI_SERVER_URL", "value": "https://gitlab.example.com:8443/"},
            {"name": "CI_SERVER_TLS_CA_FILE", "value": "/home/gitlab-runner/.gitlab-runner/certs/ca.crt"},
        ]);
        pod["status"] = json!({"containerStatuses": [
            {"name": "istio-proxy", "state": {"running": {"startedAt": "2020-01-01T00:00:00Z"}}},
            {"name": "gitlab-runner", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}},
        ]});
        let manager = Manager::of(&pod, &Config::default()).unwrap();
        assert_eq!(manager.restart, "kubectl rollout restart deployment/gitlab-runner -n gitlab-runner");
        assert_eq!(manager.tls_host(), Some("gitlab.example.com"));
        assert_eq!(manager.started.unwrap().to_string(), "2026-01-01T00:00:00Z");
        assert!(manager.ca_file.is_some() && manager.is_pod);
    }

    #[test]
    fn whether_jobs_survive_its_restart() {
        let with = |command: Value| {
            let mut deployment = deployment("");
            deployment["spec"]["template"]["spec"]["containers"][0]["lifecycle"] =
                json!({"preStop": {"exec": {"command": command}}});
            Manager::of(&deployment, &Config::default()).unwrap().is_graceful
        };
        assert!(with(json!(["sh", "-c", "kill -QUIT 1; while pgrep -x gitlab-runner >/dev/null; do sleep 1; done"])));
        assert!(!with(json!(["/entrypoint", "unregister", "--all-runners"])) && !with(json!(null)));
    }

    #[test]
    fn where_its_jobs_are() {
        let manager = Manager::of(&deployment(""), &Config::default()).unwrap();
        assert_eq!(manager.config_map.as_deref(), Some("gitlab-runner"));
        for (toml, expected) in [
            ("[[runners]]\n  [runners.kubernetes]\n    namespace = \"ci-jobs\"\n", Some("ci-jobs")),
            ("# namespace = \"x\"\nnamespace_overwrite_allowed = \"y\"\nnamespace=\"z\" # w", Some("z")),
            ("namespace = \"\"\nimage = \"namespace = x\"", None),
        ] {
            assert_eq!(jobs_namespace(toml), expected, "{toml}");
        }
    }

    #[test]
    fn a_variable_is_what_kubelet_makes_of_it() {
        let with = |env: Value| {
            let mut deployment = deployment("certs");
            deployment["spec"]["template"]["spec"]["containers"][0]["env"] = env;
            Manager::of(&deployment, &Config::default()).unwrap().ca_file
        };
        let name = "CI_SERVER_TLS_CA_FILE";
        assert_eq!(with(json!([{"name": name, "value": "/a"}, {"name": name, "value": "/b"}])).unwrap(), "/b");
        let elsewhere = json!({"configMapKeyRef": {"name": "m", "key": "k"}});
        assert!(with(json!([{"name": name, "valueFrom": elsewhere}])).is_some());
        assert_eq!(with(json!([{"name": name}])), None);
    }

    #[test]
    fn any_other_pod_is_none() {
        let named = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"containers": [{"name": "web"}]}});
        for pod in [json!(null), json!({}), named] {
            assert_eq!(Manager::of(&pod, &Config::default()), None);
        }
    }
}
