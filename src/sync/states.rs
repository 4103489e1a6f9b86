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
    trust::REMARKS,
};

/// States by target.
pub struct States {
    config: Arc<Config>,
    metrics: Metrics,
    events: EventQueue,
    by_target: HashMap<Target, &'static str>,
    /// What is wrong with the Secret of a trust bundle: another fault is told anew, although the state is the same.
    faults: HashMap<Target, String>,
    /// Since when each clone is not what its source is.
    out_of_step: BTreeMap<(SecretName, NamespaceName), Instant>,
}

impl States {
    pub fn new(config: Arc<Config>, metrics: Metrics, events: EventQueue) -> Self {
        Self {
            config,
            metrics,
            events,
            by_target: HashMap::new(),
            faults: HashMap::new(),
            out_of_step: BTreeMap::new(),
        }
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
        let is_of_secret = state == NoAction::CertsUnusable.reason() || REMARKS.contains(&state);
        let fault = detail.filter(|_| is_of_secret).map(ToOwned::to_owned);
        let former_fault = match &fault {
            Some(fault) => self.faults.insert(target.clone(), fault.clone()),
            None => self.faults.remove(target),
        };
        if former == Some(state) && former_fault == fault {
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "gitlab-gitlab-runner-secret";

    /// States, their metrics, and the Events that they ask for.
    fn states() -> (States, Metrics, EventQueue) {
        let (metrics, events) = (Metrics::new(), EventQueue::default());
        (States::new(Arc::new(Config::default()), metrics.clone(), events.clone()), metrics, events)
    }

    fn target(subject: Subject) -> Target {
        Target { subject, namespace: "gitlab-runner".parse().unwrap() }
    }

    fn count(metrics: &Metrics, state: &'static str) -> i64 {
        metrics.clones.get_or_create(&CloneLabels { secret: SECRET.to_owned(), state }).get()
    }

    #[test]
    fn an_object_is_counted_in_one_state_and_no_longer_when_it_is_not_wanted() {
        let (mut states, metrics, _) = states();
        let clone = target(Subject::Clone(0));
        for state in ["not-loaded", "synced", "synced"] {
            states.set(&clone, state, None, None);
        }
        assert_eq!((count(&metrics, "not-loaded"), count(&metrics, "synced")), (0, 1));
        states.set(&clone, "not-wanted", None, None);
        assert_eq!((count(&metrics, "synced"), count(&metrics, "not-wanted")), (0, 0));
    }

    #[test]
    fn an_event_says_what_somebody_has_to_do_and_that_it_is_done() {
        let (mut states, _, events) = states();
        let clone = target(Subject::Clone(0));
        for quiet in
            ["not-loaded", "namespace-absent", "namespace-terminating", "clone-terminating", "standby", "synced"]
        {
            states.set(&clone, quiet, None, None);
            assert_eq!(events.waiting(SECRET), None, "{quiet}");
        }
        states.set(&clone, "source-missing", None, None);
        let (is_warning, reason, note) = events.waiting(SECRET).unwrap();
        assert!(is_warning && reason == "source-missing");
        assert_eq!(note, "the source gitlab/gitlab-gitlab-runner-secret is missing; create it");
        states.set(&clone, "forbidden", Some("update secrets/x: no"), None);
        assert_eq!(events.waiting(SECRET).unwrap().2, "update secrets/x: no");
        states.set(&clone, "synced", None, None);
        assert_eq!(events.waiting(SECRET).unwrap(), (false, "synced", "the clone equals its source again".to_owned()));
        states.set(&clone, "standby", None, None);
        states.set(&clone, "synced", None, None);
        assert!(!events.waiting(SECRET).unwrap().0, "nothing was wrong in between");
    }

    #[test]
    fn without_certificates_no_trust_bundle_is_missed() {
        let (mut states, _, events) = states();
        let bundle = target(Subject::Trust);
        states.set(&bundle, "source-missing", None, None);
        assert_eq!(events.waiting(CONFIGMAP_TRUST), None);
        states.set(&bundle, "certs-unusable", Some("key ca.crt"), None);
        assert!(events.waiting(CONFIGMAP_TRUST).unwrap().0);
    }

    #[test]
    fn another_fault_of_the_same_kind_is_told_anew() {
        let (mut states, metrics, events) = states();
        let bundle = target(Subject::Trust);
        for fault in ["key a.crt", "key b.crt"] {
            states.set(&bundle, "certs-unusable", Some(fault), None);
            assert_eq!(events.waiting(CONFIGMAP_TRUST).unwrap().2, fault);
        }
        assert_eq!(metrics.trust_bundles.get_or_create(&StateLabels { state: "certs-unusable" }).get(), 1);
        // What an API server says differs from attempt to attempt.
        let clone = target(Subject::Clone(0));
        for problem in ["timeout 1", "timeout 2"] {
            states.set(&clone, "timeout", Some(problem), None);
            assert_eq!(events.waiting(SECRET).unwrap().2, "timeout 1");
        }
    }

    #[test]
    fn admission_is_told_of_contention_and_of_its_end_and_of_clones_out_of_step() {
        let (mut states, ..) = states();
        let (clone, now) = (target(Subject::Clone(0)), Instant::now());
        assert!(!states.set(&clone, "synced", None, None));
        assert!(states.set(&clone, "contended", Some("x"), None) && states.contended().len() == 1);
        assert!(states.set(&clone, "synced", None, None) && states.contended().is_empty());

        assert!(states.note_no_action(&clone, &NoAction::SourceMissing, now), "news");
        assert!(!states.note_no_action(&clone, &NoAction::SourceMissing, now));
        assert!(!states.note_no_action(&clone, &NoAction::Standby, now), "another revision judges that");
        assert_eq!(states.out_of_step().len(), 1);
        assert!(states.note_no_action(&clone, &NoAction::Synced, now) && states.out_of_step().is_empty());
        assert!(
            !states.note_no_action(&target(Subject::Trust), &NoAction::CertsUnusable, now),
            "the gate asks for clones"
        );
    }
}
