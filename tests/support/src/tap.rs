//! A proxy in front of the API server that asks before it passes anything on: to record, and to perturb at one point.

use std::{net::SocketAddr, sync::Arc};

use futures::future::BoxFuture;
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::{Client, client::Body};
use serde_json::Value;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};

use crate::proxy::{Channel, kubeconfig};

type Answer = Response<UnsyncBoxBody<Bytes, Broken>>;

/// A request as it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The method, such as `PUT`.
    pub method: String,
    /// Path and query.
    pub path: String,
}

/// What becomes of a request, or of its answer.
#[derive(Clone, Debug)]
pub enum Fate {
    /// It is passed on.
    Pass,
    /// This status and body are the answer.
    Answer(u16, Value),
    /// The connection ends without an answer.
    Break,
}

/// What becomes of an event of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It is passed on.
    Pass,
    /// The connection breaks before it.
    Cut,
    /// The watch ends with 410 before it: the client lists again.
    Expire,
}

/// What is asked.
pub trait Tap: Send + Sync + 'static {
    /// Before a request is passed on to the API server.
    fn before<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Fate>;
    /// After the API server has answered with this status, and before the client sees that. Not for watches.
    fn after<'a>(&'a self, call: &'a Call, status: u16) -> BoxFuture<'a, Fate>;
    /// Before an event is passed on, bookmarks apart. What follows on the same watch waits for the answer.
    fn event<'a>(&'a self, path: &'a str, event: &'a Value) -> BoxFuture<'a, Passage>;
    /// Whether objects of this namespace, and the namespace itself, are to be seen in lists and watches.
    fn shows(&self, namespace: &str) -> bool;
}

/// A proxy for plain HTTP on loopback, as [`Proxy`](crate::Proxy) is one. Ends when dropped.
pub struct TapProxy {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl TapProxy {
    /// Starts a proxy that forwards as `client` does, as far as `tap` lets it.
    ///
    /// # Panics
    /// When no loopback port is free.
    pub async fn start<T: Tap>(client: Client, tap: Arc<T>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("an address");
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (client, tap) = (client.clone(), Arc::clone(&tap));
                let service = service_fn(move |request| handle(client.clone(), Arc::clone(&tap), request));
                connections.spawn(async move {
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, task }
    }

    /// A kubeconfig for the proxy.
    pub fn kubeconfig(&self) -> String {
        kubeconfig(self.address)
    }
}

impl Drop for TapProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a connection ends.
#[derive(Debug)]
struct Broken(String);

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Broken {}

impl<E: Into<kube::Error>> From<E> for Broken {
    fn from(error: E) -> Self {
        Self(error.into().to_string())
    }
}

async fn handle<T: Tap>(client: Client, tap: Arc<T>, request: Request<Incoming>) -> Result<Answer, Broken> {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    // What a watch begins with depends on when it begins: as a list in one page, it is no event.
    if path.contains("sendInitialEvents=true") {
        return answer(422, NO_STREAM.into());
    }
    let path = without_limit(&path);
    let is_watch = path.contains("watch=true");
    let call = Call { method: request.method().to_string(), path };
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|error| Broken(error.to_string()))?.to_bytes();
    match tap.before(&call).await {
        Fate::Pass => {}
        Fate::Answer(code, body) => return answer(code, body.to_string().into()),
        Fate::Break => return Err(Broken("as told".to_owned())),
    }

    let mut forward = Request::builder().method(head.method).uri(&call.path);
    for name in ["content-type", "accept", "user-agent"] {
        if let Some(value) = head.headers.get(name) {
            forward = forward.header(name, value);
        }
    }
    let forward = forward.body(Body::from(body.to_vec())).map_err(kube::Error::HttpError)?;
    let (head, body) = client.send(forward).await?.into_parts();
    let status = head.status.as_u16();
    if is_watch && status == 200 {
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(pump(tap, call.path, body, sender));
        let body = Channel(receiver).boxed_unsync();
        return Ok(Response::builder().status(200).header("content-type", "application/json").body(body).expect("it"));
    }
    let body = body.collect().await?.to_bytes();
    match tap.after(&call, status).await {
        Fate::Pass => answer(status, of_shown(tap.as_ref(), &body).unwrap_or(body)),
        Fate::Answer(code, body) => answer(code, body.to_string().into()),
        Fate::Break => Err(Broken("as told, after the API server has answered".to_owned())),
    }
}

fn answer(code: u16, body: Bytes) -> Result<Answer, Broken> {
    let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
    let answer = Response::builder().status(code).header("content-type", "application/json").body(body);
    answer.map_err(|error| Broken(error.to_string()))
}

fn without_limit(path: &str) -> String {
    let Some((path, query)) = path.split_once('?') else { return path.to_owned() };
    let kept: Vec<_> = query.split('&').filter(|pair| !pair.starts_with("limit=")).collect();
    format!("{path}?{}", kept.join("&"))
}

/// A list without what is not shown; `None` when the body is no list.
fn of_shown(tap: &impl Tap, body: &[u8]) -> Option<Bytes> {
    let mut list: Value = serde_json::from_slice(body).ok()?;
    list.get_mut("items")?.as_array_mut()?.retain(|object| tap.shows(namespace(object)));
    Some(list.to_string().into())
}

/// The namespace of an object, or the name of a Namespace.
fn namespace(object: &Value) -> &str {
    let metadata = &object["metadata"];
    metadata["namespace"].as_str().or(metadata["name"].as_str()).unwrap_or_default()
}

/// Passes on the events of one watch, one a line.
async fn pump<T: Tap>(tap: Arc<T>, path: String, mut body: Body, to: mpsc::Sender<Result<Frame<Bytes>, Broken>>) {
    let mut buffer = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        buffer.extend_from_slice(&frame.into_data().unwrap_or_default());
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let Ok(event) = serde_json::from_slice::<Value>(&line) else { continue };
            let is_object = ["ADDED", "MODIFIED", "DELETED"].iter().any(|kind| event["type"] == *kind);
            if is_object && !tap.shows(namespace(&event["object"])) {
                continue;
            }
            let passage = if is_object { tap.event(&path, &event).await } else { Passage::Pass };
            let (last, part) = match passage {
                Passage::Pass => (false, Ok(Frame::data(line.into()))),
                Passage::Cut => (true, Err(Broken("the watch is cut, as told".to_owned()))),
                Passage::Expire => (true, Ok(Frame::data(EXPIRED.into()))),
            };
            if to.send(part).await.is_err() || last {
                return;
            }
        }
    }
}

/// As an API server says that does not stream lists.
const NO_STREAM: &str = concat!(
    r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","reason":"Invalid","code":422,"#,
    r#""message":"sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch"}"#
);

const EXPIRED: &str = concat!(
    r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#,
    r#""message":"too old resource version","reason":"Expired","code":410}}"#,
    "\n"
);
