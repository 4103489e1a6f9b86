use std::net::Ipv6Addr;

use axum::routing::get;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::Notify,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;
use crate::{
    pki::{
        FileCertificate,
        testing::{HOST, Pair, SecretVolume},
    },
    shutdown::{self, Phase, ShutdownTrigger},
};

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const PATIENCE: Duration = Duration::from_secs(20);

fn start(server: Server, drain: Duration) -> (SocketAddr, ShutdownTrigger, JoinHandle<()>) {
    let address = server.socket.local_addr().unwrap();
    let (trigger, shutdown) = shutdown::channel();
    (address, trigger, tokio::spawn(server.serve(shutdown, drain)))
}

fn plain(router: Router, metrics: &Metrics) -> Server {
    Server::http(bind(LOCAL, "--probe-listen").unwrap(), router, metrics.clone())
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), path: &str) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
}

/// Reads until this text has come, or the end.
async fn read_until(stream: &mut (impl AsyncRead + Unpin), text: &str) -> String {
    let mut received = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&received).contains(text) && stream.read_buf(&mut received).await.unwrap() > 0 {}
    };
    timeout(PATIENCE, read).await.unwrap();
    String::from_utf8(received).unwrap()
}

async fn handshake(address: SocketAddr, trusted: &[&Pair], alpn: &[&str]) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for pair in trusted {
        roots.add(pair.der.clone()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(crypto::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(HOST).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
}

async fn served(address: SocketAddr, trusted: &[&Pair]) -> CertificateDer<'static> {
    let stream = handshake(address, trusted, &["http/1.1"]).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

/// Waits for a state.
async fn until<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let poll = async {
        while !condition().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, poll).await.unwrap();
}

#[tokio::test]
async fn a_busy_port_is_named_with_the_way_out() {
    let taken = bind(LOCAL, "--listen").unwrap();
    let address = taken.local_addr().unwrap();
    assert_eq!(
        bind(address, "--listen").unwrap_err().to_string(),
        format!("cannot listen on {address}: address already in use; choose another address with --listen")
    );
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()));
    assert!(bind(any, "--listen").unwrap_err().to_string().contains("already in use"));
}

#[tokio::test]
async fn any_address_takes_ipv4_with_or_without_ipv6() {
    let socket = bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), "--listen").unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, socket.local_addr().unwrap().port()));
    TcpStream::connect(address).await.unwrap();
}

async fn panics() {
    panic!("on purpose")
}

#[tokio::test]
async fn a_panic_is_one_failed_request() {
    let router = Router::new().route("/panic", get(panics)).route("/ok", get(async || "fine"));
    let metrics = Metrics::new();
    let (address, _trigger, _server) = start(plain(router, &metrics), PATIENCE);
    let mut stream = TcpStream::connect(address).await.unwrap();
    send(&mut stream, "/panic").await;
    let answer = read_until(&mut stream, "internal error").await;
    assert!(answer.starts_with("HTTP/1.1 500 ") && !answer.contains("retry-after"), "{answer}");
    assert_eq!(metrics.panics.get(), 1);
    send(&mut stream, "/ok").await;
    assert!(read_until(&mut stream, "fine").await.starts_with("HTTP/1.1 200 "), "the same connection goes on");
}

/// A handler that waits until it is let go.
fn slow_router() -> (Router, Arc<Notify>, Arc<Notify>) {
    let (entered, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let shared = (Arc::clone(&entered), Arc::clone(&release));
    let handler = async move || {
        shared.0.notify_one();
        shared.1.notified().await;
        "done"
    };
    (Router::new().route("/slow", get(handler)), entered, release)
}

#[tokio::test]
async fn shutdown_ends_idle_connections_and_lets_requests_finish() {
    let (router, entered, release) = slow_router();
    let (address, trigger, server) = start(plain(router, &Metrics::new()), PATIENCE);
    let mut idle = TcpStream::connect(address).await.unwrap();
    send(&mut idle, "/unknown").await;
    assert!(read_until(&mut idle, "\r\n\r\n").await.starts_with("HTTP/1.1 404 "));
    let mut busy = TcpStream::connect(address).await.unwrap();
    send(&mut busy, "/slow").await;
    entered.notified().await;

    trigger.request();
    assert_eq!(read_until(&mut idle, "nothing").await, "", "closed");
    until(|| async { TcpStream::connect(address).await.is_err() }).await;
    assert!(!server.is_finished());
    release.notify_one();
    let answer = read_until(&mut busy, "done").await;
    assert!(answer.contains("connection: close"), "{answer}");
    timeout(PATIENCE, server).await.unwrap().unwrap();
}

#[tokio::test]
async fn before_the_end_each_answer_is_the_last_on_its_connection_and_none_is_closed_without_one() {
    let router = Router::new().route("/ok", get(async || "fine"));
    let server = plain(router, &Metrics::new());
    let traffic = server.traffic();
    let (address, trigger, server) = start(server, PATIENCE);
    let mut idle = TcpStream::connect(address).await.unwrap();
    send(&mut idle, "/ok").await;
    assert!(!read_until(&mut idle, "fine").await.contains("connection: close"));
    trigger.enter(Phase::LameDuck);
    let mut next = TcpStream::connect(address).await.unwrap();
    send(&mut next, "/ok").await;
    let answer = read_until(&mut next, "nothing").await;
    assert!(answer.contains("connection: close") && answer.ends_with("fine"), "{answer}");
    assert_eq!(traffic.quiet_for(), Duration::ZERO, "one is still connected");
    send(&mut idle, "/ok").await;
    let answer = read_until(&mut idle, "nothing").await;
    assert!(answer.contains("connection: close") && answer.ends_with("fine"), "{answer}");
    until(|| async { traffic.quiet_for() > Duration::ZERO }).await;
    trigger.request();
    timeout(PATIENCE, server).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_has_connected_before_the_end_is_answered() {
    let router = Router::new().route("/ok", get(async || "fine"));
    let (server, (trigger, shutdown)) = (plain(router, &Metrics::new()), shutdown::channel());
    let mut waiting = TcpStream::connect(server.socket.local_addr().unwrap()).await.unwrap();
    send(&mut waiting, "/ok").await;
    trigger.request();
    timeout(PATIENCE, server.serve(shutdown, PATIENCE)).await.unwrap();
    let answer = read_until(&mut waiting, "nothing").await;
    assert!(answer.contains("connection: close") && answer.ends_with("fine"), "{answer}");
}

#[tokio::test]
async fn shutdown_is_bounded() {
    let (router, entered, _release) = slow_router();
    let (address, trigger, server) = start(plain(router, &Metrics::new()), Duration::from_millis(10));
    let mut busy = TcpStream::connect(address).await.unwrap();
    send(&mut busy, "/slow").await;
    entered.notified().await;
    trigger.request();
    timeout(PATIENCE, server).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_never_speaks_tls_holds_nobody_up() {
    let pair = Pair::until(2100);
    let volume = SecretVolume::new(&pair.cert, &pair.key);
    let certificate = Certificate::new(Metrics::new());
    FileCertificate::load(volume.files(), Arc::clone(&certificate), Metrics::new()).unwrap();
    let router = Router::new().route("/ok", get(async || "fine"));
    let socket = bind(LOCAL, "--listen").unwrap();
    let server = Server::https(socket, router, certificate, None, Metrics::new()).unwrap();
    let (address, _trigger, _server) = start(server, PATIENCE);

    let _silent = TcpStream::connect(address).await.unwrap();
    let mut stream = handshake(address, &[&pair], &["h2", "http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
    send(&mut stream, "/ok").await;
    assert!(read_until(&mut stream, "fine").await.starts_with("HTTP/1.1 200 "));
    assert!(handshake(address, &[&pair], &["h2"]).await.is_err(), "no HTTP/2");
}

#[tokio::test]
async fn the_served_certificate_follows_the_files_and_a_bad_pair_changes_nothing() {
    let (old, new) = (Pair::until(2100), Pair::until(2101));
    let mut volume = SecretVolume::new(&old.cert, &old.key);
    let metrics = Metrics::new();
    let certificate = Certificate::new(metrics.clone());
    let files = FileCertificate::load(volume.files(), Arc::clone(&certificate), metrics.clone()).unwrap();
    tokio::spawn(files.keep_fresh(Duration::from_millis(5)));
    let server =
        Server::https(bind(LOCAL, "--listen").unwrap(), Router::new(), certificate, None, metrics.clone()).unwrap();
    let (address, _trigger, _server) = start(server, PATIENCE);
    let trusted = [&old, &new];
    assert_eq!(served(address, &trusted).await, old.der);

    volume.replace(&new.cert, &old.key);
    until(|| async { metrics.certificate_reload_errors.get() == 1 }).await;
    assert_eq!(served(address, &trusted).await, old.der);

    volume.replace(&new.cert, &new.key);
    until(|| async { served(address, &trusted).await == new.der }).await;
    assert_eq!(metrics.certificate_reload_errors.get(), 1);
}
