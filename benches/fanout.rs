//! One change of the source that goes to 1000 runner namespaces: one replica, and two that share it without talking,
//! beside bare server-side applies in the same run.
//!
//! The applies are sent from this process with the same client library, credentials and concurrency, and know
//! beforehand what to write and where. Here all of it shares the cores of one machine, and two replicas can be no faster
//! than what saturates those; so the same is measured with an API server that takes longer to answer, which is what
//! bounds a replica elsewhere. What is shown are ratios: absolute numbers are the machine's. Who wrote what is
//! read from the API server's audit log.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the lints spare test functions, not what they share"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::watcher,
};
use serde_json::json;
use test_support::{
    Cluster, Setup,
    cluster::{SECRET, SOURCE_NAMESPACE, secret},
    control_plane::ControlPlane,
    wait,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

const BINARY: &str = env!("CARGO_BIN_EXE_gitlab-runner-webhook");
const CONFIG: &str = "runnerNamespaces: {names: [], selectors: [{matchLabels: {bench: tool}}]}\n";
const BARE_SECRET: &str = "bare-secret";
const NAMESPACES: usize = 1000;
const ROUNDS: usize = 5;
/// Writes at once, of the applies as of each replica.
const CONCURRENCY: usize = 24;
/// How long each byte takes to and from an API server that is far away, or busy with others.
const ONE_WAY: Duration = Duration::from_millis(20);

/// What was needed for one change.
struct Round {
    time: Duration,
    /// Writes that the API server accepted beyond one for each clone.
    twice: usize,
    /// Writes that came too late and were refused.
    conflicts: usize,
}

#[tokio::main]
async fn main() {
    if cfg!(debug_assertions) {
        eprintln!("a debug build says nothing about speed; run `make bench`");
    }
    let builder = ControlPlane::builder().controller_manager(false);
    let both =
        format!("{CONFIG}clones: [{{secret: {SECRET}, from: gitlab}}, {{secret: {BARE_SECRET}, from: gitlab}}]\n");
    let cluster = Cluster::start_as(builder, Setup { config: Some(&both) }).await;
    cluster.create_namespace(SOURCE_NAMESPACE, &[]).await;
    rotate(&cluster, "first").await;
    stream::iter(0..NAMESPACES)
        .for_each_concurrent(CONCURRENCY, async |index| {
            cluster.create_namespace(&namespace(index), &[("bench", "tool")]).await;
        })
        .await;
    let account = "gitlab-runner-webhook";
    let near = cluster.plane.service_account_kubeconfig(account, account).await.expect("a kubeconfig");
    compare(&cluster, "API server on this machine, of which all share the cores", &near).await;
    let far = kubeconfig_through(&near, delay(&near).await);
    compare(&cluster, &format!("API server that is {} ms away", 2 * ONE_WAY.as_millis()), &far).await;
}

async fn compare(cluster: &Cluster, title: &str, kubeconfig: &Path) {
    let client = client(kubeconfig).await;
    let tokens = follow(&cluster.admin);
    let start = async || {
        let tool = cluster.tool_from(BINARY, kubeconfig).config(CONFIG).flag("--log-level", "info");
        tool.start().await
    };
    let first = start().await;
    rotate(cluster, "next").await;
    all_have(&tokens, "next").await;
    bare(&client, "next").await;

    let (mut bares, mut ones, mut twos) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        bares.push(bare(&client, &format!("bare-{round}")).await);
        ones.push(change(cluster, &tokens, &format!("one-{round}")).await);
        let second = start().await;
        twos.push(change(cluster, &tokens, &format!("two-{round}")).await);
        assert!(second.stop().await.success());
    }
    assert!(first.stop().await.success());

    let bare = rate(bares);
    println!("one change of the source to {NAMESPACES} runner namespaces, median of {ROUNDS} rounds in turn");
    println!("{title}");
    println!("  bare applies    {bare:6.0} a second");
    let mut former = None;
    for (who, rounds) in [("one replica", &ones), ("two replicas", &twos)] {
        let rate = rate(rounds.iter().map(|round| round.time).collect());
        let goal = former.map_or("0.80".to_owned(), |former: f64| format!("more than {:.2}", former / bare));
        println!("  {who:<15} {rate:6.0} a second   ratio {:.2}   (goal: {goal})", rate / bare);
        let percent =
            |count: fn(&Round) -> usize| 100.0 * number(rounds.iter().map(count).sum()) / number(NAMESPACES * ROUNDS);
        let (twice, conflicts) = (percent(|round| round.twice), percent(|round| round.conflicts));
        println!("    clones written twice {twice:.2} %   (goal: 5 %); writes refused as too late {conflicts:.2} %");
        former = Some(rate);
    }
    println!();
}

fn rate(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    number(NAMESPACES) / times[times.len() / 2].as_secs_f64()
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).expect("a small number"))
}

async fn client(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Client::try_from(config.expect("a configuration")).expect("a client")
}

/// The same, but the API server is reached at this port.
fn kubeconfig_through(kubeconfig: &Path, port: u16) -> PathBuf {
    let text = std::fs::read_to_string(kubeconfig).expect("a kubeconfig");
    let path = kubeconfig.with_extension("far");
    std::fs::write(&path, text.replace(&server(kubeconfig), &format!("127.0.0.1:{port}"))).expect("a kubeconfig");
    path
}

/// Host and port of the API server.
fn server(kubeconfig: &Path) -> String {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let server = kubeconfig.clusters[0].cluster.as_ref().and_then(|cluster| cluster.server.clone());
    server.expect("a server").trim_start_matches("https://").trim_end_matches('/').to_owned()
}

/// A port that leads to the API server, but each byte takes its time.
async fn delay(kubeconfig: &Path) -> u16 {
    let server = server(kubeconfig);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect(&server).await else { continue };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            tokio::spawn(later(from_client, to_server));
            tokio::spawn(later(from_server, to_client));
        }
    });
    port
}

async fn later(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (sender, mut pieces) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some((due, piece)) = pieces.recv().await {
            tokio::time::sleep_until(due).await;
            let piece: Vec<u8> = piece;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length) = from.read(&mut buffer).await
        && length > 0
        && sender.send((tokio::time::Instant::now() + ONE_WAY, buffer[..length].to_vec())).is_ok()
    {}
}

fn namespace(index: usize) -> String {
    format!("fan-{index}")
}

async fn rotate(cluster: &Cluster, token: &str) {
    let api = cluster.secrets(SOURCE_NAMESPACE);
    let source = secret(SECRET, &[("runner-token", token)]);
    let body = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "data": source.data});
    api.patch(SECRET, &PatchParams::apply("admin").force(), &Patch::Apply(&body)).await.expect("the source");
}

/// Time for the applies alone.
async fn bare(client: &Client, token: &str) -> Duration {
    let wanted = secret(BARE_SECRET, &[("runner-token", token)]);
    let body = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": BARE_SECRET}, "data": wanted.data});
    let started = Instant::now();
    stream::iter(0..NAMESPACES)
        .for_each_concurrent(CONCURRENCY, async |index| {
            let api: Api<Secret> = Api::namespaced(client.clone(), &namespace(index));
            api.patch(BARE_SECRET, &PatchParams::apply("bare").force(), &Patch::Apply(&body)).await.expect("an answer");
        })
        .await;
    started.elapsed()
}

/// Time from the request that changes the source until a watch has seen the last clone change.
async fn change(cluster: &Cluster, tokens: &Tokens, token: &str) -> Round {
    let before = cluster.writes().await.len();
    let started = Instant::now();
    rotate(cluster, token).await;
    let time = all_have(tokens, token).await - started;

    // A write may still be under way that is refused because the other replica was faster.
    let mut writes = cluster.writes().await;
    loop {
        let later = cluster.writes().await;
        let known = writes.len();
        writes = later;
        if writes.len() == known {
            break;
        }
    }
    let mut written = BTreeSet::new();
    let (mut twice, mut conflicts) = (0, 0);
    for write in writes.into_iter().skip(before).filter(|write| write.name == SECRET) {
        match write.code {
            409 => conflicts += 1,
            code if code < 300 => twice += usize::from(!written.insert(write.namespace)),
            code => panic!("{code} for {} {}", write.verb, write.uri),
        }
    }
    assert_eq!(written.len(), NAMESPACES);
    Round { time, twice, conflicts }
}

type Tokens = watch::Receiver<BTreeMap<String, String>>;

/// The token in each clone, as a watch as admin sees it.
fn follow(client: &Client) -> Tokens {
    let (publish, tokens) = watch::channel(BTreeMap::new());
    let config = watcher::Config::default().fields(&format!("metadata.name={SECRET}"));
    let mut events = watcher(Api::<Secret>::all(client.clone()), config).boxed();
    tokio::spawn(async move {
        while let Ok(Some(event)) = events.try_next().await {
            let (watcher::Event::Apply(secret) | watcher::Event::InitApply(secret)) = event else { continue };
            let token = secret.data.as_ref().and_then(|data| data.get("runner-token"));
            let token = token.map(|token| String::from_utf8_lossy(&token.0).into_owned()).unwrap_or_default();
            publish.send_modify(|tokens| drop(tokens.insert(secret.namespace().unwrap_or_default(), token)));
        }
    });
    tokens
}

async fn all_have(tokens: &Tokens, token: &str) -> Instant {
    let mut tokens = tokens.clone();
    let all = |tokens: &BTreeMap<String, String>| tokens.values().filter(|value| *value == token).count() > NAMESPACES;
    tokio::time::timeout(wait::PATIENCE, tokens.wait_for(all)).await.expect("the clones change").expect("the watch");
    Instant::now()
}
