//! Whether a write may begin: by this replica, and now. PURE.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    clone::SourceView,
    observe::Target,
    plan::{DeleteReason, Plan},
    trust_bundle::CertsView,
};
use crate::{
    brake::{Brake, Rival},
    cluster::Standing,
    digest::Digest,
};

/// What is to be written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Wanted {
    /// An object with this content.
    Content(Option<Digest>),
    /// No object.
    Absence,
}

/// What holds writes back.
pub(super) struct Permits {
    /// Of those objects that were written lately.
    brakes: HashMap<Target, Brake<Wanted>>,
    /// Since when this replica has known of each leftover.
    leftovers: HashMap<Target, Instant>,
    cleanup_delay: Duration,
}

/// Whether a write may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    /// It may.
    Now,
    /// Ask again when it is due.
    Later {
        due: Instant,
        /// Whether something else keeps undoing it.
        is_contended: bool,
    },
    /// Not known yet; everything is looked at anew when it is.
    Unknown,
    /// Another revision of our Deployment writes.
    OfOther,
}

impl Wanted {
    /// Of a plan for a clone.
    pub(super) fn of_clone(plan: &Plan, source: SourceView<'_>) -> Self {
        match (plan, source) {
            (Plan::Delete(_), _) => Self::Absence,
            (_, SourceView::Present(source)) => Self::Content(Some(source.digest().clone())),
            (_, SourceView::NotLoaded | SourceView::Missing) => Self::Content(None),
        }
    }

    /// Of a plan for a trust bundle.
    pub(super) fn of_trust(plan: &Plan, certs: CertsView<'_>) -> Self {
        match (plan, certs) {
            (Plan::Delete(_), _) => Self::Absence,
            (_, CertsView::Present(certs)) => Self::Content(certs.bundle.digest().cloned()),
            (_, CertsView::NotLoaded | CertsView::Missing) => Self::Content(None),
        }
    }
}

impl Permits {
    /// A leftover is deleted after this delay.
    pub(super) fn new(cleanup_delay: Duration) -> Self {
        Self { brakes: HashMap::new(), leftovers: HashMap::new(), cleanup_delay }
    }

    /// Whether a plan other than to rest may be carried out.
    pub(super) fn ask(
        &mut self,
        standing: Standing,
        target: &Target,
        plan: &Plan,
        (wanted, rival): (&Wanted, Rival),
        now: Instant,
    ) -> Permit {
        match standing {
            Standing::Pending => return Permit::Unknown,
            Standing::Standby | Standing::Superseded => return Permit::OfOther,
            Standing::Active => {}
        }
        let old_enough = if *plan == Plan::Delete(DeleteReason::Leftover) {
            Some(*self.leftovers.entry(target.clone()).or_insert(now) + self.cleanup_delay)
        } else {
            self.leftovers.remove(target);
            None
        };
        let braked = self.brakes.get(target).and_then(|brake| brake.due(wanted, rival, now));
        match old_enough.max(braked).filter(|due| *due > now) {
            Some(due) => Permit::Later { due, is_contended: braked.is_some() },
            None => Permit::Now,
        }
    }

    /// Notes a write.
    pub(super) fn wrote(&mut self, target: &Target, wanted: Wanted, rival: Rival, now: Instant) {
        self.forget(target);
        self.brakes.retain(|_, brake| !brake.is_idle(now));
        self.brakes.entry(target.clone()).or_default().wrote(wanted, rival, now);
    }

    /// Until when an object is contended, if nothing changes it any more; `None`: it is not.
    pub(super) fn contended_until(&self, target: &Target, now: Instant) -> Option<Instant> {
        self.brakes.get(target)?.contended_until(now)
    }

    /// Nothing is to be done with an object: it is no leftover any more.
    pub(super) fn forget(&mut self, target: &Target) {
        self.leftovers.remove(target);
    }

    /// Another revision writes now, or this one: what was found before counts from now on.
    pub(super) fn forget_leftovers(&mut self) {
        self.leftovers.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::{observe::Subject, plan::UpdateReason};

    const DELAY: Duration = Duration::from_mins(2);

    fn target() -> Target {
        Target { subject: Subject::Trust, namespace: "n".parse().unwrap() }
    }

    fn ask(permits: &mut Permits, plan: &Plan, now: Instant) -> Permit {
        permits.ask(Standing::Active, &target(), plan, (&Wanted::Absence, Rival::Other), now)
    }

    #[test]
    fn a_leftover_waits_from_when_it_was_found_as_long_as_it_is_one() {
        let (mut permits, now) = (Permits::new(DELAY), Instant::now());
        let leftover = Plan::Delete(DeleteReason::Leftover);
        let later = |due| Permit::Later { due, is_contended: false };
        assert_eq!(ask(&mut permits, &leftover, now), later(now + DELAY));
        assert_eq!(ask(&mut permits, &leftover, now + DELAY / 2), later(now + DELAY));
        assert_eq!(ask(&mut permits, &leftover, now + DELAY), Permit::Now);
        permits.forget_leftovers();
        assert_eq!(ask(&mut permits, &leftover, now + DELAY), later(now + 2 * DELAY), "it takes over");
        assert_eq!(ask(&mut permits, &Plan::Update(UpdateReason::Differs), now + DELAY), Permit::Now);
        assert_eq!(ask(&mut permits, &leftover, now + 2 * DELAY), later(now + 3 * DELAY), "it was wanted in between");
        assert_eq!(ask(&mut permits, &Plan::Delete(DeleteReason::NotSelected), now), Permit::Now, "seen to leave");
    }

    #[test]
    fn one_revision_writes() {
        let (mut permits, now) = (Permits::new(DELAY), Instant::now());
        for (standing, permit) in [
            (Standing::Pending, Permit::Unknown),
            (Standing::Standby, Permit::OfOther),
            (Standing::Superseded, Permit::OfOther),
            (Standing::Active, Permit::Now),
        ] {
            let what = (&Wanted::Content(None), Rival::Other);
            assert_eq!(permits.ask(standing, &target(), &Plan::Create, what, now), permit);
        }
    }
}
