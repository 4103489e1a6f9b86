//! Latency of sync beside a floor that is measured in the same run.
//!
//! The floor is the least that can be done: a watch, and a server-side apply for each event, in a
//! process of its own with the same client library, credentials and concurrency. Both are told of the
//! same kind of event, one after the other in turn; a third party, a watch as admin, sees the clones.
//! What is shown are ratios: absolute numbers are the machine's.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the lints spare test functions, not what they share"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::KubeConfigOptions,
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use test_support::{
    Cluster, Setup,
    cluster::{SECRET, SOURCE_NAMESPACE, secret},
    control_plane::ControlPlane,
    wait,
};
use tokio::sync::watch;

const BINARY: &str = env!("CARGO_BIN_EXE_gitlab-runner-webhook");
const FLOOR_SECRET: &str = "floor-secret";
/// Writes at once, of the floor as of the tool; and namespaces created at once in a burst.
const CONCURRENCY: usize = 24;
const SAMPLES: usize = 100;
const BURST: usize = 200;
const BURST_ROUNDS: usize = 5;
const OTHERS: usize = 10_000;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Floor,
    Tool,
}

impl Side {
    fn label(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Tool => "tool",
        }
    }

    fn secret(self) -> &'static str {
        match self {
            Self::Floor => FLOOR_SECRET,
            Self::Tool => SECRET,
        }
    }
}

#[tokio::main]
async fn main() {
    if let Ok(kubeconfig) = std::env::var("BENCH_FLOOR_KUBECONFIG") {
        return floor(&kubeconfig).await;
    }
    if cfg!(debug_assertions) {
        eprintln!("a debug build says nothing about speed; run `make bench`");
    }
    let builder = ControlPlane::builder().controller_manager(false);
    // The floor runs as the same ServiceAccount.
    let both = format!(
        "runnerNamespaces: {{names: [], selectors: [{{matchExpressions: [{{key: bench, operator: Exists}}]}}]}}\n\
         clones: [{{secret: {SECRET}, from: gitlab}}, {{secret: {FLOOR_SECRET}, from: gitlab}}]\n"
    );
    let cluster = Cluster::start_as(builder, Setup { config: Some(&both) }).await;
    cluster.create_namespace(SOURCE_NAMESPACE, &[]).await;
    for side in [Side::Floor, Side::Tool] {
        rotate(&cluster, side, "first").await;
    }

    println!("start to ready");
    let mut starts = Vec::new();
    for _ in 0..10 {
        let tool = cluster.tool(BINARY).await.config(CONFIG).flag("--log-level", "info").spawn();
        starts.push(tool.ready().await - tool.started);
        assert!(tool.stop().await.success());
    }
    println!("  p50 {}   longest {}   (goal: 300 ms)\n", ms(quantile(&starts, 50)), ms(quantile(&starts, 100)));

    let empty = measure(&cluster, "an empty cluster").await;
    crowd(&cluster).await;
    let crowded = measure(&cluster, &format!("{OTHERS} other Secrets and {OTHERS} other namespaces")).await;

    println!("what other objects cost");
    println!("  resident memory at rest  {} -> {}   (goal: +-1 MiB)", mib(empty.resident), mib(crowded.resident));
    println!("  namespace -> clone p50   {} -> {}", ms(empty.namespace), ms(crowded.namespace));
    println!("  source -> clone p50      {} -> {}", ms(empty.source), ms(crowded.source));
    println!("  requests of the run      {} -> {}", empty.requests, crowded.requests);
}

const CONFIG: &str = "runnerNamespaces: {names: [], selectors: [{matchLabels: {bench: tool}}]}\n";

/// What is compared between two runs.
struct Outcome {
    resident: u64,
    namespace: Duration,
    source: Duration,
    requests: usize,
}

async fn measure(cluster: &Cluster, title: &str) -> Outcome {
    println!("{title}");
    let run = wait::unique();
    let before = cluster.requests().await.len();
    let tool = cluster.tool(BINARY).await.config(CONFIG).flag("--log-level", "info").start().await;
    let resident = tool.resident_bytes();
    let floor = start_floor(cluster).await;
    let seen = Seen::start(&cluster.admin);

    let mut namespaces = [Vec::new(), Vec::new()];
    for sample in 0..SAMPLES {
        for (side, times) in [Side::Floor, Side::Tool].into_iter().zip(&mut namespaces) {
            let name = format!("{}-{run}-{sample}", side.label());
            let started = Instant::now();
            cluster.create_namespace(&name, &[("bench", side.label())]).await;
            times.push(seen.until(side, |clones| clones.contains_key(&name)).await - started);
        }
    }
    report("namespace created -> clone there", &namespaces, 99, 2.0);

    // One clone each for the latency of one: the others are taken out of the way.
    forget_all(cluster, &seen).await;
    for side in [Side::Floor, Side::Tool] {
        cluster.create_namespace(&format!("{}-{run}-one", side.label()), &[("bench", side.label())]).await;
    }
    let mut sources = [Vec::new(), Vec::new()];
    for sample in 0..SAMPLES {
        for (side, times) in [Side::Floor, Side::Tool].into_iter().zip(&mut sources) {
            let (name, token) = (format!("{}-{run}-one", side.label()), format!("one-{run}-{sample}"));
            let started = Instant::now();
            rotate(cluster, side, &token).await;
            times.push(seen.until(side, |clones| clones.get(&name) == Some(&token)).await - started);
        }
    }
    report("source changed -> clone changed", &sources, 99, 2.0);

    let mut bursts = [Vec::new(), Vec::new()];
    let mut updates = [Vec::new(), Vec::new()];
    for round in 0..BURST_ROUNDS {
        for (side, (bursts, updates)) in [Side::Floor, Side::Tool].into_iter().zip(bursts.iter_mut().zip(&mut updates))
        {
            forget_all(cluster, &seen).await;
            let prefix = format!("{}-{run}-{round}-", side.label());
            let all = |clones: &BTreeMap<String, String>, wanted: usize, token: Option<&str>| {
                let of_burst = clones.iter().filter(|(name, _)| name.starts_with(&prefix));
                of_burst.filter(|(_, value)| token.is_none_or(|token| *value == token)).count() == wanted
            };
            let started = Instant::now();
            stream::iter(0..BURST)
                .for_each_concurrent(CONCURRENCY, async |index| {
                    cluster.create_namespace(&format!("{prefix}{index}"), &[("bench", side.label())]).await;
                })
                .await;
            bursts.push(seen.until(side, |clones| all(clones, BURST, None)).await - started);

            let token = format!("all-{run}-{round}");
            let started = Instant::now();
            rotate(cluster, side, &token).await;
            updates.push(seen.until(side, |clones| all(clones, BURST, Some(&token))).await - started);
        }
    }
    report(&format!("burst of {BURST} namespaces: last clone"), &bursts, 100, 1.5);
    report(&format!("update of {BURST} clones: last clone"), &updates, 100, 1.5);

    let after = tool.resident_bytes();
    println!("  resident memory          {} at start, {} after the load   (goal: 12 MiB)\n", mib(resident), mib(after));
    forget_all(cluster, &seen).await;
    assert!(tool.stop().await.success());
    drop(floor);
    let requests = cluster.requests().await.len() - before;
    Outcome { resident, namespace: quantile(&namespaces[1], 50), source: quantile(&sources[1], 50), requests }
}

fn report(what: &str, [floor, tool]: &[Vec<Duration>; 2], tail: usize, goal: f64) {
    let ratio = |percent| quantile(tool, percent).as_secs_f64() / quantile(floor, percent).as_secs_f64();
    let tail_name = if tail == 100 { "longest".to_owned() } else { format!("p{tail}") };
    println!("  {what}");
    println!("    floor   p50 {:>9}   {tail_name} {:>9}", ms(quantile(floor, 50)), ms(quantile(floor, tail)));
    println!("    tool    p50 {:>9}   {tail_name} {:>9}", ms(quantile(tool, 50)), ms(quantile(tool, tail)));
    println!("    ratio   p50 {:>9.2}   {tail_name} {:>9.2}   (goal: {goal})", ratio(50), ratio(tail));
}

/// The least that can be done, as a process of its own.
async fn floor(kubeconfig: &str) {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a configuration");
    let client = Client::try_from(config).expect("a client");

    let sources: Api<Secret> = Api::namespaced(client.clone(), SOURCE_NAMESPACE);
    let (publish, source) = watch::channel(None);
    let follow = watcher(sources, watcher::Config::default().fields(&format!("metadata.name={FLOOR_SECRET}")))
        .applied_objects()
        .try_for_each(async |secret| {
            let _ = publish.send(secret.data);
            Ok(())
        });

    let namespaces: Api<Namespace> = Api::all(client.clone());
    let known = std::sync::Mutex::new(BTreeSet::<String>::new());
    let (created, arrivals) = tokio::sync::mpsc::unbounded_channel();
    let arrive = watcher(namespaces, watcher::Config::default().labels("bench=floor")).try_for_each(async |event| {
        let mut known = known.lock().expect("the list");
        match event {
            watcher::Event::Apply(namespace) | watcher::Event::InitApply(namespace) => {
                if known.insert(namespace.name_any()) {
                    let _ = created.send(namespace.name_any());
                }
            }
            watcher::Event::Delete(namespace) => drop(known.remove(&namespace.name_any())),
            watcher::Event::Init | watcher::Event::InitDone => {}
        }
        Ok(())
    });

    let apply = async |name: String| {
        let api: Api<Secret> = Api::namespaced(client.clone(), &name);
        let data = source.borrow().clone();
        let body = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": FLOOR_SECRET}, "data": data});
        // A namespace that is gone refuses: the floor does not care.
        let _ = api.patch(FLOOR_SECRET, &PatchParams::apply("floor").force(), &Patch::Apply(&body)).await;
    };
    let arrivals = stream::unfold(arrivals, async |mut arrivals| Some((arrivals.recv().await?, arrivals)));
    let create = arrivals.for_each_concurrent(CONCURRENCY, &apply);
    let changes = stream::unfold(source.clone(), async |mut source| source.changed().await.ok().map(|()| ((), source)));
    let update = changes.for_each(async |()| {
        let all = known.lock().expect("the list").clone();
        stream::iter(all).for_each_concurrent(CONCURRENCY, &apply).await;
    });
    let _ = tokio::join!(follow, arrive, create, update);
}

async fn start_floor(cluster: &Cluster) -> tokio::process::Child {
    let kubeconfig = cluster
        .plane
        .service_account_kubeconfig("gitlab-runner-webhook", "gitlab-runner-webhook")
        .await
        .expect("a kubeconfig");
    let child = tokio::process::Command::new(std::env::current_exe().expect("this program"))
        .env("BENCH_FLOOR_KUBECONFIG", kubeconfig)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("the floor starts");
    // It follows when a namespace that is there gets its Secret.
    let name = format!("floor-ready-{}", wait::unique());
    cluster.create_namespace(&name, &[("bench", "floor")]).await;
    cluster.secret_that("comes from the floor", &name, FLOOR_SECRET, |_| true).await;
    child
}

/// The token in each clone of both sides, as a watch as admin sees it.
struct Seen([watch::Receiver<BTreeMap<String, String>>; 2]);

impl Seen {
    fn start(client: &Client) -> Self {
        Self([Side::Floor, Side::Tool].map(|side| {
            let (publish, clones) = watch::channel(BTreeMap::new());
            let api: Api<Secret> = Api::all(client.clone());
            let config = watcher::Config::default().fields(&format!("metadata.name={}", side.secret()));
            let mut events = watcher(api, config).boxed();
            tokio::spawn(async move {
                while let Ok(Some(event)) = events.try_next().await {
                    let (secret, there) = match event {
                        watcher::Event::Apply(secret) | watcher::Event::InitApply(secret) => (secret, true),
                        watcher::Event::Delete(secret) => (secret, false),
                        _ => continue,
                    };
                    let token = secret.data.as_ref().and_then(|data| data.get("runner-token"));
                    let token = token.map(|token| String::from_utf8_lossy(&token.0).into_owned()).unwrap_or_default();
                    publish.send_modify(|clones| {
                        let namespace = secret.namespace().unwrap_or_default();
                        if there {
                            clones.insert(namespace, token);
                        } else {
                            clones.remove(&namespace);
                        }
                    });
                }
            });
            clones
        }))
    }

    async fn until(&self, side: Side, is_true: impl Fn(&BTreeMap<String, String>) -> bool) -> Instant {
        let mut clones = self.0[side as usize].clone();
        tokio::time::timeout(wait::PATIENCE, clones.wait_for(|clones| is_true(clones)))
            .await
            .unwrap_or_else(|_| panic!("the clones of the {} do not come", side.label()))
            .expect("the watch goes on");
        Instant::now()
    }
}

async fn rotate(cluster: &Cluster, side: Side, token: &str) {
    let api = cluster.secrets(SOURCE_NAMESPACE);
    let source = secret(side.secret(), &[("runner-token", token)]);
    let body = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": side.secret()}, "data": source.data});
    api.patch(side.secret(), &PatchParams::apply("admin").force(), &Patch::Apply(&body)).await.expect("the source");
}

/// Takes the label off every namespace of both sides, so that neither looks after them any more, and
/// waits until their clones are gone.
async fn forget_all(cluster: &Cluster, seen: &Seen) {
    let api = cluster.namespaces();
    let labelled = kube::api::ListParams::default().labels("bench in (tool,floor)");
    let all = api.list(&labelled).await.expect("namespaces").items;
    stream::iter(all)
        .for_each_concurrent(CONCURRENCY, async |namespace| {
            let patch = Patch::Merge(json!({"metadata": {"labels": {"bench": null}}}));
            api.patch(&namespace.name_any(), &PatchParams::default(), &patch).await.expect("the label goes");
            let floor: Api<Secret> = Api::namespaced(cluster.admin.clone(), &namespace.name_any());
            let _ = floor.delete(FLOOR_SECRET, &DeleteParams::default()).await;
        })
        .await;
    for side in [Side::Floor, Side::Tool] {
        seen.until(side, |clones| clones.keys().all(|namespace| namespace == SOURCE_NAMESPACE)).await;
    }
}

/// Fills the cluster with what is none of our business.
async fn crowd(cluster: &Cluster) {
    println!("creating {OTHERS} other Secrets and {OTHERS} other namespaces ...");
    cluster.create_namespace("crowd", &[]).await;
    let crowd = cluster.secrets("crowd");
    stream::iter(0..OTHERS)
        .for_each_concurrent(CONCURRENCY, async |index| {
            cluster.create_namespace(&format!("crowd-{index}"), &[]).await;
            let other = secret(&format!("other-{index}"), &[("password", "p")]);
            crowd.create(&PostParams::default(), &other).await.expect("another Secret");
        })
        .await;
}

fn quantile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    let rank = (times.len() * percent).div_ceil(100).max(1) - 1;
    times[rank]
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn mib(bytes: u64) -> String {
    let tenths = bytes * 10 / 1024 / 1024;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
