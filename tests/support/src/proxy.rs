//! A proxy in front of the API server that fails as it is told.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use k8s_openapi::jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

type Answer = Response<UnsyncBoxBody<Bytes, kube::Error>>;

/// A proxy for plain HTTP on loopback. It forwards with a client of its own, so whoever talks to it
/// needs no credentials. Ends when dropped.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

/// What to answer instead of asking the API server.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The method, such as `PUT`; for a watch `WATCH`.
    pub method: &'static str,
    /// What the path and query must contain.
    pub path: &'static str,
    /// The HTTP status; for a watch, the code of the error event that it begins with.
    pub code: u16,
    /// The reason word of the `Status`.
    pub reason: &'static str,
    /// Seconds of `retryAfterSeconds` in the `Status`; 0 means none.
    pub retry_after: u32,
    /// How many requests are answered so.
    pub times: u32,
}

struct State {
    client: Client,
    faults: Mutex<Vec<Fault>>,
    /// Nothing that a watch of this path delivers is passed on, and the connection stays.
    silent: Mutex<Option<&'static str>>,
    /// Whether requests wait here instead of going on.
    held: tokio::sync::watch::Sender<bool>,
    /// By how many seconds the API server's clock is ahead, as far as answers tell.
    ahead: AtomicI64,
    requests: AtomicU64,
}

impl Proxy {
    /// Starts a proxy that forwards as `client` does.
    ///
    /// # Panics
    /// When no loopback port is free.
    pub async fn start(client: Client) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State {
            client,
            faults: Mutex::default(),
            silent: Mutex::default(),
            held: tokio::sync::watch::Sender::new(false),
            ahead: AtomicI64::new(0),
            requests: AtomicU64::new(0),
        });
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                let service = service_fn(move |request| handle(Arc::clone(&state), request));
                connections.spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, state, task }
    }

    /// A kubeconfig for the proxy.
    pub fn kubeconfig(&self) -> String {
        kubeconfig(self.address)
    }

    /// Answers the next requests that match with a fault.
    pub fn fail(&self, fault: Fault) {
        self.state.faults.lock().expect("the faults").push(fault);
    }

    /// How many answers are still to be faults.
    pub fn faults_left(&self) -> u32 {
        self.state.faults.lock().expect("the faults").iter().map(|fault| fault.times).sum()
    }

    /// From now on, watches whose path and query contain this deliver nothing, as when a packet filter
    /// forgot the connection; `None` ends it. A watch that lost something stays silent until it is given up.
    pub fn silence(&self, path: Option<&'static str>) {
        *self.state.silent.lock().expect("the silence") = path;
    }

    /// From now on, requests wait here until this is over, and are forwarded then.
    pub fn hold(&self, held: bool) {
        self.state.held.send_replace(held);
    }

    /// From now on, the `Date` of answers is that of a clock this many seconds ahead; a negative number sets it back.
    pub fn set_clock(&self, ahead: i64) {
        self.state.ahead.store(ahead, Ordering::Relaxed);
    }

    /// How many requests came in so far.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }
}

pub(crate) fn kubeconfig(address: SocketAddr) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
        "clusters": [{"name": "proxy", "cluster": {"server": format!("http://{address}")}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
        "users": [{"name": "proxy", "user": {}}],
    })
    .to_string()
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fault {
    fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure",
            "code": self.code, "reason": self.reason, "message": format!("the proxy says {}", self.reason),
        });
        if self.retry_after > 0 {
            status["details"] = json!({"retryAfterSeconds": self.retry_after});
        }
        status
    }

    fn answer(&self) -> Answer {
        let (code, body) = if self.method == "WATCH" {
            (200, json!({"type": "ERROR", "object": self.status()}))
        } else {
            (self.code, self.status())
        };
        let body = Full::new(Bytes::from(format!("{body}\n"))).map_err(|never: Infallible| match never {});
        Response::builder()
            .status(code)
            .header("content-type", "application/json")
            .body(body.boxed_unsync())
            .expect("an answer")
    }
}

impl State {
    fn fault(&self, method: &str, path: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().expect("the faults");
        let fault =
            faults.iter_mut().find(|fault| fault.times > 0 && fault.method == method && path.contains(fault.path))?;
        fault.times -= 1;
        Some(fault.clone())
    }
}

async fn handle(state: Arc<State>, request: Request<Incoming>) -> Result<Answer, kube::Error> {
    state.requests.fetch_add(1, Ordering::Relaxed);
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let is_watch = path.contains("watch=true");
    let method = if is_watch { "WATCH" } else { request.method().as_str() };
    if let Some(fault) = state.fault(method, &path) {
        return Ok(fault.answer());
    }

    // It cannot be over before the proxy is.
    let _ = state.held.subscribe().wait_for(|held| !held).await;
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|error| kube::Error::Service(error.into()))?.to_bytes();
    let mut forward = Request::builder().method(head.method).uri(&path);
    for name in ["content-type", "accept", "user-agent"] {
        if let Some(value) = head.headers.get(name) {
            forward = forward.header(name, value);
        }
    }
    let forward = forward.body(Body::from(body.to_vec())).map_err(kube::Error::HttpError)?;
    let (head, body) = state.client.send(forward).await?.into_parts();

    let mut answer = Response::builder().status(head.status);
    if let Some(value) = head.headers.get("content-type") {
        answer = answer.header("content-type", value);
    }
    let ahead = SignedDuration::from_secs(state.ahead.load(Ordering::Relaxed));
    if let Ok(date) = rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&(Timestamp::now() + ahead)) {
        answer = answer.header("date", date);
    }
    let body = if is_watch { deaf(state, path, body).boxed_unsync() } else { body.boxed_unsync() };
    answer.body(body).map_err(kube::Error::HttpError)
}

/// A body that swallows everything while the proxy is silent.
fn deaf(state: Arc<State>, path: String, body: Body) -> impl hyper::body::Body<Data = Bytes, Error = kube::Error> {
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, kube::Error>>(16);
    tokio::spawn(async move {
        let mut body = body;
        let mut muted = false;
        while let Some(frame) = body.frame().await {
            // Once something was lost, the rest of this watch must be lost too.
            muted |= state.silent.lock().expect("the silence").is_some_and(|silent| path.contains(silent));
            if !muted && sender.send(frame).await.is_err() {
                return;
            }
        }
        if muted {
            sender.closed().await;
        }
    });
    Channel(receiver)
}

/// A body whose frames come from elsewhere; it ends with their sender.
pub(crate) struct Channel<E>(pub(crate) tokio::sync::mpsc::Receiver<Result<Frame<Bytes>, E>>);

impl<E> hyper::body::Body for Channel<E> {
    type Data = Bytes;
    type Error = E;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, E>>> {
        self.0.poll_recv(context)
    }
}
