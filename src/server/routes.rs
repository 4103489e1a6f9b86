//! What is served where.

use std::{panic::resume_unwind, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{RawQuery, Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{
    StatusCode,
    header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use tokio::{runtime::Handle, task::spawn_blocking};

use super::{
    body::{RawReview, Reader, Unread},
    limits::Limits,
};
use crate::{
    admission::{Admission, ReviewError, Webhook},
    cluster::Requests,
    config::Config,
    names,
    snapshot::SharedSnapshot,
    telemetry::{
        health::Health,
        metrics::{Metrics, ShedLabels},
    },
};

/// Source: <https://prometheus.io/docs/specs/om/open_metrics_spec/#overall-structure>.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the handlers know.
#[derive(Clone, Debug)]
pub struct AppState {
    admission: Admission,
    health: Arc<Health>,
    metrics: Metrics,
}

impl AppState {
    /// Handlers that act by this configuration on what the watches publish; the gate asks by these requests.
    pub fn new(
        config: Arc<Config>,
        snapshot: SharedSnapshot,
        requests: Requests,
        health: Arc<Health>,
        metrics: Metrics,
    ) -> Self {
        let admission = Admission::new(config, snapshot, requests, metrics.clone());
        Self { admission, health, metrics }
    }
}

/// The HTTPS port: webhooks, and health for people and scripts.
pub fn webhook_router(state: AppState) -> Router {
    webhook_router_within(state, Limits::default())
}

/// The same with other limits for reviews.
pub fn webhook_router_within(state: AppState, limits: Limits) -> Router {
    let reader = Reader::new(limits);
    let webhook = |webhook| {
        let reader = reader.clone();
        post(move |State(state): State<AppState>, request: Request| async move {
            let deadline = deadline(request.uri().query());
            match reader.read(request).await {
                Ok(review) => answer(state, webhook, deadline, review).await,
                Err(Unread::Bad(error)) => answered(state.admission.answer(webhook, Err(error)).await),
                Err(Unread::Busy(reason)) => {
                    state.metrics.shed.get_or_create(&ShedLabels { reason }).inc();
                    let text = "no room for this review among those in flight; try again in a second";
                    ([(RETRY_AFTER, "1")], refusal(StatusCode::SERVICE_UNAVAILABLE, text.to_owned())).into_response()
                }
            }
        })
    };
    health_routes()
        .route(names::PATH_MUTATE_PODS, webhook(Webhook::MutatePods))
        .route(names::PATH_MUTATE_NAMESPACES, webhook(Webhook::MutateNamespaces))
        .route(names::PATH_VALIDATE_PODS, webhook(Webhook::ValidatePods))
        .with_state(state)
}

async fn answer(
    state: AppState,
    webhook: Webhook,
    deadline: Duration,
    RawReview { body, is_large, room }: RawReview,
) -> Response {
    if !is_large {
        let answer = state.admission.answer_within(deadline, webhook, Ok(body)).await;
        drop(room);
        return answered(answer);
    }
    // To parse it takes milliseconds, in which this thread could answer tens of others.
    let runtime = Handle::current();
    let answering = spawn_blocking(move || {
        let answer = runtime.block_on(state.admission.answer_within(deadline, webhook, Ok(body)));
        drop(room);
        answer
    });
    match answering.await {
        Ok(answer) => answered(answer),
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        // The runtime is shutting down.
        Err(_) => refusal(StatusCode::SERVICE_UNAVAILABLE, "shutting down".to_owned()),
    }
}

/// When the API server stops waiting: it says so in whole seconds, `?timeout=5s`, and allows 10 s at most by default.
fn deadline(query: Option<&str>) -> Duration {
    let timeout = query.into_iter().flat_map(|query| query.split('&')).find_map(|pair| pair.strip_prefix("timeout="));
    let seconds = timeout.and_then(|timeout| timeout.strip_suffix('s')?.parse().ok());
    Duration::from_secs(seconds.unwrap_or(10))
}

fn answered(answer: Result<Vec<u8>, ReviewError>) -> Response {
    match answer {
        Ok(answer) => json(StatusCode::OK, answer),
        Err(error) => {
            let code = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            refusal(code, error.to_string())
        }
    }
}

/// The plain port: probes and metrics.
pub fn probe_router(state: AppState) -> Router {
    let metrics =
        |State(state): State<AppState>| async move { ([(CONTENT_TYPE, OPENMETRICS)], state.metrics.encode()) };
    health_routes().route(names::PATH_METRICS, get(metrics)).with_state(state)
}

fn health_routes() -> Router<AppState> {
    let ready = |State(state): State<AppState>, RawQuery(query): RawQuery| async move {
        health(state.health.is_ready(), &state.health, query.as_deref())
    };
    let live = |State(state): State<AppState>, RawQuery(query): RawQuery| async move {
        health(state.health.is_live(), &state.health, query.as_deref())
    };
    Router::new()
        .route(names::PATH_HEALTHZ, get(ready))
        .route(names::PATH_READYZ, get(ready))
        .route(names::PATH_LIVEZ, get(live))
}

fn health(good: bool, health: &Health, query: Option<&str>) -> Response {
    let verbose = query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .any(|pair| pair == "verbose" || pair.starts_with("verbose="));
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let text = if good && !verbose { "ok\n".to_owned() } else { health.report() };
    // Nobody keeps a connection by asking for this.
    (status, [(CONNECTION, "close")], text).into_response()
}

/// An error in the form that the API server gives its own.
fn refusal(code: StatusCode, message: String) -> Response {
    let status = Status {
        status: Some("Failure".to_owned()),
        code: Some(code.as_u16().into()),
        reason: code.canonical_reason().map(|reason| reason.replace(' ', "")),
        message: Some(message),
        ..Status::default()
    };
    json(code, serde_json::to_vec(&status).unwrap_or_default())
}

fn json(status: StatusCode, body: Vec<u8>) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_servers_deadline_is_read() {
        let table = [(None, 10), (Some("timeout=5s"), 5), (Some("a=b&timeout=1s"), 1), (Some("timeout=soon"), 10)];
        for (query, seconds) in table {
            assert_eq!(deadline(query), Duration::from_secs(seconds), "{query:?}");
        }
    }
}
