//! From what is observed to what is to be done with one trust bundle. PURE.

use super::state::BundleState;
use crate::{
    config::SecretName,
    sync::plan::{DeleteReason, NamespaceView, NoAction, Plan, UpdateReason},
    trust::CertsState,
};

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

/// Decides what is to be done with the trust bundle in one namespace, where `there` is now.
pub fn plan(
    certs_secret_name: &SecretName,
    certs: CertsView<'_>,
    namespace: NamespaceView,
    there: Option<&BundleState>,
) -> Plan {
    let is_deletable = there.is_some_and(|there| there.is_ours(certs_secret_name) && !there.is_terminating());
    if let Some(plan) = namespace.plan(there.is_some_and(BundleState::was_ours), is_deletable) {
        return plan;
    }
    let nothing_to_trust = || {
        if is_deletable { Plan::Delete(DeleteReason::SourceDeleted) } else { Plan::NoAction(NoAction::SourceMissing) }
    };
    match (certs, there) {
        (CertsView::NotLoaded, _) => Plan::NoAction(NoAction::NotLoaded),
        (CertsView::Missing, _) => nothing_to_trust(),
        // What was published stays: half a mistake must not take trust from every job.
        (CertsView::Present(certs), _) if certs.bundle.problem().is_some() => Plan::NoAction(NoAction::CertsUnusable),
        (CertsView::Present(certs), _) if !certs.bundle.is_some() => nothing_to_trust(),
        (CertsView::Present(_), None) => Plan::Create,
        // Whoever put a finalizer on it must not have the last word on its content.
        (CertsView::Present(certs), Some(there))
            if there.is_terminating() && (there.immutable || there.has_content_of(&certs.bundle)) =>
        {
            Plan::NoAction(NoAction::CloneTerminating)
        }
        (CertsView::Present(certs), Some(there)) if !there.has_content_of(&certs.bundle) => {
            Plan::Update(UpdateReason::Differs)
        }
        (CertsView::Present(_), Some(there)) if !there.is_ours(certs_secret_name) => Plan::Update(UpdateReason::Marks),
        (CertsView::Present(_), Some(_)) => Plan::NoAction(NoAction::Synced),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        config::{Config, PublicRoots},
        sync::testing::{managers, secret, with},
        trust::bundle,
    };

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
            assert_eq!(plan(&name, certs, namespace, there), expected, "{certs:?} {namespace:?} {there:?}");
        }
    }
}
