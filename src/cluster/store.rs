//! The objects of one watch, with the list that is on its way. PURE.

use std::collections::{BTreeMap, BTreeSet};

use super::Change;

/// Objects of one watch by key.
#[derive(Debug)]
pub struct ObjectStore<K, T> {
    objects: BTreeMap<K, T>,
    listed: Option<BTreeMap<K, T>>,
    is_loaded: bool,
}

impl<K, T> Default for ObjectStore<K, T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), listed: None, is_loaded: false }
    }
}

impl<K: Clone + Ord, T> ObjectStore<K, T> {
    /// Takes in a change and returns the keys whose object may be another now.
    pub fn apply(&mut self, change: Change<(K, T)>) -> BTreeSet<K> {
        match change {
            Change::ListBegins => self.listed = Some(BTreeMap::new()),
            Change::Listed((key, object)) => {
                self.listed.get_or_insert_default().insert(key, object);
            }
            Change::ListEnds => {
                let listed = self.listed.take().unwrap_or_default();
                let former = std::mem::replace(&mut self.objects, listed);
                self.is_loaded = true;
                return former.into_keys().chain(self.objects.keys().cloned()).collect();
            }
            Change::Applied((key, object)) => {
                self.objects.insert(key.clone(), object);
                return BTreeSet::from([key]);
            }
            Change::Deleted((key, _)) => {
                self.objects.remove(&key);
                return BTreeSet::from([key]);
            }
            Change::Failed(_) => {}
        }
        BTreeSet::new()
    }

    /// The objects that are there, as far as the watch knows.
    pub fn objects(&self) -> &BTreeMap<K, T> {
        &self.objects
    }

    /// Whether the first list is complete: before that, nothing may be taken for missing.
    pub fn is_loaded(&self) -> bool {
        self.is_loaded
    }
}
