//! What became of reads and writes, and what is said of objects with which nothing is to be done.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{CONTENDED_DETAIL, Done, Driver};
use crate::{
    cluster::{Problem, Reason},
    config::NamespaceName,
    names::ANNOTATION_CONTENT,
    sync::{
        action::Action,
        clone::SourceSecret,
        observe::{Subject, Target},
        plan::{NoAction, WriteOutcome},
        queue::Order,
        trust_bundle::CertsView,
    },
    telemetry::metrics::WriteLabels,
};

/// Several writes of an object in a row found another version of it, which no watch shows.
const WRITE_CONFLICT: &str = "write-conflict";

impl Driver {
    pub(super) fn finish(&mut self, done: Result<Done, tokio::task::JoinError>) {
        match done {
            Ok(Done::Read { clone, mark, result }) => self.finish_read(clone, mark, result),
            Ok(Done::Reread { target, result }) => self.finish_reread(&target, result),
            Ok(Done::Write { target, action, result }) => self.finish_write(&target, &action, result),
            // A panic in a write is a bug; the loop cannot say any more which clone it was.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => {}
        }
    }

    fn finish_read(&mut self, clone: usize, mark: u64, result: Result<Option<Arc<SourceSecret>>, Problem>) {
        self.note_read(clone, &result);
        let Some(reads) = self.reads.get_mut(clone) else { return };
        let waited = match result {
            Ok(source) => reads.succeed(mark, source),
            Err(problem) => {
                let waited = reads.fail(&problem, Instant::now());
                for target in &waited {
                    self.set_state(target, problem.reason.as_str(), &problem.to_string());
                }
                waited
            }
        };
        for target in waited {
            self.queue.put_back(target, Order::Last);
        }
    }

    fn finish_write(&mut self, target: &Target, action: &Action, result: Result<WriteOutcome, Problem>) {
        self.writes -= 1;
        let now = Instant::now();
        let labels = WriteLabels {
            object: self.states.name(target).to_owned(),
            action: action.name,
            result: result.as_ref().map_or_else(|problem| problem.reason.as_str(), |_| "ok"),
        };
        if !matches!(result, Ok(WriteOutcome::NotNeeded)) {
            self.metrics.writes.get_or_create(&labels).inc();
        }
        match result {
            Ok(WriteOutcome::NotNeeded) => drop(self.queue.succeed(target, now)),
            // The clone stays out of step until this write comes back through the watch and plans as `Synced`.
            Ok(WriteOutcome::Written) => {
                let lag = self.queue.succeed(target, now).map(|since| now.saturating_duration_since(since));
                self.metrics.sync_lag.observe(lag.unwrap_or_default().as_secs_f64());
                let (object, namespace) = (self.states.name(target), target.namespace.as_str());
                let keys = action.replaced_keys.as_deref().map(|keys| keys.join(","));
                if let Some(keys) = keys {
                    tracing::warn!(object, namespace, keys, "a foreign Secret was replaced by the clone");
                }
                if matches!(target.subject, Subject::Clone(_)) && action.changes_content {
                    self.contents.wrote(&target.namespace);
                }
                let source_version = action.version.as_deref();
                tracing::info!(
                    object,
                    namespace,
                    action = action.name,
                    source_version,
                    lag_ms = millis(lag),
                    "written"
                );
                self.permits.wrote(target, action.wanted.clone(), action.rival, now);
                self.note_write(target, now);
                if self.permits.contended_until(target, now).is_some() {
                    self.set_state(target, Reason::Contended.as_str(), CONTENDED_DETAIL);
                }
            }
            Err(problem) => {
                self.queue.fail(target, problem.retry_after, now);
                // The watch is about to bring the newer version; the next look settles it. If it never does, that is said.
                if problem.reason == Reason::Conflict && !self.queue.keeps_failing(target) {
                    self.queue.meet(target);
                    return;
                }
                let state = if problem.reason == Reason::Conflict { WRITE_CONFLICT } else { problem.reason.as_str() };
                self.set_state(target, state, &problem.to_string());
            }
        }
    }

    pub(super) fn set_state(&mut self, target: &Target, state: &'static str, detail: &str) {
        let uid = self.observed.uid(target);
        self.stale |= self.states.set(target, state, Some(detail), uid);
    }

    /// Nothing is to be done, and why.
    pub(super) fn no_action(&mut self, target: &Target, why: &NoAction) {
        self.permits.forget(target);
        // In a fan-out, one that needs nothing any more has probably been written by another replica.
        if self.writes > 0 {
            self.queue.meet(target);
        }
        let contended = self.permits.contended_until(target, Instant::now());
        match contended {
            Some(until) => self.queue.defer(target.clone(), until),
            None => self.queue.done(target),
        }
        if self.rereads.has(target) {
            return;
        }
        let detail = match (why, target.subject) {
            (NoAction::Conflict, Subject::Clone(clone)) => {
                let there = self.observed.target(clone, &target.namespace);
                let keys = there.map(|there| there.keys.join(",")).unwrap_or_default();
                Some(format!("a Secret that is not ours, with keys {keys}, has the clone's name"))
            }
            (NoAction::SourceTypeRefused, _) => Some("a Secret of the source's type must not be copied".to_owned()),
            (NoAction::CertsUnusable, _) => match self.observed.certs_of(target) {
                CertsView::Present(certs) => certs.bundle.problem().map(ToOwned::to_owned),
                CertsView::NotLoaded | CertsView::Missing => None,
            },
            _ => None,
        };
        if matches!((why, target.subject), (NoAction::Synced, Subject::Clone(_))) {
            self.tell_content(&target.namespace);
        }
        let remark = match (target.subject, self.observed.certs_of(target)) {
            (Subject::Trust, CertsView::Present(certs)) => certs.remark(&self.config.inject),
            _ => None,
        };
        let uid = self.observed.uid(target);
        self.stale |= self.states.note_no_action(target, why, Instant::now());
        self.stale |= match (contended, why) {
            // Right for now, and the next one to change it is about to come.
            (Some(_), NoAction::Synced) => {
                self.states.set(target, Reason::Contended.as_str(), Some(CONTENDED_DETAIL), uid)
            }
            (None, NoAction::Synced) => match remark {
                Some((state, remark)) => self.states.set(target, state, Some(&remark), uid),
                None => self.states.set(target, why.reason(), None, uid),
            },
            _ => self.states.set(target, why.reason(), detail.as_deref(), uid),
        };
    }

    /// Which content the clones of a namespace have, for Deployments that are restarted by that.
    fn tell_content(&mut self, namespace: &NamespaceName) {
        if self.config.restart.is_empty() {
            return;
        }
        let version = |clone| {
            let annotations = self.observed.target(clone, namespace)?.metadata.annotations.as_ref()?;
            annotations.get(ANNOTATION_CONTENT).cloned()
        };
        let versions = (0..self.config.clones.len()).map(|clone| version(clone).unwrap_or_default()).collect();
        self.contents.are(namespace, versions);
    }
}

fn millis(duration: Option<Duration>) -> u64 {
    duration.map_or(0, |duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
