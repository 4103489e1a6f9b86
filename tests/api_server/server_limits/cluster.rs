//! The same callers beside a real API server, through which pods are created: none is refused.

use super::{
    hostile::{Attack, Harm},
    *,
};
use test_support::{
    Cluster, Load, Tool,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE},
    wait,
};

use crate::{BINARY, mission::CERTS};

/// Memory of its own that no caller may make the program exceed. With the pages of the shipped binary, that is 64 MiB.
const MEMORY: u64 = 52 * 1024 * 1024;

/// A review for the gate: the pod uses the clone.
fn gate_review(uid: &str, namespace: &str, path_query: &str) -> String {
    let volumes = json!([{"name": "token", "secret": {"secretName": SECRET}}]);
    let pod = json!({"metadata": {"name": "p\u{1b}[2J"}, "spec": {"containers": [{"name": "c"}], "volumes": volumes}});
    let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
    let request = json!({"uid": uid, "kind": kind, "namespace": namespace, "operation": "CREATE", "object": pod});
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
    let body = review.to_string();
    format!("POST /validate/pods{path_query} HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// The source is there, and the API server calls the webhooks, on two connections.
async fn prepare(cluster: &Cluster, tool: &Tool) {
    for namespace in [SOURCE_NAMESPACE, RUNNER_NAMESPACE] {
        cluster.create_namespace(namespace, &[]).await;
        cluster.plane.service_account_ready(namespace, "default").await.unwrap();
    }
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "the-token")]).await;
    cluster.put_secret(RUNNER_NAMESPACE, CERTS, &[("ca.crt", cluster.certificate.ca_pem.as_str())]).await;
    tool.clones_in_state(SECRET, "synced", 1.0).await;
    cluster.register_webhooks(tool.webhook_port().await, "Fail").await;
    wait::until("the API server calls the webhooks", async || {
        let load = Load::start(cluster, 2);
        wait::until("some are created", async || (load.created() + load.failed() >= 50).then_some(())).await;
        load.stop().await.1.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pod_is_refused_while_one_address_does_its_worst() {
    let cluster = Cluster::start().await;
    let tool = cluster.tool(BINARY).await.flag("--log-level", "info").start().await;
    prepare(&cluster, &tool).await;
    let server: SocketAddr = tool.webhook_address().await.parse().unwrap();
    let probes: SocketAddr = tool.probe_address().await.parse().unwrap();
    let _ = default_provider().install_default();
    let tls = connector(&cluster.certificate);
    let foreign = |number: usize| gate_review("u1", &format!("foreign-{number}"), "?timeout=0s");
    let long_uid = gate_review(&"u".repeat(9_000_000), RUNNER_NAMESPACE, "");
    let attacks = [
        ("health", &tls, server, 300, Harm::health()),
        ("reviews", &tls, server, 300, Harm::reviews()),
        ("announced", &tls, server, 40, Harm::body(10 * MIB, 0)),
        ("unfinished", &tls, server, 64, Harm::body(900_000, 899_999)),
        ("foreign", &tls, server, 64, Harm::Busy(Arc::new(foreign), Duration::ZERO)),
        ("uid", &tls, server, 4, Harm::Busy(Arc::new(move |_| long_uid.clone()), Duration::ZERO)),
    ];
    for (name, tls, server, connections, harm) in attacks {
        let attack = Attack::start(address(2), server, Some(tls), connections, &harm);
        let also_probes = Attack::start(address(2), probes, None, 100, &Harm::health());
        // More than before: the API server needs connections that it does not have yet.
        let load = Load::start(&cluster, 16);
        wait::until("pods are created", async || (load.created() + load.failed() >= 200).then_some(())).await;
        let live = timeout(Duration::from_secs(10), tool.get("/livez")).await;
        assert_eq!(live.map(|answer| answer.0), Ok(200), "{name}: kubelet would restart it");
        let (own, resident) = (tool.own_bytes(), tool.resident_bytes());
        assert!(own < MEMORY, "{name}: {} of {} MiB", own >> 20, resident >> 20);
        let answers = attack.answered();
        let (created, failures) = load.stop().await;
        let (own, resident) = (own >> 20, resident >> 20);
        println!(
            "{name}: {own} MiB of its own, {resident} MiB resident, {answers} answers to the attack, {created} pods created"
        );
        assert!(failures.is_empty(), "{name}: {} of {created}: {:#?}", failures.len(), failures[0]);
        drop((attack, also_probes));
    }

    let events = cluster.plane.audit_events().unwrap();
    let foreign: Vec<_> = events.iter().filter(|event| event.namespace.starts_with("foreign-")).collect();
    assert!(foreign.is_empty(), "{} reads for namespaces that are none, such as {}", foreign.len(), foreign[0].uri);
    let log = tool.log_text();
    assert!(!log.contains("uuuuuuuuuu") && !log.contains("foreign-"), "{log:.2000}");
}
