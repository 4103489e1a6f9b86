//! What is read of an object's raw JSON, in which any field may be absent, null or of another type. PURE.

use serde_json::Value;

/// The value at a path of field names; null where there is none.
pub fn at<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
    static NULL: Value = Value::Null;
    path.iter().try_fold(value, |value, field| value.get(field)).unwrap_or(&NULL)
}

/// The elements of an array; none for anything else.
pub fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A string in it; empty when it is not there.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A label, by the object's metadata; empty when it is not there.
pub fn label<'a>(metadata: &'a Value, key: &str) -> &'a str {
    metadata.get("labels").and_then(|labels| labels.get(key)).and_then(Value::as_str).unwrap_or_default()
}
