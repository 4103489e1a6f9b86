//! The HTTPS server as clients of all kinds meet it: long, slow, many, broken, hostile. What is asserted is who is
//! answered and who is closed, never how fast.

mod client_ca;
mod cluster;
mod hostile;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use gitlab_runner_webhook::{
    cluster::Requests,
    config::Config,
    pki::{CertificateFiles, FileCertificate},
    server::{AppState, Certificate, Limits, Server, bind, probe_router, webhook_router_within},
    shutdown::{self, Phase, ShutdownTrigger},
    snapshot::SharedSnapshot,
    telemetry::{health::Health, metrics::Metrics},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::ServingCertificate;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, split},
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// Longest wait for an answer or an end. Far more than anything takes.
const PATIENCE: Duration = Duration::from_mins(1);
const JSON: &str = "Content-Type: application/json\r\n";
/// Where an API server calls from.
const HONEST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A caller of its own, as far as the server sees.
fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, number)
}

struct Fixture {
    address: SocketAddr,
    /// The plain port.
    probes: SocketAddr,
    connector: TlsConnector,
    metrics: Metrics,
    trigger: ShutdownTrigger,
    _folder: TempDir,
}

impl Fixture {
    fn new(limits: Limits) -> Self {
        // Somebody else in this process may have been first.
        let _ = default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let serving = ServingCertificate::issue(folder.path());
        let metrics = Metrics::new();
        let files = CertificateFiles { cert: serving.cert_path(), key: serving.key_path() };
        let certificate = Certificate::new(metrics.clone());
        FileCertificate::load(files, Arc::clone(&certificate), metrics.clone()).unwrap();
        let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let requests = Requests::new(kube::Client::try_from(nowhere).unwrap());
        let config = Arc::new(Config::default());
        let (trigger, shutdown) = shutdown::channel();
        let state = AppState::new(config, SharedSnapshot::default(), requests, Health::new(), metrics.clone());
        let socket = bind(SocketAddr::from(([127, 0, 0, 1], 0)), "--listen").unwrap();
        let address = socket.local_addr().unwrap();
        let probe_socket = bind(SocketAddr::from(([127, 0, 0, 1], 0)), "--probe-listen").unwrap();
        let probes = probe_socket.local_addr().unwrap();
        let probe_server = Server::http(probe_socket, probe_router(state.clone()), metrics.clone());
        tokio::spawn(probe_server.serve(shutdown.clone(), PATIENCE));
        let server =
            Server::https(socket, webhook_router_within(state, limits.clone()), certificate, None, metrics.clone());
        tokio::spawn(server.unwrap().with_limits(limits).serve(shutdown, PATIENCE));

        Self { address, probes, connector: connector(&serving), metrics, trigger, _folder: folder }
    }

    async fn try_connect(&self) -> io::Result<Connection> {
        connect_from(HONEST, self.address, &self.connector).await
    }

    async fn connect(&self) -> Connection {
        self.try_connect().await.unwrap()
    }

    /// The answer on a connection of its own.
    async fn post(&self, body: &[u8]) -> Answer {
        self.connect().await.post(body).await
    }

    fn shed(&self, reason: &str) -> bool {
        self.metrics.encode().contains(&format!("shed_total{{reason=\"{reason}\"}}"))
    }
}

/// What a client trusts that knows this server.
fn roots(serving: &ServingCertificate) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(serving.ca_pem.as_bytes()).unwrap()).unwrap();
    roots
}

fn connector(serving: &ServingCertificate) -> TlsConnector {
    let config = ClientConfig::builder().with_root_certificates(roots(serving)).with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// A connection as one of this address makes it.
async fn tcp_from(caller: Ipv4Addr, server: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((caller, 0)))?;
    let stream = socket.connect(server).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The same with TLS.
async fn connect_from(caller: Ipv4Addr, server: SocketAddr, connector: &TlsConnector) -> io::Result<Connection> {
    let stream = tcp_from(caller, server).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    timeout(PATIENCE, connector.connect(name, stream)).await.map_err(io::Error::from)?.map(Connection)
}

struct Connection(TlsStream<TcpStream>);

#[derive(Debug)]
struct Answer {
    status: u16,
    /// In lower case.
    head: String,
    body: Vec<u8>,
}

impl Connection {
    async fn post(&mut self, body: &[u8]) -> Answer {
        self.send(&post_head(JSON, body.len()), body).await.unwrap()
    }

    /// `None`: closed without an answer.
    async fn try_post(&mut self) -> Option<Answer> {
        let body = review();
        self.send(&post_head(JSON, body.len()), &body).await
    }

    async fn chunked(&mut self, body: &[u8]) -> Answer {
        let mut chunks = Vec::new();
        for chunk in body.chunks(100_000) {
            chunks.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            chunks.extend_from_slice(chunk);
            chunks.extend_from_slice(b"\r\n");
        }
        chunks.extend_from_slice(b"0\r\n\r\n");
        let head = format!("POST /mutate/pods HTTP/1.1\r\nHost: x\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n");
        self.send(&head, &chunks).await.unwrap()
    }

    /// Sends while it listens, as clients do: an early answer is seen. `None`: closed without one.
    async fn send(&mut self, head: &str, body: &[u8]) -> Option<Answer> {
        let (mut reader, mut writer) = split(&mut self.0);
        let write = async {
            if writer.write_all(head.as_bytes()).await.is_ok() && writer.write_all(body).await.is_ok() {
                let _ = writer.flush().await;
            }
            std::future::pending::<()>().await;
        };
        let read = async {
            let (mut received, mut wanted) = (Vec::new(), usize::MAX);
            while received.len() < wanted {
                if reader.read_buf(&mut received).await.unwrap_or(0) == 0 {
                    return None;
                }
                let end = received.windows(4).position(|four| four == b"\r\n\r\n").map(|end| end + 4);
                if let Some(end) = end {
                    let head = String::from_utf8(received[..end].to_vec()).unwrap().to_lowercase();
                    let length = head.split_once("content-length: ").unwrap().1.split("\r\n").next().unwrap();
                    wanted = end + length.parse::<usize>().unwrap();
                    if received.len() >= wanted {
                        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                        return Some(Answer { status, head, body: received[end..wanted].to_vec() });
                    }
                }
            }
            None
        };
        tokio::select! {
            () = write => unreachable!(),
            answer = timeout(PATIENCE, read) => answer.expect("answered or closed"),
        }
    }

    async fn write(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    async fn is_closed_in_time(&mut self) -> bool {
        timeout(PATIENCE, async { while self.0.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {} }).await.is_ok()
    }
}

fn post_head(headers: &str, length: usize) -> String {
    format!("POST /mutate/pods HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n")
}

/// A review that is let in.
fn review() -> Vec<u8> {
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
    let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
    let request = json!({"uid": "u1", "kind": kind, "namespace": "n", "operation": "CREATE", "object": pod});
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
    review.to_string().into_bytes()
}

/// The same, as long as this.
fn review_of(bytes: usize) -> Vec<u8> {
    let mut review = review();
    assert!(review.len() <= bytes);
    review.resize(bytes, b' ');
    review
}

/// The same, with an object that repeats this in a part that decisions are made from.
fn review_with(part: &str, times: usize, end: &str) -> Vec<u8> {
    let (review, object) = (String::from_utf8(review()).unwrap(), format!("{}{end}", part.repeat(times)));
    review.replace(r#""spec":{"#, &format!(r#""spec":{{"volumes":{object},"#)).into_bytes()
}

/// The same, with that many labels.
fn review_with_labels(count: usize) -> Vec<u8> {
    let labels: Vec<_> = (0..count).map(|number| format!(r#""{number}":"""#)).collect();
    let review = String::from_utf8(review()).unwrap();
    review.replace(r#""metadata":{"#, &format!(r#""metadata":{{"labels":{{{}}},"#, labels.join(","))).into_bytes()
}

/// The same, in a part that decides nothing.
fn review_beside(part: &str, times: usize, end: &str) -> Vec<u8> {
    String::from_utf8(review_with(part, times, end)).unwrap().replace("volumes", "x").into_bytes()
}

fn is_allowed(answer: &Answer) -> bool {
    let review: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    answer.status == 200 && review["response"]["uid"] == "u1" && review["response"]["allowed"] == true
}

/// Timers that a test can wait for.
fn hasty() -> Limits {
    let soon = Duration::from_millis(300);
    Limits {
        handshake: soon,
        first_byte: soon,
        head: soon,
        body: soon,
        answer: soon,
        grace: Duration::from_millis(50),
        grace_of_one: Duration::from_millis(50),
        ..Limits::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_every_length_are_answered() {
    let fixture = Fixture::new(Limits { body: PATIENCE, ..Limits::default() });
    for (length, status) in
        [(review().len(), 200), (64 * KIB, 200), (64 * KIB + 1, 200), (MIB, 200), (MIB + 1, 200), (10 * MIB, 200)]
    {
        let body = review_of(length);
        for answer in [fixture.post(&body).await, fixture.connect().await.chunked(&body).await] {
            assert!(answer.status == status && is_allowed(&answer), "{length}: {answer:?}");
        }
    }
    for (length, status) in [(0, 400), (1, 400), (10 * MIB + 1, 413), (32 * MIB, 413)] {
        let body = vec![b' '; length];
        for answer in [fixture.post(&body).await, fixture.connect().await.chunked(&body).await] {
            assert_eq!((answer.status, answer.head.contains("connection: close")), (status, status == 413), "{length}");
            assert!(!answer.head.contains("retry-after"), "it would not fit the next time");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_end_each_review_is_answered_and_its_connection_closed() {
    let fixture = Fixture::new(Limits { body: PATIENCE, ..Limits::default() });
    fixture.trigger.enter(Phase::LameDuck);
    for body in [review(), review_of(MIB)] {
        let answer = fixture.post(&body).await;
        assert!(is_allowed(&answer) && answer.head.contains("connection: close\r\n"), "{}", answer.head);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_reviews_go_on_beside_many_of_the_longest() {
    let fixture = Fixture::new(Limits { body: PATIENCE, ..Limits::default() });
    let (long, small) = (review_of(10 * MIB), review());
    let mut known = fixture.connect().await;
    let giants = join_all((0..60).map(|_| async {
        let answer = fixture.post(&long).await;
        assert!(is_allowed(&answer) || answer.head.contains("retry-after: 1\r\n"), "{}", answer.head);
        answer.status
    }));
    let others = async {
        for _ in 0..50 {
            assert!(is_allowed(&known.post(&small).await));
            assert!(is_allowed(&fixture.post(&small).await));
        }
    };
    let (giants, ()) = tokio::join!(giants, others);
    assert!(giants.contains(&200) && giants.iter().all(|status| [200, 503].contains(status)), "{giants:?}");
}

#[tokio::test]
async fn room_is_taken_as_a_body_comes_in_and_given_back() {
    // Whoever holds room is not asked to leave.
    let fixture = Fixture::new(Limits { body: PATIENCE, grace: PATIENCE, ..Limits::default() });
    let mut announces = fixture.connect().await;
    announces.write(&post_head(JSON, 10 * MIB)).await;
    let long = review_of(10 * MIB);
    assert!(is_allowed(&fixture.post(&long).await), "what is only announced takes nothing");

    let mut holder = fixture.connect().await;
    holder.write(&post_head(JSON, 10 * MIB)).await;
    holder.0.write_all(&vec![b' '; MIB]).await.unwrap();
    holder.0.flush().await.unwrap();
    let answer = loop {
        let answer = fixture.post(&long).await;
        if !is_allowed(&answer) {
            break answer;
        }
    };
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("retry-after: 1\r\n") && answer.head.contains("connection: close"), "{}", answer.head);
    assert!(fixture.shed("bodies"));
    for length in [64 * KIB, MIB] {
        assert!(is_allowed(&fixture.post(&review_of(length)).await), "{length} fits beside it");
    }
    drop(holder);
    while !is_allowed(&fixture.post(&long).await) {
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_explode_when_parsed_is_refused_and_what_is_deep_is_not_followed() {
    let fixture = Fixture::new(Limits { body: PATIENCE, ..Limits::default() });
    let table = [
        ("deep arrays", review_with("[", 100_000, ""), 400),
        ("deep arrays, closed", review_with("[", 100_000, &"]".repeat(100_000)), 400),
        ("deep arrays that decide nothing", review_beside("[", 100_000, &"]".repeat(100_000)), 200),
        ("deep maps", review_with(r#"{"a":"#, 100_000, ""), 400),
        (
            "deep maps that decide nothing",
            review_beside(r#"{"a":"#, 100_000, &format!("0{}", "}".repeat(100_000))),
            200,
        ),
        ("nothing but depth", b"[".repeat(100_000), 400),
        ("many maps", review_with("", 0, &format!("[{}{{}}]", "{},".repeat(3_000_000))), 413),
        ("many that decide nothing", review_beside("", 0, &format!("[{}{{}}]", "{},".repeat(3_000_000))), 200),
        ("many labels", review_with_labels(1_000_000), 413),
        ("many numbers", review_with("", 0, &format!("[{}0]", "0,".repeat(4_000_000))), 400),
        ("many, but not too many", review_with("", 0, &format!("[{}{{}}]", r#"{"":0},"#.repeat(9_000))), 200),
    ];
    for (what, body, status) in table {
        let answer = fixture.post(&body).await;
        assert_eq!(answer.status, status, "{what}: {}", String::from_utf8_lossy(&answer.body));
    }
    assert!(fixture.metrics.encode().contains(r#"reason="too-complex""#));
    assert_eq!(fixture.metrics.panics.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_review_cut_short_anywhere_is_an_error_and_one_never_finished_is_no_answer() {
    let fixture = Fixture::new(Limits::default());
    let whole = review();
    let mut connection = fixture.connect().await;
    for end in 0..whole.len() {
        assert_eq!(connection.post(&whole[..end]).await.status, 400, "{end}");
    }
    assert!(is_allowed(&connection.post(&whole).await), "the same connection goes on");
    for end in 0..whole.len() {
        let mut connection = fixture.connect().await;
        connection.write(&post_head(JSON, whole.len())).await;
        connection.0.write_all(&whole[..end]).await.unwrap();
        connection.0.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, connection.0.read_to_end(&mut answer)).await.unwrap();
        assert!(!String::from_utf8_lossy(&answer).contains(" 200 "), "{end}");
    }
}

#[tokio::test]
async fn what_is_no_review_is_refused() {
    let fixture = Fixture::new(Limits::default());
    let (review, many) = (review(), |count: usize| "X: y\r\n".repeat(count));
    let table = [
        (post_head("", review.len()), 415),
        (post_head("Content-Type: text/plain\r\n", review.len()), 415),
        (post_head(JSON, review.len()).replace("POST", "PUT"), 405),
        (post_head(JSON, review.len()).replace("/pods", "/unknown"), 404),
        (post_head(&format!("{JSON}{}", many(61)), review.len()), 200),
        (post_head(&format!("{JSON}{}", many(62)), review.len()), 431),
        (post_head(&format!("{JSON}X: {}\r\n", "y".repeat(16 * KIB)), review.len()), 431),
        ("hunter2\r\n\r\n".to_owned(), 400),
    ];
    for (head, status) in table {
        let answer = fixture.connect().await.send(&head, &review).await;
        assert_eq!(answer.map(|answer| answer.status), Some(status), "{head:.60}");
    }
    let http2 = fixture.connect().await.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"").await;
    assert!(http2.is_none(), "closed");
    for garbage in ["GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "\0".repeat(5), "hunter2".repeat(10_000)] {
        let mut stream = TcpStream::connect(fixture.address).await.unwrap();
        let _ = stream.write_all(garbage.as_bytes()).await;
        let end = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
        assert!(end.is_ok(), "closed");
    }
}

/// How far a slow client gets before it falls silent.
#[derive(Clone, Copy, Debug)]
enum Stall {
    Connected,
    Handshake,
    Opened,
    Head,
    Body,
}

/// Is silent, and returns once the server has closed.
async fn stall(fixture: &Fixture, at: Stall) -> bool {
    stall_from(HONEST, fixture, at).await
}

async fn stall_from(caller: Ipv4Addr, fixture: &Fixture, at: Stall) -> bool {
    let silent = async |mut stream: TcpStream| {
        timeout(PATIENCE, async { while stream.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {} }).await.is_ok()
    };
    if let Stall::Connected | Stall::Handshake = at {
        let Ok(mut stream) = tcp_from(caller, fixture.address).await else { return true };
        if let Stall::Handshake = at {
            let _ = stream.write_all(&[22]).await;
        }
        return silent(stream).await;
    }
    // One that is closed to make room meets that anywhere.
    let Ok(mut connection) = connect_from(caller, fixture.address, &fixture.connector).await else { return true };
    let part = match at {
        Stall::Head => "P".to_owned(),
        Stall::Body => post_head(JSON, 1000) + "{",
        _ => String::new(),
    };
    let _ = connection.0.write_all(part.as_bytes()).await;
    let _ = connection.0.flush().await;
    connection.is_closed_in_time().await
}

const STALLS: [Stall; 5] = [Stall::Connected, Stall::Handshake, Stall::Opened, Stall::Head, Stall::Body];

#[tokio::test]
async fn each_kind_of_silence_ends() {
    let fixture = Fixture::new(hasty());
    for at in STALLS {
        assert!(stall(&fixture, at).await, "{at:?}");
    }
    let mut known = fixture.connect().await;
    assert!(is_allowed(&known.post(&review()).await));
    known.write("P").await;
    assert!(known.is_closed_in_time().await, "a head has no more time on a connection that is known");

    let mut connection = fixture.connect().await;
    let answer = connection.send(&post_head(JSON, 1000), b"{").await.unwrap();
    assert_eq!((answer.status, answer.head.contains("retry-after")), (408, false));
}

#[tokio::test]
async fn a_dribble_is_as_slow_as_silence() {
    let fixture = Fixture::new(hasty());
    for start in [String::new(), post_head(JSON, 1000)] {
        let connection = fixture.connect().await;
        let (mut reader, mut writer) = split(connection.0);
        writer.write_all(start.as_bytes()).await.unwrap();
        let dribble = async {
            loop {
                if writer.write_all(b"x").await.is_err() || writer.flush().await.is_err() {
                    break;
                }
                sleep(Duration::from_millis(30)).await;
            }
        };
        let read = async { while reader.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {} };
        timeout(PATIENCE, async { tokio::join!(dribble, read) }).await.unwrap();
    }
}

#[tokio::test]
async fn who_takes_no_answers_is_closed() {
    let fixture = Fixture::new(hasty());
    let mut connection = fixture.connect().await;
    let requests = "GET /unknown HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    let write = async { while connection.0.write_all(requests.as_bytes()).await.is_ok() {} };
    timeout(PATIENCE, write).await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_outlives_the_short_timers_and_not_its_own() {
    let fixture = Fixture::new(Limits { idle: Duration::from_secs(2), ..hasty() });
    let mut connection = fixture.connect().await;
    for _ in 0..3 {
        assert!(is_allowed(&connection.post(&review()).await));
        sleep(Duration::from_millis(700)).await;
    }
    assert!(is_allowed(&connection.post(&review()).await));
    assert!(connection.is_closed_in_time().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reviews_go_on_beside_a_thousand_slow_senders() {
    let fixture = Fixture::new(Limits { grace: Duration::from_millis(50), ..Limits::default() });
    let mut known = fixture.connect().await;
    assert!(is_allowed(&known.post(&review()).await));
    let slow = join_all((0..1_000).map(|index| stall_from(address(2), &fixture, STALLS[index % STALLS.len()])));
    let reviews = async {
        for _ in 0..40 {
            assert!(is_allowed(&known.post(&review()).await), "a connection that is known");
            assert!(is_allowed(&fixture.post(&review()).await), "a new connection");
            sleep(Duration::from_millis(50)).await;
        }
    };
    let (closed, ()) = tokio::join!(slow, reviews);
    assert!(closed.into_iter().all(|closed| closed));
}

/// Takes 130 s: `cargo test --test api_server server_limits:: -- --ignored soak`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes more than two minutes"]
async fn soak_gaps_of_up_to_130_s_reset_no_connection() {
    let fixture = Fixture::new(Limits::default());
    let gaps = (1..=50).map(|index| Duration::from_millis(2_600 * index));
    let answers = join_all(gaps.map(async |gap| {
        let mut connection = fixture.connect().await;
        assert!(is_allowed(&connection.post(&review()).await));
        sleep(gap).await;
        assert!(is_allowed(&connection.post(&review()).await), "after {gap:?}");
    }));
    assert_eq!(answers.await.len(), 50);
}
