//! The state of each object that is looked after: told once for each change, counted, and timed for the gate.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use super::{
    observe::{Subject, Target},
    plan::NoAction,
};
use crate::{
    cluster::{EventQueue, EventRecord, Reason, Regarding, Uid},
    config::{Config, NamespaceName, SecretName},
    names::CONFIGMAP_TRUST,
    telemetry::metrics::{CloneLabels, Metrics, StateLabels},
};

/// States by target.
pub struct States {
    config: Arc<Config>,
    metrics: Metrics,
    events: EventQueue,
    by_target: HashMap<Target, &'static str>,
    /// Since when each clone is not what its source is.
    out_of_step: BTreeMap<(SecretName, NamespaceName), Instant>,
}

impl States {
    pub fn new(config: Arc<Config>, metrics: Metrics, events: EventQueue) -> Self {
        Self { config, metrics, events, by_target: HashMap::new(), out_of_step: BTreeMap::new() }
    }

    /// Since when each clone is not what its source is.
    pub fn out_of_step(&self) -> &BTreeMap<(SecretName, NamespaceName), Instant> {
        &self.out_of_step
    }

    /// Notes that a clone is not what its source is. Returns whether that is news.
    pub fn falls_out_of_step(&mut self, target: &Target, now: Instant) -> bool {
        let Some(key) = self.key(target) else { return false };
        let before = self.out_of_step.len();
        self.out_of_step.entry(key).or_insert(now);
        self.out_of_step.len() != before
    }

    /// Notes that a clone is what its source is. Returns whether that is news.
    pub fn falls_in_step(&mut self, target: &Target) -> bool {
        self.key(target).is_some_and(|key| self.out_of_step.remove(&key).is_some())
    }

    /// Clones that something else keeps changing.
    pub fn contended(&self) -> BTreeSet<(SecretName, NamespaceName)> {
        let contended = self.by_target.iter().filter(|(_, state)| **state == Reason::Contended.as_str());
        contended.filter_map(|(target, _)| self.key(target)).collect()
    }

    /// Notes that nothing is to be done, and why. Returns whether admission has to know.
    pub fn note_no_action(&mut self, target: &Target, why: &NoAction, now: Instant) -> bool {
        match why {
            NoAction::Synced | NoAction::NotWanted | NoAction::NamespaceAbsent | NoAction::NamespaceTerminating => {
                self.falls_in_step(target)
            }
            // Said by the plan that another revision carries out.
            NoAction::Standby => false,
            _ => self.falls_out_of_step(target, now),
        }
    }

    /// Notes a state; one log line for each change, and an Event when somebody has to do something, or no longer.
    /// `uid` is the object's, if it is there. Returns whether admission has to know: it is contended now, or no longer.
    pub fn set(&mut self, target: &Target, state: &'static str, detail: Option<&str>, uid: Option<&str>) -> bool {
        let former = if state == NoAction::NotWanted.reason() {
            self.by_target.remove(target)
        } else {
            self.by_target.insert(target.clone(), state)
        };
        if former == Some(state) {
            return false;
        }
        if let Some(former) = former {
            self.count(target, former, -1);
        }
        if self.by_target.contains_key(target) {
            self.count(target, state, 1);
        }
        self.tell(target, former, state, detail, uid);
        let (object, namespace) = (self.name(target), target.namespace.as_str());
        match (detail, target.subject) {
            (Some(detail), Subject::Clone(_)) => tracing::warn!(object, namespace, state, detail, "clone state"),
            (Some(detail), Subject::Trust) => tracing::warn!(object, namespace, state, detail, "trust bundle state"),
            (None, Subject::Clone(_)) if former.is_some() => tracing::info!(object, namespace, state, "clone state"),
            (None, Subject::Trust) if former.is_some() => {
                tracing::info!(object, namespace, state, "trust bundle state");
            }
            (None, _) => tracing::debug!(object, namespace, state, "first state"),
        }
        let contended = Reason::Contended.as_str();
        state == contended || former == Some(contended)
    }

    fn tell(
        &self,
        target: &Target,
        former: Option<&'static str>,
        state: &'static str,
        detail: Option<&str>,
        uid: Option<&str>,
    ) {
        let is_warning = is_problem(target.subject, state);
        let is_over =
            state == NoAction::Synced.reason() && former.is_some_and(|former| is_problem(target.subject, former));
        if !is_warning && !is_over {
            return;
        }
        let (kind, what) = match target.subject {
            Subject::Clone(_) => ("Secret", "the clone"),
            Subject::Trust => ("ConfigMap", "the trust bundle"),
        };
        let note = match (detail, target.subject) {
            _ if is_over => format!("{what} equals its source again"),
            (Some(detail), _) => detail.to_owned(),
            (None, Subject::Clone(clone)) if state == NoAction::SourceMissing.reason() => {
                let source = self.config.clones.get(clone).map(crate::config::CloneSpec::source).unwrap_or_default();
                format!("the source {source} is missing; create it")
            }
            (None, _) => format!("{what} is not what its source is: {state}"),
        };
        let regarding = Regarding {
            namespace: target.namespace.clone(),
            kind,
            api_version: "v1",
            name: self.name(target).to_owned(),
            uid: Uid::Seen(uid.map(ToOwned::to_owned)),
        };
        self.events.tell(EventRecord { regarding, is_warning, reason: state, note });
    }

    /// Name of the object.
    pub fn name(&self, target: &Target) -> &str {
        match target.subject {
            Subject::Clone(clone) => self.config.clones.get(clone).map(|spec| spec.secret.as_str()).unwrap_or_default(),
            Subject::Trust => CONFIGMAP_TRUST,
        }
    }

    fn count(&self, target: &Target, state: &'static str, change: i64) {
        match target.subject {
            Subject::Clone(_) => {
                let labels = CloneLabels { secret: self.name(target).to_owned(), state };
                self.metrics.clones.get_or_create(&labels).inc_by(change);
            }
            Subject::Trust => {
                self.metrics.trust_bundles.get_or_create(&StateLabels { state }).inc_by(change);
            }
        }
    }

    fn key(&self, target: &Target) -> Option<(SecretName, NamespaceName)> {
        let Subject::Clone(clone) = target.subject else { return None };
        Some((self.config.clones.get(clone)?.secret.clone(), target.namespace.clone()))
    }
}

/// Whether somebody has to do something about an object in this state.
fn is_problem(subject: Subject, state: &str) -> bool {
    match subject {
        // No certificates, no trust bundle: most clusters have none.
        Subject::Trust if state == NoAction::SourceMissing.reason() => false,
        _ => ![
            NoAction::Synced,
            NoAction::NotLoaded,
            NoAction::NamespaceAbsent,
            NoAction::NamespaceTerminating,
            NoAction::CloneTerminating,
            NoAction::NotWanted,
            NoAction::Standby,
        ]
        .iter()
        .any(|rest| rest.reason() == state),
    }
}
