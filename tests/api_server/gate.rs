//! The gate on a real API server: no pod is let in before its clone is there and current.

use std::{collections::BTreeMap, time::Instant};

use futures::{StreamExt as _, TryStreamExt as _, future::join_all, stream};
use http::{Request, header::CONTENT_TYPE};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, PostParams},
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};
use test_support::{
    Cluster, Setup, Tool,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE, has_data},
    control_plane::{AuditEvent, ControlPlane},
    wait,
};

use crate::{BINARY, mission::TOKEN};

/// A client that does not try again by itself, so that a 429 is seen.
async fn plain_client(cluster: &Cluster) -> Client {
    let kubeconfig = Kubeconfig::read_from(cluster.plane.admin_kubeconfig()).unwrap();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

async fn started(gate: &str) -> (Cluster, Tool, Client) {
    let cluster = Cluster::start().await;
    let tool = cluster.tool(BINARY).await.config(&format!("gate: {{{gate}}}\n")).start().await;
    for namespace in [SOURCE_NAMESPACE, RUNNER_NAMESPACE] {
        cluster.create_namespace(namespace, &[]).await;
        cluster.plane.service_account_ready(namespace, "default").await.unwrap();
    }
    cluster.register_webhooks(tool.webhook_port().await, "Fail").await;
    let client = plain_client(&cluster).await;
    wait::until("the API server calls the gate", || async {
        create(&client, &pod_with("called", &json!({"volumes": [volume()]})), true).await;
        let (_, page) = tool.get("/metrics").await;
        page.contains("webhook=\"validate-pods\"").then_some(())
    })
    .await;
    (cluster, tool, client)
}

fn volume() -> Value {
    json!({"name": "token", "secret": {"secretName": SECRET}})
}

fn pod_with(name: &str, spec: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "main", "image": "i"}]},
    });
    for (field, value) in spec.as_object().unwrap() {
        pod["spec"][field] = value.clone();
    }
    pod
}

struct Answer {
    code: u16,
    retry_after: Option<String>,
    warnings: Vec<String>,
    body: Value,
}

async fn create(client: &Client, pod: &Value, dry_run: bool) -> Answer {
    let query = if dry_run { "?dryRun=All" } else { "" };
    let request = Request::post(format!("/api/v1/namespaces/{RUNNER_NAMESPACE}/pods{query}"))
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(pod.to_string().into_bytes()))
        .unwrap();
    let (head, body) = client.send(request).await.unwrap().into_parts();
    let text = |name: &str| head.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect();
    let retry_after: Vec<String> = text("retry-after");
    Answer {
        code: head.status.as_u16(),
        retry_after: retry_after.into_iter().next(),
        warnings: text("warning"),
        body: serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap(),
    }
}

/// Turned away in the way that makes clients try again by themselves.
fn turned_away(answer: &Answer) -> bool {
    answer.code == 429 && answer.retry_after.as_deref() == Some("1")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_use_a_clone_waits_for_it_and_nothing_else_does() {
    let (cluster, tool, client) = started("giveUpAfter: 1h").await;
    let users = [
        ("volume", json!({"volumes": [volume()]})),
        ("projected", json!({"volumes": [{"name": "t", "projected": {"sources": [{"secret": {"name": SECRET}}]}}]})),
        (
            "env",
            json!({"containers": [{"name": "m", "image": "i", "env": [
            {"name": "T", "valueFrom": {"secretKeyRef": {"name": SECRET, "key": "runner-token"}}}]}]}),
        ),
        (
            "env-from",
            json!({"containers": [{"name": "m", "image": "i", "envFrom": [{"secretRef": {"name": SECRET}}]}]}),
        ),
        (
            "init",
            json!({"initContainers": [{"name": "n", "image": "i", "envFrom": [{"secretRef": {"name": SECRET}}]}]}),
        ),
        ("pull", json!({"imagePullSecrets": [{"name": SECRET}]})),
    ];
    for (name, spec) in &users {
        let answer = create(&client, &pod_with(name, spec), false).await;
        assert!(turned_away(&answer), "{name}: {} {}", answer.code, answer.body);
        let message = answer.body["message"].as_str().unwrap();
        assert!(message.contains(SECRET) && message.contains(SOURCE_NAMESPACE), "{message}");
    }
    let asked = cluster.requests().await.len();
    let other = json!({"volumes": [{"name": "o", "secret": {"secretName": "other", "optional": true}}]});
    assert_eq!(create(&client, &pod_with("other", &other), false).await.code, 201);
    let mut job = pod_with("job", &json!({"volumes": [volume()]}));
    job["metadata"]["labels"] = json!({"job.runner.gitlab.com/pod": "job"});
    assert_eq!(create(&client, &job, false).await.code, 201, "job pods never reach the gate");
    // A dry run is answered from memory.
    assert!(turned_away(&create(&client, &pod_with("dry", &users[0].1), true).await));
    assert_eq!(cluster.requests().await.len(), asked, "none of these made the tool ask the API server");

    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &TOKEN).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
    for (name, spec) in &users {
        let answer = create(&client, &pod_with(name, spec), false).await;
        let of_gate = answer.warnings.iter().any(|warning| warning.contains(SECRET));
        assert!(answer.code == 201 && !of_gate, "{name}: {} {:?} {}", answer.code, answer.warnings, answer.body);
    }
    assert!(!tool.log_text().contains("the-token"));

    // One id joins the round that made the clone, the review that was let in for it, and the API server's audit log.
    let source = cluster.secret(SOURCE_NAMESPACE, SECRET).await.unwrap().resource_version().unwrap();
    let written = tool.logged("the clone", |line| line["message"] == "written" && line["object"] == SECRET).await;
    assert_eq!(written["source_version"], source.as_str());
    let reviewed = |line: &Value| line["message"] == "answered" && line["span"]["source_version"] == source.as_str();
    let review = tool.logged("the review", reviewed).await;
    assert_eq!(review["span"]["reason"], "current");
    let annotation = "gate.pods.gitlab-runner-webhook/source-version";
    let audited = |event: &AuditEvent| event.annotations.get(annotation) == Some(&source);
    let event = cluster.plane.audit_event(audited).await.unwrap();
    assert_eq!((event.resource.as_str(), event.code), ("pods", 201));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_source_missing_it_gives_up_or_does_not_as_told() {
    let (cluster, tool, client) = started("giveUpAfter: 3s").await;
    let pod = pod_with("waits", &json!({"volumes": [volume()]}));
    // The time counts from when the clone fell out of step, so the first answer may be either.
    let answer = wait::until("the gate gives up", || async {
        let answer = create(&client, &pod, false).await;
        assert!(answer.code == 201 || turned_away(&answer), "{} {}", answer.code, answer.body);
        (answer.code == 201).then_some(answer)
    })
    .await;
    assert!(answer.warnings.iter().any(|warning| warning.contains("has no source")), "{:?}", answer.warnings);

    let port = tool.webhook_port().await.to_string();
    assert!(tool.stop().await.success());
    let tool = cluster
        .tool(BINARY)
        .await
        .config("gate: {giveUpAfter: 1ms, then: deny}\n")
        .flag("--listen", &format!("127.0.0.1:{port}"))
        .start()
        .await;
    for round in 0..3 {
        let answer =
            create(&client, &pod_with(&format!("denied-{round}"), &json!({"volumes": [volume()]})), false).await;
        assert!(turned_away(&answer), "{}", answer.body);
    }
    assert!(tool.stop().await.success());
    let _tool = cluster
        .tool(BINARY)
        .await
        .config("gate: {giveUpAfter: 0s}\n")
        .flag("--listen", &format!("127.0.0.1:{port}"))
        .start()
        .await;
    assert_eq!(create(&client, &pod_with("no-gate", &json!({"volumes": [volume()]})), false).await.code, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_created_right_after_a_rotation_never_sees_the_old_token() {
    let (cluster, _tool, client) = started("giveUpAfter: 1h").await;
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &TOKEN).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
    for round in 0..50 {
        let token = format!("token-{round}");
        cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", &token)]).await;
        let pod = pod_with(&format!("after-{round}"), &json!({"volumes": [volume()]}));
        let created = wait::until("the pod is let in", || async {
            let answer = create(&client, &pod, false).await;
            (answer.code == 201).then_some(answer.body)
        })
        .await;
        // Resource versions order all writes: the clone had its new content before the pod was stored.
        let clone = cluster.secret(RUNNER_NAMESPACE, SECRET).await.unwrap();
        assert!(has_data(&clone, &[("runner-token", &token)]), "round {round}");
        let pod_version = created["metadata"]["resourceVersion"].as_str().unwrap();
        assert!(version(&clone.resource_version().unwrap()) < version(pod_version), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_requests_share_their_reads() {
    let (cluster, _tool, client) = started("giveUpAfter: 1h").await;
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &TOKEN).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
    let before = cluster.requests().await.len();
    let pods = (0..100).map(|index| {
        let client = client.clone();
        async move { create(&client, &pod_with(&format!("p{index}"), &json!({"volumes": [volume()]})), false).await }
    });
    for answer in join_all(pods).await {
        assert_eq!(answer.code, 201, "{:#}", answer.body);
    }
    let reads = cluster.requests().await[before..].iter().filter(|request| request.verb == "get").count();
    assert!((2..=100).contains(&reads), "{reads} reads for 100 pods, two for each if none were shared");
}

/// Namespace and Deployment at the same moment, a hundred times.
#[tokio::test(flavor = "multi_thread")]
async fn no_pod_of_a_new_namespace_is_let_in_before_its_clone() {
    const NAMESPACES: usize = 100;
    let config = "runnerNamespaces: {names: [], selectors: [{matchLabels: {runner: 'yes'}}]}\n";
    let cluster = Cluster::start_as(ControlPlane::builder(), Setup { config: Some(config) }).await;
    cluster.create_namespace(SOURCE_NAMESPACE, &[]).await;
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &TOKEN).await;
    let tool = cluster.tool(BINARY).await.config(config).start().await;
    let mut manifests = cluster.manifests();
    manifests.objects.retain(|object| object["kind"] == "ValidatingWebhookConfiguration");
    let port = tool.webhook_port().await;
    manifests.reached_at(port, &cluster.certificate.ca_pem).failing("Fail").apply(&cluster.plane).await;

    // A third party sees clones and pods come.
    let seen = tokio::spawn(arrivals(cluster.admin.clone(), NAMESPACES));
    stream::iter(0..NAMESPACES)
        .for_each_concurrent(1, async |index| {
            let name = format!("runner-{index}");
            cluster.create_namespace(&name, &[("runner", "yes")]).await;
            let deployment = json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "runner"},
                "spec": {
                    "selector": {"matchLabels": {"app": "runner"}},
                    "template": {
                        "metadata": {"labels": {"app": "runner"}},
                        "spec": {"containers": [{"name": "main", "image": "i"}], "volumes": [volume()]},
                    },
                },
            });
            let api: Api<k8s_openapi::api::apps::v1::Deployment> = Api::namespaced(cluster.admin.clone(), &name);
            api.create(&PostParams::default(), &serde_json::from_value(deployment).unwrap()).await.unwrap();
        })
        .await;
    let (clones, pods) = tokio::time::timeout(2 * wait::PATIENCE, seen).await.expect("every pod comes").unwrap();

    let mut waits = Vec::new();
    for (namespace, (pod_version, pod_seen)) in &pods {
        let (clone_version, clone_seen) = clones[namespace];
        assert!(clone_version < *pod_version, "{namespace}: the pod came first");
        waits.push(pod_seen.saturating_duration_since(clone_seen));
    }
    waits.sort();
    println!("pod after clone: p50 {:?}, longest {:?}", waits[waits.len() / 2], waits[waits.len() - 1]);
    let (_, page) = tool.get("/metrics").await;
    for line in page.lines().filter(|line| line.contains("admissions_total{webhook=\"validate-pods\"")) {
        println!("{line}");
    }
    let namespace = format!("runner-{}", NAMESPACES - 1);
    cluster.namespaces().delete(&namespace, &DeleteParams::default()).await.unwrap();
}

type Arrivals = BTreeMap<String, (u64, Instant)>;

/// The first clone and the first pod of each of that many namespaces.
async fn arrivals(client: Client, namespaces: usize) -> (Arrivals, Arrivals) {
    let of_name = watcher::Config::default().fields(&format!("metadata.name={SECRET}"));
    let secrets = watcher(Api::<Secret>::all(client.clone()), of_name)
        .default_backoff()
        .applied_objects()
        .map_ok(|secret| (true, secret.namespace().unwrap(), version(&secret.resource_version().unwrap())));
    let pods = watcher(Api::<Pod>::all(client), watcher::Config::default())
        .default_backoff()
        .applied_objects()
        .map_ok(|pod| (false, pod.namespace().unwrap(), version(&pod.resource_version().unwrap())));
    let (mut clones, mut all_pods) = (Arrivals::new(), Arrivals::new());
    let mut events = stream::select(secrets.boxed(), pods.boxed());
    while all_pods.len() < namespaces || clones.len() < namespaces + 1 {
        let Ok(Some((is_clone, namespace, version))) = events.try_next().await else { continue };
        let arrivals = if is_clone { &mut clones } else { &mut all_pods };
        arrivals.entry(namespace).or_insert((version, Instant::now()));
    }
    (clones, all_pods)
}

fn version(resource_version: &str) -> u64 {
    resource_version.parse().expect("the API server's resource versions are numbers")
}
