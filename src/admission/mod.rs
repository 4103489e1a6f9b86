//! Admission: three webhooks, each with a path of its own: inject (`/mutate/pods`), gate (`/validate/pods`) and warn
//! (`/mutate/namespaces`).
//!
//! One pipeline for all of them: decode, decide, count, answer. Nothing is written; only the gate asks the API server, for
//! pods that use a clone. No object under review is logged at any level.

mod decision;
mod error;
mod gate;
mod inject;
mod kind;
mod namespace;
mod pod;
mod pod_view;
mod references;
mod review;
mod singleflight;

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tracing::{Span, debug, field::Empty, info, info_span};

pub use error::ReviewError;
pub use inject::host;
pub use kind::{LABEL_JOB, PodKind, runs_entrypoint};
pub use pod_view::{ContainerView, PodView};

use self::{
    decision::{Decision, Verdict},
    gate::{AUDIT_SOURCE_VERSION, Gate, PATIENCE},
    inject::inject,
    review::Request,
};
use crate::{
    cluster::Requests,
    config::Config,
    snapshot::{SharedSnapshot, Snapshot},
    telemetry::metrics::{AdmissionLabels, Metrics, WebhookLabels},
};

/// Longest time that an answer takes. Less than the 5 s that the shipped webhooks give us.
const DEADLINE: Duration = Duration::from_secs(3);
/// What is left of a caller's deadline for the way back.
const MARGIN: Duration = Duration::from_millis(500);

/// Longest name of an object.
const MAX_NAME: usize = 253;

/// Answers admission reviews.
#[derive(Clone)]
pub struct Admission {
    config: Arc<Config>,
    snapshot: SharedSnapshot,
    gate: Gate,
    metrics: Metrics,
}

/// The webhooks that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Webhook {
    /// Injects certificates into runner pods.
    MutatePods,
    /// Warns when a runner namespace is created without a source.
    MutateNamespaces,
    /// Lets a pod in when the clones that it uses are there and current.
    ValidatePods,
}

impl Webhook {
    /// The webhook as metric label and log field.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MutatePods => "mutate-pods",
            Self::MutateNamespaces => "mutate-namespaces",
            Self::ValidatePods => "validate-pods",
        }
    }

    /// What it is asked about.
    fn object(self) -> &'static str {
        match self {
            Self::MutatePods | Self::ValidatePods => "pod",
            Self::MutateNamespaces => "namespace",
        }
    }
}

impl Admission {
    /// Admission by this configuration and what the watches publish; the gate asks by these requests.
    pub fn new(config: Arc<Config>, snapshot: SharedSnapshot, requests: Requests, metrics: Metrics) -> Self {
        let gate = Gate::new(Arc::clone(&config), snapshot.clone(), requests, metrics.gate_wait.clone());
        Self { config, snapshot, gate, metrics }
    }

    /// Answers one review, or says why it could not be read.
    ///
    /// # Errors
    /// The error that reading the body gave, or that the body is not a v1 `AdmissionReview`.
    pub async fn answer(&self, webhook: Webhook, body: Result<Bytes, ReviewError>) -> Result<Vec<u8>, ReviewError> {
        self.answer_within(DEADLINE, webhook, body).await
    }

    /// The same, before the caller's own `deadline` is over, if that is sooner.
    ///
    /// # Errors
    /// As [`Admission::answer`].
    pub async fn answer_within(
        &self,
        deadline: Duration,
        webhook: Webhook,
        body: Result<Bytes, ReviewError>,
    ) -> Result<Vec<u8>, ReviewError> {
        let deadline = deadline.saturating_sub(MARGIN).min(DEADLINE);
        let started = Instant::now();
        let span = info_span!(
            "admission",
            webhook = webhook.as_str(),
            uid = Empty,
            namespace = Empty,
            name = Empty,
            decision = Empty,
            reason = Empty,
            latency_seconds = Empty,
            source_version = Empty,
        );

        let mut outcome = ("error", "");
        let answer = async {
            let body = body?;
            let request = Request::read(&body)?;
            span.record("uid", &request.uid).record("namespace", logged(&request.namespace));
            let name = logged(request.display_name());
            span.record("name", &name);
            let uid = request.uid.clone();
            let decision = self.decide(webhook, request, &body, deadline).await?;
            outcome = (decision.word(), decision.reason);
            if let Some(version) = decision.audit.get(AUDIT_SOURCE_VERSION) {
                span.record("source_version", version);
            }
            decision.write(&uid, webhook.object(), &name)
        };
        let answer = answer.await;
        let _entered = span.enter();
        if let Err(error) = &answer {
            outcome = ("error", error.reason());
        }
        self.account(webhook, outcome, started, &span);
        match &answer {
            // Anybody can send what is no review, as fast as it likes: counted, not logged.
            Err(error) => debug!(%error, "review refused"),
            Ok(_) if outcome.0 == "denied" => info!("denied"),
            Ok(_) => debug!("answered"),
        }
        answer
    }

    async fn decide(
        &self,
        webhook: Webhook,
        request: Request<'_>,
        body: &[u8],
        deadline: Duration,
    ) -> Result<Decision, ReviewError> {
        match webhook {
            Webhook::MutatePods if request.creates("Pod") => self.pod(request, body, deadline).await,
            Webhook::MutateNamespaces if request.creates("Namespace") => {
                Ok(namespace::review(&request.object, &self.config, &self.snapshot.load()))
            }
            Webhook::ValidatePods if request.creates("Pod") => Ok(self.gate.review(request, deadline).await),
            // The webhook configuration asks for more than it should.
            Webhook::MutatePods | Webhook::MutateNamespaces | Webhook::ValidatePods => {
                Ok(Decision { reason: "other-request", ..Decision::default() })
            }
        }
    }

    async fn pod(&self, mut request: Request<'_>, body: &[u8], deadline: Duration) -> Result<Decision, ReviewError> {
        let kind = PodKind::of(&request.object, &self.config);
        if self.is_unsettled(&self.snapshot.load(), kind, &request.namespace) {
            let namespace = request.namespace.clone();
            // It takes more memory than its bytes: it is not kept while the pod waits.
            drop(request);
            // What a manager pod trusts, it trusts for months.
            let patience = if kind == PodKind::Manager { deadline } else { PATIENCE.min(deadline) };
            self.snapshot.wait_for(patience, |snapshot| !self.is_unsettled(snapshot, kind, &namespace)).await;
            request = Request::read(body)?;
        }
        let injection = inject(&request.object, kind, &request.namespace, &self.snapshot.load(), &self.config);
        Ok(Decision {
            verdict: Verdict::Allow(injection.patch),
            reason: injection.reason.as_str(),
            warnings: injection.warnings,
            audit: BTreeMap::from([("pod", kind.as_str().to_owned())]),
        })
    }

    /// Whether certificates are about to be read, or a trust bundle is about to be put right: without them the pod would trust
    /// nothing of the company for as long as it lives. Such a pod waits a moment.
    fn is_unsettled(&self, snapshot: &Snapshot, kind: PodKind, namespace: &str) -> bool {
        let is_injected = match kind {
            PodKind::Manager => self.config.inject.manager,
            PodKind::Job => self.config.inject.jobs,
            PodKind::Pause | PodKind::Other => false,
        };
        is_injected && (snapshot.certs_unread.contains(namespace) || snapshot.trust_unsettled.contains(namespace))
    }

    fn account(
        &self,
        webhook: Webhook,
        (decision, reason): (&'static str, &'static str),
        started: Instant,
        span: &Span,
    ) {
        let (webhook, latency) = (webhook.as_str(), started.elapsed().as_secs_f64());
        span.record("decision", decision).record("reason", reason).record("latency_seconds", latency);
        self.metrics.admissions.get_or_create(&AdmissionLabels { webhook, decision, reason }).inc();
        self.metrics.admission_duration.get_or_create(&WebhookLabels { webhook }).observe(latency);
    }
}

/// A caller's word as the log has it: what a name cannot hold is escaped, and no more is kept than a name may have.
fn logged(word: &str) -> String {
    let escaped = word.chars().take(MAX_NAME).flat_map(|char| {
        let is_plain = char.is_ascii_graphic();
        is_plain.then_some(char).into_iter().chain((!is_plain).then(|| char.escape_unicode()).into_iter().flatten())
    });
    escaped.take(MAX_NAME).collect()
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_word_is_bounded_and_escaped_before_it_is_logged() {
        let table = [
            ("gitlab-runner", "gitlab-runner".to_owned()),
            ("", String::new()),
            ("a\u{1b}[31mb\n", "a\\u{1b}[31mb\\u{a}".to_owned()),
            ("\u{202e}x", "\\u{202e}x".to_owned()),
            (&"n".repeat(1_000), "n".repeat(253)),
            (&"\n".repeat(1_000), "\\u{a}".repeat(51)[..253].to_owned()),
        ];
        for (word, expected) in table {
            assert_eq!(logged(word), expected);
        }
    }
}
