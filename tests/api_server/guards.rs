//! What our own `ServiceAccount` may not do although RBAC alone would let it: by the word of a real API server.

use gitlab_runner_webhook::names::{APP, CONFIGMAP_TRUST, LABEL_MANAGED_BY};
use http::{Method, Request, header::CONTENT_TYPE};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use test_support::{
    Cluster, Manifests, Setup,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE},
    control_plane::ControlPlane,
    wait,
};

/// The field manager of caBundle.
const MANAGER: &str = "gitlab-runner-webhook-ca-bundle";
const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";
const KINDS: [(&str, &str); 2] = [
    ("MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
    ("ValidatingWebhookConfiguration", "validatingwebhookconfigurations"),
];
/// What we write: namespace, resource, name.
const WRITTEN: [(&str, &str, &str); 4] = [
    ("builds", "secrets", SECRET),
    ("builds", "secrets", "registry"),
    ("builds", "configmaps", CONFIGMAP_TRUST),
    (APP, "secrets", "gitlab-runner-webhook-ca"),
];
/// Two names, two selectors with every operator between them, two sources.
const CONFIG: &str = "
runnerNamespaces:
  names: [gitlab-runner, builds]
  selectors:
    - matchLabels: {runner: 'yes'}
      matchExpressions: [{key: paused, operator: DoesNotExist}]
    - matchExpressions:
        - {key: tier, operator: In, values: [ci, build]}
        - {key: zone, operator: NotIn, values: [red]}
        - {key: team, operator: Exists}
trustNamespaces:
  names: [ci-jobs]
  selectors: [{matchLabels: {jobs: 'yes'}}]
clones:
  - {secret: gitlab-gitlab-runner-secret, from: gitlab}
  - {secret: registry, from: infra, labels: {team: ci}}
";

/// Who refused, if anybody did.
#[derive(Debug, PartialEq)]
enum Answer {
    Allowed,
    Rbac,
    /// The guard, with its words.
    Guard(String),
}

use Answer::{Allowed, Rbac};

/// One request in a dry run: admission decides it like any other, and nothing changes.
async fn ask(client: &Client, method: Method, path: &str, content_type: &str, body: &Value) -> Answer {
    let separator = if path.contains('?') { '&' } else { '?' };
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string().into_bytes()) };
    let request = Request::builder()
        .method(method.clone())
        .uri(format!("{path}{separator}dryRun=All"))
        .header(CONTENT_TYPE, content_type)
        .body(body)
        .unwrap();
    let (head, body) = client.send(request).await.unwrap().into_parts();
    let body = String::from_utf8_lossy(&body.collect_bytes().await.unwrap()).into_owned();
    if head.status.is_success() {
        return Allowed;
    }
    assert_eq!(head.status.as_u16(), 403, "{method} {path}: {body}");
    let message = serde_json::from_str::<Value>(&body).unwrap()["message"].as_str().unwrap().to_owned();
    match message.split_once("denied request: ") {
        Some((_, words)) => Answer::Guard(words.to_owned()),
        None if message.contains("cannot ") => Rbac,
        None => panic!("{method} {path}: {message}"),
    }
}

/// A server-side apply, the way in which the program creates.
async fn apply(client: &Client, path: &str, object: &Value) -> Answer {
    let path = format!("{path}?fieldManager=test&force=true");
    ask(client, Method::PATCH, &path, "application/apply-patch+yaml", object).await
}

fn guard_says(answer: &Answer, words: &str) -> bool {
    matches!(answer, Answer::Guard(said) if said.contains(words))
}

fn object_path(namespace: &str, resource: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/{resource}/{name}")
}

fn object(resource: &str, name: &str) -> Value {
    let kind = if resource == "secrets" { "Secret" } else { "ConfigMap" };
    json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "labels": {LABEL_MANAGED_BY: APP}}})
}

/// A cluster with namespaces of all kinds, both guards in force, and a client with our own token.
async fn guarded() -> (Cluster, Client) {
    let cluster = Cluster::start_as(ControlPlane::builder(), Setup { config: Some(CONFIG) }).await;
    // Nobody listens there, and no pod is created.
    cluster.manifests().reached_at(10250, &cluster.certificate.ca_pem).apply(&cluster.plane).await;
    for (namespace, labels) in [
        (SOURCE_NAMESPACE, &[("runner", "yes")][..]),
        ("infra", &[]),
        (RUNNER_NAMESPACE, &[]),
        ("builds", &[]),
        ("first", &[("runner", "yes")]),
        ("paused", &[("runner", "yes"), ("paused", "")]),
        ("other-value", &[("runner", "no")]),
        ("second", &[("tier", "ci"), ("team", "x")]),
        ("second-zone", &[("tier", "build"), ("team", ""), ("zone", "blue")]),
        ("red", &[("tier", "ci"), ("team", "x"), ("zone", "red")]),
        ("no-team", &[("tier", "ci")]),
        ("elsewhere", &[]),
        ("ci-jobs", &[]),
        ("ci-labelled", &[("jobs", "yes")]),
    ] {
        cluster.create_namespace(namespace, labels).await;
    }
    let ours = cluster.plane.service_account_client(APP, APP).await.unwrap();
    wait::until("both guards are in force", || async {
        let elsewhere = apply(&ours, &object_path("elsewhere", "secrets", SECRET), &object("secrets", SECRET)).await;
        let path = format!("{REGISTRATION}/{}/{APP}", KINDS[0].1);
        let change = json!({"metadata": {"labels": {"x": "y"}}});
        let label = ask(&ours, Method::PATCH, &path, "application/merge-patch+json", &change).await;
        (matches!(elsewhere, Answer::Guard(_)) && matches!(label, Answer::Guard(_))).then_some(())
    })
    .await;
    (cluster, ours)
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_bound_to_runner_namespaces() {
    let (_cluster, ours) = guarded().await;
    for (resource, name) in [("secrets", SECRET), ("secrets", "registry"), ("configmaps", CONFIGMAP_TRUST)] {
        for namespace in [RUNNER_NAMESPACE, "builds", "first", "second", "second-zone"] {
            let answer = apply(&ours, &object_path(namespace, resource, name), &object(resource, name)).await;
            assert_eq!(answer, Allowed, "{resource}/{name} in {namespace}");
        }
        for namespace in ["paused", "other-value", "red", "no-team", "elsewhere", "kube-system", "default", APP] {
            let answer = apply(&ours, &object_path(namespace, resource, name), &object(resource, name)).await;
            assert!(guard_says(&answer, &format!("{namespace} is no runner namespace")), "{namespace}: {answer:?}");
        }
        for namespace in [SOURCE_NAMESPACE, "infra"] {
            let answer = apply(&ours, &object_path(namespace, resource, name), &object(resource, name)).await;
            assert!(guard_says(&answer, "where a source is"), "{resource}/{name} in {namespace}: {answer:?}");
        }
    }
    // Where jobs are alone, the trust bundle and nothing else.
    for namespace in ["ci-jobs", "ci-labelled"] {
        let bundle = object_path(namespace, "configmaps", CONFIGMAP_TRUST);
        assert_eq!(apply(&ours, &bundle, &object("configmaps", CONFIGMAP_TRUST)).await, Allowed, "{namespace}");
        let answer = apply(&ours, &object_path(namespace, "secrets", SECRET), &object("secrets", SECRET)).await;
        assert!(guard_says(&answer, &format!("{namespace} is no runner namespace")), "{namespace}: {answer:?}");
    }
    // A trust store is binary; a Secret has no such field.
    let mut binary = object("configmaps", CONFIGMAP_TRUST);
    binary["binaryData"] = json!({"k": "dg=="});
    let path = object_path(RUNNER_NAMESPACE, "configmaps", CONFIGMAP_TRUST);
    assert_eq!(apply(&ours, &path, &binary).await, Allowed);
    // RBAC: another name, and a POST, which has none.
    for name in ["other", "gitlab-gitlab-runner-secret-2", "gitlab-runner-certs"] {
        let answer = apply(&ours, &object_path(RUNNER_NAMESPACE, "secrets", name), &object("secrets", name)).await;
        assert_eq!(answer, Rbac, "{name}");
    }
    let path = format!("/api/v1/namespaces/{RUNNER_NAMESPACE}/secrets");
    let answer = ask(&ours, Method::POST, &path, "application/json", &object("secrets", SECRET)).await;
    assert_eq!(answer, Rbac);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_are_bound_to_what_is_ours() {
    let (cluster, ours) = guarded().await;
    let delete = async |namespace: &str| {
        let path = object_path(namespace, "secrets", SECRET);
        ask(&ours, Method::DELETE, &path, "application/json", &Value::Null).await
    };
    for namespace in [SOURCE_NAMESPACE, RUNNER_NAMESPACE, "elsewhere"] {
        cluster.put_secret(namespace, SECRET, &[("k", "v")]).await;
    }
    assert_eq!(delete(RUNNER_NAMESPACE).await, Allowed, "it is in the way of a clone of another type");
    assert!(matches!(delete("elsewhere").await, Answer::Guard(_)), "a foreign Secret");
    let mark = json!({"metadata": {"labels": {LABEL_MANAGED_BY: APP}}});
    for namespace in [SOURCE_NAMESPACE, "elsewhere"] {
        cluster.patch_secret(namespace, SECRET, &mark).await;
    }
    assert_eq!(delete("elsewhere").await, Allowed, "our clone in a namespace that is none of ours any more");
    let answer = delete(SOURCE_NAMESPACE).await;
    assert!(guard_says(&answer, "where a source is"), "not even with our mark on it: {answer:?}");
    // What may be deleted there may still not be changed.
    let path = object_path("elsewhere", "secrets", SECRET);
    let change = json!({"data": {"k": "dg=="}});
    let answer = ask(&ours, Method::PATCH, &path, "application/merge-patch+json", &change).await;
    assert!(guard_says(&answer, "no runner namespace"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_serving_ca_is_written_in_our_own_namespace() {
    let (_cluster, ours) = guarded().await;
    let name = "gitlab-runner-webhook-ca";
    assert_eq!(apply(&ours, &object_path(APP, "secrets", name), &object("secrets", name)).await, Allowed);
    assert_eq!(apply(&ours, &object_path("elsewhere", "secrets", name), &object("secrets", name)).await, Rbac);
    assert_eq!(apply(&ours, &object_path(APP, "configmaps", name), &object("configmaps", name)).await, Rbac);
}

/// A field, a value that it must not get from us, and the words of the guard.
type Refusal = (&'static str, Value, &'static str);

/// What is refused of every object that we write.
fn refusals(resource: &str) -> Vec<Refusal> {
    let types = ["kubernetes.io/service-account-token", "bootstrap.kubernetes.io/token", "helm.sh/release.v1"];
    let unheard = ["kubernetes.io/x", "x.kubernetes.io/y", "x.k8s.io/y", "k8s.io/y"];
    let types = types.into_iter().chain(unheard).map(|kind| ("/type", json!(kind), "of a type"));
    let types = types.filter(|_| resource == "secrets");
    let owner = json!([{"apiVersion": "v1", "kind": "Namespace", "name": "default", "uid": "1"}]);
    let rest = [
        ("/metadata/annotations/kubernetes.io~1service-account.name", json!("default"), "no annotation but its own"),
        ("/metadata/annotations/x", json!("y"), "no annotation but its own"),
        ("/metadata/labels/x", json!("y"), "no label but its own"),
        ("/metadata/labels/team", json!("x"), "no label but its own"),
        ("/metadata/labels/app.kubernetes.io~1managed-by", json!("x"), "no label but its own"),
        ("/metadata/ownerReferences", owner, "no owner and no finalizer"),
        ("/metadata/finalizers", json!(["example.com/x"]), "no owner and no finalizer"),
        ("/immutable", json!(true), "makes nothing immutable"),
    ];
    types.chain(rest).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_object_has_no_more_than_content_and_our_marks() {
    let (_cluster, ours) = guarded().await;
    for (namespace, resource, name) in WRITTEN {
        a_new_one_has_no_more(&ours, namespace, resource, name).await;
    }
}

async fn a_new_one_has_no_more(ours: &Client, namespace: &str, resource: &str, name: &str) {
    let path = object_path(namespace, resource, name);
    let with = |path: &str, value: Value| {
        let mut object = object(resource, name);
        let (parent, key) = path.rsplit_once('/').unwrap();
        object["metadata"]["annotations"] = json!({});
        if value == "kubernetes.io/service-account-token" {
            // Without it, it is no such Secret, and nobody asks the guard.
            object["metadata"]["annotations"]["kubernetes.io/service-account.name"] = json!("default");
        }
        object.pointer_mut(parent).unwrap()[key.replace("~1", "/")] = value;
        object
    };
    for (field, value, words) in refusals(resource) {
        let answer = apply(ours, &path, &with(field, value.clone())).await;
        assert!(guard_says(&answer, words), "new {resource}/{name}, {field} {value}: {answer:?}");
    }
    let mut ours_only = object(resource, name);
    ours_only["metadata"]["annotations"] = json!({"gitlab-runner-webhook/source": "a/b"});
    ours_only["metadata"]["labels"]["team"] = json!("ci");
    assert_eq!(apply(ours, &path, &ours_only).await, Allowed, "new {resource}/{name}");
    if resource == "secrets" {
        for kind in ["Opaque", "example.com/x", "notkubernetes.io/x"] {
            assert_eq!(apply(ours, &path, &with("/type", json!(kind))).await, Allowed, "{kind}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_put_on_an_object_stays() {
    let (cluster, ours) = guarded().await;
    for (namespace, resource, name) in WRITTEN {
        what_others_put_there_stays(&cluster, &ours, namespace, resource, name).await;
    }
}

async fn what_others_put_there_stays(cluster: &Cluster, ours: &Client, namespace: &str, resource: &str, name: &str) {
    let path = object_path(namespace, resource, name);
    let uid = cluster.namespaces().get("default").await.unwrap().metadata.uid;
    let mut there = object(resource, name);
    let (theirs, copy) = (json!({"theirs": "1"}), "kubectl.kubernetes.io/last-applied-configuration");
    there["metadata"] = json!({
        "name": name, "namespace": namespace, "labels": theirs, "annotations": {"theirs": "1", copy: "{}"},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Namespace", "name": "default", "uid": uid}],
        "finalizers": ["example.com/theirs"],
    });
    there["data"] = json!({"k": "dg=="});
    cluster.apply(&[there], &[]).await;
    let attempt =
        async |operations: Value| ask(ours, Method::PATCH, &path, "application/json-patch+json", &operations).await;
    // The type of a Secret cannot be changed at all.
    for (field, value, words) in refusals(resource).into_iter().filter(|(field, ..)| *field != "/type") {
        let answer = attempt(json!([{"op": "add", "path": field, "value": value}])).await;
        assert!(guard_says(&answer, words), "{resource}/{name}, {field} {value}: {answer:?}");
    }
    for (field, words) in [
        ("/metadata/annotations/theirs", "no annotation but its own"),
        ("/metadata/annotations", "no annotation but its own"),
        ("/metadata/labels/theirs", "no label but its own"),
        ("/metadata/finalizers", "no owner and no finalizer"),
        ("/metadata/ownerReferences", "no owner and no finalizer"),
    ] {
        let answer = attempt(json!([{"op": "remove", "path": field}])).await;
        assert!(guard_says(&answer, words), "{resource}/{name} without {field}: {answer:?}");
    }
    let answer = attempt(json!([{"op": "replace", "path": "/metadata/annotations/theirs", "value": "x"}])).await;
    assert!(guard_says(&answer, "no annotation but its own"), "{answer:?}");
    let what_we_do = json!([
        {"op": "replace", "path": "/data", "value": {"k": "dnY="}},
        {"op": "add", "path": "/metadata/labels/app.kubernetes.io~1managed-by", "value": APP},
        {"op": "add", "path": "/metadata/labels/team", "value": "ci"},
        {"op": "add", "path": "/metadata/annotations/gitlab-runner-webhook~1source", "value": "a/b"},
        {"op": "remove", "path": "/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration"},
    ]);
    assert_eq!(attempt(what_we_do).await, Allowed, "{resource}/{name}");
    let release = r#"-p=[{"op": "remove", "path": "/metadata/finalizers"}]"#;
    let release = ["patch", resource, name, "-n", namespace, "--type=json", release];
    cluster.plane.kubectl(&release).await.unwrap();
    cluster.plane.kubectl(&["delete", resource, name, "-n", namespace]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_mutating_configuration_nothing_but_ca_bundle_changes() {
    nothing_but_ca_bundle_changes(KINDS[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_validating_configuration_nothing_but_ca_bundle_changes() {
    nothing_but_ca_bundle_changes(KINDS[1]).await;
}

async fn nothing_but_ca_bundle_changes((kind, resource): (&str, &str)) {
    let (cluster, ours) = guarded().await;
    cluster.plane.kubectl(&["label", resource, APP, "team=x"]).await.unwrap();
    let path = format!("{REGISTRATION}/{resource}/{APP}");
    let there: Value = cluster.admin.request(Request::get(&path).body(Vec::new()).unwrap()).await.unwrap();
    let bundle = serde_json::to_value(k8s_openapi::ByteString(cluster.certificate.ca_pem.clone().into())).unwrap();

    // As the program does it: every entry's caBundle by server-side apply, and a person's replacement undone.
    let entries: Vec<_> = there["webhooks"].as_array().unwrap().iter().map(|webhook| &webhook["name"]).collect();
    assert!(entries.len() >= 3, "one for the names and one for each selector: {entries:?}");
    let webhooks: Vec<_> =
        entries.iter().map(|name| json!({"name": name, "clientConfig": {"caBundle": bundle}})).collect();
    let body = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": APP}, "webhooks": webhooks});
    let apply_path = format!("{path}?fieldManager={MANAGER}&force=true");
    assert_eq!(ask(&ours, Method::PATCH, &apply_path, "application/apply-patch+yaml", &body).await, Allowed, "{kind}");

    let attempt =
        async |operations: Value| ask(&ours, Method::PATCH, &path, "application/json-patch+json", &operations).await;
    for (index, _) in entries.iter().enumerate() {
        let at = format!("/webhooks/{index}/clientConfig/caBundle");
        assert_eq!(attempt(json!([{"op": "remove", "path": at}])).await, Allowed, "{kind}: none");
        assert_eq!(attempt(json!([{"op": "replace", "path": at, "value": bundle}])).await, Allowed, "{kind}: another");
    }

    // Every field of an entry that is there, and those that are not, each changed alone.
    let entry = there["webhooks"][0].as_object().unwrap();
    let service = json!({"service": {"name": "evil", "namespace": "default", "port": 443, "path": "/"}});
    let changes = [
        ("name", json!("other.pods.gitlab-runner-webhook")),
        (
            "rules",
            json!([{"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"], "operations": ["*"], "scope": "*"}]),
        ),
        ("namespaceSelector", json!({})),
        ("objectSelector", json!({"matchLabels": {"a": "b"}})),
        ("matchConditions", json!([])),
        ("failurePolicy", json!("Ignore")),
        ("matchPolicy", json!("Exact")),
        ("sideEffects", json!("NoneOnDryRun")),
        ("timeoutSeconds", json!(30)),
        ("admissionReviewVersions", json!(["v1", "v1beta1"])),
        ("clientConfig", json!({"url": "https://127.0.0.1:1/"})),
        ("clientConfig", service),
        ("reinvocationPolicy", json!("Never")),
    ];
    let mut left: Vec<_> = entry.keys().map(String::as_str).collect();
    for (field, value) in changes {
        if field == "reinvocationPolicy" && !entry.contains_key(field) {
            continue;
        }
        let at = format!("/webhooks/0/{field}");
        let answer = attempt(json!([{"op": "add", "path": at, "value": value}])).await;
        assert!(guard_says(&answer, "nothing but caBundle"), "{kind} {field}: {answer:?}");
        left.retain(|name| *name != field);
    }
    assert!(left.is_empty(), "{kind}: fields that nobody tried to change: {left:?}");

    let more = json!({"name": "more.pods.gitlab-runner-webhook", "rules": entry["rules"], "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "clientConfig": {"url": "https://127.0.0.1:1/"}});
    let others = [
        ("a webhook more", json!([{"op": "add", "path": "/webhooks/-", "value": more}])),
        ("a webhook less", json!([{"op": "remove", "path": "/webhooks/0"}])),
        ("none at all", json!([{"op": "replace", "path": "/webhooks", "value": []}])),
        ("another order", json!([{"op": "move", "from": "/webhooks/0", "path": "/webhooks/1"}])),
        ("a rule more", json!([{"op": "copy", "from": "/webhooks/0/rules/0", "path": "/webhooks/0/rules/1"}])),
        ("a label", json!([{"op": "add", "path": "/metadata/labels/x", "value": "y"}])),
        ("a label less", json!([{"op": "remove", "path": "/metadata/labels/team"}])),
        ("no labels", json!([{"op": "remove", "path": "/metadata/labels"}])),
        ("an annotation", json!([{"op": "add", "path": "/metadata/annotations", "value": {"x": "y"}}])),
        ("a finalizer", json!([{"op": "add", "path": "/metadata/finalizers", "value": ["example.com/x"]}])),
        (
            "an owner",
            json!([{"op": "add", "path": "/metadata/ownerReferences", "value": [
                {"apiVersion": "v1", "kind": "Namespace", "name": "default", "uid": "1"}]}]),
        ),
        (
            "caBundle and a rule",
            json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"},
                {"op": "replace", "path": "/webhooks/0/rules/0/resources", "value": ["secrets"]}]),
        ),
    ];
    for (what, operations) in others {
        let answer = attempt(operations).await;
        assert!(guard_says(&answer, "nothing but caBundle"), "{kind}: {what}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_asked() {
    let (cluster, _) = guarded().await;
    // Another ServiceAccount of our namespace, with every right.
    let plane = &cluster.plane;
    plane.kubectl(&["create", "serviceaccount", "other", "-n", APP]).await.unwrap();
    let role = "--clusterrole=cluster-admin";
    let account = format!("--serviceaccount={APP}:other");
    plane.kubectl(&["create", "clusterrolebinding", "other", role, &account]).await.unwrap();
    let other = plane.service_account_client(APP, "other").await.unwrap();
    let path = object_path("elsewhere", "secrets", SECRET);
    assert_eq!(apply(&other, &path, &object("secrets", SECRET)).await, Allowed, "a new one");
    cluster.put_secret("elsewhere", SECRET, &[("k", "v")]).await;
    assert_eq!(apply(&other, &path, &object("secrets", SECRET)).await, Allowed, "one that is there");
    let path = format!("{REGISTRATION}/{}/{APP}", KINDS[0].1);
    assert_eq!(ask(&other, Method::DELETE, &path, "application/json", &Value::Null).await, Allowed);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_right_gets_past_the_guards() {
    let (cluster, ours) = guarded().await;
    let role = "--clusterrole=cluster-admin";
    let account = format!("--serviceaccount={APP}:{APP}");
    cluster.plane.kubectl(&["create", "clusterrolebinding", "ours", role, &account]).await.unwrap();
    let path = format!("/api/v1/namespaces/{RUNNER_NAMESPACE}/secrets");
    wait::until("the rights are there", || async {
        let answer = ask(&ours, Method::POST, &path, "application/json", &object("secrets", "any")).await;
        (answer == Allowed).then_some(())
    })
    .await;
    let kube_system = object_path("kube-system", "secrets", "any");
    assert!(matches!(apply(&ours, &kube_system, &object("secrets", "any")).await, Answer::Guard(_)));
    let shipped = Manifests::render("overlays/default").objects;
    for (kind, resource) in KINDS {
        let mut configuration = shipped.iter().find(|object| object["kind"] == kind).unwrap().clone();
        let path = format!("{REGISTRATION}/{resource}/{APP}");
        let delete = ask(&ours, Method::DELETE, &path, "application/json", &Value::Null).await;
        assert!(guard_says(&delete, "neither creates nor deletes"), "{delete:?}");
        configuration["metadata"]["name"] = json!("another");
        let path = format!("{REGISTRATION}/{resource}");
        let create = ask(&ours, Method::POST, &path, "application/json", &configuration).await;
        assert!(guard_says(&create, "neither creates nor deletes"), "{create:?}");
    }
}

/// The API server's own check of the expressions, by a controller.
#[tokio::test(flavor = "multi_thread")]
async fn the_policies_are_free_of_type_errors() {
    let (cluster, _) = guarded().await;
    for policy in ["gitlab-runner-webhook-objects", "gitlab-runner-webhook-registration"] {
        let path = format!("{REGISTRATION}/validatingadmissionpolicies/{policy}");
        let status = wait::until(format!("{policy} is checked"), || async {
            let request = Request::get(&path).body(Vec::new()).unwrap();
            let policy: Value = cluster.admin.request(request).await.unwrap();
            policy["status"]["typeChecking"].is_object().then(|| policy["status"].clone())
        })
        .await;
        assert_eq!(status["typeChecking"], json!({}), "{policy}");
    }
}
