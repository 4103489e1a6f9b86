//! What is to be done with one object, and why: the words that both subjects share. PURE.

/// The namespace of a clone or trust bundle, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceView {
    /// A watch has not delivered its first list: nothing may be concluded.
    NotLoaded,
    /// A source is in it.
    OfSource,
    /// A runner namespace by name that does not exist.
    Absent,
    /// It is being deleted.
    Terminating,
    /// A runner namespace, and there.
    Active,
    /// This process saw it as a runner namespace, and it is none any more.
    Left,
    /// Not a runner namespace, as far as this process ever saw.
    NotSelected,
}

/// What is to be done with one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing; this is why.
    NoAction(NoAction),
    /// It is absent and wanted.
    Create,
    /// It is there and differs; it can be changed in place.
    Update(UpdateReason),
    /// It is there and differs, and only a new object can be right.
    Replace(UpdateReason),
    /// It is ours and no longer wanted.
    Delete(DeleteReason),
}

/// Why nothing is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAction {
    /// The clone equals its source.
    Synced,
    /// Something is not loaded yet.
    NotLoaded,
    /// There is no source, and `onSourceDeleted` says keep, or there is nothing to delete.
    SourceMissing,
    /// The source has a type whose copy would act on the cluster.
    SourceTypeRefused,
    /// No trust bundle can be made of the certificates that are there.
    CertsUnusable,
    /// A runner namespace that is not there.
    NamespaceAbsent,
    /// The namespace is being deleted.
    NamespaceTerminating,
    /// The clone is being deleted, and its finalizers are not done.
    CloneTerminating,
    /// A foreign Secret has its name, and `onForeignTarget` says refuse.
    Conflict,
    /// No clone belongs here, and none of ours is here.
    NotWanted,
    /// Something is to be written, and another revision of our Deployment writes.
    Standby,
}

/// Why a clone is written although it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateReason {
    /// It is ours, and the source changed or the clone was edited.
    Differs,
    /// It is a foreign Secret that differs; its content is lost.
    Foreign,
    /// Its content is right, our label or annotation is not.
    Marks,
}

/// Why a clone of ours is no longer wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteReason {
    /// Its source was deleted, and `onSourceDeleted` says delete.
    SourceDeleted,
    /// Its namespace is not a runner namespace any more.
    NotSelected,
    /// It was found in a namespace that is not selected. It may be what another configuration wants there, so it is
    /// deleted only after a delay.
    Leftover,
}

/// What became of a plan that was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Something was written.
    Written,
    /// It turned out that nothing was to be written.
    NotNeeded,
}

impl NamespaceView {
    /// What is to be done where the namespace decides, whatever the subject; `None`: it is active. Of what is there:
    /// `was_ours`, whether our field manager owns a part of it; `is_deletable`, whether it is ours and not being deleted.
    pub fn plan(self, was_ours: bool, is_deletable: bool) -> Option<Plan> {
        let delete = |why| if is_deletable { Plan::Delete(why) } else { Plan::NoAction(NoAction::NotWanted) };
        Some(match self {
            Self::NotLoaded => Plan::NoAction(NoAction::NotLoaded),
            Self::Absent => Plan::NoAction(NoAction::NamespaceAbsent),
            Self::Terminating => Plan::NoAction(NoAction::NamespaceTerminating),
            Self::Left => delete(DeleteReason::NotSelected),
            // Labels prove nothing: anybody can write them.
            Self::NotSelected if was_ours => delete(DeleteReason::Leftover),
            Self::NotSelected | Self::OfSource => Plan::NoAction(NoAction::NotWanted),
            Self::Active => return None,
        })
    }
}

impl Plan {
    /// Whether it is written by what the source holds.
    pub fn needs_source(&self) -> bool {
        !matches!(self, Self::NoAction(_) | Self::Delete(DeleteReason::NotSelected | DeleteReason::Leftover))
    }
}

impl NoAction {
    /// The word for logs, metrics and events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Synced => "synced",
            Self::NotLoaded => "not-loaded",
            Self::SourceMissing => "source-missing",
            Self::SourceTypeRefused => "source-type-refused",
            Self::CertsUnusable => "certs-unusable",
            Self::NamespaceAbsent => "namespace-absent",
            Self::NamespaceTerminating => "namespace-terminating",
            Self::CloneTerminating => "clone-terminating",
            Self::Conflict => "conflict",
            Self::NotWanted => "not-wanted",
            Self::Standby => "standby",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_writes_content_or_follows_the_source_needs_it() {
        let why = UpdateReason::Differs;
        for plan in [Plan::Create, Plan::Update(why), Plan::Replace(why), Plan::Delete(DeleteReason::SourceDeleted)] {
            assert!(plan.needs_source(), "{plan:?}");
        }
        for plan in [
            Plan::NoAction(NoAction::Synced),
            Plan::Delete(DeleteReason::NotSelected),
            Plan::Delete(DeleteReason::Leftover),
        ] {
            assert!(!plan.needs_source(), "{plan:?}");
        }
    }
}
