//! The brake of each object that sync writes. PURE.

use std::{collections::HashMap, time::Instant};

use super::{
    observe::Target,
    plan::{CertsView, Plan, SourceView},
};
use crate::{
    brake::{Brake, Rival},
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

/// The brakes of those objects that were written lately.
#[derive(Default)]
pub(super) struct Brakes(HashMap<Target, Brake<Wanted>>);

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

impl Brakes {
    /// From when on this may be written; `None`: now.
    pub(super) fn due(&self, target: &Target, wanted: &Wanted, rival: Rival, now: Instant) -> Option<Instant> {
        self.0.get(target)?.due(wanted, rival, now)
    }

    /// Notes a write.
    pub(super) fn wrote(&mut self, target: &Target, wanted: Wanted, rival: Rival, now: Instant) {
        self.0.retain(|_, brake| !brake.is_idle(now));
        self.0.entry(target.clone()).or_default().wrote(wanted, rival, now);
    }

    /// Until when an object is contended, if nothing changes it any more; `None`: it is not.
    pub(super) fn contended_until(&self, target: &Target, now: Instant) -> Option<Instant> {
        self.0.get(target)?.contended_until(now)
    }
}
