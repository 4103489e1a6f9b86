//! The routers, called in process: golden pods, namespaces, health, metrics and bad requests.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};

use axum::{Router, body::Body};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::stream;
use gitlab_runner_webhook::{
    cluster::Requests,
    config::{Config, NamespaceName},
    server::{AppState, probe_router, webhook_router},
    snapshot::{SharedSnapshot, Snapshot, SourcePresence},
    telemetry::{health::Health, metrics::Metrics},
    trust::{BundleFiles, Certs, ClientPair},
};
use http::{Request, Response, StatusCode};
use rustls::crypto::aws_lc_rs::default_provider;
use serde_json::{Value, json};
use tower::ServiceExt as _;

struct Fixture {
    snapshot: SharedSnapshot,
    health: Arc<Health>,
    metrics: Metrics,
    webhooks: Router,
    probes: Router,
}

impl Fixture {
    fn new(snapshot: Snapshot) -> Self {
        let snapshot = SharedSnapshot::new(snapshot);
        let (health, metrics) = (Health::new(), Metrics::new());
        // Nothing here gets as far as a request to the API server.
        let _ = default_provider().install_default();
        let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let requests = Requests::new(kube::Client::try_from(nowhere).unwrap());
        let config = Arc::new(Config::default());
        let state = AppState::new(config, snapshot.clone(), requests, Arc::clone(&health), metrics.clone());
        Self { snapshot, health, metrics, webhooks: webhook_router(state.clone()), probes: probe_router(state) }
    }

    async fn post(&self, path: &str, body: impl Into<Body>) -> Response<Body> {
        let request = Request::post(path).header("content-type", "application/json").body(body.into()).unwrap();
        self.webhooks.clone().oneshot(request).await.unwrap()
    }

    /// The `response` of the answer to a review; nothing for one that is refused, as no API server sends it.
    async fn try_review(&self, path: &str, kind: &str, object: &Value) -> Option<Value> {
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": kind},
            "resource": {"group": "", "version": "v1", "resource": kind.to_lowercase() + "s"},
            "namespace": "gitlab-runner", "operation": "CREATE", "dryRun": false,
            "userInfo": {"username": "admin"}, "object": object, "oldObject": null, "options": {},
        }});
        let response = self.post(path, review.to_string()).await;
        if response.status() == StatusCode::BAD_REQUEST {
            return None;
        }
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/json");
        let mut answer: Value = serde_json::from_str(&text(response).await).unwrap();
        assert_eq!(
            (&answer["apiVersion"], &answer["kind"]),
            (&json!("admission.k8s.io/v1"), &json!("AdmissionReview"))
        );
        assert_eq!(answer["response"]["uid"], review["request"]["uid"]);
        Some(answer["response"].take())
    }

    async fn review(&self, path: &str, kind: &str, object: &Value) -> Value {
        let read = self.try_review(path, kind, object).await;
        read.unwrap_or_else(|| panic!("{path}: it is not read"))
    }

    /// Decision, reason and the rest, in the form of the expected files.
    async fn decide(&self, pod: &Value) -> Value {
        let Some(response) = self.try_review("/mutate/pods", "Pod", pod).await else {
            return json!({"pod": "refused", "patch": []});
        };
        assert_eq!(response["allowed"], json!(true));
        let patch = response["patch"].as_str().map(|patch| STANDARD.decode(patch).unwrap());
        assert_eq!(response["patchType"].as_str(), patch.as_ref().map(|_| "JSONPatch"));
        let patch: Value = patch.map_or(json!([]), |patch| serde_json::from_slice(&patch).unwrap());
        let warnings = response.get("warnings").cloned().unwrap_or(json!([]));
        for warning in warnings.as_array().unwrap() {
            assert!(warning.as_str().unwrap().chars().count() <= 256);
        }
        json!({
            "pod": response["auditAnnotations"]["pod"], "reason": response["auditAnnotations"]["reason"],
            "warnings": warnings, "patch": patch,
        })
    }
}

async fn text(response: Response<Body>) -> String {
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

/// `certsSecretName` with all three keys and the trust bundle that follows, in the namespace `gitlab-runner`.
fn with_certs() -> Snapshot {
    let certs = Certs { has_ca: true, client_pair: ClientPair::Usable, ..Certs::default() };
    let namespace: NamespaceName = "gitlab-runner".parse().unwrap();
    Snapshot {
        certs: BTreeMap::from([(namespace.clone(), certs)]),
        certs_loaded: true,
        trust: BTreeMap::from([(
            namespace,
            BundleFiles { has_ca: true, has_bundle: true, has_hashes: true, has_java: true },
        )]),
        ..Snapshot::default()
    }
}

fn pods() -> Vec<(PathBuf, Value)> {
    let directory = test_support::repository().join("tests/fixtures/pods");
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect();
    files.sort();
    assert!(files.len() >= 60, "the corpus is there");
    files.into_iter().map(|path| (path.clone(), serde_json::from_slice(&fs::read(path).unwrap()).unwrap())).collect()
}

/// With `UPDATE_FIXTURES=1`, writes what is decided now: read the difference before you commit it.
#[tokio::test]
async fn golden_pods() {
    let fixture = Fixture::new(with_certs());
    for (path, pod) in pods() {
        let decision = fixture.decide(&pod).await;
        let expected = path.with_file_name("expected").join(path.file_name().unwrap());
        if std::env::var_os("UPDATE_FIXTURES").is_some() {
            fs::write(&expected, serde_json::to_string_pretty(&decision).unwrap() + "\n").unwrap();
        }
        let expected: Value = serde_json::from_slice(&fs::read(expected).unwrap()).unwrap();
        assert_eq!(decision, expected, "{}", path.display());
    }
}

#[tokio::test]
async fn a_second_pass_adds_nothing() {
    let fixture = Fixture::new(with_certs());
    for (path, mut pod) in pods() {
        let decision = fixture.decide(&pod).await;
        let patch: json_patch::Patch = serde_json::from_value(decision["patch"].clone()).unwrap();
        json_patch::patch(&mut pod, &patch).unwrap();
        let again = fixture.decide(&pod).await;
        assert_eq!(again["patch"], json!([]), "{}", path.display());
        if decision["reason"] == "injected" {
            assert!(
                ["present", "blocked", "foreign-mount"].contains(&again["reason"].as_str().unwrap()),
                "{}",
                path.display()
            );
        }
    }
}

#[tokio::test]
async fn no_job_pod_ever_gets_a_secret() {
    let fixture = Fixture::new(with_certs());
    for (path, pod) in pods() {
        let decision = fixture.decide(&pod).await;
        let patch = decision["patch"].to_string();
        let is_public = !patch.contains("ecret") && !patch.contains("tls.") && !patch.contains("gitlab-runner-certs");
        assert!(decision["pod"] == "manager" || is_public, "{}", path.display());
    }
}

#[tokio::test]
async fn what_the_watches_publish_is_seen_at_once() {
    let fixture = Fixture::new(Snapshot::default());
    let (_, job) = pods().into_iter().find(|(path, _)| path.ends_with("job-runner-19.4.json")).unwrap();
    assert_eq!(fixture.decide(&job).await["reason"], "certs-not-loaded");
    fixture.snapshot.publish(Snapshot { certs_loaded: true, ..Snapshot::default() });
    let decision = fixture.decide(&job).await;
    assert_eq!(decision["reason"], "certs-missing");
    assert_eq!(
        decision["warnings"],
        json!([
            "gitlab-runner-webhook: pod: no CA injected: Secret gitlab-runner/gitlab-runner-certs is missing; create it with ca.crt and retry the job"
        ])
    );
    fixture.snapshot.publish(with_certs());
    assert_eq!(fixture.decide(&job).await["reason"], "injected");
}

#[tokio::test]
async fn a_namespace_is_warned_about_and_never_changed() {
    let clone = &Config::default().clones[0];
    let sources = BTreeMap::from([(clone.secret.clone(), (clone.from.clone(), SourcePresence::Missing))]);
    let fixture = Fixture::new(Snapshot { sources, ..Snapshot::default() });
    let namespace =
        json!({"metadata": {"name": "gitlab-runner", "labels": {"kubernetes.io/metadata.name": "gitlab-runner"}}});
    let response = fixture.review("/mutate/namespaces", "Namespace", &namespace).await;
    assert_eq!(
        (&response["allowed"], response.get("patch"), &response["auditAnnotations"]),
        (&json!(true), None, &json!({"reason": "source-missing"}))
    );
    assert_eq!(
        response["warnings"],
        json!([
            "gitlab-runner-webhook: namespace: Secret gitlab/gitlab-gitlab-runner-secret is missing; it is cloned here once it exists"
        ])
    );
}

#[tokio::test]
async fn what_is_not_the_webhooks_business_is_let_in() {
    let fixture = Fixture::new(with_certs());
    for (path, kind) in [("/mutate/pods", "Namespace"), ("/mutate/namespaces", "Pod"), ("/mutate/pods", "Secret")] {
        let response = fixture.review(path, kind, &json!({"data": {"token": "x"}})).await;
        assert_eq!(
            response,
            json!({
                "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "allowed": true,
                "auditAnnotations": {"reason": "other-request"},
            })
        );
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_a_status_with_the_way_out() {
    let fixture = Fixture::new(with_certs());
    let v1beta1 = json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": {"uid": "u"}});
    let table = [
        ("hunter2".to_owned(), 400, "BadRequest", "not a JSON AdmissionReview"),
        (v1beta1.to_string(), 400, "BadRequest", "admissionReviewVersions: [v1]"),
        ("{}".to_owned(), 400, "BadRequest", "expected kind AdmissionReview"),
        (" ".repeat(10 * 1024 * 1024 + 1), 413, "PayloadTooLarge", "10485760 bytes"),
    ];
    for (body, code, reason, expects) in table {
        let response = fixture.post("/mutate/pods", body).await;
        assert_eq!(response.status(), code);
        let status: Value = serde_json::from_str(&text(response).await).unwrap();
        let message = status["message"].as_str().unwrap();
        assert!(message.contains(expects) && !message.contains("hunter2"), "{message}");
        assert_eq!(
            (&status["kind"], &status["status"], &status["code"], &status["reason"]),
            (&json!("Status"), &json!("Failure"), &json!(code), &json!(reason))
        );
    }
    for reason in ["not-json", "version", "kind", "too-large"] {
        assert!(fixture.metrics.encode().contains(&format!("decision=\"error\",reason=\"{reason}\"")), "{reason}");
    }
}

#[tokio::test]
async fn only_json_is_read() {
    let fixture = Fixture::new(with_certs());
    for (content_type, code) in [
        (None, 415),
        (Some("text/plain"), 415),
        (Some("application/jsonx"), 415),
        (Some("application/json; charset=utf-8"), 400),
        (Some("Application/JSON"), 400),
    ] {
        let mut request = Request::post("/mutate/pods");
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let response = fixture.webhooks.clone().oneshot(request.body(Body::from("{}")).unwrap()).await.unwrap();
        assert_eq!(response.status(), code, "{content_type:?}");
    }
}

#[tokio::test]
async fn a_body_without_a_length_is_limited_too() {
    let fixture = Fixture::new(with_certs());
    let chunk = || Ok::<_, std::io::Error>(vec![b' '; 1024 * 1024]);
    let endless = Body::from_stream(stream::repeat_with(chunk));
    assert_eq!(fixture.post("/mutate/pods", endless).await.status(), 413);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_given_up() {
    let fixture = Fixture::new(with_certs());
    let never = Body::from_stream(stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let response = fixture.post("/mutate/pods", never).await;
    assert_eq!(response.status(), 408);
    assert!(text(response).await.contains("within 5 s"));
}

#[tokio::test]
async fn paths_and_methods() {
    let fixture = Fixture::new(with_certs());
    let table = [
        (&fixture.webhooks, "GET", "/mutate/pods", 405),
        (&fixture.webhooks, "GET", "/healthz", 200),
        (&fixture.webhooks, "GET", "/livez", 200),
        (&fixture.webhooks, "GET", "/readyz", 200),
        (&fixture.webhooks, "GET", "/metrics", 404),
        (&fixture.webhooks, "POST", "/mutate/pods/", 404),
        (&fixture.probes, "GET", "/healthz", 200),
        (&fixture.probes, "GET", "/livez", 200),
        (&fixture.probes, "HEAD", "/readyz", 200),
        (&fixture.probes, "GET", "/metrics", 200),
        (&fixture.probes, "POST", "/mutate/pods", 404),
    ];
    for (router, method, path, code) in table {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        assert_eq!(router.clone().oneshot(request).await.unwrap().status(), code, "{method} {path}");
    }
}

#[tokio::test]
async fn health_says_which_gate_is_closed() {
    let fixture = Fixture::new(Snapshot::default());
    let probe = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = fixture.probes.clone().oneshot(request).await.unwrap();
        (response.status().as_u16(), text(response).await)
    };
    let gate = fixture.health.gate("certificate");
    let report = |sign: char| format!("[+]sync-loop\n[{sign}]certificate\n");
    for path in ["/readyz", "/healthz", "/readyz?verbose"] {
        assert_eq!(probe(path).await, (503, report('-')), "{path}");
    }
    assert_eq!(probe("/livez").await, (200, "ok\n".to_owned()));
    gate.set(true);
    for path in ["/readyz", "/healthz", "/readyz?verbos=1"] {
        assert_eq!(probe(path).await, (200, "ok\n".to_owned()), "{path}");
    }
    for path in ["/readyz?verbose", "/healthz?a=b&verbose=true", "/livez?verbose"] {
        assert_eq!(probe(path).await, (200, report('+')), "{path}");
    }
}

#[tokio::test]
async fn metrics_count_each_answer() {
    let fixture = Fixture::new(with_certs());
    let (_, job) = pods().into_iter().find(|(path, _)| path.ends_with("job-runner-19.4.json")).unwrap();
    fixture.decide(&job).await;
    let response = fixture.probes.clone().oneshot(Request::get("/metrics").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let page = text(response).await;
    assert!(
        page.contains("admissions_total{webhook=\"mutate-pods\",decision=\"patched\",reason=\"injected\"} 1\n"),
        "{page}"
    );
    assert!(page.contains("admission_duration_seconds_count{webhook=\"mutate-pods\"} 1\n"), "{page}");
    assert!(page.ends_with("# EOF\n"));
}
