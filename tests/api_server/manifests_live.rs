//! What the shipped webhook configurations let through and what they ask about, by the word of a real API server.
//!
//! Nobody listens where they point. With `failurePolicy: Fail` a pod that a webhook is asked about is refused because the
//! call fails, and any other pod is let in.

use gitlab_runner_webhook::{config::Config, names};
use http::{Request, header::CONTENT_TYPE};
use kube::client::Body;
use serde_json::{Value, json};
use test_support::{
    Cluster, Manifests,
    cluster::{RUNNER_NAMESPACE, SECRET, free_port},
    wait,
};

const MUTATING: &str = "MutatingWebhookConfiguration";
const VALIDATING: &str = "ValidatingWebhookConfiguration";
/// A runner namespace that does not want injection.
const OPTED_OUT: &str = "gitlab-runner-without";

/// A way to refer to a Secret, and the fields of a pod that does.
type Way<'a> = (&'a str, &'a dyn Fn(&str) -> Value);

/// What became of a pod.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// A webhook was asked about it.
    Asked,
    /// No webhook was asked.
    LetIn,
    /// Somebody else had something against it: the API server's words.
    Refused(String),
}

/// A cluster with the webhooks of one kind, which all fail.
async fn failing(kind: &str, webhook: &str) -> Cluster {
    let cluster = Cluster::start().await;
    for (namespace, labels) in
        [(RUNNER_NAMESPACE, &[][..]), ("elsewhere", &[]), (OPTED_OUT, &[(names::LABEL_INJECT, "false")])]
    {
        cluster.create_namespace(namespace, labels).await;
        cluster.plane.service_account_ready(namespace, "default").await.unwrap();
    }
    // Whoever gets this port next does not speak TLS with our certificate.
    let port = free_port();
    let mut manifests = Manifests::render("overlays/local");
    manifests.objects.retain(|object| object["kind"] == kind);
    // The namespace that opted out is a runner namespace, too.
    for webhook in manifests.objects[0]["webhooks"].as_array_mut().unwrap() {
        webhook["namespaceSelector"]["matchExpressions"][0]["values"].as_array_mut().unwrap().push(json!(OPTED_OUT));
    }
    manifests.reached_at(port, &cluster.certificate.ca_pem).failing("Fail").apply(&cluster.plane).await;
    wait::until(format!("the API server knows {webhook}"), || async {
        let pod = pod(&json!({"volumes": [{"name": "v", "secret": {"secretName": SECRET}}]}));
        (create(&cluster, RUNNER_NAMESPACE, webhook, &pod).await == Outcome::Asked).then_some(())
    })
    .await;
    cluster
}

/// A pod with one container, and this beside it.
fn pod(spec: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    pod
}

/// The same with labels or annotations.
fn with(field: &str, key: &str, value: &str, mut pod: Value) -> Value {
    pod["metadata"][field] = json!({key: value});
    pod
}

/// Creates a pod in a dry run, which asks webhooks without side effects, too.
async fn create(cluster: &Cluster, namespace: &str, webhook: &str, pod: &Value) -> Outcome {
    let request = Request::post(format!("/api/v1/namespaces/{namespace}/pods?dryRun=All"))
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(pod.to_string().into_bytes()))
        .unwrap();
    let response = cluster.admin.send(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = String::from_utf8_lossy(&body.collect_bytes().await.unwrap()).into_owned();
    if head.status.is_success() {
        Outcome::LetIn
    } else if body.contains(&format!("failed calling webhook \\\"{webhook}\\\"")) {
        Outcome::Asked
    } else {
        Outcome::Refused(body)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_configurations_are_accepted_as_they_are_shipped() {
    let cluster = Cluster::start().await;
    let shipped = Manifests::render("overlays/default");
    let kinds = shipped.objects.iter().filter(|object| object["webhooks"].is_array()).count();
    assert_eq!(kinds, 2);
    shipped.apply(&cluster.plane).await;
    // The second time changes nothing: nothing in the files is what the API server would write otherwise.
    let version = async |kind: &str| {
        let path = "jsonpath={.metadata.generation}";
        cluster.plane.kubectl(&["get", kind, names::APP, "-o", path]).await.unwrap()
    };
    let before = (version(MUTATING).await, version(VALIDATING).await);
    shipped.apply(&cluster.plane).await;
    assert_eq!((version(MUTATING).await, version(VALIDATING).await), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gate_is_asked_about_pods_that_use_a_clone_and_no_others() {
    let cluster = failing(VALIDATING, names::WEBHOOK_GATE).await;
    let clone = Config::default().clones[0].secret.to_string();
    let volume = |source: Value| json!({"volumes": [{"name": "other", "emptyDir": {}}, with_name("v", source)]});
    let container = |fields: Value| json!({"containers": [{"name": "other", "image": "i"}, with_name("c", fields)]});
    let variable = |from: Value| json!({"image": "i", "env": [{"name": "A", "value": "a"}, with_name("B", from)]});
    let env = |name: &str| variable(json!({"valueFrom": {"secretKeyRef": {"name": name, "key": "k"}}}));
    let env_from =
        |name: &str| json!({"image": "i", "envFrom": [{"configMapRef": {"name": "m"}}, {"secretRef": {"name": name}}]});
    let projected =
        |name: &str| json!({"projected": {"sources": [{"configMap": {"name": "m"}}, {"secret": {"name": name}}]}});
    let init = |fields: Value| json!({"initContainers": [with_name("i", fields)]});
    let uses = || pod(&volume(json!({"secret": {"secretName": clone}})));

    // Each way to refer to a Secret, with the clone's name and with another.
    let ways: [Way; 7] = [
        ("volume", &|name| volume(json!({"secret": {"secretName": name, "optional": true}}))),
        ("projected volume", &|name| volume(projected(name))),
        ("variable", &|name| container(env(name))),
        ("variables", &|name| container(env_from(name))),
        ("variable of an init container", &|name| init(env(name))),
        ("variables of an init container", &|name| init(env_from(name))),
        ("image pull", &|name| json!({"imagePullSecrets": [{"name": "other"}, {"name": name}]})),
    ];
    for (way, spec) in ways {
        for (name, expected) in [
            (clone.clone(), Outcome::Asked),
            (format!("{clone}-2"), Outcome::LetIn),
            ("other".to_owned(), Outcome::LetIn),
        ] {
            let pod = pod(&spec(&name));
            assert_eq!(create(&cluster, RUNNER_NAMESPACE, names::WEBHOOK_GATE, &pod).await, expected, "{way}: {name}");
            assert_eq!(create(&cluster, "elsewhere", names::WEBHOOK_GATE, &pod).await, Outcome::LetIn, "{way}");
        }
    }

    let label = |key, value| with("labels", key, value, uses());
    let table = [
        ("nothing at all", pod(&json!({})), Outcome::LetIn),
        ("a ConfigMap of that name", pod(&volume(json!({"configMap": {"name": clone}}))), Outcome::LetIn),
        ("no sources", pod(&volume(json!({"projected": {}}))), Outcome::LetIn),
        ("sources that are null", pod(&volume(json!({"projected": {"sources": null}}))), Outcome::LetIn),
        (
            "lists that are null",
            pod(&json!({"volumes": null, "initContainers": null, "imagePullSecrets": null})),
            Outcome::LetIn,
        ),
        ("empty entries", pod(&json!({"imagePullSecrets": [{}]})), Outcome::LetIn),
        ("a job pod", label("job.runner.gitlab.com/pod", "runner-x"), Outcome::LetIn),
        ("a pause pod", label("runner.gitlab.com/pause-pod", "true"), Outcome::LetIn),
        ("no pause pod", label("runner.gitlab.com/pause-pod", "false"), Outcome::Asked),
        ("what opted out of injection only", label(names::LABEL_INJECT, "false"), Outcome::Asked),
    ];
    for (what, pod, expected) in table {
        assert_eq!(create(&cluster, RUNNER_NAMESPACE, names::WEBHOOK_GATE, &pod).await, expected, "{what}");
    }

    // Pods that are refused anyway are refused by the same words with and without us.
    for (what, spec) in [
        ("containers that are null", json!({"containers": null})),
        ("no containers", json!({"containers": []})),
        ("empty entries", json!({"containers": [{"env": [{}], "envFrom": [{}]}], "volumes": [{}]})),
        ("empty references", container(variable(json!({"valueFrom": {"secretKeyRef": {"key": "k"}}})))),
    ] {
        let pod = pod(&spec);
        let here = create(&cluster, RUNNER_NAMESPACE, names::WEBHOOK_GATE, &pod).await;
        assert!(matches!(&here, Outcome::Refused(_)), "{what}: {here:?}");
        assert_eq!(here, create(&cluster, "elsewhere", names::WEBHOOK_GATE, &pod).await, "{what}");
    }

    // The API server gives each expression a budget, which a huge pod must not exceed.
    let variables: Vec<_> = (0..100).map(|n| json!({"name": format!("V{n}"), "value": "x"})).collect();
    let containers: Vec<_> =
        (0..200).map(|n| json!({"name": format!("c{n}"), "image": "i", "env": variables})).collect();
    let huge = pod(&json!({"containers": containers}));
    assert_eq!(
        create(&cluster, RUNNER_NAMESPACE, names::WEBHOOK_GATE, &huge).await,
        Outcome::LetIn,
        "20,000 variables"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn inject_is_asked_about_every_pod_that_did_not_opt_out() {
    let cluster = failing(MUTATING, names::WEBHOOK_INJECT).await;
    let plain = || pod(&json!({}));
    let mut mirror = with("annotations", "kubernetes.io/config.mirror", "x", plain());
    mirror["spec"]["nodeName"] = json!("node");
    let job = with("labels", "job.runner.gitlab.com/pod", "runner-x", plain());
    let label = |value| with("labels", names::LABEL_INJECT, value, plain());
    let table = [
        ("a pod", RUNNER_NAMESPACE, plain(), Outcome::Asked),
        ("a job pod", RUNNER_NAMESPACE, job.clone(), Outcome::Asked),
        ("a pod that opted out", RUNNER_NAMESPACE, label("false"), Outcome::LetIn),
        ("a pod that opted in", RUNNER_NAMESPACE, label("true"), Outcome::Asked),
        ("a mirror pod", RUNNER_NAMESPACE, mirror, Outcome::LetIn),
        ("a pod of a namespace that opted out", OPTED_OUT, plain(), Outcome::LetIn),
        ("a job pod of a namespace that opted out", OPTED_OUT, job.clone(), Outcome::LetIn),
        ("a pod of another namespace", "elsewhere", job, Outcome::LetIn),
    ];
    for (what, namespace, pod, expected) in table {
        assert_eq!(create(&cluster, namespace, names::WEBHOOK_INJECT, &pod).await, expected, "{what}");
    }
}

fn with_name(name: &str, mut fields: Value) -> Value {
    fields["name"] = json!(name);
    fields
}
