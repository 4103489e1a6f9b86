//! A look at one object: what is to be done with it, whether that may be done now, and the write that does it.

use std::{future::Future, sync::Arc, time::Instant};

use super::{CONTENDED_DETAIL, Done, Driver};
use crate::{
    brake::Rival,
    cluster::{Problem, Reason},
    sync::{
        action::Action,
        clone::{self, SecretState, SourceSecret, SourceView},
        observe::{Subject, Target},
        permits::{Permit, Wanted},
        plan::{NoAction, Plan, UpdateReason, WriteOutcome},
        trust_bundle::{self, BundleState},
    },
};

/// What is to be written, and may be.
struct WriteDecision {
    plan: Plan,
    wanted: Wanted,
    rival: Rival,
}

impl Driver {
    /// Looks at one object. What a clone is to hold is decided anew once its source has been read, and only then written.
    pub(super) fn look_at(&mut self, target: Target, mark: u64) {
        let Some(decision) = self.decide(&target, None) else { return };
        match target.subject {
            Subject::Clone(clone) if decision.plan.needs_source() => {
                let Some(reads) = self.reads.get_mut(clone) else { return };
                let Some(source) = reads.answer(mark).cloned() else { return reads.wait(target) };
                if let Some(decision) = self.decide(&target, Some(SourceView::of(source.as_deref()))) {
                    self.write_clone(clone, target, decision, source);
                }
            }
            Subject::Clone(clone) => self.write_clone(clone, target, decision, None),
            Subject::Trust => self.write_bundle(target, decision),
        }
    }

    /// What is to be done, by what the watches showed and, of a clone, by what was `read` of its source. `None`: nothing, or
    /// not now, and its state says why.
    fn decide(&mut self, target: &Target, read: Option<SourceView<'_>>) -> Option<WriteDecision> {
        let namespace = self.observed.namespace_of(&self.config, target);
        let (plan, wanted, was_last_written_by_us) = match target.subject {
            Subject::Clone(clone) => {
                let spec = self.config.clones.get(clone)?;
                let source = read.unwrap_or_else(|| self.observed.source(&self.config, clone));
                let there = self.observed.target(clone, &target.namespace);
                let plan = clone::plan(spec, source, namespace, there);
                let wanted = Wanted::of_clone(&plan, source);
                (plan, wanted, there.is_some_and(SecretState::was_last_written_by_us))
            }
            Subject::Trust => {
                let certs = self.observed.certs_of(target);
                let there = self.observed.all_bundles().get(&target.namespace);
                let plan = trust_bundle::plan(&self.config.certs_secret_name, certs, namespace, there);
                let wanted = Wanted::of_trust(&plan, certs);
                (plan, wanted, there.is_some_and(BundleState::was_last_written_by_us))
            }
        };
        if let Plan::NoAction(why) = plan {
            self.no_action(target, &why);
            return None;
        }
        let decision = WriteDecision { plan, wanted, rival: self.rival(was_last_written_by_us) };
        (!self.hold_back(target, &decision)).then_some(decision)
    }

    fn write_clone(
        &mut self,
        clone: usize,
        target: Target,
        decision: WriteDecision,
        source: Option<Arc<SourceSecret>>,
    ) {
        let WriteDecision { plan, wanted, rival } = decision;
        let there = self.observed.target(clone, &target.namespace).cloned();
        let action = Action::of_clone(&plan, source.as_deref(), there.as_ref(), wanted, rival);
        let Some(spec) = self.config.clones.get(clone).cloned() else { return };
        let (writer, namespace) = (self.clones.clone(), target.namespace.clone());
        self.begin(target, action, async move {
            writer.carry_out(&plan, &spec, &namespace, source.as_deref(), there.as_ref()).await
        });
    }

    fn write_bundle(&mut self, target: Target, decision: WriteDecision) {
        let WriteDecision { plan, wanted, rival } = decision;
        let there = self.observed.all_bundles().get(&target.namespace).cloned();
        let action = Action::of_trust(&plan, wanted, rival);
        let (writer, namespace) = (self.bundles.clone(), target.namespace.clone());
        self.begin(target, action, async move { writer.carry_out(&plan, &namespace, there.as_ref()).await });
    }

    fn begin(
        &mut self,
        target: Target,
        action: Action,
        work: impl Future<Output = Result<WriteOutcome, Problem>> + Send + 'static,
    ) {
        self.queue.begin(&target);
        self.writes += 1;
        self.work.spawn(async move { Done::Write { target, action, result: work.await } });
    }

    /// In a Deployment only one revision writes: another instance that writes there does not brake as this one does, so it counts
    /// as any other writer.
    fn rival(&self, was_last_written_by_us: bool) -> Rival {
        Rival::of(was_last_written_by_us && !self.standings.is_known())
    }

    /// Returns true if the write must not begin now: another revision writes, or it is limited. Then the object has been put
    /// off or taken from the queue, and its state is set.
    fn hold_back(&mut self, target: &Target, decision: &WriteDecision) -> bool {
        let WriteDecision { plan, wanted, rival } = decision;
        let now = Instant::now();
        // Without our marks it is what its source is all the same.
        self.stale |= match plan {
            Plan::Update(UpdateReason::Marks) => self.states.falls_in_step(target),
            _ => self.states.falls_out_of_step(target, now),
        };
        match self.permits.ask(self.standings.current(), target, plan, (wanted, *rival), now) {
            Permit::Now => return false,
            Permit::Unknown => self.queue.done(target),
            Permit::OfOther => self.no_action(target, &NoAction::Standby),
            Permit::Later { due, is_contended } => {
                if is_contended {
                    self.set_state(target, Reason::Contended.as_str(), CONTENDED_DETAIL);
                } else {
                    let (object, namespace) = (self.states.name(target), target.namespace.as_str());
                    let seconds = due.saturating_duration_since(now).as_secs();
                    tracing::info!(
                        object,
                        namespace,
                        seconds,
                        "left over in a namespace that is not selected; deleted then"
                    );
                }
                self.queue.defer(target.clone(), due);
            }
        }
        true
    }
}
