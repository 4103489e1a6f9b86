//! The trust bundle on a real API server: public data only, as long as there is something to trust.

use std::collections::BTreeMap;

use gitlab_runner_webhook::{pem, trust};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use test_support::{
    Cluster, ServingCertificate, Setup, Tool,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE},
    control_plane::ControlPlane,
    wait,
};

use crate::{
    BINARY,
    mission::{CERTS, TRUST},
    webhook::{create_pod, job_pod},
};

fn maps(cluster: &Cluster, namespace: &str) -> Api<ConfigMap> {
    Api::namespaced(cluster.admin.clone(), namespace)
}

async fn bundle(cluster: &Cluster, namespace: &str) -> Option<ConfigMap> {
    maps(cluster, namespace).get_opt(TRUST).await.unwrap()
}

/// Waits for a trust bundle whose `ca.crt` holds exactly these certificates.
async fn trusts(cluster: &Cluster, namespace: &str, pems: &[&str]) -> ConfigMap {
    let bodies = |pem: &str| pem.split_whitespace().collect::<String>();
    wait::until("the trust bundle is as wanted", || async {
        let map = bundle(cluster, namespace).await?;
        let ca = map.data.as_ref()?.get("ca.crt")?.clone();
        let right = ca.matches("BEGIN CERTIFICATE").count() == pems.len()
            && pems.iter().all(|pem| bodies(&ca).contains(&bodies(pem)))
            && map.labels().get("app.kubernetes.io/managed-by").is_some_and(|by| by == "gitlab-runner-webhook");
        right.then_some(map)
    })
    .await
}

async fn gone(cluster: &Cluster, namespace: &str) {
    wait::until("the trust bundle goes", || async { bundle(cluster, namespace).await.is_none().then_some(()) }).await;
}

async fn in_state(tool: &Tool, state: &str) {
    tool.metric_is(&format!("gitlab_runner_webhook_trust_bundles{{state=\"{state}\"}}"), 1.0).await;
}

/// A program that has published the first of two CAs.
struct Published {
    cluster: Cluster,
    tool: Tool,
    other: ServingCertificate,
    data: BTreeMap<String, String>,
}

async fn published() -> Published {
    let cluster = Cluster::start().await;
    cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
    let other = ServingCertificate::issue(&cluster.plane.dir().join("other"));
    let tool = cluster.tool(BINARY).await.start().await;
    cluster.put_secret(RUNNER_NAMESPACE, CERTS, &[("ca.crt", &cluster.certificate.ca_pem)]).await;
    let data = trusts(&cluster, RUNNER_NAMESPACE, &[&cluster.certificate.ca_pem]).await.data.unwrap();
    Published { cluster, tool, other, data }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_has_every_ca_and_never_a_key() {
    let Published { cluster, other, tool: _tool, .. } = published().await;
    let (ca, other) = (cluster.certificate.ca_pem.as_str(), other.ca_pem.as_str());
    let key = std::fs::read_to_string(cluster.certificate.key_path()).unwrap();
    let leaf = std::fs::read_to_string(cluster.certificate.cert_path()).unwrap();
    let with_key = format!("{ca}{key}");
    // Several keys, one of them with a private key in it; a client certificate is nothing to trust.
    cluster
        .put_secret(
            RUNNER_NAMESPACE,
            CERTS,
            &[("ca.crt", &with_key), ("gitlab.example.com.crt", other), ("tls.crt", &leaf), ("tls.key", &key)],
        )
        .await;
    let data = trusts(&cluster, RUNNER_NAMESPACE, &[ca, other]).await.data.unwrap();
    let all: String = data.values().cloned().collect();
    assert!(!all.contains("PRIVATE KEY") && !all.contains(key.lines().nth(1).unwrap()), "no key in public data");
    assert!(data["bundle.crt"].matches("BEGIN CERTIFICATE").count() > 100, "public roots, too");
    let hashes = data.keys().filter(|key| key.len() == 10 && key.ends_with(".0")).count();
    assert!(hashes >= 1, "{:?}", data.keys());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_restored_when_it_is_edited_stripped_frozen_or_deleted() {
    let Published { cluster, other, data, tool: _tool } = published().await;
    let (ca, other) = (cluster.certificate.ca_pem.as_str(), other.ca_pem.as_str());
    let restore = async |patch: serde_json::Value| {
        let edited =
            maps(&cluster, RUNNER_NAMESPACE).patch(TRUST, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        wait::until("the trust bundle is restored", || async {
            let there = bundle(&cluster, RUNNER_NAMESPACE).await?;
            (there.data.as_ref() == Some(&data) && there.resource_version() != edited.resource_version()).then_some(())
        })
        .await;
        trusts(&cluster, RUNNER_NAMESPACE, &[ca]).await;
    };
    restore(json!({"data": {"ca.crt": "nothing", "extra": "x"}})).await;
    restore(json!({"metadata": {"labels": null, "annotations": null}})).await;
    restore(json!({"binaryData": {"blob": "AAAA"}})).await;
    maps(&cluster, RUNNER_NAMESPACE).delete(TRUST, &DeleteParams::default()).await.unwrap();
    trusts(&cluster, RUNNER_NAMESPACE, &[ca]).await;
    let frozen = Patch::Merge(json!({"immutable": true}));
    maps(&cluster, RUNNER_NAMESPACE).patch(TRUST, &PatchParams::default(), &frozen).await.unwrap();
    cluster.put_secret(RUNNER_NAMESPACE, CERTS, &[("ca.crt", other)]).await;
    trusts(&cluster, RUNNER_NAMESPACE, &[other]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_certificates_and_a_restart_write_nothing() {
    let Published { cluster, tool, .. } = published().await;
    let ca = cluster.certificate.ca_pem.as_str();
    let before = cluster.writes().await.len();
    cluster.put_secret(RUNNER_NAMESPACE, CERTS, &[("again.pem", ca), ("ca.crt", ca)]).await;
    assert!(tool.stop().await.success());
    let tool = cluster.tool(BINARY).await.start().await;
    in_state(&tool, "synced").await;
    let since = cluster.writes().await.split_off(before);
    assert!(since.is_empty(), "{since:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_that_cannot_be_read_leaves_it_and_is_reported_without_its_content() {
    let Published { cluster, tool, .. } = published().await;
    cluster.put_secret(RUNNER_NAMESPACE, CERTS, &[("ca.crt", "canary-of-a-file")]).await;
    in_state(&tool, "certs-unusable").await;
    let line = tool.logged("why", |line| line["state"] == "certs-unusable").await;
    assert!(line["detail"].as_str().unwrap().contains("ca.crt"), "{line}");
    assert!(!tool.log_text().contains("canary-of-a-file"));
    trusts(&cluster, RUNNER_NAMESPACE, &[&cluster.certificate.ca_pem]).await;
}

/// Secrets out of public bug reports: what can be read is read, whatever form it has.
#[tokio::test(flavor = "multi_thread")]
async fn what_users_put_into_the_secret_is_published_as_certificates() {
    let Published { cluster, tool, .. } = published().await;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/certs");
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let certs: Secret = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let cas = trust::Cas::of(certs.data.as_ref()).certificates;
        let pems: Vec<String> = cas.iter().map(|der| pem::written([der.as_slice()])).collect();
        let _ = cluster.secrets(RUNNER_NAMESPACE).delete(CERTS, &DeleteParams::default()).await;
        cluster.secrets(RUNNER_NAMESPACE).create(&PostParams::default(), &certs).await.unwrap();
        let pems: Vec<&str> = pems.iter().map(String::as_str).collect();
        let data = trusts(&cluster, RUNNER_NAMESPACE, &pems).await.data.unwrap();
        assert!(data["ca.crt"] == pems.concat() && !data["bundle.crt"].contains("PRIVATE"), "{}", path.display());
        if path.ends_with("subject-that-is-not-utf8.json") {
            let line = tool.logged("what is left out", |line| line["state"] == "certs-left-out").await;
            assert!(line["detail"].as_str().unwrap().contains("certificate 2 in key \"ca.crt\" is left out"), "{line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_there_as_long_as_there_is_something_to_trust() {
    let Published { cluster, tool, .. } = published().await;
    let ca = cluster.certificate.ca_pem.as_str();
    cluster.put_secret(RUNNER_NAMESPACE, CERTS, &[("tls.key", "x")]).await;
    gone(&cluster, RUNNER_NAMESPACE).await;
    cluster.put_secret(RUNNER_NAMESPACE, CERTS, &[("ca.crt", ca)]).await;
    trusts(&cluster, RUNNER_NAMESPACE, &[ca]).await;
    cluster.delete_secret(RUNNER_NAMESPACE, CERTS).await;
    gone(&cluster, RUNNER_NAMESPACE).await;
    in_state(&tool, "source-missing").await;
}

/// Jobs in a namespace of their own: the CAs are there, and the runner's token is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_trust_namespace_gets_the_bundle_and_no_clone() {
    let config = "trustNamespaces: {names: [ci-jobs], selectors: [{matchLabels: {ci: 'yes'}}]}\n";
    let cluster = Cluster::start_as(ControlPlane::builder(), Setup { config: Some(config) }).await;
    let ca = cluster.certificate.ca_pem.as_str();
    for (namespace, label) in
        [(SOURCE_NAMESPACE, "no"), (RUNNER_NAMESPACE, "no"), ("ci-jobs", "no"), ("ci-labelled", "yes")]
    {
        cluster.create_namespace(namespace, &[("ci", label)]).await;
        cluster.plane.service_account_ready(namespace, "default").await.unwrap();
    }
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "t")]).await;
    let tool = cluster.tool(BINARY).await.config(config).start().await;
    cluster.register_webhooks(tool.webhook_port().await, "Fail").await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "t")]).await;
    for namespace in ["ci-jobs", "ci-labelled"] {
        cluster.put_secret(namespace, CERTS, &[("ca.crt", ca)]).await;
        trusts(&cluster, namespace, &[ca]).await;
        wait::until("a job pod there gets it", || async {
            let (pod, _) = create_pod(&cluster, namespace, &job_pod("job"), true).await.ok()?;
            let volumes = pod.spec.unwrap().volumes.unwrap_or_default();
            volumes.iter().any(|volume| volume.name == TRUST).then_some(())
        })
        .await;
        // A pod that uses a Secret of the clone's name is none of the gate's business there.
        let mut pod = job_pod("other");
        pod["metadata"]["labels"] = json!({});
        pod["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": SECRET}}]);
        create_pod(&cluster, namespace, &pod, true).await.unwrap();
        assert!(cluster.secret(namespace, SECRET).await.is_none(), "{namespace}");
    }
    // It is looked after as anywhere.
    maps(&cluster, "ci-jobs").delete(TRUST, &DeleteParams::default()).await.unwrap();
    trusts(&cluster, "ci-jobs", &[ca]).await;
    let relabel = Patch::Merge(json!({"metadata": {"labels": {"ci": "no"}}}));
    cluster.namespaces().patch("ci-labelled", &PatchParams::default(), &relabel).await.unwrap();
    gone(&cluster, "ci-labelled").await;
    assert!(bundle(&cluster, "ci-jobs").await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_only_where_runners_are_and_certs_can_be_cloned_too() {
    let config = "runnerNamespaces: {names: [], selectors: [{matchLabels: {runner: 'yes'}}]}\n\
                  certs: {from: infra, publicRoots: none}\n";
    let cluster = Cluster::start_as(ControlPlane::builder(), Setup { config: Some(config) }).await;
    let ca = cluster.certificate.ca_pem.as_str();
    for (namespace, label) in [("one", "yes"), ("two", "yes"), ("elsewhere", "no")] {
        cluster.create_namespace(namespace, &[("runner", label)]).await;
    }
    cluster.create_namespace("infra", &[]).await;
    cluster.put_secret("infra", CERTS, &[("ca.crt", ca)]).await;
    cluster.put_secret("elsewhere", CERTS, &[("ca.crt", ca)]).await;
    let _tool = cluster.tool(BINARY).await.config(config).start().await;
    for namespace in ["one", "two"] {
        cluster.clone_with(namespace, CERTS, &[("ca.crt", ca)]).await;
        let map = trusts(&cluster, namespace, &[ca]).await;
        assert!(!map.data.unwrap().contains_key("bundle.crt"), "no public roots are wanted");
    }
    assert!(bundle(&cluster, "elsewhere").await.is_none() && bundle(&cluster, "infra").await.is_none());

    let relabel = Patch::Merge(json!({"metadata": {"labels": {"runner": "no"}}}));
    cluster.namespaces().patch("one", &PatchParams::default(), &relabel).await.unwrap();
    gone(&cluster, "one").await;
    wait::until("the clone goes", || async { cluster.secret("one", CERTS).await.is_none().then_some(()) }).await;
    assert!(bundle(&cluster, "two").await.is_some());
}
