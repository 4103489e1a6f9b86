//! Objects and events of a watch as the API server wrote them, taken apart as little as possible: one that is of no
//! interest costs no more than its text. PURE.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, OwnerReference, Time};
use kube::core::Status;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::wiped::forget_last_applied;

/// The annotation of the bookmark behind the last object of a list that came as a stream.
///
/// Source: <https://kubernetes.io/docs/reference/using-api/api-concepts/#streaming-lists>.
const ANNOTATION_LIST_ENDS: &str = "k8s.io/initial-events-end";

/// An object: its metadata, and all of it as JSON that nobody has parsed yet.
pub struct Raw<'a> {
    /// Metadata without `managedFields` and kubectl's copy of the object.
    pub metadata: ObjectMeta,
    /// `managedFields`: who wrote when, without what.
    pub managed_fields: Vec<ManagedFieldsEntry>,
    /// The whole object.
    pub json: &'a str,
}

/// One line of a watch.
pub(super) enum Line<'a> {
    /// An object was there, created or changed.
    Applied(Raw<'a>),
    /// An object was deleted.
    Deleted(Raw<'a>),
    /// How far the watch has come, and whether the list that it began with is complete.
    Bookmark { version: String, list_ends: bool },
    /// The API server ends the watch.
    Error(Box<Status>),
}

/// A page of a list.
#[derive(Deserialize)]
pub(super) struct Page {
    pub metadata: ListMetadata,
    pub items: Option<Vec<Box<RawValue>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMetadata {
    pub resource_version: Option<String>,
    #[serde(rename = "continue")]
    pub next: Option<String>,
}

impl<'a> Raw<'a> {
    pub(super) fn parse(json: &'a str) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct Object {
            metadata: Metadata,
        }
        let Object { metadata } = serde_json::from_str(json)?;
        let managers = metadata.managed_fields.into_iter().flatten();
        let entry = |Manager { manager, time }| ManagedFieldsEntry { manager, time, ..ManagedFieldsEntry::default() };
        let managed_fields = managers.map(entry).collect();
        let mut metadata = ObjectMeta {
            annotations: metadata.annotations,
            creation_timestamp: metadata.creation_timestamp,
            deletion_grace_period_seconds: metadata.deletion_grace_period_seconds,
            deletion_timestamp: metadata.deletion_timestamp,
            finalizers: metadata.finalizers,
            generate_name: metadata.generate_name,
            generation: metadata.generation,
            labels: metadata.labels,
            managed_fields: None,
            name: metadata.name,
            namespace: metadata.namespace,
            owner_references: metadata.owner_references,
            resource_version: metadata.resource_version,
            self_link: metadata.self_link,
            uid: metadata.uid,
        };
        // Of a Secret, that is a copy of all of it.
        forget_last_applied(&mut metadata);
        Ok(Self { metadata, managed_fields, json })
    }

    /// `metadata.resourceVersion`.
    pub(super) fn version(&self) -> Option<String> {
        self.metadata.resource_version.clone().filter(|version| !version.is_empty())
    }
}

impl<'a> Line<'a> {
    pub(super) fn parse(line: &'a str) -> serde_json::Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Event<'a> {
            #[serde(rename = "type", borrow)]
            kind: Cow<'a, str>,
            #[serde(borrow)]
            object: &'a RawValue,
        }
        let event: Event<'_> = serde_json::from_str(line)?;
        let object = event.object.get();
        Ok(match &*event.kind {
            "ADDED" | "MODIFIED" => Some(Self::Applied(Raw::parse(object)?)),
            "DELETED" => Some(Self::Deleted(Raw::parse(object)?)),
            "BOOKMARK" => {
                let mark = Raw::parse(object)?;
                let annotations = mark.metadata.annotations.as_ref();
                let list_ends = annotations.is_some_and(|all| all.contains_key(ANNOTATION_LIST_ENDS));
                mark.version().map(|version| Self::Bookmark { version, list_ends })
            }
            "ERROR" => Some(Self::Error(serde_json::from_str(object)?)),
            _ => None,
        })
    }
}

/// `ObjectMeta`, but for what `managedFields` hold beside names: as a tree, that would take many times its text.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_grace_period_seconds: Option<i64>,
    deletion_timestamp: Option<Time>,
    finalizers: Option<Vec<String>>,
    generate_name: Option<String>,
    generation: Option<i64>,
    labels: Option<BTreeMap<String, String>>,
    managed_fields: Option<Vec<Manager>>,
    name: Option<String>,
    namespace: Option<String>,
    owner_references: Option<Vec<OwnerReference>>,
    resource_version: Option<String>,
    self_link: Option<String>,
    uid: Option<String>,
}

#[derive(Deserialize)]
struct Manager {
    manager: Option<String>,
    time: Option<Time>,
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Secret;
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_is_whole_but_for_managed_fields() {
        let object = json!({
            "metadata": {
                "annotations": {"a": "b"}, "creationTimestamp": "2026-11-27T00:00:00Z",
                "deletionGracePeriodSeconds": 30, "deletionTimestamp": "2026-11-27T00:00:01Z", "finalizers": ["f"],
                "generateName": "g-", "generation": 2, "labels": {"l": "m"}, "name": "n", "namespace": "ns",
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}],
                "resourceVersion": "7", "selfLink": "s", "uid": "u",
                "managedFields": [{"manager": "one", "fieldsV1": {"f:data": {}}}, {"manager": "two"}, {}],
            },
            "data": {"k": "dg=="},
        });
        let json = object.to_string();
        let raw = Raw::parse(&json).unwrap();
        let mut whole: Secret = serde_json::from_value(object).unwrap();
        whole.metadata.managed_fields = None;
        assert_eq!(raw.metadata, whole.metadata);
        let managers: Vec<_> = raw.managed_fields.iter().map(|entry| entry.manager.as_deref()).collect();
        assert_eq!((managers, raw.json), (vec![Some("one"), Some("two"), None], json.as_str()));
        assert!(raw.managed_fields.iter().all(|entry| entry.fields_v1.is_none()));
    }

    #[test]
    fn each_kind_of_line_is_told_apart() {
        let object = json!({"metadata": {"resourceVersion": "7"}});
        let line = |kind: &str, object: &serde_json::Value| json!({"type": kind, "object": object}).to_string();
        for kind in ["ADDED", "MODIFIED"] {
            let line = line(kind, &object);
            let Some(Line::Applied(raw)) = Line::parse(&line).unwrap() else { panic!("{kind}") };
            assert_eq!(raw.version().as_deref(), Some("7"));
        }
        assert!(matches!(Line::parse(&line("DELETED", &object)).unwrap(), Some(Line::Deleted(_))));
        let mark = Line::parse(&line("BOOKMARK", &object))
            .map(|found| matches!(found, Some(Line::Bookmark { list_ends: false, .. })));
        assert!(mark.unwrap());
        let end = json!({"metadata": {"resourceVersion": "7", "annotations": {ANNOTATION_LIST_ENDS: "true"}}});
        let end = Line::parse(&line("BOOKMARK", &end))
            .map(|found| matches!(found, Some(Line::Bookmark { list_ends: true, .. })));
        assert!(end.unwrap());
        let gone = line("ERROR", &json!({"kind": "Status", "code": 410, "reason": "Expired"}));
        assert!(matches!(Line::parse(&gone).unwrap(), Some(Line::Error(status)) if status.code == 410));
        assert!(Line::parse(&line("LATER", &object)).unwrap().is_none());
        assert!(Line::parse("{").is_err());
    }
}
