//! The shipped rights, held against the audit log of a whole life: every one of them is used, nothing else is asked for.

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Event},
};
use kube::{Api, ResourceExt as _, api::PostParams};
use serde_json::json;
use test_support::{
    Cluster, Manifests,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE, free_port},
    rights::{granted, used},
    wait,
};

use crate::{
    BINARY,
    mission::{CERTS, TRUST},
};

const NAMESPACE: &str = "gitlab-runner-webhook";
const CA_SECRET: &str = "gitlab-runner-webhook-ca";

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_granted_is_used_and_all_that_is_used_is_granted() {
    let shipped = Manifests::render("overlays/default");
    let granted = granted(&shipped.objects);
    let cluster = Cluster::with_source(&[("runner-token", "first")]).await;
    cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
    cluster.plane.service_account_ready(RUNNER_NAMESPACE, "default").await.unwrap();
    let port = free_port();
    cluster.register_webhooks_without_ca(port, "Fail").await;
    let listen = format!("127.0.0.1:{port}");
    let builder = cluster.tool(BINARY).await.self_managed().flag("--listen", &listen);
    let builder = builder.flag("--pod-name", "a-pod").flag("--namespace", NAMESPACE);
    let builder = builder.flag("--pod-template-hash", "a-hash");
    // A watch ends and begins again within the test.
    let tool = builder.flag("--watch-timeout", "1").start().await;

    // The clone: made, changed, made anew because it cannot be changed.
    let clone = cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "first")]).await;
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "second")]).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "second")]).await;
    cluster.patch_secret(RUNNER_NAMESPACE, SECRET, &json!({"immutable": true})).await;
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "third")]).await;
    let replaced = cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "third")]).await;
    assert_ne!(clone.uid(), replaced.uid());

    // The trust bundle: made, changed, gone with its source.
    let bundles: Api<ConfigMap> = Api::namespaced(cluster.admin.clone(), RUNNER_NAMESPACE);
    cluster.put_secret(RUNNER_NAMESPACE, CERTS, &[("ca.crt", &cluster.certificate.ca_pem)]).await;
    let bundle =
        wait::until("there is a trust bundle", async || bundles.get_opt(TRUST).await.expect("an answer")).await;
    let company = test_support::ServingCertificate::issue(&cluster.plane.dir().join("company"));
    let patch = json!({"stringData": {"another.crt": company.ca_pem}});
    cluster.patch_secret(RUNNER_NAMESPACE, CERTS, &patch).await;
    wait::until("the trust bundle has both CAs", async || {
        let now = bundles.get(TRUST).await.expect("an answer");
        (now.data != bundle.data).then_some(())
    })
    .await;
    cluster.delete_secret(RUNNER_NAMESPACE, CERTS).await;
    wait::until("the trust bundle is gone", async || {
        bundles.get_opt(TRUST).await.expect("an answer").is_none().then_some(())
    })
    .await;

    // Events: a source that is gone, certificates that cannot be read; and both are right again.
    let events: Api<Event> = Api::namespaced(cluster.admin.clone(), RUNNER_NAMESPACE);
    let own_events: Api<Event> = Api::namespaced(cluster.admin.clone(), NAMESPACE);
    let told = async |object: &str, reason: &str| {
        let name = format!("gitlab-runner-webhook.{object}");
        wait::until(format!("{name} says {reason}"), async || {
            let events = if object == NAMESPACE { &own_events } else { &events };
            let event = events.get_opt(&name).await.expect("an answer")?;
            (event.reason.as_deref() == Some(reason)).then_some(event)
        })
        .await
    };
    cluster.delete_secret(SOURCE_NAMESPACE, SECRET).await;
    let event = told(SECRET, "SourceMissing").await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    assert_eq!(event.message.as_deref(), Some("the source gitlab/gitlab-gitlab-runner-secret is missing; create it"));
    assert_eq!(event.involved_object.uid, replaced.uid());
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "third")]).await;
    assert_eq!(told(SECRET, "Synced").await.type_.as_deref(), Some("Normal"));
    cluster.put_secret(RUNNER_NAMESPACE, CERTS, &[("ca.crt", "hunter2")]).await;
    let event = told(TRUST, "CertsUnusable").await;
    assert!(!event.message.unwrap().contains("hunter2"));

    // The serving CA: made and published before; broken, made anew and published again.
    let broken = json!({"stringData": {"ca.crt": "broken"}});
    let version = cluster.patch_secret(NAMESPACE, CA_SECRET, &broken).await.resource_version();
    cluster.secret_that("is mended", NAMESPACE, CA_SECRET, |now| now.resource_version() != version).await;

    // One that is broken and cannot be mended: an Event about our own Deployment, until somebody has deleted it.
    let deployments: Api<Deployment> = Api::namespaced(cluster.admin.clone(), NAMESPACE);
    let object = shipped.objects.iter().find(|object| object["kind"] == "Deployment").expect("one is shipped");
    let deployment = serde_json::from_value(object.clone()).unwrap();
    let deployment = deployments.create(&PostParams::default(), &deployment).await.unwrap();
    cluster.patch_secret(NAMESPACE, CA_SECRET, &json!({"immutable": true, "stringData": {"ca.crt": "hunter2"}})).await;
    let event = told(NAMESPACE, "Invalid").await;
    let note = event.message.unwrap_or_default();
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    assert_eq!(
        (event.involved_object.kind.as_deref(), event.involved_object.uid),
        (Some("Deployment"), deployment.uid())
    );
    assert!(note.contains("update secrets/gitlab-runner-webhook-ca") && !note.contains("hunter2"), "{note}");
    cluster.delete_secret(NAMESPACE, CA_SECRET).await;
    assert_eq!(told(NAMESPACE, "CertificatesReady").await.type_.as_deref(), Some("Normal"));

    // The gate asks for source and clone.
    wait::until("a pod is let in", async || cluster.try_pod().await.ok()).await;
    assert!(tool.stop().await.success());

    let requests = cluster.requests().await;
    assert!(requests.len() > 30, "{} requests", requests.len());
    let used = used(&granted, &requests);
    // Used in tests/api_server/watches.rs: lists come as watches, but where they cannot; and a trust bundle is got where its
    // namespace was selected after the watch had shown it.
    let elsewhere = |verb: &str, resource: &str| verb == "list" || (verb, resource) == ("get", "configmaps");
    let unused: Vec<_> = granted.difference(&used).filter(|right| !elsewhere(&right.1, &right.2)).collect();
    assert!(unused.is_empty(), "granted and never used: {unused:?}");
}
