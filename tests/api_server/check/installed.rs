//! What is installed is held to the configuration.

use serde_json::json;
use test_support::Manifests;

use super::{Fixture, OWN};

const DEPLOYMENT: &str = "deployment gitlab-runner-webhook/gitlab-runner-webhook";
const ENDPOINTS: &str = "endpoints gitlab-runner-webhook/gitlab-runner-webhook";
const MUTATING: &str = "webhooks MutatingWebhookConfiguration gitlab-runner-webhook";
const VALIDATING: &str = "webhooks ValidatingWebhookConfiguration gitlab-runner-webhook";
const OBJECTS: &str = "guards ValidatingAdmissionPolicy gitlab-runner-webhook-objects";
const RIGHTS: &str = "rights ServiceAccount gitlab-runner-webhook/gitlab-runner-webhook";

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_without_replicas_and_a_service_without_endpoints() {
    let mut fixture = Fixture::new().await;
    fixture.kubectl(&["scale", "deployment", OWN, "-n", OWN, "--replicas=0"]).await.unwrap();
    let told = fixture.finds(&[DEPLOYMENT, ENDPOINTS]).await;
    let admin = fixture.cluster.plane.admin_kubeconfig().to_owned();
    let (code, text) = fixture.run(&admin, &[]).await;
    assert!(code == 1 && text.contains("✗ deployment") && text.contains("remediation:\n    kubectl scale"), "{text}");
    fixture.shell(told.mend_of("deployment")).await;
    fixture.settled().await;
    let other = json!({"spec": {"selector": {"app.kubernetes.io/name": "other"}}}).to_string();
    fixture.kubectl(&["patch", "service", OWN, "-n", OWN, "--type=merge", "-p", &other]).await.unwrap();
    fixture.finds(&[ENDPOINTS]).await.mends("kubectl get service,endpointslices");
    let ours = json!({"spec": {"selector": {"app.kubernetes.io/name": OWN}}}).to_string();
    fixture.kubectl(&["patch", "service", OWN, "-n", OWN, "--type=merge", "-p", &ours]).await.unwrap();
    fixture.settled().await;
    fixture.tells_nothing_secret().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_is_missing_or_differs() {
    let mut fixture = Fixture::new().await;
    fixture.kubectl(&["delete", "mutatingwebhookconfiguration", OWN]).await.unwrap();
    let told = fixture.finds(&["registration MutatingWebhookConfiguration gitlab-runner-webhook"]).await;
    told.mends("kubectl apply -k");
    fixture.register().await;
    fixture.settled().await;
    let elsewhere = json!([{"op": "replace", "path": "/webhooks/0/namespaceSelector/matchExpressions/0/values", "value": ["other"]}]);
    for (kind, subject) in [("mutatingwebhookconfiguration", MUTATING), ("validatingwebhookconfiguration", VALIDATING)]
    {
        fixture.kubectl(&["patch", kind, OWN, "--type=json", "-p", &elsewhere.to_string()]).await.unwrap();
        let told = fixture.finds(&[subject]).await;
        assert!(told.what().contains("namespaceSelector.matchExpressions[0].values"), "{}", told.pretty());
        told.mends("gitlab-runner-webhook manifests");
        fixture.kubectl(&["delete", kind, OWN]).await.unwrap();
        fixture.register().await;
        fixture.settled().await;
    }
    let none = json!([{"op": "remove", "path": "/webhooks/0"}]).to_string();
    fixture.kubectl(&["patch", "validatingwebhookconfiguration", OWN, "--type=json", "-p", &none]).await.unwrap();
    let told = fixture.finds(&[VALIDATING]).await;
    assert!(told.what().contains("gate.pods.gitlab-runner-webhook is missing"), "{}", told.pretty());
    fixture.kubectl(&["delete", "validatingwebhookconfiguration", OWN]).await.unwrap();
    fixture.register().await;
    fixture.settled().await;
    fixture.tells_nothing_secret().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_only_audits_or_is_missing() {
    let mut fixture = Fixture::new().await;
    let audit = json!({"spec": {"validationActions": ["Audit"]}}).to_string();
    let binding = "validatingadmissionpolicybinding/gitlab-runner-webhook-objects";
    fixture.kubectl(&["patch", binding, "--type=merge", "-p", &audit]).await.unwrap();
    fixture.finds(&[OBJECTS]).await.mends("gitlab-runner-webhook manifests");
    fixture.kubectl(&["delete", "validatingadmissionpolicy/gitlab-runner-webhook-registration"]).await.unwrap();
    fixture.finds(&[OBJECTS, "guards ValidatingAdmissionPolicy gitlab-runner-webhook-registration"]).await;
    fixture.reinstall().await;
    fixture.settled().await;
    fixture.tells_nothing_secret().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_missing() {
    let mut fixture = Fixture::new().await;
    let without = json!([{"op": "remove", "path": "/rules/1/verbs/3"}]).to_string();
    fixture.kubectl(&["patch", "clusterrole", OWN, "--type=json", "-p", &without]).await.unwrap();
    let told = fixture.finds(&[RIGHTS]).await;
    assert_eq!(told.what(), "lacks delete secrets/gitlab-gitlab-runner-secret");
    told.mends("resourceNames: [\"gitlab-gitlab-runner-secret\"]\n    verbs: [\"delete\"]");
    // And a binding: that is told of the same account.
    fixture.kubectl(&["delete", "rolebinding", OWN, "-n", OWN]).await.unwrap();
    let told = fixture.finds_that(&[RIGHTS], |told| told.pretty().contains("and this binding beside it")).await;
    assert_eq!(told.of(&["fault"]).len(), 1);
    fixture.reinstall().await;
    fixture.settled().await;
    fixture.tells_nothing_secret().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_too_many() {
    let mut fixture = Fixture::new().await;
    let bind = [
        "create",
        "clusterrolebinding",
        "too-much",
        "--clusterrole=view",
        "--serviceaccount=gitlab-runner-webhook:gitlab-runner-webhook",
    ];
    fixture.kubectl(&bind).await.unwrap();
    fixture.finds(&[RIGHTS]).await.mends("kubectl delete clusterrolebinding/too-much");
    fixture.kubectl(&["delete", "clusterrolebinding", "too-much"]).await.unwrap();
    fixture.settled().await;
    fixture.tells_nothing_secret().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_of_no_use_or_another_or_gone() {
    let mut fixture = Fixture::new().await;
    let name = fixture.config_map().await;
    let configuration = format!("configuration ConfigMap {OWN}/{name}");
    fixture.configure(&name, "runnerNamespaces: {names: [Gitlab]}").await;
    let told = fixture.finds(&[&configuration]).await;
    assert!(told.what().contains("Gitlab"), "{}", told.pretty());
    fixture.configure(&name, "runnerNamespaces: {names: [gitlab-runner, second]}").await;
    fixture.finds(&[RIGHTS, OBJECTS, MUTATING, VALIDATING, "runner-namespace second"]).await;
    let file = fixture.cluster.plane.dir().join("empty.yaml");
    std::fs::write(&file, "").unwrap();
    let told = fixture.check(&["--config", file.to_str().unwrap()]).await;
    assert_eq!((told.code, told.bad().len()), (0, 0), "{}", told.pretty());
    fixture.kubectl(&["delete", "configmap", &name, "-n", OWN]).await.unwrap();
    fixture.finds(&[&configuration]).await;
    fixture.kubectl(&["delete", "deployment", OWN, "-n", OWN]).await.unwrap();
    fixture.finds(&[DEPLOYMENT, ENDPOINTS]).await.mends("kubectl apply -k");
    fixture.reinstall().await;
    fixture.settled().await;
    fixture.tells_nothing_secret().await;
}

impl Fixture {
    async fn config_map(&self) -> String {
        let name = "jsonpath={.spec.template.spec.volumes[0].projected.sources[0].configMap.name}";
        self.kubectl(&["get", "deployment", OWN, "-n", OWN, "-o", name]).await.unwrap()
    }

    async fn configure(&self, name: &str, yaml: &str) {
        let patch = json!({"data": {"config.yaml": yaml}}).to_string();
        self.kubectl(&["patch", "configmap", name, "-n", OWN, "--type=merge", "-p", &patch]).await.unwrap();
    }

    /// Applies everything that is shipped, but the webhooks, anew.
    async fn reinstall(&self) {
        let mut shipped = Manifests::render("overlays/default");
        shipped.objects.retain(|object| !object["webhooks"].is_array());
        let list = json!({"apiVersion": "v1", "kind": "List", "items": shipped.objects}).to_string();
        let apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=installer", "-f", "-"];
        self.cluster.plane.kubectl_with_stdin(&apply, &list).await.unwrap();
    }
}
