//! The webhook as the API server calls it, registered by the shipped manifests.

use std::{fs, sync::Arc, time::Duration};

use axum::{Router, body::Bytes, routing::post};
use gitlab_runner_webhook::{
    pki::{CertificateFiles, FileCertificate},
    server::{Certificate, Server, bind},
    shutdown,
    telemetry::metrics::Metrics,
};
use http::{Request, header::CONTENT_TYPE};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Pod, Secret},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
    client::Body,
};
use serde_json::{Value, json};
use test_support::{
    Cluster, ServingCertificate, Tool, client_pair,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE, secret},
    fixture, wait,
};

use crate::{
    BINARY,
    mission::{CERTS, TRUST},
};

const JOB_CERTS: &str = "/etc/gitlab-runner/certs";
const TRUST_MOUNT: &str = "/etc/gitlab-runner-webhook/trust";

/// A cluster in which the webhook is registered and a mistake of ours fails the request.
async fn registered() -> (Cluster, Tool) {
    let cluster = Cluster::start().await;
    let tool = cluster.tool(BINARY).await.start().await;
    for namespace in [SOURCE_NAMESPACE, RUNNER_NAMESPACE, "elsewhere"] {
        cluster.create_namespace(namespace, &[]).await;
        cluster.plane.service_account_ready(namespace, "default").await.unwrap();
    }
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-registration-token", ""), ("runner-token", "t")]).await;
    cluster.register_webhooks(tool.webhook_port().await, "Fail").await;
    called(&cluster).await;
    (cluster, tool)
}

/// Waits until the API server has learnt of the webhook.
async fn called(cluster: &Cluster) {
    wait::until("the API server calls the webhook", || async {
        let (_, warnings) = create_pod(cluster, RUNNER_NAMESPACE, &job_pod("probe"), true).await.ok()?;
        (!warnings.is_empty()).then_some(())
    })
    .await;
}

async fn put_certs(cluster: &Cluster, keys: &[&str]) {
    let mut certs = secret(CERTS, &[]);
    let data = keys.iter().map(|key| {
        let value = if *key == "ca.crt" { cluster.certificate.ca_pem.clone() } else { "x".to_owned() };
        ((*key).to_owned(), ByteString(value.into_bytes()))
    });
    certs.data = Some(data.collect());
    let api: Api<Secret> = cluster.secrets(RUNNER_NAMESPACE);
    let _ = api.delete(CERTS, &DeleteParams::default()).await;
    api.create(&PostParams::default(), &certs).await.unwrap();
}

/// Creates a pod; returns it as it was stored, and the warnings of the answer.
pub async fn create_pod(
    cluster: &Cluster,
    namespace: &str,
    pod: &Value,
    dry_run: bool,
) -> Result<(Pod, Vec<String>), String> {
    let query = if dry_run { "?dryRun=All" } else { "" };
    let request = Request::post(format!("/api/v1/namespaces/{namespace}/pods{query}"))
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(pod.to_string().into_bytes()))
        .unwrap();
    let response = cluster.admin.send(request).await.map_err(|error| error.to_string())?;
    let (head, body) = response.into_parts();
    let body = body.collect_bytes().await.unwrap();
    if !head.status.is_success() {
        return Err(String::from_utf8_lossy(&body).into_owned());
    }
    let warnings = head.headers.get_all("warning").iter().map(|value| value.to_str().unwrap().to_owned()).collect();
    Ok((serde_json::from_slice(&body).unwrap(), warnings))
}

pub fn job_pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"job.runner.gitlab.com/pod": name, "app": "gitlab-runner"}},
        "spec": {"containers": [
            {"name": "build", "image": "alpine", "env": [{"name": "DENO_CERT", "value": "/theirs"}]},
            {"name": "helper", "image": "helper"},
            {"name": "svc-0", "image": "postgres"},
        ]},
    })
}

fn variable<'a>(pod: &'a Pod, container: &str, name: &str) -> Option<&'a str> {
    let container = pod.spec.as_ref()?.containers.iter().find(|one| one.name == container)?;
    container.env.iter().flatten().find(|variable| variable.name == name)?.value.as_deref()
}

/// The name of the Secret or ConfigMap that a container sees at a path, and the keys if not all of them.
fn mounted(pod: &Pod, container: &str, path: &str) -> Option<(String, Vec<String>)> {
    let spec = pod.spec.as_ref()?;
    let container = spec.containers.iter().find(|one| one.name == container)?;
    let mount =
        container.volume_mounts.iter().flatten().find(|mount| mount.mount_path.trim_end_matches('/') == path)?;
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name)?;
    let (name, items) = match (&volume.secret, &volume.projected) {
        (Some(secret), _) => (secret.secret_name.clone()?, &secret.items),
        (_, Some(projected)) => {
            let map = projected.sources.as_ref()?.first()?.config_map.as_ref()?;
            (map.name.clone(), &map.items)
        }
        _ => return None,
    };
    Some((name, items.iter().flatten().map(|item| item.key.clone()).collect()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_charts_deployment_gets_its_pod_with_the_ca_mounted() {
    let (cluster, _tool) = registered().await;
    put_certs(&cluster, &["ca.crt"]).await;
    for file in ["deployments/gitlab-runner.yaml", "deployments/gitlab-runner-with-certs.yaml"] {
        for object in fixture(file) {
            cluster
                .plane
                .kubectl_with_stdin(&["apply", "-n", RUNNER_NAMESPACE, "-f", "-"], &object.to_string())
                .await
                .unwrap();
        }
        let pods: Api<Pod> = Api::namespaced(cluster.admin.clone(), RUNNER_NAMESPACE);
        let runners = ListParams::default().labels("app=gitlab-runner");
        let pod = wait::until("the ReplicaSet makes its pod, with a CA", || async {
            let pods = pods.list(&runners).await.unwrap().items;
            pods.into_iter().find(|pod| variable(pod, "gitlab-runner", "CI_SERVER_TLS_CA_FILE").is_some())
        })
        .await;
        let ca = format!("{TRUST_MOUNT}/ca.crt");
        assert_eq!(variable(&pod, "gitlab-runner", "CI_SERVER_TLS_CA_FILE"), Some(ca.as_str()), "{file}");
        assert_eq!(mounted(&pod, "gitlab-runner", TRUST_MOUNT), Some((TRUST.into(), vec![])));
        assert_eq!(variable(&pod, "gitlab-runner", "CI_SERVER_TLS_KEY_FILE"), None, "there is no client key");
        cluster.plane.kubectl(&["delete", "deployment,pod", "--all", "-n", RUNNER_NAMESPACE, "--now"]).await.unwrap();
    }
}

/// GitLab Runner hands to every job what it is told of: the CAs without any key, and no pair but a client's.
#[tokio::test(flavor = "multi_thread")]
async fn no_private_key_reaches_a_job_whatever_is_in_the_secret() {
    let (cluster, tool) = registered().await;
    let mut manager: Value = serde_json::from_slice(
        &fs::read(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/pods/manager-chart-0.86-certs-secret-name.json"
        ))
        .unwrap(),
    )
    .unwrap();
    manager["metadata"] = json!({"name": "manager", "labels": manager["metadata"]["labels"]});
    for account in ["serviceAccountName", "serviceAccount"] {
        manager["spec"].as_object_mut().unwrap().remove(account);
    }
    for (name, flaw) in [
        ("ca-with-its-private-key", None),
        ("certificate-of-a-host-with-its-private-key", None),
        ("client-certificate-under-another-key", None),
        ("secret-of-a-cert-manager-ca", Some("tls.crt is the certificate of a CA")),
        ("client-key-with-a-passphrase", Some("tls.key has a passphrase")),
    ] {
        let _ = cluster.secrets(RUNNER_NAMESPACE).delete(CERTS, &DeleteParams::default()).await;
        wait::until("the former bundle goes", || async {
            let maps: Api<ConfigMap> = Api::namespaced(cluster.admin.clone(), RUNNER_NAMESPACE);
            maps.get_opt(TRUST).await.unwrap().is_none().then_some(())
        })
        .await;
        let certs: Secret = serde_json::from_value(fixture(&format!("certs/{name}.json")).remove(0)).unwrap();
        cluster.secrets(RUNNER_NAMESPACE).create(&PostParams::default(), &certs).await.unwrap();
        let (pod, warnings) = wait::until("the manager pod gets the CA", || async {
            let (pod, warnings) = create_pod(&cluster, RUNNER_NAMESPACE, &manager, true).await.unwrap();
            mounted(&pod, "gitlab-runner", TRUST_MOUNT).is_some().then_some((pod, warnings))
        })
        .await;
        let of = |variable_name| variable(&pod, "gitlab-runner", variable_name);
        assert_eq!(of("CI_SERVER_TLS_CA_FILE"), Some("/etc/gitlab-runner-webhook/trust/ca.crt"), "{name}");
        assert!(of("CI_SERVER_TLS_CERT_FILE").is_none() && of("CI_SERVER_TLS_KEY_FILE").is_none(), "{name}");
        let ours = pod.spec.as_ref().unwrap().volumes.iter().flatten();
        assert!(!ours.clone().any(|volume| volume.name == "gitlab-runner-webhook-certs"), "{name}");
        let told = |words: &str| warnings.iter().any(|warning| warning.contains(words));
        assert!(flaw.is_none_or(|flaw| told(flaw) && told("gitlab-runner-webhook: pod manager: ")), "{warnings:?}");
        if let Some(flaw) = flaw {
            let line = tool
                .logged("the flaw", |line| {
                    line["state"] == "client-pair-unusable"
                        && line["detail"].as_str().is_some_and(|it| it.contains(flaw))
                })
                .await;
            assert_eq!(line["level"], "WARN");
        }
    }
    // A client's own is given.
    let (certificate, key) = client_pair();
    cluster
        .put_secret(
            RUNNER_NAMESPACE,
            CERTS,
            &[("ca.crt", &cluster.certificate.ca_pem), ("tls.crt", &certificate), ("tls.key", &key)],
        )
        .await;
    let pod = wait::until("the manager pod gets the pair", || async {
        let (pod, _) = create_pod(&cluster, RUNNER_NAMESPACE, &manager, true).await.unwrap();
        variable(&pod, "gitlab-runner", "CI_SERVER_TLS_KEY_FILE").is_some().then_some(pod)
    })
    .await;
    let pair = vec!["tls.crt".to_owned(), "tls.key".to_owned()];
    assert_eq!(mounted(&pod, "gitlab-runner", "/etc/gitlab-runner-webhook/client"), Some((CERTS.to_owned(), pair)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_pod_gets_the_ca_and_never_the_key() {
    let (cluster, tool) = registered().await;
    put_certs(&cluster, &["ca.crt", "tls.crt", "tls.key"]).await;
    let pod = wait::until("certificates are known", || async {
        let (pod, _) = create_pod(&cluster, RUNNER_NAMESPACE, &job_pod("dry"), true).await.unwrap();
        mounted(&pod, "build", JOB_CERTS).is_some().then_some(pod)
    })
    .await;
    for container in ["build", "helper"] {
        for path in [TRUST_MOUNT, JOB_CERTS] {
            assert_eq!(mounted(&pod, container, path), Some((TRUST.into(), vec![])), "{container} {path}");
        }
        let of = |name| variable(&pod, container, name);
        assert_eq!(of("NODE_EXTRA_CA_CERTS"), Some("/etc/gitlab-runner-webhook/trust/ca.crt"));
        assert_eq!(of("REQUESTS_CA_BUNDLE"), Some("/etc/gitlab-runner-webhook/trust/bundle.crt"));
        assert_eq!(of("GIT_SSL_CAPATH"), Some("/etc/gitlab-runner-webhook/trust"));
        assert_eq!((of("SSL_CERT_FILE"), of("GIT_SSL_CAINFO")), (None, None));
    }
    let secrets = pod.spec.as_ref().unwrap().volumes.iter().flatten().filter(|volume| volume.secret.is_some());
    assert_eq!(secrets.count(), 0, "a job pod refers to no Secret of ours");
    assert_eq!(variable(&pod, "build", "DENO_CERT"), Some("/theirs"), "the user's variable wins");
    assert_eq!(mounted(&pod, "svc-0", JOB_CERTS), None);

    // Nowhere but in runner namespaces.
    let (pod, warnings) = create_pod(&cluster, "elsewhere", &job_pod("there"), false).await.unwrap();
    assert!(mounted(&pod, "build", JOB_CERTS).is_none() && warnings.is_empty());

    // The answer is in the API server's own metrics and audit log, and in ours.
    let admitted =
        "gitlab_runner_webhook_admissions_total{webhook=\"mutate-pods\",decision=\"patched\",reason=\"injected\"}";
    assert!(tool.metric(admitted).await.unwrap() >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_certificates_nothing_dangles_and_the_client_is_warned() {
    let (cluster, _tool) = registered().await;
    let (pod, warnings) = create_pod(&cluster, RUNNER_NAMESPACE, &job_pod("without"), false).await.unwrap();
    assert!(mounted(&pod, "build", JOB_CERTS).is_none());
    assert_eq!(variable(&pod, "build", "NODE_EXTRA_CA_CERTS"), None);
    assert!(
        warnings.iter().any(|warning| warning.contains("gitlab-runner/gitlab-runner-certs is missing")),
        "{warnings:?}"
    );

    let mut garbage = secret(CERTS, &[("ca.crt", "not PEM")]);
    garbage.metadata.namespace = Some(RUNNER_NAMESPACE.into());
    cluster.secrets(RUNNER_NAMESPACE).create(&PostParams::default(), &garbage).await.unwrap();
    wait::until("the warning says what is wrong", || async {
        let (pod, warnings) = create_pod(&cluster, RUNNER_NAMESPACE, &job_pod("garbage"), true).await.unwrap();
        assert!(mounted(&pod, "build", JOB_CERTS).is_none());
        warnings
            .iter()
            .any(|warning| warning.contains("ca.crt in Secret gitlab-runner/gitlab-runner-certs cannot be read"))
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pod_that_is_created_without_us_is_created_with_us() {
    let (cluster, _tool) = registered().await;
    put_certs(&cluster, &["ca.crt", "tls.crt", "tls.key"]).await;
    wait::until("certificates are known", || async {
        let (pod, _) = create_pod(&cluster, RUNNER_NAMESPACE, &job_pod("dry"), true).await.unwrap();
        mounted(&pod, "build", JOB_CERTS).is_some().then_some(())
    })
    .await;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/pods");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let mut pod: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        if let Some(metadata) = pod["metadata"].as_object_mut() {
            metadata.remove("namespace");
        }
        // Things of the cluster that the pods name and that are not what this is about.
        if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
            spec.remove("serviceAccountName");
            spec.remove("serviceAccount");
        }
        let without = create_pod(&cluster, "elsewhere", &pod, true).await;
        let with = create_pod(&cluster, RUNNER_NAMESPACE, &pod, true).await;
        let outcome = |result: &Result<_, String>| {
            result.as_ref().err().map(|error| error.replace("elsewhere", RUNNER_NAMESPACE))
        };
        assert_eq!(outcome(&with.map(drop)), outcome(&without.map(drop)), "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 60, "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_without_its_source_is_admitted_with_a_warning() {
    let (cluster, _tool) = registered().await;
    cluster.delete_secret(SOURCE_NAMESPACE, SECRET).await;
    cluster.delete_namespace(RUNNER_NAMESPACE).await;
    let create = async |name: &str| {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}).to_string();
        let request = Request::post("/api/v1/namespaces").header(CONTENT_TYPE, "application/json");
        let response = cluster.admin.send(request.body(Body::from(body.into_bytes())).unwrap()).await.unwrap();
        assert_eq!(response.status(), 201);
        response.headers().get("warning").map(|value| value.to_str().unwrap().to_owned())
    };
    let warning = create(RUNNER_NAMESPACE).await.expect("a warning");
    assert!(warning.contains("gitlab/gitlab-gitlab-runner-secret"), "{warning}");
    assert_eq!(create("another").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_changed_while_it_serves_and_its_absence_reaches_runner_namespaces_only() {
    let (cluster, tool) = registered().await;
    // A new CA: the API server is told of it, the files follow, no restart.
    let renewed = ServingCertificate::issue(cluster.certificate.cert_path().parent().unwrap());
    tool.logged("the new certificate", |line| line["message"] == "new serving certificate").await;
    let port = tool.webhook_port().await;
    let cluster = Cluster { certificate: renewed, ..cluster };
    cluster.register_webhooks(port, "Fail").await;
    called(&cluster).await;

    tool.kill().await;
    wait::until("pods of the runner namespace are refused", || async {
        create_pod(&cluster, RUNNER_NAMESPACE, &job_pod("refused"), true).await.is_err().then_some(())
    })
    .await;
    for namespace in ["elsewhere", SOURCE_NAMESPACE] {
        create_pod(&cluster, namespace, &job_pod("unaffected"), false).await.unwrap();
    }
    // As shipped for one replica: fails open.
    cluster.register_webhooks(port, "Ignore").await;
    let pod = wait::until("pods are let in without us", || async {
        Some(create_pod(&cluster, RUNNER_NAMESPACE, &job_pod("open"), false).await.ok()?.0)
    })
    .await;
    assert_eq!(pod.name_any(), "open");
}

/// Another mutating webhook that adds container `helper` to pods that have none.
fn adds_a_container(cluster: &Cluster) -> u16 {
    let answer = |body: Bytes| async move {
        let review: Value = serde_json::from_slice(&body).unwrap();
        let containers = review["request"]["object"]["spec"]["containers"].as_array().unwrap();
        let mut response = json!({"uid": review["request"]["uid"], "allowed": true});
        if !containers.iter().any(|container| container["name"] == "helper") {
            let patch = json!([{"op": "add", "path": "/spec/containers/-", "value": {"name": "helper", "image": "h"}}]);
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(k8s_openapi::ByteString(patch.to_string().into_bytes()));
        }
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        ([(CONTENT_TYPE, "application/json")], review.to_string())
    };
    let files = CertificateFiles { cert: cluster.certificate.cert_path(), key: cluster.certificate.key_path() };
    let metrics = Metrics::new();
    let certificate = Certificate::new(metrics.clone());
    FileCertificate::load(files, Arc::clone(&certificate), metrics.clone()).unwrap();
    let socket = bind("127.0.0.1:0".parse().unwrap(), "--listen").unwrap();
    let port = socket.local_addr().unwrap().port();
    let router = Router::new().route("/add", post(answer));
    let server = Server::https(socket, router, certificate, None, metrics).unwrap();
    let (trigger, shutdown) = shutdown::channel();
    tokio::spawn(async move {
        server.serve(shutdown, Duration::ZERO).await;
        drop(trigger);
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_another_webhook_adds_later_gets_the_certificates_too() {
    let (cluster, tool) = registered().await;
    put_certs(&cluster, &["ca.crt"]).await;
    let port = adds_a_container(&cluster);
    let other = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "zz-after-ours"},
        "webhooks": [{
            "name": "add.helper.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": {
                "url": format!("https://127.0.0.1:{port}/add"),
                "caBundle": k8s_openapi::ByteString(cluster.certificate.ca_pem.clone().into_bytes()),
            },
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": RUNNER_NAMESPACE}},
        }],
    });
    cluster.plane.kubectl_with_stdin(&["apply", "-f", "-"], &other.to_string()).await.unwrap();
    let mut job = job_pod("late-helper");
    job["spec"]["containers"].as_array_mut().unwrap().remove(1);
    let pod = wait::until("both webhooks are called", || async {
        let (pod, _) = create_pod(&cluster, RUNNER_NAMESPACE, &job, true).await.unwrap();
        let has_helper = pod.spec.as_ref().unwrap().containers.iter().any(|container| container.name == "helper");
        (has_helper && mounted(&pod, "build", TRUST_MOUNT).is_some()).then_some(pod)
    })
    .await;
    for container in ["build", "helper"] {
        assert_eq!(mounted(&pod, container, TRUST_MOUNT), Some((TRUST.into(), vec![])), "{container}");
        assert!(variable(&pod, container, "SSL_CERT_DIR").is_some(), "{container}");
    }
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.volumes.iter().flatten().filter(|volume| volume.name == TRUST).count(), 1);
    let build = spec.containers.iter().find(|container| container.name == "build").unwrap();
    let mut names: Vec<_> = build.env.iter().flatten().map(|variable| &variable.name).collect();
    names.sort();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count, "nothing is set twice");
    assert!(tool.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_on_the_pod_or_the_namespace_opts_out() {
    let (cluster, _tool) = registered().await;
    put_certs(&cluster, &["ca.crt"]).await;
    let mut job = job_pod("opted-out");
    wait::until("certificates are known", || async {
        let (pod, _) = create_pod(&cluster, RUNNER_NAMESPACE, &job, true).await.unwrap();
        mounted(&pod, "build", TRUST_MOUNT).is_some().then_some(())
    })
    .await;
    job["metadata"]["labels"]["gitlab-runner-webhook/inject"] = json!("false");
    let (pod, warnings) = create_pod(&cluster, RUNNER_NAMESPACE, &job, true).await.unwrap();
    assert!(mounted(&pod, "build", TRUST_MOUNT).is_none() && warnings.is_empty(), "{warnings:?}");

    let label = kube::api::Patch::Merge(json!({"metadata": {"labels": {"gitlab-runner-webhook/inject": "false"}}}));
    cluster.namespaces().patch(RUNNER_NAMESPACE, &kube::api::PatchParams::default(), &label).await.unwrap();
    wait::until("the API server knows the namespace's label", || async {
        let (pod, _) = create_pod(&cluster, RUNNER_NAMESPACE, &job_pod("quiet"), true).await.unwrap();
        mounted(&pod, "build", TRUST_MOUNT).is_none().then_some(())
    })
    .await;
}
