//! From what is observed to what is to be done with one clone. PURE.

use super::state::{SecretState, SourceSecret};
use crate::{
    config::{CloneSpec, OnForeignTarget, OnSourceDeleted},
    sync::plan::{DeleteReason, NamespaceView, NoAction, Plan, UpdateReason},
};

/// The source of a clone, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub enum SourceView<'a> {
    /// The watch has not delivered its first list: nothing may be concluded.
    NotLoaded,
    /// There is no such Secret.
    Missing,
    /// It is there.
    Present(&'a SecretState),
}

impl<'a> SourceView<'a> {
    /// By what a read gave.
    pub fn of(source: Option<&'a SourceSecret>) -> Self {
        source.map_or(Self::Missing, |source| Self::Present(&source.state))
    }
}

/// Decides what is to be done with the clone of `spec` in one namespace, where `target` is now.
pub fn plan(spec: &CloneSpec, source: SourceView<'_>, namespace: NamespaceView, target: Option<&SecretState>) -> Plan {
    let is_deletable = target.is_some_and(|target| target.is_ours(spec) && !target.is_terminating());
    if let Some(plan) = namespace.plan(target.is_some_and(SecretState::was_ours), is_deletable) {
        return plan;
    }
    match source {
        SourceView::NotLoaded => Plan::NoAction(NoAction::NotLoaded),
        SourceView::Missing if spec.on_source_deleted == OnSourceDeleted::Delete && is_deletable => {
            Plan::Delete(DeleteReason::SourceDeleted)
        }
        SourceView::Missing => Plan::NoAction(NoAction::SourceMissing),
        SourceView::Present(source) if source.has_side_effects() => Plan::NoAction(NoAction::SourceTypeRefused),
        SourceView::Present(source) => target.map_or(Plan::Create, |target| converge(spec, source, target)),
    }
}

fn converge(spec: &CloneSpec, source: &SecretState, target: &SecretState) -> Plan {
    if target.has_content_of(source) {
        if target.is_terminating() {
            return Plan::NoAction(NoAction::CloneTerminating);
        }
        // What a living policy holds in step is left to it: two that put their own marks on would never rest.
        return if target.is_managed_by_kyverno() || target.has_marks_of(spec) {
            Plan::NoAction(NoAction::Synced)
        } else {
            Plan::Update(UpdateReason::Marks)
        };
    }
    let cause = if target.is_ours(spec) || target.was_ours() || target.is_managed_by_kyverno() {
        UpdateReason::Differs
    } else {
        UpdateReason::Foreign
    };
    if cause == UpdateReason::Foreign && spec.on_foreign_target == OnForeignTarget::Refuse {
        return Plan::NoAction(NoAction::Conflict);
    }
    // The API server changes neither the type of a Secret nor the data of an immutable one.
    match (target.immutable || target.secret_type != source.secret_type, target.is_terminating()) {
        (false, _) => Plan::Update(cause),
        (true, false) => Plan::Replace(cause),
        // It is deleted already, and cannot be changed.
        (true, true) => Plan::NoAction(NoAction::CloneTerminating),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        config::Config,
        sync::testing::{managers, secret, with},
    };

    fn spec() -> CloneSpec {
        Config::default().clones.remove(0)
    }

    fn source() -> SecretState {
        SecretState::from(secret(json!({"stringData": {"runner-token": "t"}})))
    }

    fn ours() -> Value {
        json!({
            "metadata": {
                "labels": {"app.kubernetes.io/managed-by": "gitlab-runner-webhook"},
                "annotations": {"gitlab-runner-webhook/source": "gitlab/gitlab-gitlab-runner-secret"},
            },
            "stringData": {"runner-token": "t"},
        })
    }

    fn decide(spec: &CloneSpec, target: Option<Value>) -> Plan {
        let source = source();
        let target = target.map(|value| SecretState::from(secret(value)));
        plan(spec, SourceView::Present(&source), NamespaceView::Active, target.as_ref())
    }

    #[test]
    fn a_clone_follows_its_source() {
        assert_eq!(decide(&spec(), None), Plan::Create);
        assert_eq!(decide(&spec(), Some(ours())), Plan::NoAction(NoAction::Synced));
        let edited = with(ours(), "/stringData", json!({"runner-token": "edited"}));
        assert_eq!(decide(&spec(), Some(edited.clone())), Plan::Update(UpdateReason::Differs));
        let extra_key = with(ours(), "/stringData/extra", json!("x"));
        assert_eq!(decide(&spec(), Some(extra_key)), Plan::Update(UpdateReason::Differs));
        assert_eq!(
            decide(&spec(), Some(with(edited.clone(), "/immutable", json!(true)))),
            Plan::Replace(UpdateReason::Differs)
        );
        assert_eq!(decide(&spec(), Some(with(ours(), "/type", json!("x/y")))), Plan::Replace(UpdateReason::Differs));
        // Content is right: an immutable clone is not torn down for nothing.
        assert_eq!(decide(&spec(), Some(with(ours(), "/immutable", json!(true)))), Plan::NoAction(NoAction::Synced));
        // Being deleted, and held by a finalizer: its content is corrected; what only a new object could be waits for that.
        let terminating = |value| with(value, "/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z"));
        assert_eq!(decide(&spec(), Some(terminating(edited.clone()))), Plan::Update(UpdateReason::Differs));
        for waits in [ours(), with(edited, "/immutable", json!(true)), with(ours(), "/type", json!("x/y"))] {
            assert_eq!(decide(&spec(), Some(terminating(waits))), Plan::NoAction(NoAction::CloneTerminating));
        }
    }

    #[test]
    fn marks_are_restored_and_configured_labels_are_set() {
        for pointer in ["/metadata/labels", "/metadata/annotations"] {
            assert_eq!(
                decide(&spec(), Some(with(ours(), pointer, json!({})))),
                Plan::Update(UpdateReason::Marks),
                "{pointer}"
            );
        }
        let mut labelled = spec();
        labelled.labels.insert("team".into(), "ci".into());
        assert_eq!(decide(&labelled, Some(ours())), Plan::Update(UpdateReason::Marks));
        assert_eq!(
            decide(&labelled, Some(with(ours(), "/metadata/labels/team", json!("ci")))),
            Plan::NoAction(NoAction::Synced)
        );
    }

    #[test]
    fn a_foreign_secret_is_adopted_when_equal_and_treated_as_told_when_not() {
        let equal = json!({"metadata": {}, "stringData": {"runner-token": "t"}});
        let different = json!({"metadata": {}, "stringData": {"other": "x"}});
        let mut refusing = spec();
        refusing.on_foreign_target = OnForeignTarget::Refuse;
        for spec in [&spec(), &refusing] {
            assert_eq!(decide(spec, Some(equal.clone())), Plan::Update(UpdateReason::Marks));
        }
        assert_eq!(decide(&spec(), Some(different.clone())), Plan::Update(UpdateReason::Foreign));
        assert_eq!(
            decide(&spec(), Some(with(different.clone(), "/immutable", json!(true)))),
            Plan::Replace(UpdateReason::Foreign)
        );
        assert_eq!(decide(&refusing, Some(different.clone())), Plan::NoAction(NoAction::Conflict));
        // Marked as the clone of another source: not ours either.
        let others = with(ours(), "/metadata/annotations", json!({"gitlab-runner-webhook/source": "other/secret"}));
        assert_eq!(decide(&refusing, Some(with(others, "/stringData", json!({})))), Plan::NoAction(NoAction::Conflict));
    }

    #[test]
    fn a_clone_of_ours_stays_ours_when_its_labels_are_stripped_and_it_is_edited() {
        let mut refusing = spec();
        refusing.on_foreign_target = OnForeignTarget::Refuse;
        let stripped = json!({
            "metadata": {"managedFields": [{"manager": "kubectl"}, {"manager": "gitlab-runner-webhook-clone"}]},
            "stringData": {"runner-token": "edited"},
        });
        assert_eq!(decide(&refusing, Some(stripped)), Plan::Update(UpdateReason::Differs));
    }

    #[test]
    fn a_clone_of_kyverno_is_left_alone_while_equal_and_followed_when_not() {
        let labels = json!({"app.kubernetes.io/managed-by": "kyverno", "generate.kyverno.io/policy-name": "p"});
        let equal = with(ours(), "/metadata", json!({"labels": labels}));
        let mut refusing = spec();
        refusing.on_foreign_target = OnForeignTarget::Refuse;
        for spec in [&spec(), &refusing] {
            assert_eq!(decide(spec, Some(equal.clone())), Plan::NoAction(NoAction::Synced));
            let stale = with(equal.clone(), "/stringData", json!({"runner-token": "old"}));
            assert_eq!(decide(spec, Some(stale)), Plan::Update(UpdateReason::Differs));
        }
    }

    #[test]
    fn nothing_is_concluded_from_what_is_not_loaded() {
        let target = SecretState::from(secret(ours()));
        let mut deleting = spec();
        deleting.on_source_deleted = OnSourceDeleted::Delete;
        let source = source();
        for source in [SourceView::NotLoaded, SourceView::Missing, SourceView::Present(&source)] {
            let plan = plan(&deleting, source, NamespaceView::NotLoaded, Some(&target));
            assert_eq!(plan, Plan::NoAction(NoAction::NotLoaded));
        }
        let plan = plan(&deleting, SourceView::NotLoaded, NamespaceView::Active, Some(&target));
        assert_eq!(plan, Plan::NoAction(NoAction::NotLoaded));
    }

    #[test]
    fn a_deleted_source_takes_only_our_clones_with_it_and_only_when_told() {
        let keeping = spec();
        let mut deleting = spec();
        deleting.on_source_deleted = OnSourceDeleted::Delete;
        let ours = SecretState::from(secret(ours()));
        let foreign = SecretState::from(secret(json!({"metadata": {}})));
        let decide = |spec, target| plan(spec, SourceView::Missing, NamespaceView::Active, target);
        assert_eq!(decide(&keeping, Some(&ours)), Plan::NoAction(NoAction::SourceMissing));
        assert_eq!(decide(&deleting, Some(&ours)), Plan::Delete(DeleteReason::SourceDeleted));
        assert_eq!(decide(&deleting, Some(&foreign)), Plan::NoAction(NoAction::SourceMissing));
        assert_eq!(decide(&deleting, None), Plan::NoAction(NoAction::SourceMissing));
    }

    #[test]
    fn only_a_runner_namespace_that_stays_is_written_to() {
        let source = source();
        let ours = SecretState::from(secret(ours()));
        let foreign = SecretState::from(secret(json!({"metadata": {}})));
        let decide = |namespace, target| plan(&spec(), SourceView::Present(&source), namespace, target);
        for target in [None, Some(&foreign), Some(&ours)] {
            assert_eq!(decide(NamespaceView::Terminating, target), Plan::NoAction(NoAction::NamespaceTerminating));
            assert_eq!(decide(NamespaceView::Absent, target), Plan::NoAction(NoAction::NamespaceAbsent));
            assert_eq!(decide(NamespaceView::OfSource, target), Plan::NoAction(NoAction::NotWanted));
        }
        assert_eq!(decide(NamespaceView::NotSelected, None), Plan::NoAction(NoAction::NotWanted));
        assert_eq!(decide(NamespaceView::NotSelected, Some(&foreign)), Plan::NoAction(NoAction::NotWanted));
        assert_eq!(decide(NamespaceView::Left, None), Plan::NoAction(NoAction::NotWanted));
        assert_eq!(decide(NamespaceView::Left, Some(&foreign)), Plan::NoAction(NoAction::NotWanted));
        assert_eq!(decide(NamespaceView::Left, Some(&ours)), Plan::Delete(DeleteReason::NotSelected));
        // What is merely found there may be somebody's that looks like ours, or what another configuration wants.
        assert_eq!(decide(NamespaceView::NotSelected, Some(&ours)), Plan::NoAction(NoAction::NotWanted));
        let written = with(super::tests::ours(), "/metadata/managedFields", managers("gitlab-runner-webhook-clone"));
        let written = SecretState::from(secret(written));
        assert_eq!(decide(NamespaceView::NotSelected, Some(&written)), Plan::Delete(DeleteReason::Leftover));
        for namespace in [NamespaceView::OfSource, NamespaceView::Absent] {
            assert!(matches!(decide(namespace, Some(&written)), Plan::NoAction(_)));
        }
    }

    #[test]
    fn a_source_whose_copy_would_act_on_the_cluster_is_not_cloned() {
        for kind in ["kubernetes.io/service-account-token", "bootstrap.kubernetes.io/token", "helm.sh/release.v1"] {
            let source = SecretState::from(secret(json!({"type": kind})));
            let plan = plan(&spec(), SourceView::Present(&source), NamespaceView::Active, None);
            assert_eq!(plan, Plan::NoAction(NoAction::SourceTypeRefused), "{kind}");
        }
    }
}
