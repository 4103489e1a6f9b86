//! Admission beside a constant answer over the same stack, measured in turn in the same run.
//!
//! The floor is this server with a route that reads the same body and answers the same number of bytes, so
//! that the ratio is what deciding costs. Then the release binary's memory under the longest reviews. What is
//! shown are ratios where there is a floor: absolute numbers are the machine's.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the lints spare test functions, not what they share"
)]

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::post};
use bytes::Bytes;
use futures::future::join_all;
use gitlab_runner_webhook::{
    cluster::Requests,
    config::{Config, NamespaceName},
    pki::{CertificateFiles, FileCertificate},
    server::{AppState, Certificate, Server, bind, webhook_router},
    shutdown,
    snapshot::{SharedSnapshot, Snapshot},
    telemetry::{health::Health, metrics::Metrics},
    trust::{BundleFiles, Certs},
};
use http::Request;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::ServingCertificate;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, split},
    net::{TcpSocket, TcpStream},
    process::{Child, Command},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower::ServiceExt as _;

const BINARY: &str = env!("CARGO_BIN_EXE_gitlab-runner-webhook");
const NAMESPACE: &str = "gitlab-runner";
const SAMPLES: usize = 5_000;
const CONNECTIONS: usize = 25;
const ROUNDS: usize = 10;
const ROUND: Duration = Duration::from_secs(1);
const GIANTS: usize = 64;
const GIANT: usize = 10 * 1024 * 1024;
const PATIENCE: Duration = Duration::from_mins(2);

#[tokio::main(worker_threads = 2)]
async fn main() {
    if cfg!(debug_assertions) {
        eprintln!("a debug build says nothing about speed; run `make bench`");
    }
    let _ = default_provider().install_default();
    let review = review(&job_pod());
    println!("review of a job pod with injection: {} bytes", review.len());
    let answer = latency(&review).await;
    throughput(&review, answer).await;
    memory(&review).await;
}

async fn latency(review: &[u8]) -> Vec<u8> {
    let router = tool_router();
    let (mut times, mut answer) = (Vec::new(), Bytes::new());
    for _ in 0..SAMPLES {
        let request = Request::post("/mutate/pods").header("content-type", "application/json");
        let request = request.body(Body::from(review.to_vec())).unwrap();
        let started = Instant::now();
        let response = router.clone().oneshot(request).await.unwrap();
        times.push(started.elapsed());
        assert_eq!(response.status(), 200);
        answer = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    }
    let parsed: Value = serde_json::from_slice(&answer).unwrap();
    assert!(parsed["response"]["patch"].is_string(), "it injects");
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!("  handler, in process     p50 {:.3} ms   p99 {:.3} ms   (goal: p99 1 ms)", at(50), at(99));
    answer.to_vec()
}

async fn throughput(review: &[u8], answer: Vec<u8>) {
    let answer = Bytes::from(answer);
    let same = answer.clone();
    let constant = move |body: Bytes| {
        let answer = same.clone();
        async move {
            assert!(!body.is_empty());
            ([("content-type", "application/json")], answer)
        }
    };
    // The least that an API server accepts: an answer has to name the review's uid.
    let valid = move |body: Bytes| {
        let answer = answer.clone();
        async move {
            let review: UidOnly = serde_json::from_slice(&body).unwrap();
            assert!(!review.request.uid.is_empty());
            ([("content-type", "application/json")], answer)
        }
    };
    let tool = serve(tool_router());
    let floor = serve(Router::new().route("/mutate/pods", post(constant)));
    let valid = serve(Router::new().route("/mutate/pods", post(valid)));
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (peer, rates) in [&floor, &valid, &tool].into_iter().zip(&mut rates) {
            rates.push(rate(peer, review).await);
        }
    }
    let [floor, valid, tool] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    println!("  {CONNECTIONS} connections over TLS, median of {ROUNDS} rounds in turn");
    println!("    constant answer           {floor:.0} a second");
    println!("    the same, having read uid {valid:.0} a second");
    println!("    tool                      {tool:.0} a second");
    println!("    ratio to the first        {:.2}   (goal: 0.80)", tool / floor);
    println!("    ratio to the second       {:.2}", tool / valid);
}

/// Answers a second, the client's own work included.
async fn rate(peer: &Peer, review: &[u8]) -> f64 {
    let mut connections = join_all((0..CONNECTIONS).map(|_| peer.connect())).await;
    let request = request(review);
    let started = Instant::now();
    let counts = join_all(connections.iter_mut().map(async |connection| {
        let mut count = 0_u32;
        while started.elapsed() < ROUND {
            assert_eq!(exchange(connection, &request).await, Some(200));
            count += 1;
        }
        count
    }));
    f64::from(counts.await.into_iter().sum::<u32>()) / started.elapsed().as_secs_f64()
}

async fn memory(small: &[u8]) {
    println!("resident memory of the binary under {GIANTS} parallel reviews of 10 MiB");
    // Go writes < as six characters; and the form that takes the most memory of those that are let through.
    let text = giant(&format!("\"{}\"", "\\u003c".repeat((GIANT - 65_536) / 6)));
    let maps = giant(&format!("[{}0]", r#"{"a":"b","c":"d"},"#.repeat(4_500)));
    for (what, body) in [("one long text", text), ("many small objects", maps)] {
        let process = Process::start().await;
        let idle = process.resident("VmRSS");
        let request = Arc::new(request(&body));
        let started = Instant::now();
        let giants = (0..GIANTS).map(|_| {
            let (peer, request) = (process.peer.clone(), Arc::clone(&request));
            tokio::spawn(async move {
                let mut again = 0_u32;
                // As the API server does: after `Retry-After: 1`, ten times.
                while exchange(&mut peer.connect_from(2).await, &request).await == Some(503) {
                    again += 1;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                again
            })
        });
        let giants: Vec<_> = giants.collect();
        let (small, mut connection, mut count) = (self::request(small), process.peer.connect().await, 0);
        while !giants.iter().all(tokio::task::JoinHandle::is_finished) {
            assert_eq!(exchange(&mut connection, &small).await, Some(200), "a small review beside them");
            count += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let again = join_all(giants).await.into_iter().map(Result::unwrap).max().unwrap();
        println!("  {what}");
        println!("    idle {}   peak {}   (goal: 64 MiB)", mib(idle), mib(process.resident("VmHWM")));
        println!(
            "    afterwards {}; all answered after {:.1} s, with up to {again} tries again; {count} small reviews beside them",
            mib(process.resident("VmRSS")),
            started.elapsed().as_secs_f64()
        );
    }
}

/// All that a valid answer needs of a review.
#[derive(Deserialize)]
struct UidOnly {
    request: Uid,
}

#[derive(Deserialize)]
struct Uid {
    uid: String,
}

/// A server and how to reach it.
#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    connector: TlsConnector,
    _alive: Arc<(TempDir, Option<shutdown::ShutdownTrigger>)>,
}

impl Peer {
    fn new(
        address: SocketAddr,
        ca: &ServingCertificate,
        folder: TempDir,
        trigger: Option<shutdown::ShutdownTrigger>,
    ) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.ca_pem.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        Self { address, connector, _alive: Arc::new((folder, trigger)) }
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        self.connect_from(1).await
    }

    /// From 127.0.0.x: who shares an address shares a part of the connections.
    async fn connect_from(&self, x: u8) -> TlsStream<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, x], 0))).unwrap();
        let stream = socket.connect(self.address).await.expect("it listens");
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        self.connector.connect(name, stream).await.expect("a handshake")
    }
}

fn serve(router: Router) -> Peer {
    let folder = tempfile::tempdir().unwrap();
    let serving = ServingCertificate::issue(folder.path());
    let files = CertificateFiles { cert: serving.cert_path(), key: serving.key_path() };
    let certificate = Certificate::new(Metrics::new());
    FileCertificate::load(files, Arc::clone(&certificate), Metrics::new()).unwrap();
    let socket = bind(SocketAddr::from(([127, 0, 0, 1], 0)), "--listen").unwrap();
    let address = socket.local_addr().unwrap();
    let (trigger, shutdown) = shutdown::channel();
    let server = Server::https(socket, router, certificate, None, Metrics::new()).unwrap();
    tokio::spawn(server.serve(shutdown, PATIENCE));
    Peer::new(address, &serving, folder, Some(trigger))
}

fn tool_router() -> Router {
    let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let requests = Requests::new(kube::Client::try_from(nowhere).unwrap());
    let namespace: NamespaceName = NAMESPACE.parse().unwrap();
    let snapshot = Snapshot {
        certs: BTreeMap::from([(namespace.clone(), Certs { has_ca: true, ..Certs::default() })]),
        certs_loaded: true,
        trust: BTreeMap::from([(
            namespace,
            BundleFiles { has_ca: true, has_bundle: true, has_hashes: true, has_java: true },
        )]),
        ..Snapshot::default()
    };
    let snapshot = SharedSnapshot::new(snapshot);
    webhook_router(AppState::new(Arc::new(Config::default()), snapshot, requests, Health::new(), Metrics::new()))
}

/// The binary as users run it, with an API server that does not answer.
struct Process {
    child: Child,
    peer: Peer,
}

impl Process {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let serving = ServingCertificate::issue(folder.path());
        let kubeconfig = folder.path().join("kubeconfig");
        let nowhere = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x", "users": [{"name": "x", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
            "clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:1"}}],
        });
        fs::write(&kubeconfig, nowhere.to_string()).unwrap();
        let mut child = Command::new(BINARY)
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .args(["--tls", "files"])
            .arg("--tls-cert")
            .arg(serving.cert_path())
            .arg("--tls-key")
            .arg(serving.key_path())
            .args(["--listen", "127.0.0.1:0", "--probe-listen", "127.0.0.1:0", "--log-format", "json"])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary runs");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next_line().await.unwrap().expect("it does not end");
            let line: Value = serde_json::from_str(&line).unwrap_or_default();
            if line["server"] == "webhook" {
                break line["address"].as_str().unwrap().parse().unwrap();
            }
        };
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { child, peer: Peer::new(address, &serving, folder, None) }
    }

    fn resident(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).expect("/proc");
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

/// The status of the answer; `None` when the connection ended.
async fn exchange(connection: &mut TlsStream<TcpStream>, request: &[u8]) -> Option<u16> {
    let (mut reader, mut writer) = split(connection);
    let write = async {
        if writer.write_all(request).await.is_ok() {
            let _ = writer.flush().await;
        }
        std::future::pending::<()>().await;
    };
    let read = async {
        let mut received = Vec::with_capacity(16 * 1024);
        loop {
            if reader.read_buf(&mut received).await.unwrap_or(0) == 0 {
                return None;
            }
            let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(&received[..end]).unwrap().to_ascii_lowercase();
            let length = head.split_once("content-length: ").unwrap().1.split("\r\n").next().unwrap();
            if received.len() >= end + 4 + length.parse::<usize>().unwrap() {
                return head.split(' ').nth(1).unwrap().parse().ok();
            }
        }
    };
    tokio::select! {
        () = write => unreachable!(),
        status = tokio::time::timeout(PATIENCE, read) => status.expect("an answer in time"),
    }
}

fn request(body: &[u8]) -> Vec<u8> {
    let head = "POST /mutate/pods?timeout=5s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    let mut request = format!("{head}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    request.extend_from_slice(body);
    request
}

/// The newest runner's pod, with as many variables as a job has.
fn job_pod() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/pods/job-runner-19.4.json");
    let mut pod: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    for container in pod["spec"]["containers"].as_array_mut().unwrap() {
        let variables =
            (0..120).map(|n| json!({"name": format!("CI_VARIABLE_{n}"), "value": "a value of some length"}));
        let env = container["env"].as_array().cloned().unwrap_or_default();
        container["env"] = env.into_iter().chain(variables).collect();
    }
    pod
}

fn review(pod: &Value) -> Vec<u8> {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": NAMESPACE, "operation": "CREATE", "dryRun": false,
        "userInfo": {"username": "system:serviceaccount:gitlab-runner:gitlab-runner"},
        "object": pod, "oldObject": null, "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
    }})
    .to_string()
    .into_bytes()
}

/// A review of the greatest length, with this in its pod.
fn giant(part: &str) -> Vec<u8> {
    let mut pod = job_pod();
    pod["x"] = json!("PART");
    let mut review = String::from_utf8(review(&pod)).unwrap().replace("\"PART\"", part).into_bytes();
    assert!(review.len() <= GIANT, "{}", review.len());
    review.resize(GIANT, b' ');
    review
}

fn mib(bytes: u64) -> String {
    let tenths = bytes * 10 / 1_048_576;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
