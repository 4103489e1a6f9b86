//! What is watched, and how.

use std::sync::Arc;

use kube::{Resource, core::Selector};
use tokio::sync::Notify;

/// What is watched.
pub struct Query {
    pub(super) path: String,
    pub(super) what: String,
    pub(super) fields: Option<String>,
    pub(super) labels: Option<String>,
    pub(super) metadata_only: bool,
    pub(super) is_large: bool,
    pub(super) begins_anew: bool,
    pub(super) doubt: Arc<Notify>,
}

impl Query {
    /// Objects of this kind, in a namespace or in all. `what` names them in problems.
    pub fn of<K: Resource<DynamicType = ()>>(namespace: Option<&str>, what: String) -> Self {
        Self {
            path: K::url_path(&(), namespace),
            what,
            fields: None,
            labels: None,
            metadata_only: false,
            is_large: false,
            begins_anew: false,
            doubt: Arc::default(),
        }
    }

    /// Those of this name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.fields = Some(format!("metadata.name={name}"));
        self
    }

    /// Those with these labels.
    #[must_use]
    pub fn labelled(mut self, selector: &Selector) -> Self {
        self.labels = Some(selector.to_string());
        self
    }

    /// Their metadata is enough.
    #[must_use]
    pub fn metadata_only(mut self) -> Self {
        self.metadata_only = true;
        self
    }

    /// Together they can be large: they are listed while no other such list is under way.
    #[must_use]
    pub fn large(mut self) -> Self {
        self.is_large = true;
        self
    }

    /// Each time the watch is opened it begins with what is stored, which shows whether history went back. For what is
    /// small.
    #[must_use]
    pub fn anew(mut self) -> Self {
        self.begins_anew = true;
        self
    }

    /// What it is called in problems.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Whoever knows better tells by this that the watch must list anew.
    pub fn doubt(&self) -> Arc<Notify> {
        Arc::clone(&self.doubt)
    }
}
