//! What it tells about itself: logs whose level can be changed, metrics, Events; and nothing of any Secret in them.

use std::{fmt::Write as _, fs};

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};
use test_support::{
    Cluster, Setup, canary,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE, free_port},
    control_plane::{AuditLevel, ControlPlane},
    wait,
};

use crate::{BINARY, mission::CERTS};

const CA_SECRET: &str = "gitlab-runner-webhook-ca";
const NAMESPACE: &str = "gitlab-runner-webhook";

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_is_changed_while_it_runs() {
    let cluster = Cluster::with_source(&[("runner-token", "t")]).await;
    let file = cluster.plane.dir().join("log-level");
    let builder = cluster.tool(BINARY).await.flag("--log-level", "info");
    let tool = builder.flag("--log-level-file", file.to_str().unwrap()).start().await;
    let debug = |line: &Value| line["level"] == "DEBUG";
    assert!(!tool.log_lines().iter().any(debug));

    fs::write(&file, "debug\n").unwrap();
    tool.logged("its new level", |line| line["log_level"] == "DEBUG").await;
    cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
    tool.logged("something at level debug", debug).await;

    fs::write(&file, "loud").unwrap();
    let line = tool.logged("a bad level", |line| line["level"] == "WARN" && line["file"].is_string()).await;
    assert!(line["message"].as_str().unwrap().contains("expected error, warn"), "{line}");

    fs::remove_file(&file).unwrap();
    tool.logged("the usual level", |line| line["log_level"] == "INFO").await;
}

/// Everything that can go wrong with Secrets, with values that would be known again anywhere.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_secret_is_told_anywhere() {
    let builder = ControlPlane::builder().audit(AuditLevel::Metadata);
    let cluster = Cluster::start_as(builder, Setup::default()).await;
    for namespace in [SOURCE_NAMESPACE, RUNNER_NAMESPACE] {
        cluster.create_namespace(namespace, &[]).await;
        cluster.plane.service_account_ready(namespace, "default").await.unwrap();
    }
    let token = |round: &str| format!("canary-token-of-round-{round}");
    cluster.put_secret(RUNNER_NAMESPACE, SECRET, &[("foreign-key", "canary-of-a-foreign-secret")]).await;
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", &token("one"))]).await;
    cluster
        .put_secret(RUNNER_NAMESPACE, CERTS, &[("ca.crt", "canary that is no certificate"), ("tls.key", "canary-key")])
        .await;
    let port = free_port();
    cluster.register_webhooks_without_ca(port, "Fail").await;
    let builder = cluster.tool(BINARY).await.self_managed().flag("--log-level", "trace");
    let tool = builder.flag("--listen", &format!("127.0.0.1:{port}")).start().await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", &token("one"))]).await;
    canary::remember(&cluster.secret(NAMESPACE, CA_SECRET).await.unwrap());

    // Pods of each kind, let in and turned away; and bodies that are no reviews.
    let pods: Api<Pod> = Api::namespaced(cluster.admin.clone(), RUNNER_NAMESPACE);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let mut answers = String::new();
    let mut create = async |pod: Value| {
        let answer = pods.create(&dry_run, &serde_json::from_value(pod).unwrap()).await;
        let _ = write!(answers, "{:?}", answer.as_ref().map(|pod| serde_json::to_string(pod).unwrap()));
        answer.is_ok()
    };
    let manager = json!({
        "metadata": {"generateName": "m-"},
        "spec": {
            "containers": [{"name": "c", "image": "i", "env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": SECRET, "key": "runner-token"}}}]}],
            "volumes": [{"name": "token", "secret": {"secretName": SECRET}}],
        },
    });
    let job = json!({
        "metadata": {"generateName": "j-", "labels": {"job.runner.gitlab.com/pod": "j"}},
        "spec": {"containers": [{"name": "build", "image": "i"}, {"name": "helper", "image": "h"}]},
    });
    let first = serde_json::from_value(manager.clone()).unwrap();
    wait::until("the webhooks are called", async || pods.create(&dry_run, &first).await.ok()).await;
    assert!(create(job.clone()).await && create(manager.clone()).await);

    // Trouble of every kind.
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", &token("two"))]).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", &token("two"))]).await;
    let broken = json!({"stringData": {"ca.crt": "canary-in-the-serving-ca", "ca.key": "canary-in-the-serving-key"}});
    cluster.patch_secret(NAMESPACE, CA_SECRET, &broken).await;
    tool.logged("the broken CA", |line| line["message"] == "CA Secret state" && line["level"] == "WARN").await;
    cluster.delete_secret(SOURCE_NAMESPACE, SECRET).await;
    let events: Api<Event> = Api::all(cluster.admin.clone());
    for name in [SECRET, "gitlab-runner-webhook-trust"] {
        wait::until(format!("there is an Event about {name}"), async || {
            let all = events.list(&ListParams::default()).await.expect("an answer");
            all.items.into_iter().find(|event| event.metadata.name.as_deref() == Some(&format!("{NAMESPACE}.{name}")))
        })
        .await;
    }
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", &token("three"))]).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", &token("three"))]).await;
    cluster.secrets(RUNNER_NAMESPACE).delete(SECRET, &DeleteParams::default()).await.unwrap();
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", &token("three"))]).await;
    create(manager).await;

    let told = events.list(&ListParams::default()).await.unwrap();
    canary::assert_absent("an Event", &serde_json::to_string(&told.items).unwrap());
    canary::assert_absent("an answer to who creates pods", &answers);
    canary::assert_absent("the metrics page", &tool.get("/metrics").await.1);
    canary::assert_absent("the readiness page", &tool.get("/readyz?verbose").await.1);
    canary::assert_absent("the log", &tool.log_text());
    let audit = cluster.requests().await;
    assert!(!audit.is_empty());
    let annotations = cluster.plane.audit_events().unwrap();
    let annotations: Vec<_> = annotations.iter().map(|event| &event.annotations).collect();
    assert!(format!("{annotations:?}").contains("webhook"), "the webhooks are in the audit log");
    canary::assert_absent("an audit annotation", &format!("{annotations:?}"));
    let marks = format!("{:?}", cluster.namespaces().get(RUNNER_NAMESPACE).await.unwrap().metadata);
    canary::assert_absent("the namespace", &marks);
}
