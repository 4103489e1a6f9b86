//! From what is observed to what is to be done with one clone. PURE.

use crate::{
    config::{CloneSpec, OnForeignTarget, OnSourceDeleted, SecretName},
    sync::secret::{SecretState, SourceSecret},
    trust::{BundleState, CertsState},
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

/// `certsSecretName` in the namespace of a trust bundle, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub enum CertsView<'a> {
    /// The watch has not delivered its first list: nothing may be concluded.
    NotLoaded,
    /// There is no such Secret.
    Missing,
    /// It is there.
    Present(&'a CertsState),
}

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

/// What is to be done with one clone.
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

/// Decides what is to be done with the clone of `spec` in one namespace, where `target` is now.
pub fn plan(spec: &CloneSpec, source: SourceView<'_>, namespace: NamespaceView, target: Option<&SecretState>) -> Plan {
    match namespace {
        NamespaceView::NotLoaded => Plan::NoAction(NoAction::NotLoaded),
        NamespaceView::Absent => Plan::NoAction(NoAction::NamespaceAbsent),
        NamespaceView::Terminating => Plan::NoAction(NoAction::NamespaceTerminating),
        NamespaceView::Left => delete_if_ours(spec, target, DeleteReason::NotSelected, NoAction::NotWanted),
        // Labels prove nothing: anybody can write them.
        NamespaceView::NotSelected if target.is_some_and(SecretState::was_ours) => {
            delete_if_ours(spec, target, DeleteReason::Leftover, NoAction::NotWanted)
        }
        NamespaceView::NotSelected | NamespaceView::OfSource => Plan::NoAction(NoAction::NotWanted),
        NamespaceView::Active => match source {
            SourceView::NotLoaded => Plan::NoAction(NoAction::NotLoaded),
            SourceView::Missing if spec.on_source_deleted == OnSourceDeleted::Delete => {
                delete_if_ours(spec, target, DeleteReason::SourceDeleted, NoAction::SourceMissing)
            }
            SourceView::Missing => Plan::NoAction(NoAction::SourceMissing),
            SourceView::Present(source) if source.has_side_effects() => Plan::NoAction(NoAction::SourceTypeRefused),
            SourceView::Present(source) => target.map_or(Plan::Create, |target| converge(spec, source, target)),
        },
    }
}

/// Decides what is to be done with the trust bundle in one namespace, where `there` is now.
pub fn plan_trust(
    certs_secret_name: &SecretName,
    certs: CertsView<'_>,
    namespace: NamespaceView,
    there: Option<&BundleState>,
) -> Plan {
    let withdraw = |why, otherwise| match there {
        Some(there) if there.is_ours(certs_secret_name) && !there.is_terminating() => Plan::Delete(why),
        _ => Plan::NoAction(otherwise),
    };
    match namespace {
        NamespaceView::NotLoaded => Plan::NoAction(NoAction::NotLoaded),
        NamespaceView::Absent => Plan::NoAction(NoAction::NamespaceAbsent),
        NamespaceView::Terminating => Plan::NoAction(NoAction::NamespaceTerminating),
        NamespaceView::Left => withdraw(DeleteReason::NotSelected, NoAction::NotWanted),
        NamespaceView::NotSelected if there.is_some_and(BundleState::was_ours) => {
            withdraw(DeleteReason::Leftover, NoAction::NotWanted)
        }
        NamespaceView::NotSelected | NamespaceView::OfSource => Plan::NoAction(NoAction::NotWanted),
        NamespaceView::Active => match certs {
            CertsView::NotLoaded => Plan::NoAction(NoAction::NotLoaded),
            CertsView::Missing => withdraw(DeleteReason::SourceDeleted, NoAction::SourceMissing),
            // What was published stays: half a mistake must not take trust from every job.
            CertsView::Present(certs) if certs.bundle.problem().is_some() => Plan::NoAction(NoAction::CertsUnusable),
            CertsView::Present(certs) if !certs.bundle.is_some() => {
                withdraw(DeleteReason::SourceDeleted, NoAction::SourceMissing)
            }
            CertsView::Present(certs) => match there {
                None => Plan::Create,
                // Whoever put a finalizer on it must not have the last word on its content.
                Some(there) if there.is_terminating() && (there.immutable || there.has_content_of(&certs.bundle)) => {
                    Plan::NoAction(NoAction::CloneTerminating)
                }
                Some(there) if !there.has_content_of(&certs.bundle) => Plan::Update(UpdateReason::Differs),
                Some(there) if !there.is_ours(certs_secret_name) => Plan::Update(UpdateReason::Marks),
                Some(_) => Plan::NoAction(NoAction::Synced),
            },
        },
    }
}

fn delete_if_ours(spec: &CloneSpec, target: Option<&SecretState>, why: DeleteReason, otherwise: NoAction) -> Plan {
    match target {
        Some(target) if target.is_ours(spec) && !target.is_terminating() => Plan::Delete(why),
        _ => Plan::NoAction(otherwise),
    }
}

fn converge(spec: &CloneSpec, source: &SecretState, target: &SecretState) -> Plan {
    if target.has_content_of(source) {
        if target.is_terminating() {
            return Plan::NoAction(NoAction::CloneTerminating);
        }
        // What a living policy holds in step is left to it: two that put their own marks on would never rest.
        return if target.is_kyvernos() || target.has_marks_of(spec) {
            Plan::NoAction(NoAction::Synced)
        } else {
            Plan::Update(UpdateReason::Marks)
        };
    }
    let cause = if target.is_ours(spec) || target.was_ours() || target.is_kyvernos() {
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
    use k8s_openapi::api::core::v1::ConfigMap;

    use crate::{
        config::{Config, PublicRoots},
        sync::secret::tests::secret,
        trust::bundle,
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

    fn with(mut value: Value, pointer: &str, to: Value) -> Value {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        value.pointer_mut(parent).unwrap()[key] = to;
        value
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

    fn managers(name: &str) -> Value {
        json!([{"manager": name, "time": "2026-01-01T00:00:00Z"}])
    }

    #[test]
    fn a_source_whose_copy_would_act_on_the_cluster_is_not_cloned() {
        for kind in ["kubernetes.io/service-account-token", "bootstrap.kubernetes.io/token", "helm.sh/release.v1"] {
            let source = SecretState::from(secret(json!({"type": kind})));
            let plan = plan(&spec(), SourceView::Present(&source), NamespaceView::Active, None);
            assert_eq!(plan, Plan::NoAction(NoAction::SourceTypeRefused), "{kind}");
        }
    }

    #[test]
    fn a_trust_bundle_follows_the_certificates_of_its_namespace() {
        use CertsView::{Missing, NotLoaded, Present};
        use NamespaceView::{Absent, Active, Left, NotSelected, OfSource, Terminating};

        const NAME: &str = "gitlab-runner-webhook-trust";
        let name = Config::default().certs_secret_name;
        let certs = |data: Value| CertsState::new(&secret(json!({"stringData": data})), PublicRoots::None);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap().pem();
        let (good, empty, bad) = (certs(json!({"ca.crt": pem})), certs(json!({})), certs(json!({"ca.crt": "x"})));
        let map = |metadata: Value, data: Value| -> BundleState {
            serde_json::from_value::<ConfigMap>(json!({"metadata": metadata, "data": data})).unwrap().into()
        };
        let built = bundle::build(secret(json!({"stringData": {"ca.crt": pem}})).data.as_ref(), PublicRoots::None);
        let data = json!(built.unwrap().data());
        let marks = json!({
            "name": NAME, "namespace": "gitlab-runner",
            "labels": {"app.kubernetes.io/managed-by": "gitlab-runner-webhook"},
            "annotations": {"gitlab-runner-webhook/source": "gitlab-runner/gitlab-runner-certs"},
        });
        let ours = map(marks.clone(), data.clone());
        let edited = map(marks.clone(), json!({"ca.crt": "edited"}));
        let unmarked = map(json!({"name": NAME, "namespace": "gitlab-runner"}), data.clone());
        let written = with(marks.clone(), "/managedFields", managers("gitlab-runner-webhook-trust"));
        let written = map(written, data.clone());
        let marks = with(marks, "/deletionTimestamp", json!("2026-01-01T00:00:00Z"));
        let (terminating, terminating_edited) = (map(marks.clone(), data), map(marks, json!({})));

        let table = [
            (Present(&good), Active, None, Plan::Create),
            (Present(&good), Active, Some(&ours), Plan::NoAction(NoAction::Synced)),
            (Present(&good), Active, Some(&edited), Plan::Update(UpdateReason::Differs)),
            (Present(&good), Active, Some(&unmarked), Plan::Update(UpdateReason::Marks)),
            (Present(&good), Active, Some(&terminating), Plan::NoAction(NoAction::CloneTerminating)),
            (Present(&good), Active, Some(&terminating_edited), Plan::Update(UpdateReason::Differs)),
            // No mistake and no ignorance takes trust away; having nothing to trust does.
            (Present(&bad), Active, Some(&ours), Plan::NoAction(NoAction::CertsUnusable)),
            (NotLoaded, Active, Some(&ours), Plan::NoAction(NoAction::NotLoaded)),
            (Present(&good), NamespaceView::NotLoaded, Some(&ours), Plan::NoAction(NoAction::NotLoaded)),
            (Present(&empty), Active, Some(&ours), Plan::Delete(DeleteReason::SourceDeleted)),
            (Missing, Active, Some(&ours), Plan::Delete(DeleteReason::SourceDeleted)),
            (Missing, Active, Some(&unmarked), Plan::NoAction(NoAction::SourceMissing)),
            (Missing, Active, None, Plan::NoAction(NoAction::SourceMissing)),
            (Present(&good), Left, Some(&ours), Plan::Delete(DeleteReason::NotSelected)),
            (Present(&good), Left, Some(&unmarked), Plan::NoAction(NoAction::NotWanted)),
            (Present(&good), NotSelected, Some(&ours), Plan::NoAction(NoAction::NotWanted)),
            (Present(&good), NotSelected, Some(&written), Plan::Delete(DeleteReason::Leftover)),
            (Present(&good), OfSource, Some(&written), Plan::NoAction(NoAction::NotWanted)),
            (Present(&good), Terminating, None, Plan::NoAction(NoAction::NamespaceTerminating)),
            (Present(&good), Absent, None, Plan::NoAction(NoAction::NamespaceAbsent)),
        ];
        for (certs, namespace, there, expected) in table {
            assert_eq!(plan_trust(&name, certs, namespace, there), expected, "{certs:?} {namespace:?} {there:?}");
        }
    }
}
