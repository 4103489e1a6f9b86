//! The router with a cluster that is made up, and answers from memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, to_bytes},
};
use gitlab_runner_webhook::{
    cluster::Requests,
    config::{Config, GateThen, PublicRoots},
    names,
    server::{AppState, webhook_router},
    snapshot::{SharedSnapshot, Snapshot, SourcePresence},
    telemetry::{health::Health, metrics::Metrics},
    trust::{BundleFiles, Certs, ClientPair},
};
use http::{Request, Response};
use tokio::runtime::{Builder, Runtime};
use tower::{ServiceExt as _, service_fn};

/// The only webhook that may answer with a patch.
pub const PATCHES: &str = names::PATH_MUTATE_PODS;

/// Bodies that are refused, each for another reason.
const REFUSED: [&str; 11] = [
    "x",
    "{",
    "[",
    r#"{"kind": 1}"#,
    "{}",
    r#"{"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview"}"#,
    r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}"#,
    r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {}}"#,
    r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "u"}}"#,
    r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "u", "operation": "CREATE"}}"#,
    "",
];

/// One configuration, and the cluster as it sees it.
pub struct World {
    runtime: Runtime,
    router: Router,
    /// What is said of [`REFUSED`], without the numbers.
    pub refusals: BTreeSet<String>,
}

/// An HTTP answer.
pub struct Answer {
    pub code: u16,
    pub text: Vec<u8>,
}

/// All of them: the defaults, and everything that can be set set otherwise.
pub fn worlds() -> &'static [World; 2] {
    static WORLDS: LazyLock<[World; 2]> = LazyLock::new(|| {
        let mut other = Config { public_roots: PublicRoots::None, ..Config::default() };
        other.inject.services = true;
        other.inject.client_certificate = true;
        other.gate.then = GateThen::Deny;
        [World::new(Config::default()), World::new(other)]
    });
    &WORLDS
}

/// A message with `#` for each number: line, column, limit.
pub fn without_numbers(message: &str) -> String {
    let mut text = String::new();
    for character in message.chars() {
        match character {
            '0'..='9' if text.ends_with('#') => {}
            '0'..='9' => text.push('#'),
            other => text.push(other),
        }
    }
    text
}

impl World {
    fn new(mut config: Config) -> Self {
        // Whoever waits for a clone waits in real time; here the gate has always given up.
        config.gate.give_up_after = Duration::from_nanos(1);
        let snapshot = SharedSnapshot::new(snapshot(&config));
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let requests = {
            let _entered = runtime.enter();
            Requests::new(kube::Client::new(service_fn(stored), "default"))
        };
        let state = AppState::new(Arc::new(config), snapshot, requests, Health::new(), Metrics::new());
        let mut world = Self { runtime, router: webhook_router(state), refusals: BTreeSet::new() };
        for body in REFUSED {
            let Answer { code, text } = world.post(PATCHES, body.into());
            assert_ne!(code, 200, "{body}");
            let status: serde_json::Value = serde_json::from_slice(&text).expect("a Status");
            world.refusals.insert(without_numbers(status["message"].as_str().expect("a message")));
        }
        // No harmless body is so large.
        world.refusals.insert("the review would take more than # bytes of memory".to_owned());
        world.refusals.insert("the review is longer than # bytes".to_owned());
        world
    }

    /// Sends one review.
    pub fn post(&self, path: &str, body: Vec<u8>) -> Answer {
        let request = Request::post(path).header("content-type", "application/json").body(Body::from(body));
        self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request.expect("a request")).await.expect("an answer");
            let code = response.status().as_u16();
            let text = to_bytes(response.into_body(), usize::MAX).await.expect("the whole answer");
            Answer { code, text: text.to_vec() }
        })
    }
}

/// `gitlab-runner` has all it needs; the other namespaces, named for it, have not.
fn snapshot(config: &Config) -> Snapshot {
    let name = |name: &str| name.parse().expect("a name");
    let valid = Certs { has_ca: true, client_pair: ClientPair::Usable, ..Certs::default() };
    let invalid = Certs { unreadable: Some("ca.crt".to_owned()), ..Certs::default() };
    let certs =
        [("gitlab-runner", valid.clone()), ("pending", valid), ("invalid", invalid), ("none", Certs::default())];
    let trust = BundleFiles { has_ca: true, has_bundle: true, has_hashes: true, has_java: true };
    let behind = ["stale", "absent", "foreign"].into_iter();
    let specs = &config.clones;
    let out_of_step = behind
        .flat_map(|namespace| specs.iter().map(move |spec| ((spec.secret.clone(), name(namespace)), Instant::now())));
    Snapshot {
        sources: specs.iter().map(|spec| (spec.secret.clone(), (spec.from.clone(), SourcePresence::Present))).collect(),
        certs: certs.into_iter().map(|(namespace, certs)| (name(namespace), certs)).collect(),
        certs_loaded: true,
        trust: BTreeMap::from([(name("gitlab-runner"), trust)]),
        namespaces: ["gitlab-runner", "pending", "stale", "absent"].into_iter().map(name).collect(),
        clones_loaded: true,
        out_of_step: out_of_step.collect(),
        ..Snapshot::default()
    }
}

/// The API server: every Secret is there, equal to its source, but for the namespaces that are out of step.
async fn stored(request: Request<kube::client::Body>) -> Result<Response<kube::client::Body>, Infallible> {
    let path = request.uri().path();
    let (code, text) = match path.split('/').nth(4) {
        Some("absent") => {
            (404, r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}"#)
        }
        Some("stale" | "foreign") => (200, r#"{"kind":"Secret","apiVersion":"v1","metadata":{},"data":{"a":"b2xk"}}"#),
        _ => (200, r#"{"kind":"Secret","apiVersion":"v1","metadata":{},"data":{"a":"bmV3"}}"#),
    };
    let response = Response::builder().status(code).header("content-type", "application/json");
    Ok(response.body(text.as_bytes().to_vec().into()).expect("a response"))
}
