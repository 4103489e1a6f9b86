//! Watches that see nothing: a store that was set back, rights that were taken away, an API server that was away, objects
//! of other people's namespaces. Each time what is stored wins, within the time that the documentation gives.

use std::{collections::BTreeMap, time::Instant};

use futures::{StreamExt as _, stream};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{Api, Client, api::PostParams, config::KubeConfigOptions};
use serde_json::json;
use test_support::{
    Cluster, Fault, Manifests, MemoryLimit, Proxy, Setup, Tool, ToolBuilder,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE},
    control_plane::ControlPlane,
    rights::{granted, used},
    wait,
};

use crate::{
    BINARY,
    mission::{CERTS, TOKEN, TRUST, followed, mission, rotate},
};

const MIB: u64 = 1024 * 1024;

/// The shipped cluster-wide rights, without these verbs.
async fn grant_without(cluster: &Cluster, verbs: &[&str]) {
    let mut manifests = Manifests::render("overlays/local");
    manifests.objects.retain(|object| object["kind"] == "ClusterRole");
    for rules in manifests.objects.iter_mut().map(|role| role["rules"].as_array_mut().unwrap()) {
        for rule in rules.iter_mut() {
            let granted = rule["verbs"].as_array_mut().unwrap();
            granted.retain(|verb| !verbs.iter().any(|without| verb == without));
        }
        rules.retain(|rule| rule["verbs"] != json!([]));
    }
    manifests.apply(&cluster.plane).await;
}

/// The program behind a proxy.
async fn behind_a_proxy(cluster: &Cluster, watch_timeout: &str) -> (Proxy, Tool) {
    let (proxy, builder) = proxied(cluster).await;
    (proxy, builder.flag("--watch-timeout", watch_timeout).start().await)
}

async fn proxied(cluster: &Cluster) -> (Proxy, ToolBuilder) {
    let client = cluster.plane.service_account_client("gitlab-runner-webhook", "gitlab-runner-webhook").await.unwrap();
    let proxy = Proxy::start(client).await;
    let kubeconfig = cluster.plane.dir().join(format!("proxy-{}", wait::unique()));
    std::fs::write(&kubeconfig, proxy.kubeconfig()).unwrap();
    let builder = cluster.tool_from(BINARY, &kubeconfig);
    (proxy, builder)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_restored_from_an_older_backup_is_followed() {
    let cluster = mission().await;
    let tool = cluster.tool(BINARY).await.start().await;
    followed(&cluster, "the-token").await;
    let backup = cluster.plane.back_up().await.unwrap();
    // What happens from here on will not have happened.
    for round in 0..20 {
        rotate(&cluster, &format!("lost-{round}")).await;
    }
    followed(&cluster, "lost-19").await;

    cluster.plane.restore(&backup).await.unwrap();
    let before = cluster.secret(RUNNER_NAMESPACE, SECRET).await.unwrap();
    // One write, so that the new history stays far behind the one that is gone.
    rotate(&cluster, "after-the-restore").await;
    followed(&cluster, "after-the-restore").await;
    let there = cluster.secret(RUNNER_NAMESPACE, SECRET).await.unwrap();
    assert_eq!(there.metadata.uid, before.metadata.uid, "never deleted");
    tool.metric_is(&format!("gitlab_runner_webhook_clones{{secret=\"{SECRET}\",state=\"synced\"}}"), 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_went_back_while_no_watch_failed_is_noticed_within_a_watch() {
    let cluster = mission().await;
    let (proxy, tool) = behind_a_proxy(&cluster, "5").await;
    followed(&cluster, "the-token").await;
    let backup = cluster.plane.back_up().await.unwrap();
    for round in 0..200 {
        rotate(&cluster, &format!("lost-{round}")).await;
    }
    followed(&cluster, "lost-199").await;

    // A proxy that keeps its connections: the program sees watches that are silent, and none that fails.
    proxy.silence(Some("watch=true"));
    proxy.hold(true);
    cluster.plane.restore(&backup).await.unwrap();
    proxy.silence(None);
    proxy.hold(false);
    rotate(&cluster, "after-the-restore").await;
    followed(&cluster, "after-the-restore").await;
    tool.logged("that history went back", |line| {
        line["message"].as_str().is_some_and(|text| text.contains("older backup"))
    })
    .await;
}

/// Turned away, or let in with which warning.
async fn pod(cluster: &Cluster) -> Result<(), u16> {
    let pod = json!({
        "metadata": {"generateName": "p-"},
        "spec": {
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "token", "secret": {"secretName": SECRET}}],
        },
    });
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(impatient(cluster).await, RUNNER_NAMESPACE);
    match pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.code),
        Err(error) => panic!("{error}"),
    }
}

/// A client that does not try again by itself.
async fn impatient(cluster: &Cluster) -> Client {
    let kubeconfig = kube::config::Kubeconfig::read_from(cluster.plane.admin_kubeconfig()).unwrap();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

async fn gated(cluster: &Cluster, give_up_after: &str) -> Tool {
    let config = format!("gate: {{giveUpAfter: {give_up_after}}}\n");
    let tool = cluster.tool(BINARY).await.config(&config).flag("--watch-timeout", "1").start().await;
    cluster.plane.service_account_ready(RUNNER_NAMESPACE, "default").await.unwrap();
    followed(cluster, "the-token").await;
    cluster.register_webhooks(tool.webhook_port().await, "Fail").await;
    wait::until("the gate is asked", || async {
        pod(cluster).await.unwrap();
        let (_, page) = tool.get("/metrics").await;
        page.contains("webhook=\"validate-pods\"").then_some(())
    })
    .await;
    tool
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gate_reads_is_mended_although_no_watch_may_be_opened() {
    let cluster = mission().await;
    let tool = gated(&cluster, "1h").await;
    grant_without(&cluster, &["list", "watch"]).await;
    tool.logged("that the watch is refused", |line| {
        line["reason"] == "forbidden" && line["detail"].as_str().is_some_and(|text| text.contains(SECRET))
    })
    .await;
    rotate(&cluster, "unheard").await;
    wait::until("the pod is let in", async || pod(&cluster).await.ok()).await;
    followed(&cluster, "unheard").await;
    let contradicted = format!("gitlab_runner_webhook_watch_contradictions_total{{secret=\"{SECRET}\"}}");
    assert!(tool.metric(&contradicted).await.is_some_and(|count| count > 0.0), "it can be seen");

    grant_without(&cluster, &[]).await;
    rotate(&cluster, "heard").await;
    followed(&cluster, "heard").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gate_reads_starts_its_clock_when_nothing_can_be_written_either() {
    let cluster = mission().await;
    let tool = gated(&cluster, "3s").await;
    grant_without(&cluster, &["list", "watch", "update"]).await;
    tool.logged("that the watch is refused", |line| {
        line["reason"] == "forbidden" && line["detail"].as_str().is_some_and(|text| text.contains(SECRET))
    })
    .await;
    rotate(&cluster, "unheard").await;
    wait::until("the gate turns pods away", async || (pod(&cluster).await == Err(429)).then_some(())).await;
    wait::until("the gate gives up", async || pod(&cluster).await.ok()).await;
    tool.logged("the state", |line| line["state"] == "forbidden").await;

    grant_without(&cluster, &[]).await;
    followed(&cluster, "unheard").await;
    tool.metric_is(&format!("gitlab_runner_webhook_clones{{secret=\"{SECRET}\",state=\"synced\"}}"), 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gate_cannot_read_starts_its_clock_too() {
    let cluster = mission().await;
    let tool = gated(&cluster, "3s").await;
    grant_without(&cluster, &["get"]).await;
    wait::until("the gate turns pods away", async || (pod(&cluster).await == Err(429)).then_some(())).await;
    wait::until("the gate gives up", async || pod(&cluster).await.ok()).await;
    tool.logged("the state", |line| line["state"] == "forbidden").await;
    grant_without(&cluster, &[]).await;
    tool.metric_is(&format!("gitlab_runner_webhook_clones{{secret=\"{SECRET}\",state=\"synced\"}}"), 1.0).await;
}

/// How long after the API server is ready every watch is whole again; shown, not judged.
#[tokio::test(flavor = "multi_thread")]
async fn after_an_api_server_that_was_away_the_clones_follow_at_once() {
    let cluster = mission().await;
    let tool = cluster.tool(BINARY).await.self_managed().start().await;
    followed(&cluster, "the-token").await;
    for (round, seconds) in [1_u64, 12, 25].into_iter().enumerate() {
        cluster.plane.stop_api_server().await;
        // So long is it away: the time is the subject.
        tokio::time::sleep(std::time::Duration::from_secs(seconds)).await;
        cluster.plane.start_api_server().await.unwrap();
        let started = Instant::now();
        let token = format!("after-{round}");
        rotate(&cluster, &token).await;
        followed(&cluster, &token).await;
        println!("away for {seconds} s: the clone followed {:?} after the API server was ready", started.elapsed());
    }
    drop(tool);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_streams_no_lists_is_asked_for_pages() {
    let plane = ControlPlane::builder().api_server_arg("--feature-gates=WatchList=false");
    let cluster = Cluster::start_as(plane, Setup::default()).await;
    cluster.create_namespace(SOURCE_NAMESPACE, &[]).await;
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &TOKEN).await;
    for number in 0..20 {
        cluster.create_namespace(&format!("elsewhere-{number}"), &[]).await;
        cluster.put_secret(&format!("elsewhere-{number}"), SECRET, &TOKEN).await;
    }
    cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
    cluster.register_webhooks_without_ca(1, "Ignore").await;
    let builder = cluster.tool(BINARY).await.self_managed().flag("--namespace", "gitlab-runner-webhook");
    let builder = builder.flag("--pod-template-hash", "a-hash").flag("--watch-timeout", "5");
    let tool = builder.start().await;
    followed(&cluster, "the-token").await;
    rotate(&cluster, "later").await;
    followed(&cluster, "later").await;
    assert!(tool.stop().await.success());

    // Here, and nowhere else, each right to list is used.
    let granted = granted(&Manifests::render("overlays/default").objects);
    let used = used(&granted, &cluster.requests().await);
    let lists = |right: &&test_support::rights::Right| right.1 == "list";
    let unused: Vec<_> = granted.iter().filter(lists).filter(|right| !used.contains(*right)).collect();
    assert!(unused.is_empty(), "granted and never used: {unused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_selected_later_has_what_lies_in_it_read_then() {
    let config = format!(
        "clones: [{{secret: {SECRET}, from: {SOURCE_NAMESPACE}}}]\nrunnerNamespaces: {{selectors: [{{matchLabels: {{runners: \"yes\"}}}}]}}\n"
    );
    let setup = Setup { config: Some(&config) };
    let cluster = Cluster::start_as(ControlPlane::builder(), setup).await;
    cluster.create_namespace(SOURCE_NAMESPACE, &[]).await;
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &TOKEN).await;
    cluster.create_namespace("later", &[]).await;
    cluster.put_secret("later", CERTS, &[("ca.crt", &cluster.certificate.ca_pem)]).await;
    cluster.put_secret("later", SECRET, &[("runner-token", "theirs")]).await;
    let bundles: Api<ConfigMap> = Api::namespaced(cluster.admin.clone(), "later");
    let theirs = json!({"metadata": {"name": TRUST}, "data": {"ca.crt": "theirs"}});
    bundles.create(&PostParams::default(), &serde_json::from_value(theirs).unwrap()).await.unwrap();
    let (proxy, builder) = proxied(&cluster).await;
    let tool = builder.config(&config).start().await;
    assert!(cluster.writes().await.is_empty(), "it is nobody's business yet");

    let (method, path, code, reason) = ("GET", "later/configmaps", 403, "Forbidden");
    proxy.fail(Fault { method, path, code, reason, retry_after: 0, times: 2 });
    cluster.plane.kubectl(&["label", "namespace", "later", "runners=yes"]).await.unwrap();
    let unread = "what a newly selected namespace holds cannot be read; tried again";
    tool.logged("that the read failed", |line| line["message"] == unread && line["reason"] == "denied").await;
    cluster.clone_with("later", SECRET, &TOKEN).await;
    wait::until("the trust bundle", async || {
        let data = bundles.get(TRUST).await.unwrap().data.unwrap();
        data["ca.crt"].contains("BEGIN CERTIFICATE").then_some(())
    })
    .await;
    let told = tool.log_lines().iter().filter(|line| line["message"] == unread).count();
    assert_eq!((told, proxy.faults_left()), (1, 0), "once for each reason");

    cluster.plane.kubectl(&["label", "namespace", "later", "runners-"]).await.unwrap();
    wait::within(wait::PATIENCE * 4, "clone and trust bundle are gone", async || {
        let clone = cluster.secret("later", SECRET).await;
        let bundle = bundles.get_opt(TRUST).await.unwrap();
        (clone.is_none() && bundle.is_none()).then_some(())
    })
    .await;
}

/// How long a clone takes to follow its source while nothing else happens, while a Secret with a megabyte of certificates
/// is rewritten elsewhere as fast as the API server takes it, and while that is one of our name. No assertion on time: the
/// medians are printed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: three times a hundred rotations"]
async fn soak_certificates_elsewhere_delay_no_clone() {
    let cluster = mission().await;
    let _tool = cluster.tool(BINARY).await.start().await;
    cluster.create_namespace("elsewhere", &[]).await;
    for name in [None, Some("another-name"), Some(CERTS)] {
        let writer = name.map(|name| {
            let (secrets, certificate) = (cluster.secrets("elsewhere"), cluster.certificate.ca_pem.clone());
            tokio::spawn(async move {
                let mut secret = large(name, "ca.crt", certificate.repeat(1_000_000 / certificate.len()).as_bytes());
                for round in 0_u64.. {
                    secret.metadata.labels = Some([("round".to_owned(), round.to_string())].into());
                    let params = kube::api::PatchParams::apply("test").force();
                    secrets.patch(name, &params, &kube::api::Patch::Apply(&secret)).await.unwrap();
                }
            })
        });
        let mut taken = Vec::new();
        for round in 0..100 {
            let value = format!("{name:?}-{round}");
            let started = Instant::now();
            rotate(&cluster, &value).await;
            followed(&cluster, &value).await;
            taken.push(started.elapsed());
        }
        if let Some(writer) = writer {
            assert!(!writer.is_finished(), "it went on all the time");
            writer.abort();
        }
        taken.sort_unstable();
        println!("beside {name:?}: median {:?}, longest {:?}", taken[50], taken[99]);
    }
}

/// A Secret of nearly 1 MiB.
fn large(name: &str, key: &str, value: &[u8]) -> Secret {
    let data = BTreeMap::from([(key.to_owned(), ByteString(value.to_vec()))]);
    let mut secret = Secret { data: Some(data), ..Secret::default() };
    secret.metadata.name = Some(name.to_owned());
    secret
}

/// Objects of our names, of nearly 1 MiB each, in so many namespaces: Secrets, too, or trust bundles only.
async fn fill(cluster: &Cluster, namespaces: usize, selected: bool, secrets_too: bool) {
    let value = vec![b'x'; 1000 * 1024];
    let labels: &[(&str, &str)] = if selected { &[("runners", "yes")] } else { &[] };
    let (value, kind) = (&value, if selected { "runners" } else { "elsewhere" });
    stream::iter(0..namespaces)
        .for_each_concurrent(4, async |number| {
            let namespace = format!("{kind}-{number:04}");
            cluster.create_namespace(&namespace, labels).await;
            let secrets = cluster.secrets(&namespace);
            let all = [large(CERTS, "notes", value), large(SECRET, "runner-token", value)];
            for secret in all.iter().filter(|_| secrets_too) {
                secrets.create(&PostParams::default(), secret).await.unwrap();
            }
            let map = json!({"metadata": {"name": TRUST}, "data": {"ca.crt": "x".repeat(1000 * 1024)}});
            let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::namespaced(cluster.admin.clone(), &namespace);
            maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
        })
        .await;
}

/// The most memory at a start under the limit of the shipped container, where such a limit can be set.
async fn memory_at_start(cluster: &Cluster, config: Option<&str>) -> u64 {
    let builder = cluster.tool(BINARY).await;
    let builder = config.iter().fold(builder, |builder, config| builder.config(config));
    let limit = MemoryLimit::new(128 * MIB);
    let started = Instant::now();
    let tool = builder.spawn();
    if let Some(limit) = &limit {
        limit.hold(tool.pid());
    }
    tool.ready().await;
    let ready = started.elapsed();
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
    let peak = tool.peak_bytes();
    println!("ready after {ready:?}; at most {} MiB resident", peak / MIB);
    match limit {
        Some(limit) => {
            println!("under a limit of 128 MiB: at most {} MiB, pages of its file included", limit.peak() / MIB);
            assert_eq!(limit.kills(), 0);
            assert!(tool.stop().await.success());
        }
        None => println!("left out: a limit of memory, which takes root and a writable cgroup file system"),
    }
    peak
}

#[tokio::test(flavor = "multi_thread")]
async fn large_objects_of_our_names_elsewhere_do_not_fill_memory_at_start() {
    let cluster = mission().await;
    fill(&cluster, 60, false, true).await;
    let peak = memory_at_start(&cluster, None).await;
    // 180 MB lie there. This binary is not optimised.
    assert!(peak < 64 * MIB, "{peak} bytes");
}

/// Numbers: `cargo test --release --test api_server watches:: -- --ignored --nocapture soak`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: 1 GB in etcd"]
async fn soak_memory_at_start_beside_a_thousand_large_bundles() {
    let plane = ControlPlane::builder().etcd_arg("--quota-backend-bytes=8589934592");
    let config = format!(
        "clones: [{{secret: {SECRET}, from: {SOURCE_NAMESPACE}}}]\n\
         runnerNamespaces: {{names: [{RUNNER_NAMESPACE}], selectors: [{{matchLabels: {{runners: \"yes\"}}}}]}}\n"
    );
    let cluster = Cluster::start_as(plane, Setup { config: Some(&config) }).await;
    cluster.create_namespace(SOURCE_NAMESPACE, &[]).await;
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &TOKEN).await;
    cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
    fill(&cluster, 500, true, false).await;
    fill(&cluster, 500, false, false).await;
    let peak = memory_at_start(&cluster, Some(&config)).await;
    assert!(peak < 64 * MIB, "{peak} bytes");
}
