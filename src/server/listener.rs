//! Listening, TLS, timers and caps.
//!
//! An own accept loop, because no stock server has all of these: handshakes that hold nobody else
//! up, an idle timeout above the API server's 90 s (an equal one costs calls: the server closes
//! while the next request is on its way), HTTP/1.1 only (the API server speaks nothing else to
//! Services), a cap on connections, and an end that is bounded.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use axum::Router;
use rustls::{
    ServerConfig,
    server::NoServerSessionStorage,
    version::{TLS12, TLS13},
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::{
    client_ca::ClientCa,
    connection::{ServerShared, converse},
    connections::{Connections, Slot},
    limits::Limits,
    peer::Peer,
    resolver::Certificate,
    traffic::Traffic,
};
use crate::{crypto, shutdown::Shutdown, telemetry::metrics::Metrics};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// How long it is looked at the end for somebody who has connected.
const LAST_CALL: Duration = Duration::from_millis(5);
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
    tls: Option<TlsAcceptor>,
    traffic: Arc<Traffic>,
    shared: ServerShared,
}

impl Server {
    /// HTTPS: TLS 1.2 and 1.3, HTTP/1.1. With `client_ca`, for those only who show a certificate by it.
    ///
    /// # Errors
    /// When the cryptographic library supports neither version of TLS, or feature `fips` is not served by it.
    pub fn https(
        socket: TcpListener,
        router: Router,
        certificate: Arc<Certificate>,
        client_ca: Option<Arc<ClientCa>>,
        metrics: Metrics,
    ) -> Result<Self, rustls::Error> {
        let config =
            ServerConfig::builder_with_provider(crypto::provider()).with_protocol_versions(&[&TLS13, &TLS12])?;
        let config = match client_ca {
            Some(client_ca) => config.with_client_cert_verifier(client_ca),
            None => config.with_no_client_auth(),
        };
        let mut config = config.with_cert_resolver(certificate);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // The API server never resumes a session.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        if cfg!(feature = "fips") && !config.fips() {
            return Err(rustls::Error::General("the TLS configuration is not one that FIPS allows".to_owned()));
        }
        let tls = Some(TlsAcceptor::from(Arc::new(config)));
        let shared = ServerShared { router, limits: Arc::default(), metrics };
        Ok(Self { socket, tls, traffic: Traffic::new(), shared })
    }

    /// Plain HTTP/1.1.
    pub fn http(socket: TcpListener, router: Router, metrics: Metrics) -> Self {
        let limits = Arc::new(Limits::of_probes());
        Self { socket, tls: None, traffic: Traffic::new(), shared: ServerShared { router, limits, metrics } }
    }

    /// The same with other limits; those of reviews are the router's.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.shared.limits = Arc::new(limits);
        self
    }

    /// Its connections.
    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.traffic)
    }

    /// Serves until shutdown is requested. Then accepts nothing more, answers what is under way with
    /// `Connection: close`, and cuts off what is not done after `drain`.
    pub async fn serve(self, mut shutdown: Shutdown, drain: Duration) {
        let connections = Connections::new(Limits::clone(&self.shared.limits), self.shared.metrics.clone());
        let (mut tasks, mut late) = (JoinSet::new(), 0);
        loop {
            let mut accepted = pin!(accept(&self.socket));
            let next = tokio::select! {
                biased;
                () = shutdown.requested() => None,
                accepted = accepted.as_mut() => Some(accepted),
            };
            // Who has connected already would be reset, in the middle of a request perhaps.
            let next = match next {
                None if late < BACKLOG => {
                    late += 1;
                    timeout(LAST_CALL, accepted).await.ok()
                }
                next => next,
            };
            let Some((stream, peer)) = next else { break };
            // Forget those that have ended.
            while tasks.try_join_next().is_some() {}
            let Some(slot) = connections.accept(peer) else { continue };
            let (tls, shared, shutdown) = (self.tls.clone(), self.shared.clone(), shutdown.clone());
            let open = self.traffic.open();
            tasks.spawn(async move {
                if slot.is_served().await {
                    // Made only now, so that who waits costs little.
                    let mut serve = Box::pin(serve(stream, tls, Arc::clone(&slot), shared, shutdown));
                    tokio::select! {
                        biased;
                        () = &mut serve => {}
                        () = slot.must_leave() => debug!("connection closed to make room"),
                    }
                }
                drop((slot, open));
            });
        }
        drop(self.socket);
        let all_ended = async { while tasks.join_next().await.is_some() {} };
        if timeout(drain, all_ended).await.is_err() {
            warn!(connections = tasks.len(), "cut off: not done in time");
            tasks.shutdown().await;
        }
    }
}

async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, slot: Arc<Slot>, shared: ServerShared, shutdown: Shutdown) {
    // Answers are small: each is one segment that must not wait for another.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "no TCP_NODELAY");
    }
    let Some(tls) = tls else { return converse(stream, slot, shared, shutdown).await };
    match timeout(shared.limits.handshake, tls.accept(stream)).await {
        Ok(Ok(stream)) => converse(stream, slot, shared, shutdown).await,
        Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
        Err(_) => debug!("TLS handshake took too long"),
    }
}

/// The next connection, however long the system has none for us.
async fn accept(socket: &TcpListener) -> (TcpStream, Peer) {
    let mut said = false;
    loop {
        match socket.accept().await {
            Ok((stream, address)) => return (stream, Peer::from(address.ip())),
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

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;
