//! Rows of the contract that depend on the configuration: whose Secret it is, which namespaces are
//! runner namespaces, how many clones there are.

use kube::{
    ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use test_support::{
    Cluster, Setup,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE, has_data},
    control_plane::ControlPlane,
    wait,
};

use crate::{BINARY, mission::TOKEN};

fn one_clone(field: &str) -> String {
    format!("clones: [{{secret: {SECRET}, from: {SOURCE_NAMESPACE}, {field}}}]\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_secret_is_adopted_or_refused_as_configured() {
    let cluster = Cluster::with_source(&TOKEN).await;
    cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;

    // Equal: adopted without a new object, whatever the configuration says.
    for choice in ["onForeignTarget: refuse", "onForeignTarget: adopt"] {
        let foreign = cluster.put_secret(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
        let tool = cluster.tool(BINARY).await.config(&one_clone(choice)).start().await;
        let clone = cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
        assert_eq!(clone.uid(), foreign.uid());
        assert!(tool.stop().await.success());
        cluster.delete_secret(RUNNER_NAMESPACE, SECRET).await;
    }

    // Different, refused: reported with its key names, never touched; looked at again when it changes.
    let foreign = cluster.put_secret(RUNNER_NAMESPACE, SECRET, &[("their-key", "their-value")]).await;
    let tool = cluster.tool(BINARY).await.config(&one_clone("onForeignTarget: refuse")).start().await;
    tool.clones_in_state(SECRET, "conflict", 1.0).await;
    let line = tool.logged("the conflict", |line| line["state"] == "conflict").await;
    assert!(line["detail"].as_str().unwrap().contains("their-key"), "{line}");
    let there = cluster.secret(RUNNER_NAMESPACE, SECRET).await.unwrap();
    assert_eq!(there.resource_version(), foreign.resource_version());
    cluster.delete_secret(RUNNER_NAMESPACE, SECRET).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
    tool.clones_in_state(SECRET, "synced", 1.0).await;
    assert!(tool.stop().await.success());
    cluster.delete_secret(RUNNER_NAMESPACE, SECRET).await;

    // Different, adopted: replaced, and the names of the lost keys are said.
    cluster.put_secret(RUNNER_NAMESPACE, SECRET, &[("their-key", "their-value")]).await;
    // As kubectl apply leaves it: with a copy of all of it.
    let copy =
        json!({"kubectl.kubernetes.io/last-applied-configuration": "{\"stringData\":{\"their-key\":\"their-value\"}}"});
    cluster.patch_secret(RUNNER_NAMESPACE, SECRET, &json!({"metadata": {"annotations": copy}})).await;
    let tool = cluster.tool(BINARY).await.start().await;
    let clone = cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
    let annotations: Vec<_> = clone.annotations().keys().map(String::as_str).collect();
    assert_eq!(annotations, ["gitlab-runner-webhook/source"], "the copy is gone");
    let line = tool.logged("what it replaced", |line| line["keys"] == "their-key").await;
    assert_eq!(line["level"], "WARN");
    assert!(!tool.log_text().contains("their-value") && !tool.log_text().contains("the-token"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_living_kyverno_policy_is_not_fought() {
    let cluster = Cluster::with_source(&TOKEN).await;
    cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
    cluster.put_secret(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
    let labels = json!({
        "app.kubernetes.io/managed-by": "kyverno",
        "generate.kyverno.io/policy-name": "sync-gitlab-runner-secret",
        "generate.kyverno.io/source-uid": "1",
    });
    let kyvernos = cluster.patch_secret(RUNNER_NAMESPACE, SECRET, &json!({"metadata": {"labels": labels}})).await;
    let tool = cluster.tool(BINARY).await.start().await;
    tool.clones_in_state(SECRET, "synced", 1.0).await;
    let there = cluster.secret(RUNNER_NAMESPACE, SECRET).await.unwrap();
    assert_eq!(there.resource_version(), kyvernos.resource_version(), "equal: not written");

    // Kyverno is down or slow: the content follows, its labels stay, ours are not put beside them.
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "rotated")]).await;
    let there = cluster
        .secret_that("follows", RUNNER_NAMESPACE, SECRET, |there| has_data(there, &[("runner-token", "rotated")]))
        .await;
    assert_eq!(there.labels(), kyvernos.labels());
    assert!(there.annotations().is_empty());

    // The policy is gone and its labels were removed: the clone becomes ours.
    cluster.patch_secret(RUNNER_NAMESPACE, SECRET, &json!({"metadata": {"labels": null}})).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "rotated")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_source_deleted_delete_takes_our_clones_and_nothing_else() {
    let config = format!(
        "runnerNamespaces: {{names: [ours, theirs]}}\n{}",
        one_clone("onSourceDeleted: delete, onForeignTarget: refuse")
    );
    let cluster = Cluster::start_as(ControlPlane::builder(), Setup { config: Some(&config) }).await;
    for namespace in [SOURCE_NAMESPACE, "ours", "theirs"] {
        cluster.create_namespace(namespace, &[]).await;
    }
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &TOKEN).await;
    cluster.put_secret("theirs", SECRET, &[("their-key", "their-value")]).await;
    let tool = cluster.tool(BINARY).await.config(&config).start().await;
    cluster.clone_with("ours", SECRET, &TOKEN).await;
    tool.clones_in_state(SECRET, "conflict", 1.0).await;

    cluster.delete_secret(SOURCE_NAMESPACE, SECRET).await;
    wait::until("our clone goes", || async { cluster.secret("ours", SECRET).await.is_none().then_some(()) }).await;
    tool.clones_in_state(SECRET, "source-missing", 2.0).await;
    assert!(has_data(&cluster.secret("theirs", SECRET).await.unwrap(), &[("their-key", "their-value")]));

    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &TOKEN).await;
    cluster.clone_with("ours", SECRET, &TOKEN).await;

    // Deleted while the tool was away: the same end.
    assert!(tool.stop().await.success());
    cluster.delete_secret(SOURCE_NAMESPACE, SECRET).await;
    let _tool = cluster.tool(BINARY).await.config(&config).start().await;
    wait::until("our clone goes", || async { cluster.secret("ours", SECRET).await.is_none().then_some(()) }).await;
    assert!(cluster.secret("theirs", SECRET).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_come_and_go_by_label() {
    let selectors = "runnerNamespaces:\n  names: []\n  selectors:\n  - matchLabels: {runner: 'yes'}\n  \
                     - matchExpressions: [{key: tier, operator: In, values: [ci, build]}]\n";
    let cluster = Cluster::start_as(ControlPlane::builder(), Setup { config: Some(selectors) }).await;
    cluster.create_namespace(SOURCE_NAMESPACE, &[("runner", "yes")]).await;
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &TOKEN).await;
    cluster.create_namespace("before", &[("runner", "yes")]).await;
    let tool = cluster.tool(BINARY).await.config(selectors).start().await;
    cluster.clone_with("before", SECRET, &TOKEN).await;
    cluster.create_namespace("after", &[("tier", "build")]).await;
    cluster.clone_with("after", SECRET, &TOKEN).await;
    cluster.create_namespace("both", &[("tier", "ci"), ("runner", "yes")]).await;
    cluster.clone_with("both", SECRET, &TOKEN).await;
    cluster.create_namespace("neither", &[("tier", "web")]).await;

    let relabel = async |namespace: &str, labels: serde_json::Value| {
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        cluster.namespaces().patch(namespace, &PatchParams::default(), &patch).await.unwrap();
    };
    let gone = async |namespace: &str| {
        wait::until(format!("the clone in {namespace} goes"), || async {
            cluster.secret(namespace, SECRET).await.is_none().then_some(())
        })
        .await;
    };
    // One of two labels goes: it is still a runner namespace. Both go: it is not.
    relabel("both", json!({"runner": null})).await;
    relabel("before", json!({"runner": "no"})).await;
    gone("before").await;
    assert!(cluster.secret("both", SECRET).await.is_some());
    relabel("both", json!({"tier": null})).await;
    gone("both").await;
    relabel("neither", json!({"tier": "ci"})).await;
    cluster.clone_with("neither", SECRET, &TOKEN).await;

    // A foreign Secret in a namespace that is left is never deleted.
    relabel("before", json!({"runner": "yes"})).await;
    cluster.clone_with("before", SECRET, &TOKEN).await;
    assert!(tool.stop().await.success());
    cluster.put_secret("before", SECRET, &[("their-key", "x")]).await;
    let foreign = json!({"metadata": {"labels": null, "annotations": null}});
    cluster.patch_secret("before", SECRET, &foreign).await;
    relabel("before", json!({"runner": null})).await;

    // What stopped matching while the tool was away is cleaned up when it comes back.
    relabel("after", json!({"tier": null})).await;
    let _tool = cluster.tool(BINARY).await.config(selectors).flag("--cleanup-delay", "1").start().await;
    gone("after").await;
    cluster.clone_with("neither", SECRET, &TOKEN).await;
    assert!(has_data(&cluster.secret("before", SECRET).await.unwrap(), &[("their-key", "x")]));
    // The source's namespace matches a selector, too: the source is not its own clone.
    let source = cluster.secret(SOURCE_NAMESPACE, SECRET).await.unwrap();
    assert!(source.labels().is_empty() && source.annotations().is_empty(), "the source is never written");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_number_of_clones_in_any_number_of_namespaces() {
    let long = "a".repeat(253);
    let namespaces = ["one", "two", "three"];
    let secrets = [SECRET, "registry", long.as_str()];
    let config = format!(
        "runnerNamespaces: {{names: [one, two, three]}}\nclones:\n- {{secret: {SECRET}, from: gitlab, labels: {{team: ci}}}}\n\
         - {{secret: registry, from: infra}}\n- {{secret: {long}, from: gitlab}}\n"
    );
    let cluster = Cluster::start_as(ControlPlane::builder(), Setup { config: Some(&config) }).await;
    let tool = cluster.tool(BINARY).await.config(&config).start().await;
    for namespace in ["gitlab", "infra"].into_iter().chain(namespaces) {
        cluster.create_namespace(namespace, &[]).await;
    }
    cluster.put_secret("gitlab", SECRET, &TOKEN).await;
    cluster.put_secret("infra", "registry", &[("password", "p")]).await;
    cluster.put_secret("gitlab", &long, &[("k", "v")]).await;
    for namespace in namespaces {
        let clone = cluster.clone_with(namespace, SECRET, &TOKEN).await;
        assert_eq!(clone.labels()["team"], "ci");
        cluster.clone_with(namespace, "registry", &[("password", "p")]).await;
        let clone = cluster.clone_with(namespace, &long, &[("k", "v")]).await;
        assert_eq!(clone.annotations()["gitlab-runner-webhook/source"], format!("gitlab/{long}"));
    }
    // A configured label is restored; one clone's source does not touch another's clones.
    cluster.patch_secret("one", SECRET, &json!({"metadata": {"labels": {"team": "x"}}})).await;
    cluster.secret_that("has its label", "one", SECRET, |there| there.labels()["team"] == "ci").await;
    let other = cluster.secret("two", SECRET).await.unwrap();
    cluster.put_secret("infra", "registry", &[("password", "q")]).await;
    for namespace in namespaces {
        cluster.clone_with(namespace, "registry", &[("password", "q")]).await;
    }
    assert_eq!(cluster.secret("two", SECRET).await.unwrap().resource_version(), other.resource_version());

    // A namespace that is not configured any more loses its clones when the tool comes back.
    assert!(tool.stop().await.success());
    let builder = cluster.tool(BINARY).await.config(&config.replace("one, two, three", "one, three"));
    let _tool = builder.flag("--cleanup-delay", "1").start().await;
    for secret in secrets {
        wait::until("the clone in two goes", || async { cluster.secret("two", secret).await.is_none().then_some(()) })
            .await;
        assert!(cluster.secret("one", secret).await.is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_with_a_finalizer_is_waited_for_and_large_sources_are_cloned() {
    let cluster = Cluster::with_source(&TOKEN).await;
    cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
    let tool = cluster.tool(BINARY).await.start().await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;

    let held = json!({"metadata": {"finalizers": ["example.com/brake"]}});
    let held = cluster.patch_secret(RUNNER_NAMESPACE, SECRET, &held).await;
    cluster.secrets(RUNNER_NAMESPACE).delete(SECRET, &DeleteParams::default()).await.unwrap();
    tool.clones_in_state(SECRET, "clone-terminating", 1.0).await;
    cluster.patch_secret(RUNNER_NAMESPACE, SECRET, &json!({"metadata": {"finalizers": null}})).await;
    cluster.secret_that("is a new one", RUNNER_NAMESPACE, SECRET, |there| there.uid() != held.uid()).await;

    // The most that a Secret may hold.
    let large = "x".repeat(1024 * 1024);
    let large = [("blob", large.as_str())];
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &large).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &large).await;
    cluster.delete_secret(RUNNER_NAMESPACE, SECRET).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &large).await;
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &TOKEN).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tools_at_once_agree() {
    let cluster = Cluster::with_source(&TOKEN).await;
    let (one, two) = (cluster.tool(BINARY).await.start().await, cluster.tool(BINARY).await.start().await);
    cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
    let first = cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
    for round in 0..10 {
        let token = format!("token-{round}");
        cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", &token)]).await;
        cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", &token)]).await;
    }
    for tool in [&one, &two] {
        tool.clones_in_state(SECRET, "synced", 1.0).await;
    }
    let clone = cluster.secret(RUNNER_NAMESPACE, SECRET).await.unwrap();
    assert_eq!(clone.uid(), first.uid(), "nobody deletes what the other made");
    assert!(cluster.writes().await.iter().all(|write| write.verb != "delete"));
    // Each rotation is one write that takes effect; at most one more that does not.
    let updates = cluster.writes().await.iter().filter(|write| write.verb == "update" && write.code == 200).count();
    assert_eq!(updates, 10);
}
