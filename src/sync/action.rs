//! A write, as it is braked and reported. PURE.

use super::{
    clone::{SecretState, SourceSecret},
    permits::Wanted,
    plan::{Plan, UpdateReason},
};
use crate::brake::Rival;

/// A write, as it is braked and reported.
pub(super) struct Action {
    pub(super) name: &'static str,
    /// Resource version of the source whose content was written.
    pub(super) version: Option<String>,
    /// What was written.
    pub(super) wanted: Wanted,
    /// Who may have undone it.
    pub(super) rival: Rival,
    /// Whether the clone had other content before.
    pub(super) changes_content: bool,
    /// Names of the keys that a foreign Secret had.
    pub(super) replaced_keys: Option<Vec<String>>,
}

impl Action {
    /// Of a plan for a clone.
    pub(super) fn of_clone(
        plan: &Plan,
        source: Option<&SourceSecret>,
        there: Option<&SecretState>,
        wanted: Wanted,
        rival: Rival,
    ) -> Self {
        let (_, cause) = named(plan);
        Self {
            version: source.and_then(|source| source.state.metadata.resource_version.clone()),
            replaced_keys: there.filter(|_| cause == Some(UpdateReason::Foreign)).map(|there| there.keys.clone()),
            ..Self::of_trust(plan, wanted, rival)
        }
    }

    /// Of a plan for a trust bundle.
    pub(super) fn of_trust(plan: &Plan, wanted: Wanted, rival: Rival) -> Self {
        let (name, cause) = named(plan);
        let changes_content = cause.is_some_and(|cause| cause != UpdateReason::Marks);
        Self { name, wanted, rival, changes_content, version: None, replaced_keys: None }
    }
}

fn named(plan: &Plan) -> (&'static str, Option<UpdateReason>) {
    match plan {
        Plan::NoAction(_) => ("none", None),
        Plan::Create => ("create", None),
        Plan::Update(cause) => ("update", Some(*cause)),
        Plan::Replace(cause) => ("replace", Some(*cause)),
        Plan::Delete(_) => ("delete", None),
    }
}
