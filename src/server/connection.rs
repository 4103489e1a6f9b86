//! Requests and answers on one connection.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Router, body::Body, response::IntoResponse as _};
use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderValue, Request, Response, StatusCode, header::CONNECTION};
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::sleep,
};
use tower::ServiceExt as _;
use tracing::{debug, error};

use super::{
    connections::{ConnectionPhase, Slot},
    limits::Limits,
    stream::Timed,
};
use crate::{
    shutdown::{self, Shutdown},
    telemetry::metrics::Metrics,
};

/// What all connections of a server share.
#[derive(Clone)]
pub(super) struct ServerShared {
    pub(super) router: Router,
    pub(super) limits: Arc<Limits>,
    pub(super) metrics: Metrics,
}

/// How long, at the end, the first request of a connection is waited for.
const FIRST_REQUEST: Duration = Duration::from_millis(500);

/// Serves until the client or shutdown ends it, or a timer runs out.
pub(super) async fn converse<S>(stream: S, slot: Arc<Slot>, shared: ServerShared, mut shutdown: Shutdown)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = Timed::new(stream, Arc::clone(&slot), &shared.limits);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // It counts the time before a head, too: what bounds an idle connection.
        .header_read_timeout(shared.limits.idle)
        .max_headers(shared.limits.headers)
        .max_buf_size(shared.limits.buffer);
    let hears = shutdown.clone();
    let was_asked = Arc::new(AtomicBool::new(false));
    let asks = Arc::clone(&was_asked);
    let service = service_fn(move |request| {
        asks.store(true, Ordering::Relaxed);
        serve(request, Arc::clone(&slot), shared.clone(), hears.clone())
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.requested() => {
            // hyper closes at once what it has read nothing from, and a first request may be there already.
            let patience = if was_asked.load(Ordering::Relaxed) { Duration::ZERO } else { FIRST_REQUEST };
            tokio::select! {
                biased;
                ended = connection.as_mut() => ended,
                () = sleep(patience) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended");
    }
}

async fn serve(
    request: Request<Incoming>,
    slot: Arc<Slot>,
    shared: ServerShared,
    shutdown: Shutdown,
) -> Result<Response<Body>, Infallible> {
    slot.enter(if request.body().is_end_stream() { ConnectionPhase::Working } else { ConnectionPhase::Body });
    let mut request = request.map(|inner| Body::new(Watched { inner, slot: Arc::clone(&slot) }));
    request.extensions_mut().insert(slot.peer());
    let mut response = answer(shared.router, request, &shared.metrics).await;
    // What is unread would have to be read to tell the next request from it. And who is about to end, or wants the place
    // for another one, never closes a connection that is idle, on which a request may be on its way, but has its client
    // close it.
    if !slot.answered() || shutdown.phase() != shutdown::Phase::Serving {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// A panic of one handler is one failed request, without `Retry-After`: it would fail again.
async fn answer(router: Router, request: Request<Body>, metrics: &Metrics) -> Response<Body> {
    match AssertUnwindSafe(router.oneshot(request)).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => {
            metrics.panics.inc();
            error!("a handler panicked");
            (StatusCode::INTERNAL_SERVER_ERROR, "internal error\n").into_response()
        }
    }
}

/// A request's body that tells its connection when it has come in full, and when it is dropped before.
struct Watched {
    inner: Incoming,
    slot: Arc<Slot>,
}

impl Watched {
    fn has_ended(&self) -> bool {
        self.slot.phase() == ConnectionPhase::Working
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        // A body in chunks says so only after its last one.
        if !self.has_ended() && (frame.is_none() || self.inner.is_end_stream()) {
            self.slot.enter(ConnectionPhase::Working);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.has_ended() {
            self.slot.leave_unread();
        }
    }
}
