//! What admission is shown of the stores. PURE.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::{clone::SourceView, observe::Observed, trust_bundle::Shown};
use crate::{
    config::{Config, NamespaceName, SecretName},
    snapshot::{self, Doubts, Snapshot},
    trust::BundleFiles,
};

/// What is no object.
pub(super) struct Beside {
    pub(super) out_of_step: BTreeMap<(SecretName, NamespaceName), Instant>,
    pub(super) contended: BTreeSet<(SecretName, NamespaceName)>,
    pub(super) doubts: Doubts,
    pub(super) is_passive: bool,
}

/// The cluster as the stores have it.
pub(super) fn snapshot(config: &Config, observed: &Observed, shown: &mut Shown, beside: Beside) -> Snapshot {
    let Beside { out_of_step, contended, doubts, is_passive } = beside;
    let view = |clone| match observed.source(config, clone) {
        SourceView::NotLoaded => snapshot::SourcePresence::NotLoaded,
        SourceView::Missing => snapshot::SourcePresence::Missing,
        SourceView::Present(_) => snapshot::SourcePresence::Present,
    };
    let sources = config.clones.iter().enumerate();
    let certs = observed.all_certs();
    let all = || certs.into_iter().flatten();
    let (read, unread) = (all().filter(|(_, state)| !state.is_unread), all().filter(|(_, state)| state.is_unread));
    let Bundles { trust, trust_unsettled } = bundles(config, observed, shown, is_passive);
    Snapshot {
        sources: sources.map(|(clone, spec)| (spec.secret.clone(), (spec.from.clone(), view(clone)))).collect(),
        certs: read.map(|(name, state)| (name.clone(), state.certs.clone())).collect(),
        certs_unread: unread.map(|(name, _)| name.clone()).collect(),
        certs_loaded: certs.is_some(),
        trust,
        trust_unsettled,
        namespaces: observed.runner_namespaces(),
        clones_loaded: observed.clones_loaded(),
        out_of_step,
        contended,
        doubts,
        is_passive,
    }
}

/// The trust bundles that pods are given, and the namespaces where one is about to be put right.
#[derive(Default)]
struct Bundles {
    trust: BTreeMap<NamespaceName, BundleFiles>,
    trust_unsettled: BTreeSet<NamespaceName>,
}

fn bundles(config: &Config, observed: &Observed, shown: &mut Shown, is_passive: bool) -> Bundles {
    let mut found = Bundles::default();
    let Some(certs) = observed.all_certs() else { return found };
    shown.note(certs);
    for (namespace, bundle) in observed.all_bundles() {
        let certs = certs.get(namespace);
        // What another revision publishes follows from a configuration that this one does not know. Until this one has
        // written its own, it goes on being right.
        let is_of_other = is_passive && bundle.is_managed() && bundle.was_ours();
        if is_of_other {
            shown.adopt(namespace, bundle);
        }
        let is_right = |certs| bundle.is_ours(&config.certs_secret_name) && shown.accepts(namespace, bundle, certs);
        if is_of_other || certs.is_some_and(is_right) {
            found.trust.insert(namespace.clone(), bundle.trust);
        }
    }
    // A bundle that is to be there, and is not, or is another.
    let pending = certs.iter().filter(|(name, certs)| certs.bundle.is_some() && !found.trust.contains_key(*name));
    found.trust_unsettled = pending.map(|(name, _)| name.clone()).collect();
    found
}
