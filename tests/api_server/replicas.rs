//! Several replicas: one goes, another comes, and the API server and its users see nothing of it.
//!
//! The API server calls a load balancer in this process, which follows the Endpoints that the real controller makes;
//! how long after them it does so is part of each test. What is counted is what the API server answered to whom
//! creates pods, with `failurePolicy: Fail`.

use std::{collections::BTreeMap, time::Duration};

use test_support::{
    Cluster, Load, Replica, Replicas, Setup, Tool, ToolBuilder,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE},
    control_plane::{AuditLevel, ControlPlane},
    wait,
};

use crate::{BINARY, mission::CERTS};

const WORKERS: usize = 16;
/// What it takes for a change of the Endpoints to reach the rules on a node.
const LAG: Duration = Duration::from_secs(4);

/// A cluster whose webhooks are reached through the balancer.
async fn cluster() -> Cluster {
    // What a load leaves in the log would be read again and again.
    let builder = ControlPlane::builder().nodes(true).audit(AuditLevel::None);
    let cluster = Cluster::start_as(builder, Setup::default()).await;
    prepare(&cluster).await;
    cluster
}

async fn prepare(cluster: &Cluster) {
    for namespace in [SOURCE_NAMESPACE, RUNNER_NAMESPACE] {
        cluster.create_namespace(namespace, &[]).await;
        cluster.plane.service_account_ready(namespace, "default").await.unwrap();
    }
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &token("first")).await;
    cluster.put_secret(RUNNER_NAMESPACE, CERTS, &[("ca.crt", &cluster.certificate.ca_pem)]).await;
}

fn token(value: &str) -> [(&str, &str); 1] {
    [("runner-token", value)]
}

/// The program, with that many seconds to drain, and quiet: a load would fill the log.
async fn builder(cluster: &Cluster, drain: u32) -> ToolBuilder {
    cluster.tool(BINARY).await.flag("--drain", &drain.to_string()).flag("--log-level", "info")
}

/// A load on webhooks that are registered, called and loaded.
async fn load(cluster: &Cluster, replicas: &Replicas<'_>) -> Load {
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &token("first")).await;
    wait::until("connections go somewhere", async || (!replicas.balancer.routes().is_empty()).then_some(())).await;
    cluster.register_webhooks(replicas.balancer.port, "Fail").await;
    // The API server knows the webhooks and they know the certificates when a hundred in a row are injected.
    wait::until("the API server calls the webhooks", async || {
        let load = Load::start(cluster, 4);
        wait::until("some are created", async || (load.created() + load.failed() >= 100).then_some(())).await;
        load.stop().await.1.is_empty().then_some(())
    })
    .await;
    Load::start(cluster, WORKERS)
}

async fn is_in_phase(tool: &Tool, phase: &str) {
    tool.logged(phase, |line| line["message"] == "shutdown" && line["phase"] == phase).await;
}

/// Waits for its end.
async fn end(replicas: &Replicas<'_>, replica: Replica) {
    let (status, tool) = replicas.ended(replica).await;
    assert!(status.success(), "{}", tool.log_text());
}

/// How many reviews it has answered.
async fn answered(tool: &Tool) -> f64 {
    let (_, page) = tool.get("/metrics").await;
    let counts = page.lines().filter(|line| line.starts_with("gitlab_runner_webhook_admissions_total{"));
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// As a Deployment with `maxUnavailable: 0` and `maxSurge: 1` does it: the new one is ready, the old one goes.
async fn replace_each(
    cluster: &Cluster,
    replicas: &Replicas<'_>,
    serving: &mut [Replica],
    drain: u32,
    after: impl AsyncFn(),
) {
    let mut leaving = Vec::new();
    for place in serving {
        let next = replicas.add(builder(cluster, drain).await).await;
        let former = std::mem::replace(place, next);
        replicas.terminate(&former).await;
        is_in_phase(&former.tool, "LameDuck").await;
        let (readiness, why) = former.tool.get("/readyz").await;
        assert!(readiness == 503 && why.contains("[-]shutdown: asked to end by SIGTERM"), "{readiness} {why}");
        assert_eq!(former.tool.get("/livez").await.0, 200);
        let before = answered(&former.tool).await;
        after().await;
        assert!(answered(&former.tool).await > before, "nobody called it any more: this showed nothing");
        leaving.push(former);
    }
    for former in leaving {
        end(replicas, former).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_replaced_under_load_and_no_admission_is_lost() {
    let cluster = cluster().await;
    let replicas = Replicas::new(&cluster, LAG).await;
    let mut serving = [replicas.add(builder(&cluster, 7).await).await, replicas.add(builder(&cluster, 7).await).await];
    replicas.routed(&serving[1]).await;
    let load = load(&cluster, &replicas).await;
    load.more(100).await;
    replace_each(&cluster, &replicas, &mut serving, 7, async || load.more(100).await).await;
    load.more(100).await;
    let (created, failures) = load.stop().await;
    assert!(failures.is_empty(), "{} of {created}: {failures:#?}", failures.len());
}

/// The rules on the API server's node know only the one that ends, for 5 s.
#[tokio::test(flavor = "multi_thread")]
async fn a_lone_replica_is_replaced_and_the_node_learns_late() {
    let cluster = cluster().await;
    let replicas = Replicas::new(&cluster, Duration::from_secs(5)).await;
    let former = replicas.add(builder(&cluster, 9).await).await;
    let load = load(&cluster, &replicas).await;
    let next = replicas.add(builder(&cluster, 9).await).await;
    replicas.terminate(&former).await;
    is_in_phase(&former.tool, "LameDuck").await;
    let before = answered(&former.tool).await;
    replicas.routed(&next).await;
    assert!(answered(&former.tool).await > before, "the API server found somebody else: this showed nothing");
    end(&replicas, former).await;
    load.more(100).await;
    let (created, failures) = load.stop().await;
    assert!(failures.is_empty(), "{} of {created}: {failures:#?}", failures.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_replica_serves_to_the_end_and_a_second_signal_is_the_end() {
    let cluster = Cluster::start_as(ControlPlane::builder().nodes(true), Setup::default()).await;
    prepare(&cluster).await;
    let replicas = Replicas::new(&cluster, Duration::ZERO).await;
    let alone = replicas.add(builder(&cluster, 600).await).await;
    let load = load(&cluster, &replicas).await;
    alone.tool.signal("TERM").await;
    is_in_phase(&alone.tool, "LameDuck").await;
    // Sync goes on, and with it the gate.
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &token("rotated")).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &token("rotated")).await;
    load.more(1000).await;
    let (created, failures) = load.stop().await;
    assert!(failures.is_empty(), "{} of {created}: {failures:#?}", failures.len());

    alone.tool.signal("TERM").await;
    let (status, _tool) = replicas.ended(alone).await;
    assert!(status.success());
}

/// One of two is killed again and again. Returns how many pods were let in, and how many not.
async fn kill_one_of_two(rounds: usize) -> (usize, usize) {
    let cluster = cluster().await;
    let replicas = Replicas::new(&cluster, Duration::ZERO).await;
    let mut serving =
        vec![replicas.add(builder(&cluster, 0).await).await, replicas.add(builder(&cluster, 0).await).await];
    replicas.routed(&serving[1]).await;
    let load = load(&cluster, &replicas).await;
    // A request is with the killed one when its connection is, or when it is on its way there.
    let affected = || replicas.balancer.ended() + replicas.balancer.refused();
    for round in 0..rounds {
        load.more(50).await;
        let (failed, with_it) = (load.failed(), affected());
        replicas.kill(serving.remove(0)).await;
        let value = format!("rotated-{round}");
        cluster.put_secret(SOURCE_NAMESPACE, SECRET, &token(&value)).await;
        cluster.clone_with(RUNNER_NAMESPACE, SECRET, &token(&value)).await;
        load.more(50).await;
        let (failed, with_it) = (load.failed() - failed, affected() - with_it);
        assert!(failed <= with_it, "round {round}: {failed} of {with_it}: {:#?}", load.failures());
        // All that were in flight are over: from here on none fails.
        load.more(2 * WORKERS).await;
        let settled = load.failed();
        serving.push(replicas.add(builder(&cluster, 0).await).await);
        replicas.routed(&serving[1]).await;
        load.more(100).await;
        assert_eq!(load.failed(), settled, "round {round}: {:#?}", load.failures());
    }
    let (created, failures) = load.stop().await;
    (created, failures.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_killed_takes_only_what_was_in_flight_with_it_and_the_other_one_syncs() {
    kill_one_of_two(3).await;
}

/// Three replicas start in the same instant on a namespace where nothing is. Returns the most writes that one object
/// got.
async fn start_three_at_once(rounds: usize) -> usize {
    let any_round = "runnerNamespaces: {names: [], selectors: [{matchExpressions: [{key: round, operator: Exists}]}]}";
    let setup = Setup { config: Some(any_round) };
    let cluster = Cluster::start_as(ControlPlane::builder(), setup).await;
    cluster.create_namespace(SOURCE_NAMESPACE, &[]).await;
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &token("first")).await;
    let mut most = 0;
    for round in 0..rounds {
        let namespace = format!("runner-{round}");
        cluster.create_namespace(&namespace, &[("round", &round.to_string())]).await;
        cluster.put_secret(&namespace, CERTS, &[("ca.crt", &cluster.certificate.ca_pem)]).await;
        let config = format!("runnerNamespaces: {{names: [], selectors: [{{matchLabels: {{round: '{round}'}}}}]}}\n");
        let before = cluster.writes().await.len();
        let builder = cluster.tool(BINARY).await.config(&config);
        let three = [builder.clone().spawn(), builder.clone().spawn(), builder.spawn()];
        for tool in &three {
            tool.ready().await;
            tool.clones_in_state(SECRET, "synced", 1.0).await;
            tool.metric_is("gitlab_runner_webhook_trust_bundles{state=\"synced\"}", 1.0).await;
        }
        cluster.clone_with(&namespace, SECRET, &token("first")).await;
        for tool in three {
            assert!(tool.stop().await.success());
        }

        let mut written = BTreeMap::<_, usize>::new();
        for write in cluster.writes().await.into_iter().skip(before).filter(|write| write.code < 300) {
            *written.entry((write.resource, write.namespace, write.name)).or_default() += 1;
        }
        let object = |resource: &str, name: &str| (resource.to_owned(), namespace.clone(), name.to_owned());
        for object in [object("secrets", SECRET), object("configmaps", "gitlab-runner-webhook-trust")] {
            assert!(written.contains_key(&object), "{object:?} is not in {written:?}");
        }
        assert!(written.values().all(|writes| *writes <= 2), "round {round}: {written:?}");
        most = most.max(written.into_values().max().unwrap());
    }
    most
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_in_the_same_instant_make_one_of_each() {
    start_three_at_once(3).await;
}

/// `cargo test --test api_server replicas:: -- --ignored --nocapture soak`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: takes minutes"]
async fn soak_20000_admissions_while_replicas_are_replaced() {
    const ADMISSIONS: usize = 20_000;
    /// How late the API server's node learns, in milliseconds: mostly, and on large clusters.
    const LAGS: [u64; 6] = [1500, 1500, 4000, 4000, 10_000, 1500];
    let cluster = cluster().await;
    let replicas = Replicas::new(&cluster, LAG).await;
    let mut serving =
        [replicas.add(builder(&cluster, 20).await).await, replicas.add(builder(&cluster, 20).await).await];
    replicas.routed(&serving[1]).await;
    let load = load(&cluster, &replicas).await;
    for lag in LAGS {
        replicas.lag(Duration::from_millis(lag));
        let more = async || load.more(ADMISSIONS / LAGS.len() / 2 / 2).await;
        replace_each(&cluster, &replicas, &mut serving, 20, more).await;
    }
    load.more(ADMISSIONS.saturating_sub(load.created())).await;
    let (created, failures) = load.stop().await;
    println!("{} replicas replaced: {created} pods created, {} lost", 2 * LAGS.len(), failures.len());
    assert!(failures.is_empty() && created >= ADMISSIONS, "{failures:#?}");
}

/// `cargo test --test api_server replicas:: -- --ignored --nocapture soak`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: takes minutes"]
async fn soak_one_of_two_replicas_is_killed_20_times() {
    let (created, failed) = kill_one_of_two(20).await;
    println!("20 replicas killed: {created} pods created, {failed} lost, all of them in flight with the killed one");
}

/// `cargo test --test api_server replicas:: -- --ignored --nocapture soak`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: takes minutes"]
async fn soak_three_replicas_start_in_the_same_instant_50_times() {
    let most = start_three_at_once(50).await;
    println!("three replicas started in the same instant 50 times: at most {most} writes of one object");
}
