//! The harness against the real programs.

use std::time::Duration;

use control_plane::{AuditLevel, Component, ControlPlane, Error};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::{from_value, json};
use tokio::time::sleep;

/// Until it is true; the test runner's patience is the deadline.
async fn until(what: impl AsyncFn() -> bool) {
    while !what().await {
        sleep(Duration::from_millis(30)).await;
    }
}

fn namespace(name: &str) -> Namespace {
    from_value(json!({"metadata": {"name": name}})).expect("a namespace")
}

async fn create_namespace(client: &Client, name: &str) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.create(&PostParams::default(), &namespace(name)).await.expect("a namespace");
}

fn is_forbidden<T: std::fmt::Debug>(result: kube::Result<T>) -> bool {
    matches!(result.expect_err("a refusal"), kube::Error::Api(status) if status.code == 403)
}

#[tokio::test(flavor = "multi_thread")]
async fn tests_can_spawn_a_start() {
    let control_plane = tokio::spawn(ControlPlane::start()).await.expect("no panic").expect("a control plane");
    let version = control_plane.admin().apiserver_version().await.expect("a version");
    assert_eq!(version.git_version, format!("v{}", control_plane::KUBERNETES_VERSION));

    let folder = control_plane.dir().to_owned();
    assert!(folder.join("etcd").is_dir() && control_plane.url().starts_with("https://127.0.0.1:"));
    drop(control_plane);
    assert!(!folder.exists());
}

#[tokio::test]
async fn controllers_work() {
    let control_plane = ControlPlane::start().await.expect("a control plane");
    let client = control_plane.admin();
    create_namespace(&client, "work").await;
    control_plane.service_account_ready("work", "default").await.expect("a ServiceAccount");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "work");
    until(async || maps.get_opt("kube-root-ca.crt").await.expect("an answer").is_some()).await;
    let map = maps.get("kube-root-ca.crt").await.expect("a map");
    assert_eq!(map.data.expect("data")["ca.crt"], control_plane.ca_pem());

    let create = ["-n", "work", "create", "deployment", "web", "--image=web", "--replicas=2"];
    control_plane.kubectl(&create).await.expect("a deployment");
    let pods: Api<Pod> = Api::namespaced(client.clone(), "work");
    until(async || pods.list(&ListParams::default()).await.expect("pods").items.len() == 2).await;
    // After the pods: one that comes between the quota's first count and admission's knowing of it is counted in 5 minutes.
    let quota = ["-n", "work", "create", "quota", "few", "--hard=pods=5"];
    control_plane.kubectl(&quota).await.expect("a quota");
    let used = ["-n", "work", "get", "quota", "few", "-o", "jsonpath={.status.used.pods}"];
    until(async || control_plane.kubectl(&used).await.expect("a quota") == "2").await;

    // Collected through two owners, one of which is gone.
    control_plane.kubectl(&["-n", "work", "delete", "deployment", "web"]).await.expect("a deletion");
    until(async || pods.list(&ListParams::default()).await.expect("pods").items.is_empty()).await;

    let namespaces: Api<Namespace> = Api::all(client);
    namespaces.delete("work", &DeleteParams::default()).await.expect("a deletion");
    until(async || namespaces.get_opt("work").await.expect("an answer").is_none()).await;
}

#[tokio::test]
async fn service_account_is_nobody_until_it_is_bound() {
    let control_plane = ControlPlane::start().await.expect("a control plane");
    let client = control_plane.service_account_client("default", "default").await.expect("a client");
    let secrets: Api<Secret> = Api::default_namespaced(client);
    assert!(is_forbidden(secrets.list(&ListParams::default()).await));
    let bind = ["create", "rolebinding", "edit", "--clusterrole=edit", "--serviceaccount=default:default"];
    control_plane.kubectl(&bind).await.expect("a binding");
    until(async || secrets.list(&ListParams::default()).await.is_ok()).await;

    let kubeconfig = control_plane.service_account_kubeconfig("default", "default").await.expect("a kubeconfig");
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    let whoami = ["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}", &kubeconfig];
    let who = control_plane.kubectl(&whoami);
    assert_eq!(who.await.expect("an answer"), "system:serviceaccount:default:default");

    let error = control_plane.service_account_token("default", "nobody").await.expect_err("no such account");
    assert!(error.to_string().contains("get a token of ServiceAccount default/nobody"), "{error}");
}

#[tokio::test]
async fn pods_run_and_go() {
    let control_plane = ControlPlane::builder().nodes(true).start().await.expect("a control plane");
    let pods: Api<Pod> = Api::default_namespaced(control_plane.admin());
    let init = json!([{"name": "first", "image": "none"}]);
    let containers = json!([{"name": "main", "image": "none"}, {"name": "side", "image": "none"}]);
    let pod = json!({"metadata": {"name": "pod"}, "spec": {"initContainers": init, "containers": containers}});
    pods.create(&PostParams::default(), &from_value(pod).expect("a pod")).await.expect("a pod");
    let phase = async || pods.get("pod").await.expect("a pod").status.and_then(|status| status.phase);
    until(async || phase().await.as_deref() == Some("Running")).await;
    let status = pods.get("pod").await.expect("a pod").status.expect("a status");
    assert!(status.container_statuses.is_some_and(|all| all.len() == 2 && all.iter().all(|one| one.ready)));
    assert!(status.pod_ip.is_some());

    pods.delete("pod", &DeleteParams::default()).await.expect("a deletion");
    until(async || pods.get_opt("pod").await.expect("an answer").is_none()).await;

    control_plane.kubectl(&["create", "job", "job", "--image=none"]).await.expect("a job");
    control_plane.kubectl(&["wait", "--for=condition=complete", "job/job", "--timeout=60s"]).await.expect("its end");
}

#[tokio::test]
async fn audit_shows_a_request() {
    let control_plane =
        ControlPlane::builder().audit(AuditLevel::RequestResponse).start().await.expect("a control plane");
    let client = control_plane.service_account_client("default", "default").await.expect("a client");
    let secrets: Api<Secret> = Api::namespaced(client, "kube-system");
    assert!(is_forbidden(secrets.get("some").await));
    let user = "system:serviceaccount:default:default";
    let event = control_plane.audit_event(|event| event.user == user && event.name == "some").await.expect("an event");
    assert_eq!((event.verb.as_str(), event.resource.as_str(), event.code), ("get", "secrets", 403));
    assert_eq!((event.namespace.as_str(), event.stage.as_str()), ("kube-system", "ResponseComplete"));
    assert!(event.uri.ends_with("/secrets/some") && event.response_object.is_some());

    create_namespace(&control_plane.admin(), "made").await;
    let made = |event: &control_plane::AuditEvent| event.verb == "create" && event.resource == "namespaces";
    let by_admin = |event: &control_plane::AuditEvent| made(event) && event.user == "kubernetes-admin";
    let event = control_plane.audit_event(by_admin).await.expect("an event");
    assert_eq!(event.request_object.expect("an object")["metadata"]["name"], "made");
    assert!(control_plane.audit_events().expect("events").iter().all(|event| event.stage == "ResponseComplete"));
}

#[tokio::test]
async fn api_server_comes_back() {
    let control_plane = ControlPlane::start().await.expect("a control plane");
    let client = control_plane.admin();
    let account = control_plane.service_account_client("default", "default").await.expect("a client");
    create_namespace(&client, "kept").await;
    control_plane.stop_api_server().await;
    control_plane.stop_api_server().await;
    assert!(client.apiserver_version().await.is_err());
    control_plane.start_api_server().await.expect("an API server");
    let namespaces: Api<Namespace> = Api::all(client);
    namespaces.get("kept").await.expect("the namespace");
    account.apiserver_version().await.expect("the token still counts");
    // The controllers too have found it again.
    create_namespace(&control_plane.admin(), "more").await;
    control_plane.service_account_ready("more", "default").await.expect("a ServiceAccount");
    control_plane.restart_api_server().await.expect("an API server");
    namespaces.get("more").await.expect("the namespace");
}

#[tokio::test]
async fn two_at_a_time() {
    let small = || ControlPlane::builder().controller_manager(false).audit(AuditLevel::None).start();
    let (one, two) = tokio::join!(small(), small());
    let (one, two) = (one.expect("a control plane"), two.expect("another"));
    assert_ne!((one.url(), one.dir()), (two.url(), two.dir()));
    create_namespace(&one.admin(), "mine").await;
    let namespaces: Api<Namespace> = Api::all(two.admin());
    assert!(namespaces.get_opt("mine").await.expect("an answer").is_none());
    assert!(one.audit_events().expect("no log is no events").is_empty());
    // A certificate of one is nothing to the other.
    let stranger = one.kubectl(&["get", "namespaces", &format!("--server={}", two.url())]).await;
    assert!(matches!(stranger, Err(Error::Kubectl { stderr, .. }) if stderr.contains("x509")));
}

#[tokio::test]
async fn failed_start_shows_the_log() {
    let builder = ControlPlane::builder().api_server_arg("--no-such-flag");
    let error = builder.start().await.expect_err("no such flag");
    assert!(matches!(&error, Error::Exited { component: "kube-apiserver", .. }));
    assert!(error.to_string().contains("unknown flag: --no-such-flag"), "{error}");
}

#[tokio::test]
async fn taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    // Wins over the harness's own flag, so that every attempt fails.
    let builder = ControlPlane::builder().api_server_arg(format!("--secure-port={port}"));
    let error = builder.start().await.expect_err("the port is taken").to_string();
    assert!(error.contains("address already in use"), "{error}");
}

#[tokio::test]
async fn kubectl_reads_and_complains() {
    let control_plane = ControlPlane::builder().controller_manager(false).start().await.expect("a control plane");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "map"}}).to_string();
    let output = control_plane.kubectl_with_stdin(&["apply", "-f", "-"], &map).await.expect("a map");
    assert_eq!(output, "configmap/map created\n");
    let error = control_plane.kubectl(&["get", "configmap", "other"]).await.expect_err("no such map").to_string();
    assert!(error.starts_with("kubectl get configmap other failed") && error.contains("NotFound"), "{error}");
    // More than a pipe holds, to a program that does not read.
    control_plane.kubectl_with_stdin(&["version"], &" ".repeat(1 << 20)).await.expect("a version");
    assert!(!control_plane.logs(Component::ApiServer).is_empty());
    assert_eq!(control_plane.logs(Component::Scheduler), "");
}
