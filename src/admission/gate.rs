//! The gate: a pod that uses a clone is let in when the clone is there and current.
//!
//! "Current" is what the API server stores when it is asked, not what a watch remembers: a token rotated a
//! moment ago must not be read by a pod created now. The gate never blocks for long and never writes; it
//! turns a pod away with 429, which clients try again by themselves, and gives up in the end, because a
//! kubelet that waits for a Secret does better than a `ReplicaSet` in back-off.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use k8s_openapi::api::core::v1::Secret;
use prometheus_client::metrics::histogram::Histogram;
use tokio::time::{timeout, timeout_at};

use super::{
    decision::{Decision, Denial, RetryAfter, Verdict, Warning},
    kind::PodKind,
    references::references,
    review::Request,
    singleflight::Singleflight,
};
use crate::{
    cluster::{Problem, Requests},
    config::{CloneSpec, Config, GateThen, NamespaceName, SecretName},
    snapshot::{SharedSnapshot, Snapshot, SourcePresence},
    sync::{names_another_source, same_content},
    wiped::Wiped,
};

/// Audit annotation, and field of the log: the `resourceVersion` of the source that a clone was compared with.
pub(super) const AUDIT_SOURCE_VERSION: &str = "source-version";

/// How long one request waits for its clone; one takes some 10 ms.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);
/// How long a clone may be right before the watches know it.
const LAG: Duration = Duration::from_secs(1);
/// Longest wait for the API server's answer to the reads of one look.
const READ_DEADLINE: Duration = Duration::from_secs(1);

/// Compares clones with their sources for pods.
#[derive(Clone)]
pub(crate) struct Gate {
    config: Arc<Config>,
    snapshot: SharedSnapshot,
    requests: Requests,
    reads: Arc<Singleflight<(SecretName, NamespaceName), Look>>,
    waits: Histogram,
}

/// A clone beside its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GateState {
    Current,
    Stale,
    CloneMissing,
    SourceMissing,
    /// The API server did not say.
    Unknown,
}

/// What one look showed.
#[derive(Clone, Debug)]
struct Look {
    state: GateState,
    /// `resourceVersion` of the source, where it was read: the sync that this pod waits for writes the same version.
    source_version: Option<String>,
}

impl From<GateState> for Look {
    fn from(state: GateState) -> Self {
        Self { state, source_version: None }
    }
}

impl GateState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Stale => "stale",
            Self::CloneMissing => "clone-missing",
            Self::SourceMissing => "source-missing",
            Self::Unknown => "unknown",
        }
    }

    /// For the sentence "Secret x ...".
    fn told(self) -> &'static str {
        match self {
            Self::Current => "is current",
            Self::Stale => "is not what its source is yet",
            Self::CloneMissing => "is not there yet",
            Self::SourceMissing => "has no source",
            Self::Unknown => "cannot be compared with its source: the API server does not answer",
        }
    }
}

impl Gate {
    pub(crate) fn new(config: Arc<Config>, snapshot: SharedSnapshot, requests: Requests, waits: Histogram) -> Self {
        Self { config, snapshot, requests: requests.within(READ_DEADLINE), reads: Arc::default(), waits }
    }

    /// Decides on a pod, before `deadline` is over.
    pub(crate) async fn review(&self, request: Request<'_>, deadline: Duration) -> Decision {
        let kind = PodKind::of(&request.object, &self.config);
        let Ok(namespace) = request.namespace.parse::<NamespaceName>() else { return allow("other-request") };
        if self.config.gate.give_up_after.is_zero() {
            return allow("disabled");
        }
        if matches!(kind, PodKind::Job | PodKind::Pause) {
            return allow("other-pod");
        }
        let used = references(&request.object);
        let clones = self.config.clones.iter();
        let clones: Vec<_> =
            clones.filter(|spec| used.contains(spec.secret.as_str()) && spec.from != namespace).collect();
        let dry_run = request.dry_run;
        // It takes more memory than its bytes: it is not kept while the pod waits.
        drop(request);
        if clones.is_empty() {
            return allow("no-reference");
        }
        let looks = join_all(clones.iter().map(|spec| async {
            if dry_run {
                return remembered(&self.snapshot.load(), spec, &namespace).into();
            }
            timeout(deadline, self.wait_for(spec, &namespace)).await.unwrap_or(GateState::Unknown.into())
        }));
        let mut decision = allow("current");
        decision.audit.insert("pod", kind.as_str().to_owned());
        for (spec, Look { state, source_version }) in clones.iter().zip(looks.await) {
            // Of several, that of the one that decides.
            decision.audit.extend(source_version.map(|version| (AUDIT_SOURCE_VERSION, version)));
            if state == GateState::Current {
                continue;
            }
            match self.outcome_if_not_current(spec, &namespace, state) {
                Outcome::Warn(reason, warning) => {
                    decision.reason = reason;
                    decision.warnings.push(warning);
                }
                Outcome::Deny(denial) => {
                    decision.verdict = Verdict::Deny(denial);
                    decision.reason = state.as_str();
                    break;
                }
            }
        }
        decision
    }

    /// Asks until the clone is current, or patience is at its end, or there is nothing to wait for.
    async fn wait_for(&self, spec: &CloneSpec, namespace: &NamespaceName) -> Look {
        let started = Instant::now();
        // A caller may name any namespace: nothing is read for one that is no runner namespace. One that was created this
        // very moment is known soon.
        if !self.snapshot.wait_for(PATIENCE, |snapshot| !is_foreign(snapshot, namespace)).await {
            return GateState::CloneMissing.into();
        }
        let mut changes = self.snapshot.subscribe();
        let mut look = self.look(spec, namespace).await;
        if look.state == GateState::Current {
            self.report_contradiction(spec, namespace, look.state);
            return look;
        }
        while look.state != GateState::Current && !self.has_given_up(spec, namespace) {
            let Ok(Ok(())) = timeout_at((started + PATIENCE).into(), changes.changed()).await else { break };
            let is_current = remembered(&changes.borrow_and_update(), spec, namespace) == GateState::Current;
            // What the watches know says when another look is worth it.
            if is_current {
                look = self.look(spec, namespace).await;
            }
        }
        self.waits.observe(started.elapsed().as_secs_f64());
        self.report_contradiction(spec, namespace, look.state);
        look
    }

    /// What was read is the truth: when the watches know it otherwise, sync is told, so that it reads, too, and the time
    /// after which the gate gives up begins.
    fn report_contradiction(&self, spec: &CloneSpec, namespace: &NamespaceName, read: GateState) {
        let snapshot = self.snapshot.load();
        if !snapshot.clones_loaded || !snapshot.namespaces.contains(namespace) {
            return;
        }
        let since = snapshot.out_of_step.get(&(spec.secret.clone(), namespace.clone()));
        let contradicts = match read {
            // What was written a moment ago comes back through the watch.
            GateState::Current => since.is_some_and(|since| since.elapsed() > LAG),
            GateState::Stale | GateState::CloneMissing | GateState::SourceMissing | GateState::Unknown => {
                since.is_none()
            }
        };
        if contradicts {
            snapshot.doubts.raise(spec.secret.clone(), namespace.clone());
        }
    }

    /// One quorum read of both, shared by all who ask before it begins.
    async fn look(&self, spec: &CloneSpec, namespace: &NamespaceName) -> Look {
        let key = (spec.secret.clone(), namespace.clone());
        let is_passive = self.snapshot.load().is_passive;
        let looking = self.reads.run(&key, || async {
            let name = spec.secret.as_str();
            let read = async {
                // The clone first: whoever finds it equal to a source read later has found it current.
                let clone: Option<Secret> = self.requests.get(namespace, name).await?;
                let clone = clone.map(Wiped::from);
                let source: Option<Secret> = self.requests.get(&spec.from, name).await?;
                Ok::<_, Problem>((source.map(Wiped::from), clone))
            };
            let Ok(Ok((source, clone))) = timeout(READ_DEADLINE, read).await else { return GateState::Unknown.into() };
            let Some(source) = source else { return GateState::SourceMissing.into() };
            let state = match clone {
                None => GateState::CloneMissing,
                Some(clone) if same_content(&source, &clone) => GateState::Current,
                // Another revision has another source for it, and answers for that.
                Some(clone) if is_passive && names_another_source(&clone.metadata, spec) => GateState::Current,
                Some(_) => GateState::Stale,
            };
            Look { state, source_version: source.metadata.resource_version.clone() }
        });
        looking.await
    }

    /// Since when the clone is out of step, as far as the watches know.
    fn out_of_step(&self, spec: &CloneSpec, namespace: &NamespaceName) -> Option<Instant> {
        self.snapshot.load().out_of_step.get(&(spec.secret.clone(), namespace.clone())).copied()
    }

    /// Whether the clone has been out of step for longer than `giveUpAfter`. Never while it is contended: then it is no delay
    /// that keeps it from being current, and its content may be anybody's.
    fn has_given_up(&self, spec: &CloneSpec, namespace: &NamespaceName) -> bool {
        let is_contended = self.snapshot.load().contended.contains(&(spec.secret.clone(), namespace.clone()));
        let is_over = |since: Instant| since.elapsed() >= self.config.gate.give_up_after;
        !is_contended && self.out_of_step(spec, namespace).is_some_and(is_over)
    }

    /// What becomes of a pod whose clone is not current.
    fn outcome_if_not_current(&self, spec: &CloneSpec, namespace: &NamespaceName, state: GateState) -> Outcome {
        let told = format!("Secret {namespace}/{} {}", spec.secret, state.told());
        if is_foreign(&self.snapshot.load(), namespace) {
            // The webhook's selector and the configuration disagree: nobody will ever make this clone.
            return Outcome::Warn("not-a-runner-namespace", Warning::new(format!("{told}; not a runner namespace")));
        }
        if self.has_given_up(spec, namespace) && self.config.gate.then == GateThen::Admit {
            return Outcome::Warn("gave-up", Warning::new(format!("{told}; the pod waits for it")));
        }
        let source = spec.source();
        Outcome::Deny(Denial {
            code: 429,
            reason: "TooManyRequests",
            message: format!(
                "{told}; its source is {source}. Clients try again by themselves; \
                 if it lasts, see whether the source exists and what gitlab-runner-webhook logs"
            ),
            details: Some(RetryAfter { retry_after_seconds: 1 }),
        })
    }
}

/// What becomes of a pod whose clone is not current.
enum Outcome {
    Warn(&'static str, Warning),
    Deny(Denial),
}

/// Whether this is no runner namespace, as far as the watches know.
fn is_foreign(snapshot: &Snapshot, namespace: &NamespaceName) -> bool {
    snapshot.clones_loaded && !snapshot.namespaces.contains(namespace)
}

/// What the watches know, for dry runs and for when to look again.
fn remembered(snapshot: &Snapshot, spec: &CloneSpec, namespace: &NamespaceName) -> GateState {
    if !snapshot.clones_loaded {
        return GateState::Unknown;
    }
    if snapshot.sources.get(&spec.secret).is_none_or(|(_, view)| *view != SourcePresence::Present) {
        return GateState::SourceMissing;
    }
    if !snapshot.namespaces.contains(namespace) {
        return GateState::CloneMissing;
    }
    match snapshot.out_of_step.get(&(spec.secret.clone(), namespace.clone())) {
        None => GateState::Current,
        Some(_) => GateState::Stale,
    }
}

fn allow(reason: &'static str) -> Decision {
    Decision { reason, ..Decision::default() }
}
