//! Rotation that arrives: the manager Deployment is restarted once for each change of a clone's content, and by nothing
//! else.

use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use test_support::{
    Cluster, Setup,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE},
    control_plane::ControlPlane,
    wait,
};

use crate::BINARY;

const CONFIG: &str = "restart: {deployments: [gitlab-runner]}\n";
const ANNOTATION: &str = "gitlab-runner-webhook/restarted-for";

/// A Deployment as users have it, with something in its pods' annotations.
fn deployment(name: &str) -> Deployment {
    let labels = json!({"app": name});
    let deployment = json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": {"checksum/config": "abc"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    });
    serde_json::from_value(deployment).unwrap()
}

struct Fixture {
    cluster: Cluster,
    deployments: Api<Deployment>,
}

impl Fixture {
    async fn new() -> Self {
        let cluster = Cluster::start_as(ControlPlane::builder(), Setup { config: Some(CONFIG) }).await;
        for namespace in [SOURCE_NAMESPACE, RUNNER_NAMESPACE] {
            cluster.create_namespace(namespace, &[]).await;
        }
        let deployments: Api<Deployment> = Api::namespaced(cluster.admin.clone(), RUNNER_NAMESPACE);
        for name in ["gitlab-runner", "another"] {
            deployments.create(&PostParams::default(), &deployment(name)).await.unwrap();
        }
        Self { cluster, deployments }
    }

    async fn rotate(&self, token: &str) {
        self.cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", token)]).await;
        self.cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", token)]).await;
    }

    /// What its pods were last restarted for, and how often its pods changed.
    async fn state(&self, name: &str) -> (Option<String>, i64) {
        let found = self.deployments.get(name).await.unwrap();
        let template = found.spec.unwrap().template.metadata.unwrap();
        (template.annotations.unwrap().get(ANNOTATION).cloned(), found.metadata.generation.unwrap())
    }

    /// Waits until its pods have changed that often.
    async fn changed(&self, generation: i64) -> Option<String> {
        wait::until(format!("generation {generation}"), async || {
            let (version, now) = self.state("gitlab-runner").await;
            assert!(now <= generation, "restarted once more");
            (now == generation).then_some(version)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_content_restarts_the_named_deployment_once_and_our_own_restart_does_not() {
    let fixture = Fixture::new().await;
    let tool = async || fixture.cluster.tool(BINARY).await.config(CONFIG).start().await;
    fixture.cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "first-token")]).await;
    let (first, second) = (tool().await, tool().await);
    fixture.cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "first-token")]).await;

    // Each change, once, with two replicas.
    fixture.rotate("second-token").await;
    let version = fixture.changed(2).await.unwrap();
    let source = fixture.cluster.secret(SOURCE_NAMESPACE, SECRET).await.unwrap();
    assert_eq!(Some(version), source.resource_version());

    // Labels of the source, a deleted clone, a restart of the program: the content is the same.
    fixture.cluster.delete_secret(RUNNER_NAMESPACE, SECRET).await;
    fixture.cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "second-token")]).await;
    fixture.cluster.patch_secret(SOURCE_NAMESPACE, SECRET, &json!({"metadata": {"labels": {"a": "b"}}})).await;
    let stopped = (first.stop().await, second.stop().await);
    assert!(stopped.0.success() && stopped.1.success());
    let tool = tool().await;
    tool.clones_in_state(SECRET, "synced", 1.0).await;

    // The next change shows that none of that had done anything.
    fixture.rotate("third-token").await;
    fixture.changed(3).await;
    tool.metric_is(
        "gitlab_runner_webhook_writes_total{object=\"gitlab-runner\",action=\"restart\",result=\"ok\"}",
        1.0,
    )
    .await;

    // What was missed while nobody watched arrives with the next start.
    assert!(tool.stop().await.success());
    let patch = json!({"metadata": {"annotations": {"gitlab-runner-webhook/content": "1"}}});
    fixture.cluster.patch_secret(RUNNER_NAMESPACE, SECRET, &patch).await;
    let _tool = fixture.cluster.tool(BINARY).await.config(CONFIG).start().await;
    assert_eq!(fixture.changed(4).await.as_deref(), Some("1"));

    // Nothing else was touched, of this Deployment or of another.
    assert_eq!(fixture.state("another").await, (None, 1));
    let now = fixture.deployments.get("gitlab-runner").await.unwrap();
    let owned: Vec<_> = now
        .managed_fields()
        .iter()
        .filter(|entry| entry.manager.as_deref() == Some("gitlab-runner-webhook-restart"))
        .map(|entry| entry.fields_v1.as_ref().unwrap().0.clone())
        .collect();
    let annotation = json!({format!("f:{ANNOTATION}"): {}});
    assert_eq!(owned, [json!({"f:spec": {"f:template": {"f:metadata": {"f:annotations": annotation}}}})]);
    let mut spec = serde_json::to_value(&now.spec).unwrap();
    spec["template"]["metadata"]["annotations"].as_object_mut().unwrap().remove(ANNOTATION);
    let before = serde_json::to_value(deployment("gitlab-runner").spec).unwrap();
    assert_eq!(spec["template"]["metadata"], before["template"]["metadata"]);
    assert_eq!(spec["replicas"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_on_the_deployment_is_good_for_nothing_else() {
    let fixture = Fixture::new().await;
    let account = "gitlab-runner-webhook";
    let client = fixture.cluster.plane.service_account_client(account, account).await.unwrap();
    fixture.cluster.create_namespace("elsewhere", &[]).await;
    let elsewhere: Api<Deployment> = Api::namespaced(fixture.cluster.admin.clone(), "elsewhere");
    elsewhere.create(&PostParams::default(), &deployment("gitlab-runner")).await.unwrap();

    let patch = async |namespace: &str, name: &str, patch: Value| {
        let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await.map_err(|error| error.to_string())
    };
    let annotations = |all: &Value| json!({"spec": {"template": {"metadata": {"annotations": all}}}});
    let annotation = annotations(&json!({ANNOTATION: "1"}));
    // The API server goes by a policy a moment after it was made.
    wait::until("the guard is in force", async || {
        let value = wait::unique().to_string();
        let other = json!({"spec": {"template": {"metadata": {"annotations": {ANNOTATION: value}}}}});
        patch("elsewhere", "gitlab-runner", other).await.err()
    })
    .await;
    for change in [
        json!({"spec": {"replicas": 0}}),
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "evil"}]}}}}),
        json!({"spec": {"template": {"spec": {"serviceAccountName": "another"}}}}),
        json!({"spec": {"template": {"metadata": {"labels": {"job.runner.gitlab.com/pod": "x"}}}}}),
        json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}}),
        // What runs beside a pod, or holds it in, by annotation.
        annotations(&json!({"sidecar.istio.io/proxyImage": "evil"})),
        annotations(&json!({"container.apparmor.security.beta.kubernetes.io/c": "unconfined"})),
        annotations(&json!({"checksum/config": null})),
        annotations(&json!({"checksum/config": "xyz", ANNOTATION: "1"})),
        json!({"spec": {"template": {"metadata": {"finalizers": ["example.com/x"]}}}}),
        json!({"spec": {"paused": true}}),
        json!({"spec": {"minReadySeconds": 100}}),
        json!({"spec": {"revisionHistoryLimit": 0}}),
        json!({"spec": {"progressDeadlineSeconds": 1000}}),
        // The garbage collector deletes what belongs to nothing.
        json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Secret", "name": "gone", "uid": "1"}]}}),
        json!({"metadata": {"finalizers": ["example.com/x"]}}),
        json!({"metadata": {"labels": {"a": "b"}}}),
        json!({"metadata": {"annotations": {"a": "b"}}}),
    ] {
        let refused = patch(RUNNER_NAMESPACE, "gitlab-runner", change.clone()).await.unwrap_err();
        assert!(refused.contains("may change nothing of a Deployment"), "{change}: {refused}");
    }
    let refused = patch("elsewhere", "gitlab-runner", annotation.clone()).await.unwrap_err();
    assert!(refused.contains("is no runner namespace"), "{refused}");
    let refused = patch(RUNNER_NAMESPACE, "another", annotation.clone()).await.unwrap_err();
    assert!(refused.contains("cannot patch"), "{refused}");
    patch(RUNNER_NAMESPACE, "gitlab-runner", annotation).await.unwrap();
}
