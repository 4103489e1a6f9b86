//! What is read of an object's JSON. PURE.

use serde_json::Value;

/// A string in it; empty when it is not there.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A label, by the object's metadata; empty when it is not there.
pub(super) fn label<'a>(metadata: &'a Value, key: &str) -> &'a str {
    metadata.get("labels").and_then(|labels| labels.get(key)).and_then(Value::as_str).unwrap_or_default()
}
