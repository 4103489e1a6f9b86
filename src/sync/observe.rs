//! The stores: what the watches delivered. PURE.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    clone::{SecretState, SourceView},
    plan::NamespaceView,
    trust_bundle::{BundleState, CertsView},
};
use crate::{
    cluster::{Change, ObjectStore},
    config::{Config, NamespaceName},
    trust::CertsState,
};

/// What is looked after in each runner namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The clone of this index in the configuration.
    Clone(usize),
    /// The trust bundle.
    Trust,
}

/// One object that is looked after.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    pub subject: Subject,
    pub namespace: NamespaceName,
}

/// Objects of one watch by namespace.
type ByNamespace<T> = ObjectStore<NamespaceName, T>;

/// A Namespace as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    terminating: bool,
}

impl From<&ObjectMeta> for Namespace {
    fn from(metadata: &ObjectMeta) -> Self {
        Self { terminating: metadata.deletion_timestamp.is_some() }
    }
}

/// Everything that was observed.
#[derive(Debug)]
pub struct Observed {
    /// One store for each watch of namespaces.
    namespaces: Vec<ByNamespace<Namespace>>,
    /// One store for each clone spec: source and clones alike, by namespace.
    secrets: Vec<ByNamespace<SecretState>>,
    certs: ByNamespace<CertsState>,
    bundles: ByNamespace<BundleState>,
    /// How many of the watches of namespaces are those of runner namespaces; they come first.
    of_runners: usize,
    /// Namespaces that this process saw leave the selection, as long as an object of a watched name is there.
    left: BTreeSet<NamespaceName>,
}

impl Observed {
    /// Nothing observed yet.
    pub fn new(namespace_watches: usize, clones: usize) -> Self {
        Self {
            namespaces: (0..namespace_watches).map(|_| ObjectStore::default()).collect(),
            secrets: (0..clones).map(|_| ObjectStore::default()).collect(),
            certs: ObjectStore::default(),
            bundles: ObjectStore::default(),
            left: BTreeSet::new(),
            of_runners: namespace_watches,
        }
    }

    /// The last of the watches of namespaces deliver such as get a trust bundle only.
    pub fn with_trust_namespaces(self, watches: usize) -> Self {
        Self { of_runners: self.namespaces.len().saturating_sub(watches), ..self }
    }

    /// A change of a namespace watch. Returns the clones to look at.
    pub fn namespace(
        &mut self,
        config: &Config,
        watch: usize,
        change: Change<(NamespaceName, Namespace)>,
    ) -> BTreeSet<Target> {
        let was_loaded = self.namespaces_loaded();
        let Some(store) = self.namespaces.get_mut(watch) else { return BTreeSet::new() };
        let former: BTreeSet<_> = match &change {
            Change::Deleted((namespace, _)) => BTreeSet::from([namespace.clone()]),
            Change::ListEnds => store.objects().keys().cloned().collect(),
            _ => BTreeSet::new(),
        };
        let changed = store.apply(change);
        self.note_left(former);
        // Until every watch has listed, nobody can say that a namespace is not selected.
        let changed = if was_loaded == self.namespaces_loaded() {
            changed
        } else {
            let clones = self.secrets.iter().flat_map(|store| store.objects().keys());
            clones.chain(self.bundles.objects().keys()).cloned().chain(changed).collect()
        };
        changed
            .into_iter()
            .flat_map(|namespace| {
                let subjects = (0..config.clones.len()).map(Subject::Clone).chain([Subject::Trust]);
                subjects.map(move |subject| Target { subject, namespace: namespace.clone() })
            })
            .collect()
    }

    /// A change of the watch of one cloned name. Returns the clones to look at.
    pub fn secret(
        &mut self,
        config: &Config,
        clone: usize,
        change: Change<(NamespaceName, SecretState)>,
    ) -> BTreeSet<Target> {
        let (Some(spec), Some(store)) = (config.clones.get(clone), self.secrets.get_mut(clone)) else {
            return BTreeSet::new();
        };
        let ends = matches!(change, Change::ListEnds);
        let changed = store.apply(change);
        self.note_left(BTreeSet::new());
        let of_all = ends || changed.contains(&spec.from);
        let subject = Subject::Clone(clone);
        let mut targets: BTreeSet<_> = changed.into_iter().map(|namespace| Target { subject, namespace }).collect();
        if of_all {
            targets.extend(self.targets(clone));
        }
        targets
    }

    /// A change of the watch of `certsSecretName`. Returns the trust bundles to look at.
    pub fn certs(&mut self, change: Change<(NamespaceName, CertsState)>) -> BTreeSet<Target> {
        let ends = matches!(change, Change::ListEnds);
        let changed = self.certs.apply(change);
        self.trust_targets(changed, ends)
    }

    /// A change of the watch of trust bundles. Returns those to look at.
    pub fn bundle(&mut self, change: Change<(NamespaceName, BundleState)>) -> BTreeSet<Target> {
        let ends = matches!(change, Change::ListEnds);
        let changed = self.bundles.apply(change);
        self.note_left(BTreeSet::new());
        self.trust_targets(changed, ends)
    }

    /// `certsSecretName` by namespace, when its watch has listed.
    pub fn all_certs(&self) -> Option<&BTreeMap<NamespaceName, CertsState>> {
        self.certs.is_loaded().then_some(self.certs.objects())
    }

    /// Trust bundles, and whatever has their name, by namespace.
    pub fn all_bundles(&self) -> &BTreeMap<NamespaceName, BundleState> {
        self.bundles.objects()
    }

    /// Runner namespaces that are there.
    pub fn runner_namespaces(&self) -> BTreeSet<NamespaceName> {
        self.namespaces.iter().take(self.of_runners).flat_map(|store| store.objects().keys().cloned()).collect()
    }

    /// Whether every watch of namespaces and clones has listed.
    pub fn clones_loaded(&self) -> bool {
        self.namespaces_loaded() && self.secrets.iter().all(ByNamespace::is_loaded)
    }

    /// The certificates that a trust bundle follows from.
    pub fn certs_of(&self, target: &Target) -> CertsView<'_> {
        match self.certs.objects().get(&target.namespace) {
            Some(certs) if certs.is_unread => CertsView::NotLoaded,
            Some(certs) => CertsView::Present(certs),
            None if self.certs.is_loaded() => CertsView::Missing,
            None => CertsView::NotLoaded,
        }
    }

    /// The source of a clone.
    pub fn source(&self, config: &Config, clone: usize) -> SourceView<'_> {
        let Some((spec, store)) = config.clones.get(clone).zip(self.secrets.get(clone)) else {
            return SourceView::NotLoaded;
        };
        match store.objects().get(&spec.from) {
            Some(source) => SourceView::Present(source),
            None if store.is_loaded() => SourceView::Missing,
            None => SourceView::NotLoaded,
        }
    }

    /// The Secret that is, or is in the place of, a clone.
    pub fn target(&self, clone: usize, namespace: &NamespaceName) -> Option<&SecretState> {
        self.secrets.get(clone)?.objects().get(namespace)
    }

    /// The uid of an object that is looked after, if it is there.
    pub fn uid(&self, target: &Target) -> Option<&str> {
        let metadata = match target.subject {
            Subject::Clone(clone) => &self.target(clone, &target.namespace)?.metadata,
            Subject::Trust => &self.bundles.objects().get(&target.namespace)?.metadata,
        };
        metadata.uid.as_deref()
    }

    /// The namespace of an object.
    pub fn namespace_of(&self, config: &Config, target: &Target) -> NamespaceView {
        let name = &target.namespace;
        // The guard lets nothing be written or deleted where a source is, and neither names nor selectors can select it.
        if config.clones.iter().any(|spec| spec.from == *name) {
            return NamespaceView::OfSource;
        }
        let loaded = match target.subject {
            Subject::Clone(clone) => self.secrets.get(clone).is_some_and(ByNamespace::is_loaded),
            Subject::Trust => self.bundles.is_loaded(),
        };
        let of_trust = target.subject == Subject::Trust;
        let watches = if of_trust { self.namespaces.len() } else { self.of_runners };
        let named = config.with_trust().into_iter().take(if of_trust { 2 } else { 1 });
        match self.namespaces.iter().take(watches).find_map(|store| store.objects().get(name)) {
            Some(namespace) if namespace.terminating => NamespaceView::Terminating,
            Some(_) if loaded => NamespaceView::Active,
            Some(_) => NamespaceView::NotLoaded,
            None if !self.namespaces_loaded() => NamespaceView::NotLoaded,
            None if named.into_iter().any(|selection| selection.names.contains(name)) => NamespaceView::Absent,
            None if self.left.contains(name) => NamespaceView::Left,
            None => NamespaceView::NotSelected,
        }
    }

    /// Every object that is looked after, or is where one would be.
    pub fn all_targets(&self) -> BTreeSet<Target> {
        let clones = (0..self.secrets.len()).flat_map(|clone| self.targets(clone));
        clones.chain(self.trust_targets(self.bundles.objects().keys().cloned().collect(), true)).collect()
    }

    /// Every place where a clone of this spec is or should be.
    fn targets(&self, clone: usize) -> BTreeSet<Target> {
        let wanted = self.namespaces.iter().take(self.of_runners).flat_map(|store| store.objects().keys());
        let there = self.secrets.get(clone).into_iter().flat_map(|store| store.objects().keys());
        wanted
            .chain(there)
            .map(|namespace| Target { subject: Subject::Clone(clone), namespace: namespace.clone() })
            .collect()
    }

    fn trust_targets(&self, mut namespaces: BTreeSet<NamespaceName>, all: bool) -> BTreeSet<Target> {
        if all {
            namespaces.extend(self.namespaces.iter().flat_map(|store| store.objects().keys().cloned()));
        }
        namespaces.into_iter().map(|namespace| Target { subject: Subject::Trust, namespace }).collect()
    }

    /// Notes which of these namespaces are not selected any more, and forgets those in which nothing is left.
    fn note_left(&mut self, former: BTreeSet<NamespaceName>) {
        self.left.extend(former);
        let Self { left, namespaces, secrets, bundles, .. } = self;
        left.retain(|name| {
            let is_selected = namespaces.iter().any(|store| store.objects().contains_key(name));
            let is_occupied =
                bundles.objects().contains_key(name) || secrets.iter().any(|store| store.objects().contains_key(name));
            !is_selected && is_occupied
        });
    }

    fn namespaces_loaded(&self) -> bool {
        self.namespaces.iter().all(ByNamespace::is_loaded)
    }
}

#[cfg(test)]
#[path = "observe_tests.rs"]
mod tests;
