//! What is kept of a trust bundle: enough to compare it, no content. PURE.

use std::fmt;

use k8s_openapi::{
    api::core::v1::ConfigMap,
    apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta},
};
use serde::Deserialize;

use crate::{
    cluster::{Authorship, Raw},
    config::{NamespaceName, SecretName},
    digest::{BytesShape, Digest, Shape, TextShape},
    names::{ANNOTATION_SOURCE, APP, FIELD_MANAGER_TRUST, LABEL_MANAGED_BY},
    trust::{BundleFiles, ExpectedBundle, digest},
};

/// A ConfigMap under the trust bundle's name.
#[derive(Clone)]
pub struct BundleState {
    /// Metadata without `managedFields`.
    pub metadata: ObjectMeta,
    /// Whether the API server refuses changes of its data.
    pub immutable: bool,
    /// What job pods find in it.
    pub trust: BundleFiles,
    digest: Digest,
    /// What our field manager has to do with it.
    authorship: Authorship,
}

impl From<ConfigMap> for BundleState {
    fn from(map: ConfigMap) -> Self {
        let mut metadata = map.metadata;
        let managers = metadata.managed_fields.take().unwrap_or_default();
        let text = map.data.unwrap_or_default().into_iter().collect();
        let binary = map.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect();
        Self::new(metadata, &managers, map.immutable, &text, &binary)
    }
}

impl BundleState {
    /// Of a `ConfigMap` that a watch delivered: its data is compared, and never held.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(raw: &Raw<'_>) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Fields {
            immutable: Option<bool>,
            data: Option<TextShape>,
            binary_data: Option<BytesShape>,
        }
        let Fields { immutable, data, binary_data } = serde_json::from_str(raw.json)?;
        let (text, binary) = (data.unwrap_or_default().0, binary_data.unwrap_or_default().0);
        Ok(Self::new(raw.metadata.clone(), &raw.managed_fields, immutable, &text, &binary))
    }

    /// Of a `ConfigMap` that nobody looks into: nothing but its metadata.
    pub fn unread(metadata: ObjectMeta) -> Self {
        Self::new(metadata, &[], None, &Shape::default(), &Shape::default())
    }

    fn new(
        metadata: ObjectMeta,
        managers: &[ManagedFieldsEntry],
        immutable: Option<bool>,
        text: &Shape,
        binary: &Shape,
    ) -> Self {
        Self {
            metadata,
            immutable: immutable.unwrap_or_default(),
            trust: BundleFiles::of(text.keys().chain(binary.keys())),
            digest: digest(text, binary),
            authorship: Authorship::of(managers, FIELD_MANAGER_TRUST),
        }
    }

    /// Its data, to be compared.
    pub(super) fn content(&self) -> &Digest {
        &self.digest
    }

    /// Whether its data is the wanted one.
    pub fn has_content_of(&self, wanted: &ExpectedBundle) -> bool {
        wanted.digest() == Some(&self.digest)
    }

    /// Whether it says of itself that this program manages it, by whatever configuration.
    pub fn is_managed(&self) -> bool {
        let labels = self.metadata.labels.as_ref();
        labels.and_then(|all| all.get(LABEL_MANAGED_BY)).is_some_and(|by| by == APP)
    }

    /// Whether our field manager owns a part of it.
    pub fn was_ours(&self) -> bool {
        self.authorship.has_part
    }

    /// Whether an instance of this program wrote it last.
    pub fn was_last_written_by_us(&self) -> bool {
        self.authorship.is_last
    }

    /// Whether it says of itself that it is ours. Without this it is never deleted, and never shown to a pod.
    pub fn is_ours(&self, certs_secret_name: &SecretName) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        let namespace = self.metadata.namespace.as_deref().unwrap_or_default();
        self.is_managed()
            && annotations.and_then(|all| all.get(ANNOTATION_SOURCE)).is_some_and(|source| {
                source.strip_prefix(namespace).and_then(|rest| rest.strip_prefix('/'))
                    == Some(certs_secret_name.as_str())
            })
    }

    /// Whether it was deleted, and stays only until its finalizers are done.
    pub fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }
}

impl fmt::Debug for BundleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BundleState").field("trust", &self.trust).finish_non_exhaustive()
    }
}

/// What the annotation of a trust bundle names as its source.
pub(super) fn source(namespace: &NamespaceName, certs_secret_name: &SecretName) -> String {
    format!("{namespace}/{certs_secret_name}")
}
