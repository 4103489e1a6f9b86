//! Pods of GitLab Runner, shaped as its Helm chart and its Kubernetes executor make them.
//!
//! They come from the recorded pods of `tests/fixtures/pods`. Only what a busybox cannot do is different: images,
//! commands and probes.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// The chart's `entrypoint` reads its tokens in these words; then it would register the runner.
const ENTRYPOINT: &str = r#"
export REGISTRATION_TOKEN=$(cat /secrets/runner-registration-token)
export CI_SERVER_TOKEN=$(cat /secrets/runner-token)
echo "runner-registration-token: $REGISTRATION_TOKEN"
echo "runner-token: $CI_SERVER_TOKEN"
echo "CI_SERVER_TLS_CA_FILE: $CI_SERVER_TLS_CA_FILE"
[ -z "$CI_SERVER_TLS_CA_FILE" ] || cat "$CI_SERVER_TLS_CA_FILE"
trap 'exit 0' TERM
while :; do sleep 1; done
"#;

/// What a job sees of the CA.
const JOB: &str = r#"
set -eu
echo "ca.crt: $NODE_EXTRA_CA_CERTS"
cat "$NODE_EXTRA_CA_CERTS"
echo "bundle.crt: $PIP_CERT, $(grep -c 'BEGIN CERTIFICATE' "$PIP_CERT") certificates"
echo "hashed names: $(ls "$GIT_SSL_CAPATH" | grep -c '^[0-9a-f]\{8\}\.[0-9]$')"
cmp "$PIP_CERT" /etc/gitlab-runner-webhook/trust/bundle.crt
# Each directory of the list, and the list itself as the path of one.
cat "${SSL_CERT_DIR%%:*}ca.crt" >/dev/null
cmp "$SSL_CERT_DIR/00000000.0" "$PIP_CERT"
cmp "$SSL_CERT_DIR/00000001.0" "$NODE_EXTRA_CA_CERTS"
"#;

/// Everything that the chart puts into a namespace for the manager pod.
pub fn manager(namespace: &str, busybox: &str) -> Result<Vec<Value>> {
    let mut pod = recorded("manager-chart-0.90")?;
    let labels = json!({"app": "gitlab-runner", "release": "gitlab-runner", "heritage": "Helm"});
    let spec = pod["spec"].take();
    let mut spec = without_token(spec)?;
    // Added by the API server, or by the scheduler.
    for field in ["schedulerName", "tolerations", "priority", "preemptionPolicy", "serviceAccount"] {
        spec.as_object_mut().context("a spec")?.remove(field);
    }
    // The chart waits an hour for jobs to end.
    spec["terminationGracePeriodSeconds"] = json!(1);
    let container = spec.pointer_mut("/containers/0").and_then(Value::as_object_mut).context("a container")?;
    for field in ["livenessProbe", "readinessProbe", "lifecycle"] {
        container.remove(field);
    }
    container.insert("image".to_owned(), json!(busybox));
    container.insert("imagePullPolicy".to_owned(), json!("IfNotPresent"));
    container.insert("command".to_owned(), json!(["sh", "/configmaps/entrypoint"]));
    let named = |kind: &str, version: &str| {
        json!({
            "apiVersion": version,
            "kind": kind,
            "metadata": {"name": "gitlab-runner", "namespace": namespace, "labels": labels},
        })
    };
    let mut config = named("ConfigMap", "v1");
    config["data"] = json!({"entrypoint": ENTRYPOINT});
    let mut deployment = named("Deployment", "apps/v1");
    deployment["spec"] = json!({
        "replicas": 1,
        "selector": {"matchLabels": {"app": "gitlab-runner"}},
        "template": {"metadata": {"labels": labels}, "spec": spec},
    });
    Ok(vec![named("ServiceAccount", "v1"), config, deployment])
}

/// A job pod that runs as no root, with a read-only root file system, and ends.
pub fn job(namespace: &str, busybox: &str) -> Result<Value> {
    let mut pod = recorded("job-restricted")?;
    pod["metadata"]["namespace"] = json!(namespace);
    let spec = &mut pod["spec"];
    for field in ["schedulerName", "priority"] {
        spec.as_object_mut().context("a spec")?.remove(field);
    }
    for list in ["initContainers", "containers"] {
        let containers = spec[list].as_array_mut().context("containers")?;
        // A service, which is Docker.
        containers.retain(|container| container["name"] != "docker");
        for container in containers {
            container["image"] = json!(busybox);
            container["imagePullPolicy"] = json!("IfNotPresent");
            if list == "containers" {
                container["command"] = json!(["sh", "-c", JOB]);
                // The executor attaches to it.
                container["stdin"] = json!(false);
            }
        }
    }
    Ok(pod)
}

fn recorded(name: &str) -> Result<Value> {
    let path = format!("{}/../tests/fixtures/pods/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let mut pod: Value = serde_json::from_str(&text).context(path)?;
    let fields = pod.as_object_mut().context("a pod")?;
    fields.remove("status");
    fields.get_mut("metadata").and_then(Value::as_object_mut).context("metadata")?.remove("creationTimestamp");
    Ok(pod)
}

/// Without the volume that the API server adds to each pod.
fn without_token(mut spec: Value) -> Result<Value> {
    let ours = |item: &Value| !item["name"].as_str().is_some_and(|name| name.starts_with("kube-api-access-"));
    spec["volumes"].as_array_mut().context("volumes")?.retain(ours);
    for container in spec["containers"].as_array_mut().context("containers")? {
        container["volumeMounts"].as_array_mut().context("mounts")?.retain(ours);
    }
    Ok(spec)
}
