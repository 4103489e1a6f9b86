//! What is served where.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, FromRequest as _, RawQuery, Request, State, rejection::BytesRejection},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use http::{
    HeaderMap, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use tokio::time::timeout;

use crate::{
    admission::{Admission, ReviewError, Webhook},
    config::Config,
    names,
    snapshot::SharedSnapshot,
    telemetry::{health::Health, metrics::Metrics},
};

/// A Pod that etcd can hold (1.5 MiB) may grow sixfold as a review: Go escapes `<`, `>` and `&`.
const MAX_REVIEW: usize = 10 * 1024 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
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
    /// Handlers that act by this configuration on what the watches publish.
    pub fn new(config: Arc<Config>, snapshot: SharedSnapshot, health: Arc<Health>, metrics: Metrics) -> Self {
        Self { admission: Admission::new(config, snapshot, metrics.clone()), health, metrics }
    }
}

/// The HTTPS port: webhooks, and health for people and scripts.
pub fn webhook_router(state: AppState) -> Router {
    let webhook = |webhook| {
        post(move |State(state): State<AppState>, request: Request| async move {
            let review = read_review(request).await;
            match state.admission.answer(webhook, review) {
                Ok(answer) => json(StatusCode::OK, answer),
                Err(error) => refusal(&error),
            }
        })
        .layer(DefaultBodyLimit::max(MAX_REVIEW))
    };
    health_routes()
        .route(names::PATH_MUTATE_PODS, webhook(Webhook::MutatePods))
        .route(names::PATH_MUTATE_NAMESPACES, webhook(Webhook::MutateNamespaces))
        .with_state(state)
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
    (status, text).into_response()
}

async fn read_review(request: Request) -> Result<Bytes, ReviewError> {
    let too_large = ReviewError::TooLarge { limit: MAX_REVIEW };
    if !is_json(request.headers()) {
        return Err(ReviewError::ContentType);
    }
    // Said before it is read.
    if content_length(request.headers()).is_some_and(|length| length > MAX_REVIEW) {
        return Err(too_large);
    }
    match timeout(BODY_TIMEOUT, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(BytesRejection::FailedToBufferBody(error))) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            Err(too_large)
        }
        Ok(Err(_)) => Err(ReviewError::CutOff),
        Err(_) => Err(ReviewError::TooSlow { seconds: BODY_TIMEOUT.as_secs() }),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// An error in the form that the API server gives its own.
fn refusal(error: &ReviewError) -> Response {
    let code = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let status = Status {
        status: Some("Failure".to_owned()),
        code: Some(code.as_u16().into()),
        reason: code.canonical_reason().map(|reason| reason.replace(' ', "")),
        message: Some(error.to_string()),
        ..Status::default()
    };
    json(code, serde_json::to_vec(&status).unwrap_or_default())
}

fn json(status: StatusCode, body: Vec<u8>) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], body).into_response()
}
