//! What is kept of `certsSecretName` and of a trust bundle: enough to compare them, no content. PURE.

use std::fmt;

use k8s_openapi::{
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    Certs, Trust,
    bundle::{self, BundleError, TrustBundle},
};
use crate::{
    cluster::Authorship,
    config::{NamespaceName, PublicRoots, SecretName},
    digest::Digest,
    names::{ANNOTATION_SOURCE, APP, FIELD_MANAGER_TRUST, KEY_BUNDLE, KEY_CA, LABEL_MANAGED_BY},
};

/// `certsSecretName` in one namespace.
#[derive(Clone, Debug)]
pub struct CertsState {
    /// What admission needs to know.
    pub certs: Certs,
    /// The trust bundle that follows from it.
    pub bundle: Wanted,
}

/// The trust bundle that is to be in a namespace.
#[derive(Clone, Debug)]
pub struct Wanted(Result<Option<Digest>, String>);

/// A ConfigMap under the trust bundle's name.
#[derive(Clone)]
pub struct BundleState {
    /// Metadata without `managedFields`.
    pub metadata: ObjectMeta,
    /// Whether the API server refuses changes of its data.
    pub immutable: bool,
    /// What job pods find in it.
    pub trust: Trust,
    digest: Digest,
    /// What our field manager has to do with it.
    authorship: Authorship,
}

impl CertsState {
    /// Looks at the Secret, and works out the trust bundle once to know what it is to be.
    pub fn new(secret: &Secret, roots: PublicRoots) -> Self {
        let data = secret.data.as_ref();
        Self { certs: Certs::inspect(data), bundle: Wanted::of(bundle::build(data, roots)) }
    }
}

impl Wanted {
    fn of(built: Result<TrustBundle, BundleError>) -> Self {
        Self(match built {
            Ok(bundle) => Ok(Some(digest(bundle.data()))),
            Err(BundleError::NoCa) => Ok(None),
            Err(error) => Err(error.to_string()),
        })
    }

    /// The content that is wanted, if it is known.
    pub(super) fn digest(&self) -> Option<&Digest> {
        self.0.as_ref().ok()?.as_ref()
    }

    /// Whether there is a CA to be trusted.
    pub fn is_some(&self) -> bool {
        matches!(self.0, Ok(Some(_)))
    }

    /// Stands for its data, if there is to be one.
    pub(crate) fn digest(&self) -> Option<&Digest> {
        self.0.as_ref().ok()?.as_ref()
    }

    /// Why there can be no bundle although there are certificates.
    pub fn problem(&self) -> Option<&str> {
        self.0.as_ref().err().map(String::as_str)
    }
}

impl From<ConfigMap> for BundleState {
    fn from(map: ConfigMap) -> Self {
        let mut metadata = map.metadata;
        let managers = metadata.managed_fields.take().unwrap_or_default();
        let data = map.data.unwrap_or_default();
        // No bundle of ours has binary data; any there makes it another.
        let binary = map.binary_data.unwrap_or_default();
        let digest = if binary.is_empty() { digest(&data) } else { Digest::of([b"binary".as_slice()]) };
        let is_hash = |key: &String| key != KEY_CA && key != KEY_BUNDLE;
        Self {
            metadata,
            immutable: map.immutable.unwrap_or_default(),
            trust: Trust { has_bundle: data.contains_key(KEY_BUNDLE), has_hashes: data.keys().any(is_hash) },
            digest,
            authorship: Authorship::of(&managers, FIELD_MANAGER_TRUST),
        }
    }
}

impl BundleState {
    /// Its data, to be compared.
    pub(super) fn content(&self) -> &Digest {
        &self.digest
    }

    /// Whether its data is the wanted one.
    pub fn has_content_of(&self, wanted: &Wanted) -> bool {
        matches!(&wanted.0, Ok(Some(digest)) if *digest == self.digest)
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
    pub fn is_last_by_us(&self) -> bool {
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

fn digest(data: &std::collections::BTreeMap<String, String>) -> Digest {
    Digest::of(data.iter().flat_map(|(key, value)| [key.as_bytes(), value.as_bytes()]))
}
