//! Objects for tests.

use k8s_openapi::{ByteString, api::core::v1::Secret};
use serde_json::{Value, json};

/// A Secret from its JSON, with `stringData` for readable tests.
pub(super) fn secret(value: Value) -> Secret {
    let mut secret: Secret = serde_json::from_value(value).unwrap();
    let strings = secret.string_data.take().unwrap_or_default();
    if !strings.is_empty() {
        secret.data = Some(strings.into_iter().map(|(key, value)| (key, ByteString(value.into_bytes()))).collect());
    }
    secret
}

/// A value with something else at a pointer.
pub(super) fn with(mut value: Value, pointer: &str, to: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    value.pointer_mut(parent).unwrap()[key] = to;
    value
}

/// `managedFields` with one entry.
pub(super) fn managers(name: &str) -> Value {
    json!([{"manager": name, "time": "2026-01-01T00:00:00Z"}])
}
