//! A clone or a trust bundle that is being deleted and held by somebody's finalizer: nobody may put content into it for good.

use gitlab_runner_webhook::names::CONFIGMAP_TRUST;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use test_support::{
    Cluster, Tool,
    cluster::{RUNNER_NAMESPACE, SECRET, free_port, has_data},
    wait,
};

use crate::BINARY;

const TOKEN: [(&str, &str); 1] = [("runner-token", "token-of-the-runner")];
const BUNDLES: &str = "gitlab_runner_webhook_trust_bundles";
const HELD: &str = "example.com/held";

struct Fixture {
    cluster: Cluster,
    tool: Tool,
    maps: Api<ConfigMap>,
}

impl Fixture {
    async fn new() -> Self {
        let cluster = Cluster::with_source(&TOKEN).await;
        cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
        cluster.plane.service_account_ready(RUNNER_NAMESPACE, "default").await.unwrap();
        cluster.put_secret(RUNNER_NAMESPACE, "gitlab-runner-certs", &[("ca.crt", &cluster.certificate.ca_pem)]).await;
        let port = free_port();
        let tool = cluster.tool(BINARY).await.flag("--listen", &format!("127.0.0.1:{port}")).start().await;
        cluster.register_webhooks(port, "Fail").await;
        let maps = Api::namespaced(cluster.admin.clone(), RUNNER_NAMESPACE);
        let fixture = Self { cluster, tool, maps };
        fixture.cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
        fixture.tool.metric_is(&format!("{BUNDLES}{{state=\"synced\"}}"), 1.0).await;
        wait::until("job pods trust", async || fixture.job_trusts().await.then_some(())).await;
        fixture
    }

    /// Whether a job pod that is created now would mount the trust bundle.
    async fn job_trusts(&self) -> bool {
        let pod = json!({
            "metadata": {"generateName": "job-", "labels": {"job.runner.gitlab.com/pod": "runner-x"}},
            "spec": {"containers": [{"name": "build", "image": "i"}]},
        });
        let pods: Api<Pod> = Api::namespaced(self.cluster.admin.clone(), RUNNER_NAMESPACE);
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let created = pods.create(&dry_run, &serde_json::from_value(pod).unwrap()).await;
        let volumes = created.unwrap().spec.unwrap().volumes.unwrap_or_default();
        volumes.iter().any(|volume| volume.name == CONFIGMAP_TRUST)
    }

    async fn bundle(&self) -> Option<ConfigMap> {
        self.maps.get_opt(CONFIGMAP_TRUST).await.unwrap()
    }

    async fn change_bundle(&self, patch: &Value) {
        self.maps.patch(CONFIGMAP_TRUST, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_is_corrected_while_it_lasts() {
    let fixture = Fixture::new().await;
    let (cluster, held) = (&fixture.cluster, json!({"metadata": {"finalizers": [HELD]}}));
    let right = fixture.bundle().await.unwrap().data;
    cluster.patch_secret(RUNNER_NAMESPACE, SECRET, &held).await;
    fixture.change_bundle(&held).await;
    cluster.delete_secret(RUNNER_NAMESPACE, SECRET).await;
    fixture.maps.delete(CONFIGMAP_TRUST, &DeleteParams::default()).await.unwrap();
    fixture.tool.clones_in_state(SECRET, "clone-terminating", 1.0).await;
    fixture.tool.metric_is(&format!("{BUNDLES}{{state=\"clone-terminating\"}}"), 1.0).await;

    cluster
        .patch_secret(RUNNER_NAMESPACE, SECRET, &json!({"stringData": {"runner-token": "token-of-an-attacker"}}))
        .await;
    fixture.change_bundle(&json!({"data": {"ca.crt": "of-an-attacker", "more.crt": "x"}})).await;
    cluster.secret_that("is corrected", RUNNER_NAMESPACE, SECRET, |secret| has_data(secret, &TOKEN)).await;
    wait::until("the trust bundle is corrected", async || fixture.bundle().await.filter(|bundle| bundle.data == right))
        .await;
    fixture.tool.clones_in_state(SECRET, "clone-terminating", 1.0).await;
    fixture.tool.metric_is(&format!("{BUNDLES}{{state=\"clone-terminating\"}}"), 1.0).await;
    let secret = cluster.secret(RUNNER_NAMESPACE, SECRET).await.unwrap();
    assert_eq!(secret.metadata.finalizers.as_deref(), Some(&[HELD.to_owned()][..]), "it is not ours to take");
    assert!(secret.metadata.deletion_timestamp.is_some());
    assert!(fixture.job_trusts().await);

    // Without the finalizer both are gone, and made anew.
    let released = json!({"metadata": {"finalizers": null}});
    cluster.patch_secret(RUNNER_NAMESPACE, SECRET, &released).await;
    fixture.change_bundle(&released).await;
    fixture.tool.clones_in_state(SECRET, "synced", 1.0).await;
    fixture.tool.metric_is(&format!("{BUNDLES}{{state=\"synced\"}}"), 1.0).await;
}

/// Where nothing can be corrected, no job trusts it.
#[tokio::test(flavor = "multi_thread")]
async fn content_that_does_not_follow_from_the_certificates_is_given_to_no_pod() {
    let fixture = Fixture::new().await;
    let hostile = json!({"metadata": {"finalizers": [HELD]}, "immutable": true, "data": {"ca.crt": "of-an-attacker"}});
    fixture.change_bundle(&hostile).await;
    fixture.tool.metric_is(&format!("{BUNDLES}{{state=\"clone-terminating\"}}"), 1.0).await;
    assert_eq!(fixture.bundle().await.unwrap().data.unwrap()["ca.crt"], "of-an-attacker");
    assert!(!fixture.job_trusts().await);
    fixture.change_bundle(&json!({"metadata": {"finalizers": null}})).await;
    fixture.tool.metric_is(&format!("{BUNDLES}{{state=\"synced\"}}"), 1.0).await;
    assert!(fixture.job_trusts().await);
}

/// Rotation of the company's CA: at no moment does a job get nothing.
#[tokio::test(flavor = "multi_thread")]
async fn while_certificates_change_every_job_pod_trusts() {
    let fixture = Fixture::new().await;
    let second = fixture.cluster.tool(BINARY).await.start().await;
    second.metric_is(&format!("{BUNDLES}{{state=\"synced\"}}"), 1.0).await;
    let (mut seen, mut versions) = (0, std::collections::BTreeSet::new());
    for round in 0..15 {
        let ca = if round % 3 == 2 { "garbage".to_owned() } else { new_ca() };
        fixture.cluster.put_secret(RUNNER_NAMESPACE, "gitlab-runner-certs", &[("ca.crt", &ca)]).await;
        for _ in 0..10 {
            assert!(fixture.job_trusts().await, "round {round}, after {seen} pods");
            seen += 1;
        }
        versions.insert(fixture.bundle().await.unwrap().metadata.resource_version);
    }
    assert!(versions.len() > 5, "the trust bundle followed meanwhile");
}

fn new_ca() -> String {
    let mut params = rcgen::CertificateParams::new(vec!["ca".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}
