//! The stores: what the watches delivered. PURE.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    plan::{NamespaceView, SourceView},
    secret::SecretState,
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

/// Everything that was observed.
#[derive(Debug)]
pub struct Observed {
    /// One store for each watch of namespaces.
    namespaces: Vec<Store<Namespace>>,
    /// One store for each clone spec: source and clones alike, by namespace.
    secrets: Vec<Store<SecretState>>,
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
            .flat_map(|namespace| {
                (0..config.clones.len()).map(move |clone| Target { clone, namespace: namespace.clone() })
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
        let of_all = ends || changed.contains(&spec.from);
        let mut targets: BTreeSet<_> = changed.into_iter().map(|namespace| Target { clone, namespace }).collect();
        if of_all {
            targets.extend(self.targets(clone));
        }
        targets
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
            Some(source) => SourceView::Present(source),
            None if store.loaded => SourceView::Missing,
            None => SourceView::NotLoaded,
        }
    }

    /// The Secret that is, or is in the place of, a clone.
    pub fn target(&self, target: &Target) -> Option<&SecretState> {
        self.secrets.get(target.clone)?.objects.get(&target.namespace)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sync::secret::tests::secret;

    const ACTIVE: Namespace = Namespace { terminating: false };

    fn name(name: &str) -> NamespaceName {
        name.parse().unwrap()
    }

    fn target(namespace: &str) -> Target {
        Target { clone: 0, namespace: name(namespace) }
    }

    fn state() -> SecretState {
        SecretState::from(secret(json!({"stringData": {"k": "v"}})))
    }

    fn marked(targets: BTreeSet<Target>) -> Vec<String> {
        targets.into_iter().map(|target| target.namespace.to_string()).collect()
    }

    #[test]
    fn what_vanished_while_the_watch_was_down_is_looked_at() {
        let (config, mut observed) = (Config::default(), Observed::new(1, 1));
        for change in [Change::ListBegins, Change::Listed((name("a"), state())), Change::ListEnds] {
            observed.secret(&config, 0, change);
        }
        assert!(observed.target(&target("a")).is_some());
        assert!(observed.secret(&config, 0, Change::ListBegins).is_empty());
        let listed = observed.secret(&config, 0, Change::Listed((name("gitlab"), state())));
        assert!(listed.is_empty() && observed.target(&target("a")).is_some(), "half a list says nothing");
        observed.namespace(&config, 0, Change::Applied((name("gitlab-runner"), ACTIVE)));
        assert_eq!(marked(observed.secret(&config, 0, Change::ListEnds)), ["a", "gitlab", "gitlab-runner"]);
        assert!(observed.target(&target("a")).is_none());
        assert!(matches!(observed.source(&config, 0), SourceView::Present(_)));
    }

    #[test]
    fn missing_is_known_only_after_the_first_list() {
        let (config, mut observed) = (Config::default(), Observed::new(1, 1));
        assert!(matches!(observed.source(&config, 0), SourceView::NotLoaded));
        observed.secret(&config, 0, Change::ListBegins);
        assert!(matches!(observed.source(&config, 0), SourceView::NotLoaded));
        observed.secret(&config, 0, Change::ListEnds);
        assert!(matches!(observed.source(&config, 0), SourceView::Missing));
        observed.secret(&config, 0, Change::Applied((name("gitlab"), state())));
        observed.secret(&config, 0, Change::Deleted((name("gitlab"), state())));
        assert!(matches!(observed.source(&config, 0), SourceView::Missing));
    }

    #[test]
    fn nobody_is_unselected_before_every_watch_has_listed() {
        let mut config = Config::default();
        config.runner_namespaces.names.clear();
        let mut observed = Observed::new(2, 1);
        for change in [Change::ListBegins, Change::Listed((name("a"), state())), Change::ListEnds] {
            observed.secret(&config, 0, change);
        }
        for change in [Change::ListBegins, Change::ListEnds] {
            assert!(observed.namespace(&config, 0, change).is_empty());
        }
        assert_eq!(observed.namespace_of(&config, &target("a")), NamespaceView::NotLoaded);
        observed.namespace(&config, 1, Change::ListBegins);
        assert_eq!(marked(observed.namespace(&config, 1, Change::ListEnds)), ["a"], "now it can be said");
        assert_eq!(observed.namespace_of(&config, &target("a")), NamespaceView::NotSelected);
    }

    #[test]
    fn a_namespace_is_selected_as_long_as_one_watch_delivers_it() {
        let (config, mut observed) = (Config::default(), Observed::new(2, 1));
        observed.secret(&config, 0, Change::ListEnds);
        for watch in [0, 1] {
            observed.namespace(&config, watch, Change::Applied((name("a"), ACTIVE)));
            observed.namespace(&config, watch, Change::ListEnds);
        }
        observed.namespace(&config, 0, Change::Applied((name("a"), ACTIVE)));
        assert_eq!(observed.namespace_of(&config, &target("a")), NamespaceView::Active);
        assert_eq!(marked(observed.namespace(&config, 0, Change::Deleted((name("a"), ACTIVE)))), ["a"]);
        assert_eq!(observed.namespace_of(&config, &target("a")), NamespaceView::NotSelected);
        assert_eq!(observed.namespace_of(&config, &target("gitlab-runner")), NamespaceView::Absent);
        assert_eq!(observed.namespace_of(&config, &target("gitlab")), NamespaceView::OfSource);
    }

    #[test]
    fn a_change_of_the_source_reaches_every_clone_and_that_of_a_clone_only_itself() {
        let (config, mut observed) = (Config::default(), Observed::new(1, 1));
        for namespace in ["a", "b"] {
            observed.namespace(&config, 0, Change::Applied((name(namespace), ACTIVE)));
        }
        let changed = observed.secret(&config, 0, Change::Applied((name("gitlab"), state())));
        assert_eq!(marked(changed), ["a", "b", "gitlab"]);
        assert_eq!(marked(observed.secret(&config, 0, Change::Applied((name("b"), state())))), ["b"]);
    }
}
