//! Attacks with the token of our own `ServiceAccount`, as they were made: with what is shipped, each is refused.

use gitlab_runner_webhook::names::{APP, LABEL_MANAGED_BY};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use test_support::{
    Cluster,
    cluster::{RUNNER_NAMESPACE, SECRET},
    wait,
};

use crate::BINARY;

/// The mission's cluster, a ServiceAccount worth stealing in its runner namespace, and a client with our token.
async fn cluster() -> (Cluster, Api<Secret>) {
    let cluster = Cluster::with_source(&[("runner-token", "token-of-the-runner")]).await;
    cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
    cluster.plane.kubectl(&["create", "serviceaccount", "admin", "-n", RUNNER_NAMESPACE]).await.unwrap();
    let ours: Client = cluster.plane.service_account_client(APP, APP).await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(ours, RUNNER_NAMESPACE);
    // The API server goes by a policy a moment after it was made: `kube-system` is refused by the guard alone.
    wait::until("the guard is in force", async || {
        let elsewhere: Api<Secret> = Api::namespaced(secrets.clone().into_client(), "kube-system");
        let params = PatchParams { dry_run: true, ..PatchParams::apply("attacker") };
        elsewhere.patch(SECRET, &params, &Patch::Apply(attack("Opaque", &json!({})))).await.err()
    })
    .await;
    (cluster, secrets)
}

fn attack(kind: &str, annotations: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": kind,
        "metadata": {"name": SECRET, "labels": {LABEL_MANAGED_BY: APP}, "annotations": annotations},
    })
}

/// The request by which Kubernetes writes a token into a Secret.
async fn ask_for_a_token(secrets: &Api<Secret>) -> Result<Secret, kube::Error> {
    let wanted = json!({"kubernetes.io/service-account.name": "admin"});
    let wanted = attack("kubernetes.io/service-account-token", &wanted);
    secrets.patch(SECRET, &PatchParams::apply("attacker").force(), &Patch::Apply(wanted)).await
}

fn is_denied_by_the_guard(error: &kube::Error) -> bool {
    error.to_string().contains("of a type that something acts on")
}

/// Without a replica: the clone is there, and nobody restores it.
#[tokio::test(flavor = "multi_thread")]
async fn no_token_of_another_account_is_minted() {
    let (cluster, secrets) = cluster().await;
    let tool = cluster.tool(BINARY).await.start().await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "token-of-the-runner")]).await;
    assert!(tool.stop().await.success());
    secrets.delete(SECRET, &DeleteParams::default()).await.unwrap();
    let refused = ask_for_a_token(&secrets).await.map(|secret| secret.type_).unwrap_err();
    assert!(is_denied_by_the_guard(&refused), "{refused}");
    // Nor by a Secret that becomes one: annotation first, type later.
    let wanted = attack("Opaque", &json!({"kubernetes.io/service-account.name": "admin"}));
    let refused = secrets.patch(SECRET, &PatchParams::apply("attacker"), &Patch::Apply(wanted)).await.unwrap_err();
    assert!(refused.to_string().contains("no annotation but its own"), "{refused}");
    assert!(cluster.secret(RUNNER_NAMESPACE, SECRET).await.is_none());
}

/// Held against a running replica: what it restores is deleted again, until the attacker is first.
#[tokio::test(flavor = "multi_thread")]
async fn no_token_is_minted_in_a_race_with_a_running_replica() {
    let (cluster, secrets) = cluster().await;
    let _tool = cluster.tool(BINARY).await.start().await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "token-of-the-runner")]).await;
    // So often was it won in ten at the most, when it could be won; and what is repaired more often is repaired late.
    for attempt in 0..15 {
        secrets.delete(SECRET, &DeleteParams::default()).await.map(|_| ()).unwrap_or_default();
        let answer = ask_for_a_token(&secrets).await;
        let there = answer.as_ref().ok().and_then(|secret| secret.type_.as_deref());
        assert_ne!(there, Some("kubernetes.io/service-account-token"), "won at attempt {attempt}");
    }
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "token-of-the-runner")]).await;
}
