//! Reads of clones of which admission found something else than the watches told: what is read counts.

use std::{sync::Arc, time::Instant};

use super::{Done, Driver};
use crate::{
    cluster::{Change, Problem},
    sync::{
        clone::{Both, SecretState, SourceSecret},
        observe::{Subject, Target},
        queue::Order,
        reread::Versions,
        watches::StoreEvent,
    },
    telemetry::metrics::SecretLabels,
};

impl Driver {
    /// What admission read and the watches do not know.
    pub(super) fn take_doubts(&mut self) {
        let now = Instant::now();
        for (secret, namespace) in self.doubts.take() {
            if let Some(clone) = self.config.clones.iter().position(|spec| spec.secret == secret) {
                self.rereads.want(Target { subject: Subject::Clone(clone), namespace }, now);
            }
        }
    }

    /// Begins the reads of clones of which the watches may not know what is stored.
    pub(super) fn reread(&mut self) {
        while let Some(target) = self.rereads.next(Instant::now()) {
            self.rereads.begin(&target, self.versions(&target));
            let Subject::Clone(clone) = target.subject else { continue };
            let Some(spec) = self.config.clones.get(clone).cloned() else { continue };
            let writer = self.clones.clone();
            self.work.spawn(async move {
                let result = writer.read_both(&spec, &target.namespace).await.map(Box::new);
                Done::Reread { target, result }
            });
        }
    }

    /// The versions of source and clone, as the watches know them.
    fn versions(&self, target: &Target) -> Versions {
        let Subject::Clone(clone) = target.subject else { return [None, None] };
        let from = self.config.clones.get(clone).map(|spec| &spec.from);
        [from, Some(&target.namespace)].map(|namespace| {
            self.observed.target(clone, namespace?).and_then(|secret| secret.metadata.resource_version.clone())
        })
    }

    pub(super) fn finish_reread(&mut self, target: &Target, result: Result<Box<Both>, Problem>) {
        let now = Instant::now();
        let (Subject::Clone(clone), known) = (target.subject, self.versions(target)) else { return };
        let Some(spec) = self.config.clones.get(clone).cloned() else { return };
        self.stale = true;
        match result {
            Ok(found) => {
                let is_newer = self.rereads.succeed(target, &known);
                let namespaces = [spec.from, target.namespace.clone()];
                for (((namespace, found), known), is_newer) in
                    namespaces.into_iter().zip(*found).zip(known).zip(is_newer)
                {
                    let version = found.as_ref().and_then(|secret| secret.metadata.resource_version.clone());
                    if !is_newer || version == known {
                        continue;
                    }
                    let secret = spec.secret.to_string();
                    tracing::warn!(%namespace, secret, "a read contradicts the watch; it lists anew");
                    self.metrics.watch_contradictions.get_or_create(&SecretLabels { secret }).inc();
                    self.watches.doubt(clone);
                    // What is stored counts, whoever brought it.
                    let change = match found {
                        Some(secret) => Change::Applied((namespace, secret)),
                        None => match self.observed.target(clone, &namespace).cloned() {
                            Some(former) => Change::Deleted((namespace, former)),
                            None => continue,
                        },
                    };
                    for target in self.observed.secret(&self.config, clone, change) {
                        self.queue.mark(target, Order::Last, now);
                    }
                }
                self.queue.mark(target.clone(), Order::First, now);
            }
            Err(problem) => {
                self.rereads.fail(target, now);
                self.states.falls_out_of_step(target, now);
                self.set_state(target, problem.reason.as_str(), &problem.to_string());
            }
        }
    }

    /// After a list the API server is known to answer: a read that failed need not wait any longer.
    pub(super) fn note_list(&mut self, event: &StoreEvent) {
        if let StoreEvent::Secret(clone, Change::ListEnds) = event
            && let Some(read) = self.reads.get_mut(*clone)
        {
            read.retry();
        }
    }

    /// A source that a read shows in an older version than the watch had is that of a store which was set back.
    pub(super) fn note_read(&mut self, clone: usize, result: &Result<Option<Arc<SourceSecret>>, Problem>) {
        let version = |secret: &SecretState| secret.metadata.resource_version.as_ref()?.parse::<u64>().ok();
        let read = result.as_ref().ok().and_then(|source| version(&source.as_ref()?.state));
        let known = self.config.clones.get(clone).and_then(|spec| self.observed.target(clone, &spec.from));
        if read.zip(known.and_then(version)).is_some_and(|(read, known)| read < known) {
            self.watches.doubt(clone);
        }
    }

    /// While its watch fails, nothing confirms a write: the clone is read instead.
    pub(super) fn note_write(&mut self, target: &Target, now: Instant) {
        if let Subject::Clone(clone) = target.subject
            && self.watches.is_blind(clone)
        {
            self.rereads.want(target.clone(), now);
        }
    }
}
