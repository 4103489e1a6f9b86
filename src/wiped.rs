//! Secret data in memory: overwritten before its memory is given back. PURE.
//!
//! What the client library, TLS and the allocator copied on the way is out of reach: docs/security.md says what stays.

use std::{collections::BTreeMap, fmt, ops::Deref};

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use zeroize::Zeroize as _;

use crate::names::ANNOTATION_LAST_APPLIED;

/// A Secret whose data ends with it.
pub struct Wiped(Secret);

impl From<Secret> for Wiped {
    fn from(secret: Secret) -> Self {
        Self(secret)
    }
}

impl Deref for Wiped {
    type Target = Secret;

    fn deref(&self) -> &Secret {
        &self.0
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        if let Some(data) = &mut self.0.data {
            wipe(data);
        }
        forget_last_applied(&mut self.0.metadata);
    }
}

impl fmt::Debug for Wiped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wiped")
    }
}

/// Overwrites the values of a Secret's data.
pub fn wipe(data: &mut BTreeMap<String, ByteString>) {
    for value in data.values_mut() {
        value.0.zeroize();
    }
}

/// Takes kubectl's copy of a whole Secret out of its metadata.
pub fn forget_last_applied(metadata: &mut ObjectMeta) {
    let annotations = metadata.annotations.as_mut();
    if let Some(mut copy) = annotations.and_then(|annotations| annotations.remove(ANNOTATION_LAST_APPLIED)) {
        copy.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Safe Rust cannot look at memory that was given back: that values are empty shows that they were overwritten.
    #[test]
    fn values_and_kubectls_copy_are_overwritten() {
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"annotations": {ANNOTATION_LAST_APPLIED: "hunter2", "other": "stays"}},
            "data": {"a": "aHVudGVyMg=="},
        }))
        .unwrap();
        let (mut data, mut metadata) = (secret.data.unwrap(), secret.metadata);
        wipe(&mut data);
        forget_last_applied(&mut metadata);
        assert!(data["a"].0.is_empty());
        assert_eq!(metadata.annotations.unwrap().into_keys().collect::<Vec<_>>(), ["other"]);
    }
}
