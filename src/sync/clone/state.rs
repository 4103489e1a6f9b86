//! What is kept of a Secret: everything that a plan needs. The data itself is held only from the read of a
//! source to the writes that follow it. PURE.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta},
};

use crate::{
    cluster::{Authorship, Raw},
    config::CloneSpec,
    digest::{BytesShape, Digest, Shape},
    names::{
        ANNOTATION_SOURCE, APP, FIELD_MANAGER_CLONE, HARMLESS_TYPES, LABEL_MANAGED_BY, LABEL_PREFIX_KYVERNO,
        RESERVED_TYPES,
    },
    wiped::{Wiped, forget_last_applied, wipe},
};

/// `type` of a Secret that names none.
const DEFAULT_TYPE: &str = "Opaque";

/// `type` and `data` of a Secret: all that is ever copied. `Debug` shows key names and sizes only.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    secret_type: String,
    data: BTreeMap<String, ByteString>,
}

impl Payload {
    /// The Secret's type, such as `Opaque`.
    pub fn secret_type(&self) -> &str {
        &self.secret_type
    }

    /// The data, to be written into a clone.
    pub fn data(&self) -> &BTreeMap<String, ByteString> {
        &self.data
    }

    /// As an object to be written.
    pub fn to_secret(&self, metadata: ObjectMeta, immutable: bool) -> Wiped {
        Wiped::from(Secret {
            metadata,
            type_: Some(self.secret_type.clone()),
            data: Some(self.data.clone()),
            immutable: immutable.then_some(true),
            string_data: None,
        })
    }

    fn shape(&self) -> Shape {
        self.data.iter().map(|(key, value)| (key.as_str(), &value.0)).collect()
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        wipe(&mut self.data);
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: BTreeMap<_, _> = self.data.iter().map(|(key, value)| (key, value.0.len())).collect();
        f.debug_struct("Payload").field("type", &self.secret_type).field("bytes", &sizes).finish()
    }
}

/// A Secret as a watch or a read delivered it.
#[derive(Clone)]
pub struct SecretState {
    /// Metadata without `managedFields`, so that an update gives back what it does not change; and without kubectl's copy of
    /// the object, which an update therefore takes away: it is another place with the data of a Secret.
    pub metadata: ObjectMeta,
    /// The Secret's type.
    pub secret_type: String,
    /// Names of the keys in its data.
    pub keys: Vec<String>,
    /// Whether the API server refuses changes of its data.
    pub immutable: bool,
    digest: Digest,
    /// What our field manager has to do with it.
    authorship: Authorship,
}

impl SecretState {
    /// Of a Secret that a watch delivered: its data is compared, and never held.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(raw: &Raw<'_>) -> serde_json::Result<Self> {
        #[derive(serde::Deserialize)]
        struct Fields {
            #[serde(rename = "type")]
            secret_type: Option<String>,
            immutable: Option<bool>,
            data: Option<BytesShape>,
        }
        let Fields { secret_type, immutable, data } = serde_json::from_str(raw.json)?;
        let secret_type = secret_type.filter(|kind| !kind.is_empty()).unwrap_or_else(|| DEFAULT_TYPE.to_owned());
        let BytesShape(shape) = data.unwrap_or_default();
        Ok(Self::new(raw.metadata.clone(), &raw.managed_fields, secret_type, immutable, &shape))
    }

    /// Of a Secret that nobody looks into: nothing but its metadata.
    pub fn unread(metadata: ObjectMeta) -> Self {
        Self::new(metadata, &[], String::new(), None, &Shape::default())
    }

    fn new(
        mut metadata: ObjectMeta,
        managers: &[ManagedFieldsEntry],
        secret_type: String,
        immutable: Option<bool>,
        shape: &Shape,
    ) -> Self {
        forget_last_applied(&mut metadata);
        Self {
            digest: shape.digest(&secret_type),
            keys: shape.keys().cloned().collect(),
            secret_type,
            immutable: immutable.unwrap_or_default(),
            authorship: Authorship::of(managers, FIELD_MANAGER_CLONE),
            metadata,
        }
    }

    /// Whether type and data are the source's.
    pub fn has_content_of(&self, source: &Self) -> bool {
        self.digest == source.digest
    }

    /// Whether a controller gives its type a meaning that a copy must not have.
    pub fn has_side_effects(&self) -> bool {
        let is_reserved = |domain: &str| {
            RESERVED_TYPES.iter().any(|reserved| {
                domain.strip_suffix(reserved).is_some_and(|below| below.is_empty() || below.ends_with('.'))
            })
        };
        !HARMLESS_TYPES.contains(&self.secret_type.as_str())
            && self.secret_type.split_once('/').is_some_and(|(domain, _)| is_reserved(domain))
    }

    /// Whether it carries our marks and the configured labels.
    pub fn has_marks_of(&self, spec: &CloneSpec) -> bool {
        self.is_ours(spec) && spec.labels.iter().all(|(key, value)| self.label(key) == Some(value))
    }

    /// Whether it says of itself that it is our clone of this source. Without this nothing is ever deleted.
    pub fn is_ours(&self, spec: &CloneSpec) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        self.label(LABEL_MANAGED_BY) == Some(APP)
            && annotations.and_then(|all| all.get(ANNOTATION_SOURCE)).is_some_and(|source| *source == spec.source())
    }

    /// Whether it was ours, whatever was done to its labels since.
    pub fn was_ours(&self) -> bool {
        self.authorship.has_part
    }

    /// Whether an instance of this program wrote it last.
    pub fn was_last_written_by_us(&self) -> bool {
        self.authorship.is_last
    }

    /// Stands for type and data.
    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Whether a Kyverno policy made it, and may still look after it.
    pub fn is_managed_by_kyverno(&self) -> bool {
        let labels = self.metadata.labels.iter().flatten();
        labels.into_iter().any(|(key, _)| key.starts_with(LABEL_PREFIX_KYVERNO))
    }

    /// Whether it was deleted, and stays only until its finalizers are done.
    pub fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }
}

impl fmt::Debug for SecretState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretState")
            .field("namespace", &self.metadata.namespace)
            .field("name", &self.metadata.name)
            .field("resource_version", &self.metadata.resource_version)
            .field("type", &self.secret_type)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

impl From<Secret> for SecretState {
    fn from(secret: Secret) -> Self {
        split(secret).0
    }
}

/// The source, freshly read: what is known of it, and its content.
#[derive(Clone, Debug)]
pub struct SourceSecret {
    /// What is known of it.
    pub state: SecretState,
    /// What is copied.
    pub payload: Payload,
}

impl From<Secret> for SourceSecret {
    fn from(secret: Secret) -> Self {
        let (state, payload) = split(secret);
        Self { state, payload }
    }
}

/// Whether a Secret says of itself that it is our clone of another source than that of `spec`.
pub fn names_another_source(metadata: &ObjectMeta, spec: &CloneSpec) -> bool {
    let value = |map: &Option<BTreeMap<String, String>>, key: &str| map.as_ref()?.get(key).cloned();
    value(&metadata.labels, LABEL_MANAGED_BY).is_some_and(|by| by == APP)
        && value(&metadata.annotations, ANNOTATION_SOURCE).is_some_and(|source| source != spec.source())
}

/// Whether two Secrets have the same type and data: all that makes a clone equal to its source.
pub fn same_content(one: &Secret, other: &Secret) -> bool {
    secret_type(one) == secret_type(other) && one.data.iter().flatten().eq(other.data.iter().flatten())
}

fn secret_type(secret: &Secret) -> &str {
    secret.type_.as_deref().filter(|kind| !kind.is_empty()).unwrap_or(DEFAULT_TYPE)
}

fn split(secret: Secret) -> (SecretState, Payload) {
    let mut secret = secret;
    forget_last_applied(&mut secret.metadata);
    let payload = Payload { secret_type: secret_type(&secret).to_owned(), data: secret.data.unwrap_or_default() };
    let mut metadata = secret.metadata;
    let managers = metadata.managed_fields.take().unwrap_or_default();
    let state = SecretState::new(metadata, &managers, payload.secret_type.clone(), secret.immutable, &payload.shape());
    (state, payload)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sync::testing::secret;

    #[test]
    fn debug_shows_no_value() {
        let source = SourceSecret::from(secret(json!({
            "metadata": {"name": "s", "namespace": "gitlab", "annotations": {"last-applied": "canary"}},
            "stringData": {"runner-token": "canary"},
        })));
        let shown = format!("{source:?} {:?}", source.payload);
        assert!(!shown.contains("canary") && !shown.contains("99, 97, 110"), "{shown}");
        assert!(shown.contains("runner-token") && shown.contains('6'), "{shown}");
    }

    #[test]
    fn content_is_type_and_data_and_nothing_else() {
        let base = json!({"metadata": {"name": "s", "labels": {"a": "b"}}, "type": "Opaque", "stringData": {"k": "v", "l": "w"}});
        let source = SecretState::from(secret(base));
        let same = [
            json!({"metadata": {"name": "s"}, "stringData": {"l": "w", "k": "v"}}),
            json!({"metadata": {"name": "other"}, "type": "", "immutable": true, "stringData": {"l": "w", "k": "v"}}),
        ];
        for value in same {
            assert!(SecretState::from(secret(value.clone())).has_content_of(&source), "{value}");
        }
        let different = [
            json!({"type": "x/y", "stringData": {"k": "v", "l": "w"}}),
            json!({"stringData": {"k": "v"}}),
            json!({"stringData": {"k": "vl", "l": "w"}}),
            json!({"stringData": {"k": "v", "l": "w", "m": ""}}),
            json!({"stringData": {"kv": "", "l": "w"}}),
            json!({}),
        ];
        for value in different {
            assert!(!SecretState::from(secret(value.clone())).has_content_of(&source), "{value}");
        }
    }

    #[test]
    fn types_that_something_acts_on_are_not_copied() {
        for kind in
            ["", "Opaque", "kubernetes.io/tls", "kubernetes.io/dockerconfigjson", "example.com/x", "mykubernetes.io/x"]
        {
            assert!(!SecretState::from(secret(json!({"type": kind}))).has_side_effects(), "{kind}");
        }
        for kind in [
            "kubernetes.io/service-account-token",
            "bootstrap.kubernetes.io/token",
            "helm.sh/release.v1",
            "kubernetes.io/of-tomorrow",
            "x.k8s.io/y",
        ] {
            assert!(SecretState::from(secret(json!({"type": kind}))).has_side_effects(), "{kind}");
        }
    }

    #[test]
    fn no_data_and_empty_data_are_the_same() {
        let source = SecretState::from(secret(json!({"data": {}})));
        assert!(SecretState::from(secret(json!({}))).has_content_of(&source));
    }
}
