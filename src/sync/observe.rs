//! The stores: what the watches delivered. PURE.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    plan::{NamespaceView, SourceView},
    secret::{Payload, SecretState, Source},
};
use crate::{
    cluster::Change,
    config::{Config, NamespaceName},
    trust::Certs,
};

/// A clone, by the index of its spec in the configuration and its namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    pub clone: usize,
    pub namespace: NamespaceName,
}

/// Objects of one watch by namespace, with the list that is on its way.
#[derive(Debug)]
struct Store<T> {
    objects: BTreeMap<NamespaceName, T>,
    listed: Option<BTreeMap<NamespaceName, T>>,
    loaded: bool,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), listed: None, loaded: false }
    }
}

impl<T> Store<T> {
    /// Takes in a change and returns the namespaces whose object may be another now.
    fn apply(&mut self, change: Change<(NamespaceName, T)>) -> BTreeSet<NamespaceName> {
        match change {
            Change::ListBegins => self.listed = Some(BTreeMap::new()),
            Change::Listed((namespace, object)) => {
                self.listed.get_or_insert_default().insert(namespace, object);
            }
            Change::ListEnds => {
                let listed = self.listed.take().unwrap_or_default();
                let former = std::mem::replace(&mut self.objects, listed);
                self.loaded = true;
                return former.into_keys().chain(self.objects.keys().cloned()).collect();
            }
            Change::Applied((namespace, object)) => {
                self.objects.insert(namespace.clone(), object);
                return BTreeSet::from([namespace]);
            }
            Change::Deleted((namespace, _)) => {
                self.objects.remove(&namespace);
                return BTreeSet::from([namespace]);
            }
            Change::Failed(_) => {}
        }
        BTreeSet::new()
    }
}

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

/// A Secret of a cloned name. The data is kept of the source only.
#[derive(Debug)]
enum Seen {
    Source(Source),
    Other(SecretState),
}

/// Everything that was observed.
#[derive(Debug)]
pub struct Observed {
    /// One store for each watch of namespaces.
    namespaces: Vec<Store<Namespace>>,
    /// One store for each clone spec: source and clones alike, by namespace.
    secrets: Vec<Store<Seen>>,
    certs: Store<Certs>,
}

impl Observed {
    /// Nothing observed yet.
    pub fn new(namespace_watches: usize, clones: usize) -> Self {
        Self {
            namespaces: (0..namespace_watches).map(|_| Store::default()).collect(),
            secrets: (0..clones).map(|_| Store::default()).collect(),
            certs: Store::default(),
        }
    }

    /// A change of a namespace watch. Returns the clones to look at.
    pub fn namespace(
        &mut self,
        config: &Config,
        watch: usize,
        change: Change<(NamespaceName, Namespace)>,
    ) -> BTreeSet<Target> {
        let was_loaded = self.namespaces_loaded();
        let changed = self.namespaces.get_mut(watch).map(|store| store.apply(change)).unwrap_or_default();
        // Until every watch has listed, nobody can say that a namespace is not selected.
        let changed = if was_loaded == self.namespaces_loaded() {
            changed
        } else {
            self.secrets.iter().flat_map(|store| store.objects.keys().cloned()).chain(changed).collect()
        };
        changed
            .into_iter()
            .flat_map(|namespace| (0..config.clones.len()).map(move |clone| Target { clone, namespace: namespace.clone() }))
            .collect()
    }

    /// A change of the watch of one cloned name. Returns the clones to look at.
    pub fn secret(
        &mut self,
        config: &Config,
        clone: usize,
        change: Change<(NamespaceName, (SecretState, Payload))>,
    ) -> BTreeSet<Target> {
        let (Some(spec), Some(store)) = (config.clones.get(clone), self.secrets.get_mut(clone)) else {
            return BTreeSet::new();
        };
        let ends = matches!(change, Change::ListEnds);
        let changed = store.apply(change.map(|(namespace, (state, payload))| {
            let seen = if namespace == spec.from {
                Seen::Source(Source { state, payload: payload.into() })
            } else {
                Seen::Other(state)
            };
            (namespace, seen)
        }));
        if ends || changed.contains(&spec.from) {
            return self.targets(clone);
        }
        changed.into_iter().map(|namespace| Target { clone, namespace }).collect()
    }

    /// A change of the watch of `certsSecretName`.
    pub fn certs(&mut self, change: Change<(NamespaceName, Certs)>) {
        self.certs.apply(change);
    }

    /// `certsSecretName` by namespace, when its watch has listed.
    pub fn all_certs(&self) -> Option<&BTreeMap<NamespaceName, Certs>> {
        self.certs.loaded.then_some(&self.certs.objects)
    }

    /// The source of a clone.
    pub fn source(&self, config: &Config, clone: usize) -> SourceView<'_> {
        let Some((spec, store)) = config.clones.get(clone).zip(self.secrets.get(clone)) else {
            return SourceView::NotLoaded;
        };
        match store.objects.get(&spec.from) {
            Some(Seen::Source(source)) => SourceView::Present(source),
            _ if store.loaded => SourceView::Missing,
            _ => SourceView::NotLoaded,
        }
    }

    /// The Secret that is, or is in the place of, a clone.
    pub fn target(&self, target: &Target) -> Option<&SecretState> {
        match self.secrets.get(target.clone)?.objects.get(&target.namespace)? {
            Seen::Other(state) => Some(state),
            Seen::Source(_) => None,
        }
    }

    /// The namespace of a clone.
    pub fn namespace_of(&self, config: &Config, target: &Target) -> NamespaceView {
        let name = &target.namespace;
        if config.clones.get(target.clone).is_some_and(|spec| spec.from == *name) {
            return NamespaceView::OfSource;
        }
        match self.namespaces.iter().find_map(|store| store.objects.get(name)) {
            Some(namespace) if namespace.terminating => NamespaceView::Terminating,
            Some(_) if self.secrets.get(target.clone).is_some_and(|store| store.loaded) => NamespaceView::Active,
            Some(_) => NamespaceView::NotLoaded,
            None if !self.namespaces_loaded() => NamespaceView::NotLoaded,
            None if config.runner_namespaces.names.contains(name) => NamespaceView::Absent,
            None => NamespaceView::NotSelected,
        }
    }

    /// Every place where a clone of this spec is or should be.
    fn targets(&self, clone: usize) -> BTreeSet<Target> {
        let wanted = self.namespaces.iter().flat_map(|store| store.objects.keys());
        let there = self.secrets.get(clone).into_iter().flat_map(|store| store.objects.keys());
        wanted.chain(there).map(|namespace| Target { clone, namespace: namespace.clone() }).collect()
    }

    fn namespaces_loaded(&self) -> bool {
        self.namespaces.iter().all(|store| store.loaded)
    }
}
