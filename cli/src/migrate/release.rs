//! What makes a clone of Kyverno's nobody's: the patch of its metadata. PURE.

use std::collections::BTreeSet;

use gitlab_runner_webhook::names::{FIELD_MANAGER_CLONE, LABEL_MANAGED_BY, LABEL_PREFIX_KYVERNO};
use serde_json::{Map, Value, json};

/// Who manages an object that a `generate` rule made, by its own word.
pub(super) const KYVERNO: &str = "kyverno";

/// The merge patch after which Kyverno does not know the clone any more, or nothing when it does not know it now.
///
/// It takes off Kyverno's labels, and whatever labels and annotations Kyverno copied from the source, which nobody
/// would keep in step any more; `kubectl.kubernetes.io/last-applied-configuration` even holds the data. What another
/// field manager has a hand in stays. The fields of Kyverno's field managers become those of the program's, so that
/// the clone counts as one that was ours. The content is not in the patch; it takes effect only on the version that
/// was read.
pub(super) fn release(metadata: &Value) -> Option<Value> {
    let labels = metadata.get("labels").and_then(Value::as_object)?;
    if !labels.keys().any(|key| key.starts_with(LABEL_PREFIX_KYVERNO)) {
        return None;
    }
    let copied = |kind: &str| copied(metadata, kind);
    let mut gone: BTreeSet<&str> = copied("labels");
    gone.extend(labels.keys().map(String::as_str).filter(|key| key.starts_with(LABEL_PREFIX_KYVERNO)));
    gone.remove(LABEL_MANAGED_BY);
    if labels.get(LABEL_MANAGED_BY).and_then(Value::as_str) == Some(KYVERNO) {
        gone.insert(LABEL_MANAGED_BY);
    }
    let annotations = copied("annotations");
    Some(json!({"metadata": {
        "resourceVersion": metadata.get("resourceVersion"),
        "labels": nulls(&gone),
        "annotations": nulls(&annotations),
        "managedFields": taken_over(metadata, &gone, &annotations),
    }}))
}

/// Names of the labels and annotations that the patch takes off, beside Kyverno's own.
pub(super) fn also_removed(metadata: &Value) -> BTreeSet<&str> {
    let all = copied(metadata, "labels").into_iter().chain(copied(metadata, "annotations"));
    all.filter(|key| !key.starts_with(LABEL_PREFIX_KYVERNO) && *key != LABEL_MANAGED_BY).collect()
}

fn nulls(keys: &BTreeSet<&str>) -> Value {
    keys.iter().map(|key| ((*key).to_owned(), Value::Null)).collect::<Map<_, _>>().into()
}

fn entries(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata.get("managedFields").and_then(Value::as_array).into_iter().flatten()
}

fn manager(entry: &Value) -> &str {
    entry.get("manager").and_then(Value::as_str).unwrap_or_default()
}

/// Field managers that wrote Kyverno's labels: their names depend on Kyverno's version and settings.
fn kyvernos(metadata: &Value) -> BTreeSet<&str> {
    let prefix = format!("f:{LABEL_PREFIX_KYVERNO}");
    let wrote = |entry: &&Value| owned(entry, "labels").any(|key| key.starts_with(&prefix));
    entries(metadata).filter(wrote).map(manager).filter(|name| *name != FIELD_MANAGER_CLONE).collect()
}

fn owned<'a>(entry: &'a Value, kind: &str) -> impl Iterator<Item = &'a String> {
    let fields = entry.pointer(&format!("/fieldsV1/f:metadata/f:{kind}")).and_then(Value::as_object);
    fields.into_iter().flat_map(Map::keys)
}

/// Keys that Kyverno's field managers own, and nobody else.
fn copied<'a>(metadata: &'a Value, kind: &str) -> BTreeSet<&'a str> {
    let kyvernos = kyvernos(metadata);
    let (mut theirs, mut others) = (BTreeSet::new(), BTreeSet::new());
    for entry in entries(metadata) {
        let keys = owned(entry, kind).filter_map(|key| key.strip_prefix("f:"));
        if kyvernos.contains(manager(entry)) { theirs.extend(keys) } else { others.extend(keys) }
    }
    let there = |key: &str| metadata.get(kind).is_some_and(|all| all.get(key).is_some());
    theirs.into_iter().filter(|key| there(key) && !others.contains(key)).collect()
}

/// `managedFields` with one entry of the program's in the place of Kyverno's.
fn taken_over(metadata: &Value, labels: &BTreeSet<&str>, annotations: &BTreeSet<&str>) -> Value {
    let kyvernos = kyvernos(metadata);
    let (mut kept, mut fields, mut time) = (Vec::new(), json!({}), None);
    for entry in entries(metadata) {
        let ours = manager(entry) == FIELD_MANAGER_CLONE && entry.get("operation") == Some(&json!("Update"));
        if ours || kyvernos.contains(manager(entry)) {
            merge(&mut fields, entry.get("fieldsV1").unwrap_or(&Value::Null));
            // RFC 3339 in UTC: the later one is the greater one.
            time = time.max(entry.get("time").and_then(Value::as_str));
        } else {
            kept.push(entry.clone());
        }
    }
    for (kind, keys) in [("labels", labels), ("annotations", annotations)] {
        if let Some(owned) = fields.pointer_mut(&format!("/f:metadata/f:{kind}")).and_then(Value::as_object_mut) {
            owned.retain(|key, _| !keys.contains(key.strip_prefix("f:").unwrap_or(key)));
        }
    }
    if fields.as_object().is_some_and(|fields| !fields.is_empty()) {
        kept.push(json!({
            "manager": FIELD_MANAGER_CLONE, "operation": "Update", "apiVersion": "v1", "time": time,
            "fieldsType": "FieldsV1", "fieldsV1": fields,
        }));
    }
    kept.into()
}

fn merge(into: &mut Value, from: &Value) {
    if let (Some(into), Some(from)) = (into.as_object_mut(), from.as_object()) {
        for (key, value) in from {
            merge(into.entry(key.clone()).or_insert_with(|| json!({})), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clone() -> Value {
        json!({
            "resourceVersion": "7",
            "labels": {
                "app": "gitlab", "theirs": "x", "app.kubernetes.io/managed-by": "kyverno",
                "generate.kyverno.io/policy-name": "p", "generate.kyverno.io/clone-source": "",
            },
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "note": "n"},
            "managedFields": [
                {"manager": "background-controller", "operation": "Update", "apiVersion": "v1", "time": "2026-01-02T00:00:00Z",
                 "fieldsType": "FieldsV1", "fieldsV1": {
                    "f:data": {".": {}, "f:runner-token": {}}, "f:type": {},
                    "f:metadata": {
                        "f:annotations": {".": {}, "f:kubectl.kubernetes.io/last-applied-configuration": {}},
                        "f:labels": {".": {}, "f:app": {}, "f:theirs": {}, "f:app.kubernetes.io/managed-by": {},
                                     "f:generate.kyverno.io/policy-name": {}, "f:generate.kyverno.io/clone-source": {}}}}},
                {"manager": "kubectl-label", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
                 "fieldsV1": {"f:metadata": {"f:labels": {"f:theirs": {}}, "f:annotations": {"f:note": {}}}}},
                {"manager": "gitlab-runner-webhook-clone", "operation": "Update", "apiVersion": "v1", "time": "2026-01-03T00:00:00Z",
                 "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:second": {}}}},
            ],
        })
    }

    #[test]
    fn kyvernos_metadata_goes_and_its_fields_become_the_programs() {
        let metadata = clone();
        let patch = release(&metadata).unwrap();
        let patch = &patch["metadata"];
        assert_eq!(patch["resourceVersion"], "7");
        let gone = json!({
            "app": null, "app.kubernetes.io/managed-by": null,
            "generate.kyverno.io/policy-name": null, "generate.kyverno.io/clone-source": null,
        });
        assert_eq!(patch["labels"], gone, "what somebody else set stays");
        assert_eq!(patch["annotations"], json!({"kubectl.kubernetes.io/last-applied-configuration": null}));
        let managers: Vec<_> = patch["managedFields"].as_array().unwrap().iter().map(manager).collect();
        assert_eq!(managers, ["kubectl-label", "gitlab-runner-webhook-clone"]);
        let ours = &patch["managedFields"][1];
        assert_eq!(ours["fieldsV1"]["f:data"], json!({".": {}, "f:runner-token": {}, "f:second": {}}));
        assert_eq!(ours["fieldsV1"]["f:metadata"]["f:labels"], json!({".": {}, "f:theirs": {}}));
        assert_eq!(ours["time"], "2026-01-03T00:00:00Z");
        assert_eq!(
            also_removed(&metadata).into_iter().collect::<Vec<_>>(),
            ["app", "kubectl.kubernetes.io/last-applied-configuration"]
        );
    }

    #[test]
    fn a_clone_that_kyverno_does_not_know_is_left_alone() {
        assert_eq!(release(&json!({"labels": {"app.kubernetes.io/managed-by": "kyverno"}})), None);
        assert_eq!(release(&json!({})), None);
    }

    #[test]
    fn another_word_for_who_manages_it_stays() {
        let mut metadata = clone();
        metadata["labels"]["app.kubernetes.io/managed-by"] = json!("Helm");
        let patch = release(&metadata).unwrap();
        assert!(patch["metadata"]["labels"].get("app.kubernetes.io/managed-by").is_none());
    }
}
