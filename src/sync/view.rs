//! What admission is shown of the stores. PURE.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::{observe::Observed, plan::SourceView};
use crate::{
    config::{Config, NamespaceName, SecretName},
    snapshot::{self, Doubts, Snapshot},
    trust::{Shown, Trust},
};

/// What is no object.
pub(super) struct Beside {
    pub(super) out_of_step: BTreeMap<(SecretName, NamespaceName), Instant>,
    pub(super) contended: BTreeSet<(SecretName, NamespaceName)>,
    pub(super) doubts: Doubts,
    pub(super) is_superseded: bool,
}

/// The cluster as the stores have it.
pub(super) fn snapshot(config: &Config, observed: &Observed, shown: &mut Shown, beside: Beside) -> Snapshot {
    let Beside { out_of_step, contended, doubts, is_superseded } = beside;
    let view = |clone| match observed.source(config, clone) {
        SourceView::NotLoaded => snapshot::SourceView::NotLoaded,
        SourceView::Missing => snapshot::SourceView::Missing,
        SourceView::Present(_) => snapshot::SourceView::Present,
    };
    let sources = config.clones.iter().enumerate();
    let certs = observed.all_certs();
    let all = || certs.into_iter().flatten();
    let (read, unread) = (all().filter(|(_, state)| !state.is_unread), all().filter(|(_, state)| state.is_unread));
    let (trust, trust_unsettled) = bundles(config, observed, shown, is_superseded);
    Snapshot {
        sources: sources.map(|(clone, spec)| (spec.secret.clone(), (spec.from.clone(), view(clone)))).collect(),
        certs: read.map(|(name, state)| (name.clone(), state.certs.clone())).collect(),
        certs_unread: unread.map(|(name, _)| name.clone()).collect(),
        certs_loaded: certs.is_some(),
        trust,
        trust_unsettled,
        namespaces: observed.all_namespaces(),
        clones_loaded: observed.clones_loaded(),
        out_of_step,
        contended,
        doubts,
        is_superseded,
    }
}

/// The trust bundles that pods are given, and the namespaces where one is about to be put right.
fn bundles(
    config: &Config,
    observed: &Observed,
    shown: &mut Shown,
    is_superseded: bool,
) -> (BTreeMap<NamespaceName, Trust>, BTreeSet<NamespaceName>) {
    let (mut given, mut unsettled) = (BTreeMap::new(), BTreeSet::new());
    let Some(certs) = observed.all_certs() else { return (given, unsettled) };
    shown.note(certs);
    for (namespace, bundle) in observed.all_bundles() {
        // What a newer revision publishes follows from a configuration that this one does not know.
        if is_superseded && bundle.is_managed() && bundle.was_ours() {
            given.insert(namespace.clone(), bundle.trust);
            continue;
        }
        let Some(certs) = certs.get(namespace) else { continue };
        if bundle.is_ours(&config.certs_secret_name) && shown.accepts(namespace, bundle, certs) {
            given.insert(namespace.clone(), bundle.trust);
        } else if certs.bundle.is_some() {
            unsettled.insert(namespace.clone());
        }
    }
    (given, unsettled)
}
