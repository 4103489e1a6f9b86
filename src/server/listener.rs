//! Listening, TLS, timers and caps.
//!
//! An own accept loop, because no stock server has all of these: handshakes that hold nobody else
//! up, an idle timeout above the API server's 90 s (an equal one costs calls: the server closes
//! while the next request is on its way), HTTP/1.1 only (the API server speaks nothing else to
//! Services), a cap on connections, and an end that is bounded.

use std::{
    future::Future,
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr},
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body, response::IntoResponse as _};
use futures::FutureExt as _;
use http::{Request, Response, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::default_provider,
    server::NoServerSessionStorage,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;
use tracing::{debug, error, warn};

use super::resolver::Certificate;
use crate::{shutdown::Shutdown, telemetry::metrics::Metrics};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// An API server keeps at most 25 idle connections to a webhook.
const MAX_TLS_CONNECTIONS: usize = 256;
/// Probes and scrapes.
const MAX_PLAIN_CONNECTIONS: usize = 32;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// From the end of one request to the whole head of the next: what bounds an idle connection.
const IDLE_TIMEOUT: Duration = Duration::from_mins(3);
const MAX_HEADERS: usize = 64;
const READ_BUFFER: usize = 16 * 1024;
/// When the system has no file descriptor left, and the like.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {problem}; choose another address with {flag}")]
pub struct BindError {
    address: SocketAddr,
    flag: &'static str,
    problem: String,
}

impl BindError {
    fn new(address: SocketAddr, flag: &'static str, error: &io::Error) -> Self {
        let problem = match error.kind() {
            ErrorKind::AddrInUse => "address already in use".to_owned(),
            ErrorKind::PermissionDenied => format!("no permission for port {}", address.port()),
            ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
            _ => error.to_string(),
        };
        Self { address, flag, problem }
    }
}

/// Listens on an address; `flag` is what the user chose it with. Wants a tokio runtime.
///
/// `[::]` takes IPv4, too, and means `0.0.0.0` where there is no IPv6.
///
/// # Errors
/// Names the address, what is wrong with it, and the flag.
pub fn bind(address: SocketAddr, flag: &'static str) -> Result<TcpListener, BindError> {
    let open = |address: SocketAddr| {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    let wants_any = address.is_ipv6() && address.ip().is_unspecified();
    match open(address) {
        Err(error) if wants_any && !matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::PermissionDenied) => {
            debug!(%error, "no IPv6, listening on 0.0.0.0");
            let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            open(address).map_err(|error| BindError::new(address, flag, &error))
        }
        result => result.map_err(|error| BindError::new(address, flag, &error)),
    }
}

/// One port and what is served there.
pub struct Server {
    socket: TcpListener,
    router: Router,
    tls: Option<TlsAcceptor>,
    max_connections: usize,
    metrics: Metrics,
}

impl Server {
    /// HTTPS: TLS 1.2 and 1.3, HTTP/1.1.
    ///
    /// # Errors
    /// When the cryptographic library supports neither version of TLS.
    pub fn https(
        socket: TcpListener,
        router: Router,
        certificate: Arc<Certificate>,
        metrics: Metrics,
    ) -> Result<Self, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(certificate);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // The API server never resumes a session.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let tls = Some(TlsAcceptor::from(Arc::new(config)));
        Ok(Self { socket, router, tls, max_connections: MAX_TLS_CONNECTIONS, metrics })
    }

    /// Plain HTTP/1.1.
    pub fn http(socket: TcpListener, router: Router, metrics: Metrics) -> Self {
        Self { socket, router, tls: None, max_connections: MAX_PLAIN_CONNECTIONS, metrics }
    }

    /// Serves until shutdown is requested. Then accepts nothing more, answers what is under way with
    /// `Connection: close`, and cuts off what is not done after `drain`.
    pub async fn serve(self, mut shutdown: Shutdown, drain: Duration) {
        let slots = Arc::new(Semaphore::new(self.max_connections));
        let mut connections = JoinSet::new();
        loop {
            let accepted = async {
                // The semaphore is never closed.
                let slot = Arc::clone(&slots).acquire_owned().await.ok();
                (accept(&self.socket).await, slot)
            };
            let (stream, slot) = tokio::select! {
                biased;
                () = shutdown.requested() => break,
                accepted = accepted => accepted,
            };
            let connection = self.connection(stream, shutdown.clone());
            connections.spawn(async move {
                connection.await;
                drop(slot);
            });
            // Forget those that have ended.
            while connections.try_join_next().is_some() {}
        }
        drop(self.socket);
        let all_ended = async { while connections.join_next().await.is_some() {} };
        if timeout(drain, all_ended).await.is_err() {
            warn!(connections = connections.len(), "cut off: not done in time");
            connections.shutdown().await;
        }
    }

    fn connection(&self, stream: TcpStream, shutdown: Shutdown) -> impl Future<Output = ()> + Send + 'static {
        let (tls, router, metrics) = (self.tls.clone(), self.router.clone(), self.metrics.clone());
        async move {
            // Answers are small: each is one segment that must not wait for another.
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "no TCP_NODELAY");
            }
            let Some(tls) = tls else { return converse(stream, router, metrics, shutdown).await };
            match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
                Ok(Ok(stream)) => converse(stream, router, metrics, shutdown).await,
                Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
                Err(_) => debug!("TLS handshake took too long"),
            }
        }
    }
}

/// The next connection, however long the system has none for us.
async fn accept(socket: &TcpListener) -> TcpStream {
    let mut said = false;
    loop {
        match socket.accept().await {
            Ok((stream, _)) => return stream,
            // It was closed before it was accepted.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
            Err(error) => {
                if !said {
                    warn!(%error, "cannot accept connections, trying again");
                    said = true;
                }
                sleep(ACCEPT_BACK_OFF).await;
            }
        }
    }
}

/// Requests and answers on one connection.
async fn converse<S>(stream: S, router: Router, metrics: Metrics, mut shutdown: Shutdown)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let (router, metrics) = (router.clone(), metrics.clone());
        async move { Ok::<_, std::convert::Infallible>(answer(router, request, &metrics).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(READ_BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.requested() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended");
    }
}

/// A panic of one handler is one failed request, without `Retry-After`: it would fail again.
async fn answer(router: Router, request: Request<Incoming>, metrics: &Metrics) -> Response<Body> {
    match AssertUnwindSafe(router.oneshot(request.map(Body::new))).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => {
            metrics.panics.inc();
            error!("a handler panicked");
            (StatusCode::INTERNAL_SERVER_ERROR, "internal error\n").into_response()
        }
    }
}

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;
