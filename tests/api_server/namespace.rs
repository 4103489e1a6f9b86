//! The program in another namespace: `namespace:` of kustomize on top of what is shipped, as Flux's `targetNamespace` does it.

use std::fs;

use gitlab_runner_webhook::names::{APP, GUARDS, SECRET_CA};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::{
    Cluster, Manifests, ServingCertificate,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE, free_port},
    control_plane::ControlPlane,
    repository, wait,
};

use crate::BINARY;

const NAMESPACE: &str = "other";

/// What kustomize makes of a folder of ours and components in another namespace.
fn moved(folder: &str, components: &[&str]) -> Result<Manifests, String> {
    let overlay = TempDir::new().unwrap();
    std::os::unix::fs::symlink(repository().join("manifests"), overlay.path().join("manifests")).unwrap();
    let components: Vec<_> = components.iter().map(|component| format!("manifests/{component}")).collect();
    let resources = [format!("manifests/{folder}")];
    let kustomization = json!({"namespace": NAMESPACE, "resources": resources, "components": components});
    fs::write(overlay.path().join("kustomization.yaml"), kustomization.to_string()).unwrap();
    Manifests::build(overlay.path())
}

fn named<'a>(manifests: &'a Manifests, kind: &str) -> impl Iterator<Item = &'a Value> {
    manifests.objects.iter().filter(move |object| object["kind"] == kind)
}

/// Everything that names our namespace, but what kustomize does not know: those components are named in docs/install.md.
#[test]
fn what_is_shipped_follows_the_namespace() {
    let manifests = moved("overlays/default", &["components/network-policy", "components/big-bang"]).unwrap();
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        for webhook in named(&manifests, kind).flat_map(|object| object["webhooks"].as_array().unwrap()) {
            assert_eq!(webhook["clientConfig"]["service"]["namespace"], NAMESPACE, "{webhook}");
        }
    }
    for kind in ["RoleBinding", "ClusterRoleBinding"] {
        for binding in named(&manifests, kind) {
            assert_eq!(binding["subjects"][0]["namespace"], NAMESPACE, "{binding}");
        }
    }
    for kind in ["ServiceAccount", "Role", "RoleBinding", "Deployment", "Service", "ConfigMap", "ResourceQuota"] {
        assert!(named(&manifests, kind).count() >= 1, "{kind}");
        assert!(named(&manifests, kind).all(|object| object["metadata"]["namespace"] == NAMESPACE), "{kind}");
    }
    assert_eq!(
        named(&manifests, "Namespace").map(|object| &object["metadata"]["name"]).collect::<Vec<_>>(),
        [NAMESPACE]
    );
    // No word of the former one: the guards follow whom they bind.
    for guard in named(&manifests, "ValidatingAdmissionPolicy") {
        let text = guard["spec"].to_string();
        assert!(
            !text.contains("serviceaccount:gitlab-runner-webhook") && !text.contains("== 'gitlab-runner-webhook' &&")
        );
    }
}

/// `check` finds rights, webhooks and guards as the configuration wants them.
async fn drift_is_none(cluster: &Cluster) {
    let mut check = tokio::process::Command::new(BINARY);
    check.args(["check", "--output", "json", "--namespace", NAMESPACE, "--kubeconfig"]);
    let output = check.arg(cluster.plane.admin_kubeconfig()).output().await.unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for name in ["rights", "webhooks", "guards"] {
        let of_it: Vec<_> =
            report["findings"].as_array().unwrap().iter().filter(|finding| finding["check"] == name).collect();
        assert!(!of_it.is_empty() && of_it.iter().all(|finding| finding["level"] == "ok"), "{of_it:#?}");
    }
}

/// Roles in runner namespaces would all be moved into one: that is no installation, and kustomize says so.
#[test]
fn roles_in_namespaces_cannot_be_moved() {
    let error = moved("overlays/default", &["generated/namespaced-rbac"]).unwrap_err();
    assert!(error.contains("namespace transformation produces ID conflict"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_another_namespace_the_program_works_and_its_guards_bind_it() {
    let folder = TempDir::new().unwrap();
    let plane = ControlPlane::builder().start().await.unwrap();
    let certificate = ServingCertificate::issue(&folder.path().join("serving"));
    let cluster = Cluster { admin: plane.admin(), certificate, plane, config: None };
    let manifests = moved("overlays/local", &[]).unwrap();
    // By each way in which it may come; a cluster-wide object with a namespace is taken for what it is.
    let without = manifests.clone().without(&["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"]);
    let client_side = json!({"apiVersion": "v1", "kind": "List", "items": without.objects}).to_string();
    cluster.plane.kubectl_with_stdin(&["apply", "-f", "-"], &client_side).await.unwrap();
    let server_side =
        ["apply", "--server-side", "--force-conflicts", "--field-manager=kustomize-controller", "-f", "-"];
    let port = free_port();
    let registered = manifests.reached_at_port(port).failing("Ignore");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": registered.objects}).to_string();
    cluster.plane.kubectl_with_stdin(&server_side, &list).await.unwrap();
    for name in GUARDS {
        for kind in ["validatingadmissionpolicy", "validatingadmissionpolicybinding"] {
            let namespace = cluster.plane.kubectl(&["get", kind, name, "-o", "jsonpath={.metadata.namespace}"]).await;
            assert_eq!(namespace.unwrap(), "", "{kind} {name}");
        }
    }

    cluster.create_namespace(SOURCE_NAMESPACE, &[]).await;
    cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "token-of-the-runner")]).await;
    let kubeconfig = cluster.plane.service_account_kubeconfig(NAMESPACE, APP).await.unwrap();
    let tool = cluster.tool_from(BINARY, &kubeconfig).self_managed().flag("--namespace", NAMESPACE);
    let _tool = tool.flag("--listen", &format!("127.0.0.1:{port}")).start().await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "token-of-the-runner")]).await;
    assert!(cluster.secret(NAMESPACE, SECRET_CA).await.is_some());
    drift_is_none(&cluster).await;
    wait::until("the API server trusts the program", async || cluster.try_pod().await.ok()).await;

    // With its token: what the guards refuse anywhere.
    let ours = cluster.plane.service_account_client(NAMESPACE, APP).await.unwrap();
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    let refused = apply(&ours, "kube-system", SECRET, json!({})).await.unwrap_err();
    assert!(refused.contains("kube-system is no runner namespace"), "{refused}");
    let refused = apply(&ours, SOURCE_NAMESPACE, SECRET, json!({})).await.unwrap_err();
    assert!(refused.contains("where a source is"), "{refused}");
    let refused = apply(&ours, RUNNER_NAMESPACE, SECRET, label.clone()).await.unwrap_err();
    assert!(refused.contains("no label but its own"), "{refused}");
    apply(&ours, NAMESPACE, SECRET_CA, json!({})).await.unwrap();
    let configurations: Api<k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration> =
        Api::all(ours);
    let refused = configurations.patch(APP, &PatchParams::default(), &Patch::Merge(label)).await.unwrap_err();
    assert!(refused.to_string().contains("nothing but caBundle"), "{refused}");
}

/// A server-side apply in a dry run; the API server's words when it is refused.
async fn apply(client: &Client, namespace: &str, name: &str, more: Value) -> Result<Secret, String> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}});
    if let Some(metadata) = more["metadata"].as_object() {
        object["metadata"].as_object_mut().unwrap().extend(metadata.clone());
    }
    let params = PatchParams { dry_run: true, ..PatchParams::apply("attacker").force() };
    api.patch(name, &params, &Patch::Apply(object)).await.map_err(|error| error.to_string())
}
