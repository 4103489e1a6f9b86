//! What the program says at its start of webhooks, guards and rights that do not follow from its configuration.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the lints spare test functions, not what they share"
)]

use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::{Api, api::PostParams};
use test_support::{
    Cluster, Manifests, Tool,
    cluster::{RUNNER_NAMESPACE, SOURCE_NAMESPACE, free_port},
    wait,
};

const BINARY: &str = env!("CARGO_BIN_EXE_gitlab-runner-webhook");
const DIFFERS: &str = "does not follow from the configuration";

/// What it says, and of which object, once that many lines are there.
async fn told(tool: &Tool, count: usize) -> Vec<(String, String)> {
    tool.has_compared().await;
    let differing = || tool.log_lines().into_iter().filter(|line| line["message"] == DIFFERS);
    wait::until("all is said", async || (differing().count() >= count).then_some(())).await;
    let lines = differing();
    let text = |line: &serde_json::Value, field: &str| line[field].as_str().unwrap().to_owned();
    lines.map(|line| (text(&line, "object"), text(&line, "disagreement"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_disagrees_is_named_and_nothing_else() {
    let cluster = Cluster::start().await;
    for namespace in [SOURCE_NAMESPACE, RUNNER_NAMESPACE] {
        cluster.create_namespace(namespace, &[]).await;
    }
    cluster.register_webhooks(free_port(), "Ignore").await;
    let agrees = cluster.tool(BINARY).await.self_managed().start().await;
    assert_eq!(told(&agrees, 0).await, []);
    assert!(agrees.stop().await.success());

    // Other names than those that are installed: too little here, too much there.
    let config = "runnerNamespaces: {names: [builds]}\nclones: [{secret: registry, from: gitlab}]\n";
    let other = cluster.tool(BINARY).await.self_managed().config(config).spawn();
    let said = told(&other, 5).await;
    other.kill().await;
    assert_eq!(said.len(), 5, "{said:#?}");
    let holds = |object: &str, words: &str| {
        let is_it = |(about, what): &(String, String)| about == object && what.contains(words);
        assert!(said.iter().any(is_it), "{object}: {words}: {said:#?}");
    };
    let kind = "WebhookConfiguration gitlab-runner-webhook";
    holds(&format!("Mutating{kind}"), "inject.pods.gitlab-runner-webhook: namespaceSelector");
    holds(&format!("Validating{kind}"), "gate.pods.gitlab-runner-webhook: ");
    holds("ValidatingAdmissionPolicy gitlab-runner-webhook-objects", "differs in variables");
    let account = "ServiceAccount gitlab-runner-webhook/gitlab-runner-webhook";
    holds(account, "lacks create+patch events/gitlab-runner-webhook.registry, list+watch namespaces/builds, ");
    holds(account, "may, without need, create+patch events/gitlab-runner-webhook.gitlab-gitlab-runner-secret");

    // Roles in namespaces are as good; a verb that somebody took away is missed, and what they gave beside it is seen.
    Manifests::combine(&["overlays/local"], &["generated/namespaced-rbac"])
        .unwrap()
        .without(&["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"])
        .apply(&cluster.plane)
        .await;
    let namespaced = cluster.tool(BINARY).await.self_managed().start().await;
    assert_eq!(told(&namespaced, 0).await, []);
    assert!(namespaced.stop().await.success());

    let roles: Api<ClusterRole> = Api::all(cluster.admin.clone());
    let mut role = roles.get("gitlab-runner-webhook").await.unwrap();
    for rule in role.rules.iter_mut().flatten() {
        if rule.resources.as_deref() == Some(&["configmaps".to_owned()]) {
            rule.verbs = vec!["list".to_owned()];
        }
        if rule.resources.as_deref() == Some(&["secrets".to_owned()]) {
            rule.resource_names = None;
        }
    }
    roles.replace("gitlab-runner-webhook", &PostParams::default(), &role).await.unwrap();
    let changed = cluster.tool(BINARY).await.self_managed().spawn();
    let said = told(&changed, 2).await;
    let expected = [
        "lacks watch configmaps/gitlab-runner-webhook-trust",
        "may, without need, list+watch secrets in namespace gitlab-runner-webhook",
    ];
    assert_eq!(said, expected.map(|what| (account.to_owned(), what.to_owned())));
    changed.kill().await;
}
