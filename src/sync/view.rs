//! What admission is shown of the stores. PURE.

use std::{collections::BTreeMap, time::Instant};

use super::{observe::Observed, plan::SourceView};
use crate::{
    config::{Config, NamespaceName, SecretName},
    snapshot::{self, Snapshot},
    trust::BundleState,
};

/// The cluster as the stores have it.
pub(super) fn snapshot(
    config: &Config,
    observed: &Observed,
    out_of_step: BTreeMap<(SecretName, NamespaceName), Instant>,
    is_superseded: bool,
) -> Snapshot {
    let view = |clone| match observed.source(config, clone) {
        SourceView::NotLoaded => snapshot::SourceView::NotLoaded,
        SourceView::Missing => snapshot::SourceView::Missing,
        SourceView::Present(_) => snapshot::SourceView::Present,
    };
    let sources = config.clones.iter().enumerate();
    let certs = observed.all_certs();
    // What a newer revision publishes follows from a configuration that this one does not know.
    let is_shown =
        |bundle: &BundleState| bundle.is_ours(&config.certs_secret_name) || is_superseded && bundle.is_managed();
    let bundles = observed.all_bundles().iter().filter(|(_, bundle)| is_shown(bundle));
    Snapshot {
        sources: sources.map(|(clone, spec)| (spec.secret.clone(), (spec.from.clone(), view(clone)))).collect(),
        certs: certs.into_iter().flatten().map(|(name, state)| (name.clone(), state.certs.clone())).collect(),
        certs_loaded: certs.is_some(),
        trust: bundles.map(|(name, bundle)| (name.clone(), bundle.trust)).collect(),
        namespaces: observed.all_namespaces(),
        clones_loaded: observed.clones_loaded(),
        out_of_step,
        is_superseded,
    }
}
