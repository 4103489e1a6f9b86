//! What can be in the way, on a real API server: it is named before anything is changed, and goes no further than it must.

use std::{path::Path, process::Output};

use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use test_support::{
    Cluster, Tool,
    cluster::{SECRET, free_port},
    wait,
};
use tokio::process::Command;

use super::{
    APP, BINARY, CONFIG, TOKENS, caller, cluster, is_ours,
    kyverno::{POLICY, Shape, by_labels, create_policy, kind, policies},
    kyvernos_namespace, migrate, prepare, said, set_available,
};

/// A cluster, and the program that runs in it.
async fn installed() -> (Cluster, Tool) {
    let cluster = cluster(CONFIG).await;
    let tool = cluster.tool(BINARY).await.config(CONFIG).start().await;
    (cluster, tool)
}

/// A namespace of Kyverno's with this name, and the policy for it alone.
async fn policy_of(cluster: &Cluster, name: &str) {
    kyvernos_namespace(cluster, name, &[("runner", "yes"), ("of", name)], Shape::Put).await;
    create_policy(&cluster.admin, |policy| by_labels(policy, &json!({"runner": "yes", "of": name}))).await;
}

async fn change_policy(cluster: &Cluster, patch: &Value) {
    policies(&cluster.admin).patch(POLICY, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

async fn migrate_as(kubeconfig: &Path, flags: &[&str]) -> Output {
    Command::new(BINARY).args(["migrate", "--kubeconfig"]).arg(kubeconfig).args(flags).output().await.unwrap()
}

fn refused(output: &Output, words: &[&str]) {
    assert_eq!(output.status.code(), Some(1), "{}", said(output));
    has(output, words);
}

fn has(output: &Output, words: &[&str]) {
    for word in words {
        assert!(said(output).contains(word), "{word}: {}", said(output));
    }
}

/// What docs/migration.md says one needs, and nothing that it does without.
fn needed() -> Value {
    json!([
        {"apiGroups": ["kyverno.io"], "resources": ["clusterpolicies"], "verbs": ["get", "patch", "delete"]},
        {"apiGroups": ["kyverno.io"], "resources": ["updaterequests"], "verbs": ["list", "delete"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "patch"]},
        {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["list"]},
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_missing_are_done_without() {
    let (cluster, _tool) = installed().await;
    policy_of(&cluster, "rights").await;
    let kubeconfig = caller::who_may(&cluster, "operator", &needed()).await;
    let labels = json!({"helm.toolkit.fluxcd.io/name": "gitlab-runner", "helm.toolkit.fluxcd.io/namespace": "default"});
    change_policy(&cluster, &json!({"metadata": {"labels": labels}})).await;
    let output = migrate_as(&kubeconfig, &["--yes"]).await;
    refused(&output, &["HelmRelease default/gitlab-runner", "is not known: you may not get it", "--force-managed"]);
    let output = migrate_as(&kubeconfig, &["--yes", "--force-managed"]).await;
    assert!(output.status.success(), "{}", said(&output));
    has(&output, &["which may bring it back", "whether there is a GeneratingPolicy", "may not impersonate"]);
}

/// The Kustomization of the fixture is served in a version before the latest.
#[tokio::test(flavor = "multi_thread")]
async fn flux_is_asked_in_the_version_that_it_serves() {
    let (cluster, _tool) = installed().await;
    policy_of(&cluster, "flux").await;
    let labels =
        json!({"kustomize.toolkit.fluxcd.io/name": "apps", "kustomize.toolkit.fluxcd.io/namespace": "default"});
    change_policy(&cluster, &json!({"metadata": {"labels": labels}})).await;
    let of_flux = kind("kustomize.toolkit.fluxcd.io", "v1beta2", "Kustomization");
    let all: Api<DynamicObject> = Api::namespaced_with(cluster.admin.clone(), "default", &of_flux);
    let object = json!({"apiVersion": "kustomize.toolkit.fluxcd.io/v1beta2", "kind": "Kustomization",
        "metadata": {"name": "apps"}, "spec": {"suspend": false}});
    all.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    refused(&migrate(&cluster, &["--yes"]).await, &["Kustomization default/apps", "flux suspend kustomization apps"]);
    let rest = Patch::Merge(json!({"spec": {"suspend": true}}));
    all.patch("apps", &PatchParams::default(), &rest).await.unwrap();
    let output = migrate(&cluster, &["--dry-run"]).await;
    assert!(output.status.success(), "{}", said(&output));
    has(&output, &["which is suspended", "wait until its source"]);

    // The policy goes as nobody should let it go, and what it left is taken over.
    policies(&cluster.admin).delete(POLICY, &DeleteParams::default()).await.unwrap();
    let output = migrate(&cluster, &["--yes"]).await;
    assert!(output.status.success(), "{}", said(&output));
}

/// Kyverno takes three labels off when a rule comes to name another clone, and leaves the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_of_no_policy_is_taken_over() {
    let (cluster, _tool) = installed().await;
    let unlabelled = json!({"metadata": {"labels": {
        "generate.kyverno.io/policy-name": null, "generate.kyverno.io/policy-namespace": null,
        "generate.kyverno.io/rule-name": null,
    }}});
    for lives in [true, false] {
        let name = format!("unnamed-{lives}");
        let former = kyvernos_namespace(&cluster, &name, &[("runner", "yes"), ("of", &name)], Shape::Put).await;
        cluster.patch_secret(&name, SECRET, &unlabelled).await;
        if lives {
            create_policy(&cluster.admin, |policy| by_labels(policy, &json!({"runner": "yes", "of": name}))).await;
        }
        let output = migrate(&cluster, &["--yes"]).await;
        assert!(output.status.success(), "{}", said(&output));
        is_ours(&cluster.clone_with(&name, SECRET, &TOKENS).await, &former);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_is_itself_a_source_is_left() {
    let (cluster, _tool) = installed().await;
    policy_of(&cluster, "chain").await;
    let clone = cluster.secret("chain", SECRET).await.unwrap();
    cluster.put_secret("default", "further", &[("a", "b")]).await;
    let labels = json!({"metadata": {"labels": {
        "app.kubernetes.io/managed-by": "kyverno", "generate.kyverno.io/policy-name": "further",
        "generate.kyverno.io/source-uid": clone.metadata.uid,
    }}});
    cluster.patch_secret("default", "further", &labels).await;
    let words = ["policy \"further\" clones Secret further in namespace default from", "clone from gitlab/"];
    refused(&migrate(&cluster, &["--yes"]).await, &words);
    assert_eq!(cluster.secret("chain", SECRET).await.unwrap().metadata, clone.metadata);
    cluster.delete_secret("default", "further").await;
    let output = migrate(&cluster, &["--yes"]).await;
    assert!(output.status.success(), "{}", said(&output));
}

/// There is no controller manager here: a namespace that is deleted goes on going.
#[tokio::test(flavor = "multi_thread")]
async fn namespaces_that_go_hold_up_nothing() {
    let (cluster, _tool) = installed().await;
    policy_of(&cluster, "stays").await;
    for name in ["goes-before", "goes-meanwhile"] {
        kyvernos_namespace(&cluster, name, &[("runner", "yes"), ("of", "stays")], Shape::Put).await;
    }
    let go = async |name: &str| cluster.namespaces().delete(name, &DeleteParams::default()).await.unwrap();
    go("goes-before").await;
    let left = cluster.secret("goes-before", SECRET).await.unwrap();
    let migration = prepare(&cluster).await;
    assert_eq!(migration.refusals(), Vec::<String>::new());
    assert_eq!(migration.steps().len(), 7, "{:?}", migration.steps());
    go("goes-meanwhile").await;
    let mut said = Vec::new();
    for step in migration.steps() {
        said.push(migration.carry_out(step).await.unwrap());
    }
    assert!(said.iter().any(|said| said.contains("goes-meanwhile is being deleted")), "{said:?}");
    assert!(said[6].starts_with("1 clones"), "{said:?}");
    assert_eq!(cluster.secret("goes-before", SECRET).await.unwrap().metadata, left.metadata, "left to go as it is");
    // One that is refused has no steps either.
    let again = prepare(&cluster).await;
    assert_eq!(again.refusals(), Vec::<String>::new());
    assert!(again.steps().is_empty());
}

/// Its clones carry the same label, and no `ClusterPolicy` of its name is there: that one looks like one that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_generating_policy_keeps_its_clones() {
    let (cluster, _tool) = installed().await;
    let former = kyvernos_namespace(&cluster, "generating", &[("runner", "yes")], Shape::Put).await;
    let of_kyverno = kind("policies.kyverno.io", "v1beta1", "GeneratingPolicy");
    let all: Api<DynamicObject> = Api::all_with(cluster.admin.clone(), &of_kyverno);
    let object = json!({"apiVersion": "policies.kyverno.io/v1beta1", "kind": "GeneratingPolicy",
        "metadata": {"name": POLICY}, "spec": {}});
    all.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    refused(&migrate(&cluster, &["--yes"]).await, &["a GeneratingPolicy sync-gitlab-runner-secret lives"]);
    assert_eq!(cluster.secret("generating", SECRET).await.unwrap().metadata, former.metadata);
    all.delete(POLICY, &DeleteParams::default()).await.unwrap();
    let output = migrate(&cluster, &["--yes"]).await;
    assert!(output.status.success(), "{}", said(&output));
    is_ours(&cluster.clone_with("generating", SECRET, &TOKENS).await, &former);
}

/// Its webhook for policies has failurePolicy Fail: while nobody answers there, the policy cannot be changed.
#[tokio::test(flavor = "multi_thread")]
async fn kyverno_that_is_down_is_named_and_the_configuration_written() {
    let (cluster, _tool) = installed().await;
    policy_of(&cluster, "down").await;
    let webhook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "kyverno-policy-validating-webhook-cfg"},
        "webhooks": [{
            "name": "validate-policy.kyverno.svc", "admissionReviewVersions": ["v1"], "sideEffects": "NoneOnDryRun",
            "failurePolicy": "Fail", "clientConfig": {"url": format!("https://127.0.0.1:{}/policyvalidate", free_port())},
            "rules": [{"apiGroups": ["kyverno.io"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
                "resources": ["clusterpolicies"]}],
        }],
    });
    cluster.apply(&[webhook], &[]).await;
    // The API server hears of the webhook after a moment. What gets through until then writes no file.
    wait::until("the webhook is asked", || async {
        (!migrate(&cluster, &["--dry-run"]).await.status.success()).then_some(())
    })
    .await;
    let file = cluster.plane.dir().join("while-down.yaml");
    let output = migrate(&cluster, &["--dry-run", "--output-config", file.to_str().unwrap()]).await;
    refused(&output, &["Configuration that does what", "an admission webhook does not answer", "is it Kyverno?"]);
    assert!(file.exists());
    let delete = ["delete", "validatingwebhookconfiguration", "kyverno-policy-validating-webhook-cfg"];
    cluster.plane.kubectl(&delete).await.unwrap();
    wait::until("it comes to its end", || async { migrate(&cluster, &["--yes"]).await.status.success().then_some(()) })
        .await;
}

/// Its configuration is newer than its rights and its guard. It says that all is well, for Kyverno keeps the clone right.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_may_not_write_takes_nothing_over() {
    let (cluster, _tool) = installed().await;
    let former = kyvernos_namespace(&cluster, "beyond", &[("wider", "yes")], Shape::Put).await;
    let created = create_policy(&cluster.admin, |policy| by_labels(policy, &json!({"wider": "yes"}))).await;
    let file = cluster.plane.dir().join("wider.yaml");
    std::fs::write(&file, "runnerNamespaces: {names: [gitlab-runner], selectors: [{matchLabels: {wider: 'yes'}}]}")
        .unwrap();
    let flags = ["--yes", "--config", file.to_str().unwrap()];
    let plan = ["--dry-run", "--config", file.to_str().unwrap()];
    let secret = format!("the program may not write Secret {SECRET} in namespace beyond");
    let guard = [secret.as_str(), "beyond is no runner namespace", "manifests --config"];
    // Until the guard is in force, `--yes` would go through.
    wait::until("the guard is in force", || async {
        said(&migrate(&cluster, &plan).await).contains(guard[1]).then_some(())
    })
    .await;
    refused(&migrate(&cluster, &flags).await, &guard);

    // The groups that a kubeconfig acts with would come along, and with these everything is allowed.
    let mut kubeconfig: Value =
        serde_json::from_str(&std::fs::read_to_string(cluster.plane.admin_kubeconfig()).unwrap()).unwrap();
    kubeconfig["users"][0]["user"]["as"] = json!("somebody");
    kubeconfig["users"][0]["user"]["as-groups"] = json!(["system:masters"]);
    let somebody = cluster.plane.dir().join("somebody.kubeconfig");
    std::fs::write(&somebody, kubeconfig.to_string()).unwrap();
    let output = migrate_as(&somebody, &plan).await;
    assert!(output.status.success(), "{}", said(&output));
    has(&output, &["the program was not asked whether it may write", "gives it groups"]);

    // No right at all.
    let deployments: Api<Deployment> = Api::namespaced(cluster.admin.clone(), APP);
    let account = Patch::Merge(json!({"spec": {"template": {"spec": {"serviceAccountName": "default"}}}}));
    deployments.patch(APP, &PatchParams::default(), &account).await.unwrap();
    set_available(&cluster, 1).await;
    let rights =
        [secret.as_str(), "serviceaccount:gitlab-runner-webhook:default", "cannot patch", "manifests --config"];
    refused(&migrate(&cluster, &flags).await, &rights);

    assert_eq!(cluster.secret("beyond", SECRET).await.unwrap().metadata, former.metadata);
    assert_eq!(policies(&cluster.admin).get(POLICY).await.unwrap().metadata, created.metadata);
}
