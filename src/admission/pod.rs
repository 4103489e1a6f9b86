//! Raw pods: what is mounted where, and patches that only append. PURE.
//!
//! At admission a pod has not been validated: any field may be absent, null or of another type.

use std::path::{Path, PathBuf};

use json_patch::{AddOperation, PatchOperation, jsonptr::PointerBuf};
use serde_json::Value;

use crate::json::{at, items};

/// The volume of this name.
pub(super) fn volume<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    items(at(pod, &["spec", "volumes"])).find(|volume| at(volume, &["name"]).as_str() == Some(name))
}

/// Whether the pod is for Windows nodes, by any of the ways in which it can ask for them.
pub(super) fn is_windows(pod: &Value) -> bool {
    let spec = at(pod, &["spec"]);
    let is_os = |name: &Value| matches!(name.as_str(), Some("kubernetes.io/os" | "beta.kubernetes.io/os"));
    let is = |name: &Value| name.as_str() == Some("windows");
    let required = ["affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"];
    is(at(spec, &["os", "name"]))
        || ["kubernetes.io/os", "beta.kubernetes.io/os"].iter().any(|label| is(at(spec, &["nodeSelector", label])))
        || items(at(spec, &required)).flat_map(|term| items(at(term, &["matchExpressions"]))).any(|expression| {
            is_os(at(expression, &["key"]))
                && at(expression, &["operator"]).as_str() == Some("In")
                && items(at(expression, &["values"])).any(is)
        })
}

/// Whether some container mounts a volume of this name, be it there or not.
pub(super) fn mounts_volume(pod: &Value, name: &str) -> bool {
    let containers = ["containers", "initContainers"].iter().flat_map(|list| items(at(pod, &["spec", list])));
    let mut mounts = containers.flat_map(|container| items(at(container, &["volumeMounts"])));
    mounts.any(|mount| at(mount, &["name"]).as_str() == Some(name))
}

/// Whether `object` can be given more elements of its field `array`: an object in which that field
/// is an array, absent or null.
pub(super) fn has_room(object: &Value, array: &str) -> bool {
    object.is_object() && (at(object, &[array]).is_null() || at(object, &[array]).is_array())
}

/// Appends to the field `array` of the object at `path`. Only where [`has_room`] holds, and once for
/// each array: the second time it would be there.
pub(super) fn append(object: &Value, path: &[&str], array: &str, added: Vec<Value>) -> Vec<PatchOperation> {
    let add = |last: &[&str], value| {
        let path = PointerBuf::from_tokens(path.iter().chain(&[array]).chain(last).copied());
        PatchOperation::Add(AddOperation { path, value })
    };
    if added.is_empty() {
        Vec::new()
    } else if at(object, &[array]).is_array() {
        added.into_iter().map(|value| add(&["-"], value)).collect()
    } else {
        vec![add(&[], Value::Array(added))]
    }
}

/// What a container has at a path, before anything is added.
#[derive(Debug, PartialEq)]
pub(super) enum MountPlace<'a> {
    /// Nothing; a mount can be added.
    Free,
    /// A volume.
    Mounted {
        /// The mount.
        mount: &'a Value,
    },
    /// Something is mounted below it: a mount here would take the place of the user's arrangement.
    Below,
    /// It lies within a volume in which the container runtime may not be able to make a directory,
    /// which would keep the container from starting.
    Within,
}

impl<'a> MountPlace<'a> {
    /// Looks at the mounts of a container.
    pub(super) fn of(pod: &Value, container: &'a Value, path: &str) -> Self {
        let path = Path::new(path);
        let mut around: Option<(PathBuf, &Value)> = None;
        let mut below = false;
        for mount in items(at(container, &["volumeMounts"])) {
            let Some(at) = mount_path(mount) else { continue };
            if at == path {
                return Self::Mounted { mount };
            }
            below |= at.starts_with(path);
            if path.starts_with(&at) && around.as_ref().is_none_or(|(former, _)| at.starts_with(former)) {
                around = Some((at, mount));
            }
        }
        match around {
            _ if below => Self::Below,
            Some((_, mount)) if !is_writable(pod, mount) => Self::Within,
            _ => Self::Free,
        }
    }
}

/// Paths are compared by their parts: the chart writes a slash at the end, users may not.
fn mount_path(mount: &Value) -> Option<PathBuf> {
    let path = at(mount, &["mountPath"]).as_str().filter(|path| !path.is_empty())?;
    // kubelet takes a relative path as one from the root.
    Some(Path::new("/").join(path).components().collect())
}

/// Directories are made in an emptyDir without asking anyone; in other volumes that may fail
/// (read-only, squashed root) or last longer than the pod.
fn is_writable(pod: &Value, mount: &Value) -> bool {
    let volume = at(mount, &["name"]).as_str().and_then(|name| volume(pod, name));
    volume.is_some_and(|volume| at(volume, &["emptyDir"]).is_object())
        && at(mount, &["readOnly"]).as_bool() != Some(true)
}

/// Whether a mount shows this key of a Secret as a file of the same name.
pub fn shows(pod: &Value, mount: &Value, secret: &str, key: &str) -> bool {
    let part = |field: &str| at(mount, &[field]).as_str().is_some_and(|path| !path.is_empty());
    if part("subPath") || part("subPathExpr") {
        return false;
    }
    let Some(volume) = at(mount, &["name"]).as_str().and_then(|name| volume(pod, name)) else { return false };
    let holds = |source: &Value, name: &str| at(source, &[name]).as_str() == Some(secret) && selects(source, key);
    holds(at(volume, &["secret"]), "secretName")
        || items(at(volume, &["projected", "sources"])).any(|source| holds(at(source, &["secret"]), "name"))
}

/// Without `items`, or with none in it, a volume has each key as a file.
fn selects(source: &Value, key: &str) -> bool {
    at(source, &["items"]).is_null()
        || at(source, &["items"]).as_array().is_some_and(Vec::is_empty)
        || items(at(source, &["items"]))
            .any(|item| at(item, &["key"]).as_str() == Some(key) && at(item, &["path"]).as_str() == Some(key))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn appending_makes_the_array_where_there_is_none() {
        let table = [
            (json!({}), json!([{"op": "add", "path": "/a/b~1c/env", "value": [1, 2]}])),
            (json!({"env": null}), json!([{"op": "add", "path": "/a/b~1c/env", "value": [1, 2]}])),
            (
                json!({"env": []}),
                json!([
                    {"op": "add", "path": "/a/b~1c/env/-", "value": 1},
                    {"op": "add", "path": "/a/b~1c/env/-", "value": 2},
                ]),
            ),
        ];
        for (object, expected) in table {
            assert!(has_room(&object, "env"));
            let operations = append(&object, &["a", "b/c"], "env", vec![json!(1), json!(2)]);
            assert_eq!(json!(operations), expected);
        }
        assert!(append(&json!({}), &[], "env", Vec::new()).is_empty());
    }

    #[test]
    fn there_is_no_room_in_what_is_not_an_array() {
        for object in [json!({"env": {}}), json!({"env": "x"}), json!([]), json!(null), json!("x")] {
            assert!(!has_room(&object, "env"), "{object}");
        }
    }

    #[test]
    fn places() {
        let pod = json!({"spec": {"volumes": [
            {"name": "scratch", "emptyDir": {}},
            {"name": "secret", "secret": {"secretName": "s"}},
        ]}});
        let mounted = |mounts: Value| {
            let container = json!({"volumeMounts": mounts});
            match MountPlace::of(&pod, &container, "/etc/x/certs") {
                MountPlace::Free => "free",
                MountPlace::Mounted { .. } => "mounted",
                MountPlace::Below => "below",
                MountPlace::Within => "within",
            }
        };
        let table = [
            (json!(null), "free"),
            (json!("x"), "free"),
            (json!([null, 1, {"mountPath": 7}, {"mountPath": ""}]), "free"),
            (json!([{"mountPath": "/etc/x/certs2", "name": "secret"}]), "free"),
            (json!([{"mountPath": "/etc/x/certs", "name": "secret"}]), "mounted"),
            (json!([{"mountPath": "//etc/./x/certs/", "name": "secret"}]), "mounted"),
            (json!([{"mountPath": "etc/x/certs"}]), "mounted"),
            (json!([{"mountPath": "/etc/x/certs/ca.crt", "name": "secret"}]), "below"),
            (json!([{"mountPath": "/etc/x", "name": "scratch"}]), "free"),
            (json!([{"mountPath": "/etc/x", "name": "scratch", "readOnly": true}]), "within"),
            (json!([{"mountPath": "/etc/x/", "name": "secret"}]), "within"),
            (json!([{"mountPath": "/etc/x", "name": "unknown"}]), "within"),
            // The innermost volume counts.
            (json!([{"mountPath": "/etc", "name": "secret"}, {"mountPath": "/etc/x", "name": "scratch"}]), "free"),
            (json!([{"mountPath": "/etc/x", "name": "secret"}, {"mountPath": "/etc", "name": "scratch"}]), "within"),
        ];
        for (mounts, expected) in table {
            assert_eq!(mounted(mounts.clone()), expected, "{mounts}");
        }
    }

    #[test]
    fn what_a_mount_shows() {
        let shows_ca = |volume: Value, mount: Value| {
            let mut volume = volume;
            volume["name"] = json!("v");
            let mut mount = mount;
            mount["name"] = json!("v");
            shows(&json!({"spec": {"volumes": [volume]}}), &mount, "s", "ca.crt")
        };
        let table = [
            (json!({"secret": {"secretName": "s"}}), json!({}), true),
            (json!({"secret": {"secretName": "s", "items": null}}), json!({"subPath": ""}), true),
            (json!({"secret": {"secretName": "s"}}), json!({"subPath": "a"}), false),
            (json!({"secret": {"secretName": "s"}}), json!({"subPathExpr": "a"}), false),
            (json!({"secret": {"secretName": "t"}}), json!({}), false),
            (json!({"secret": {"secretName": "s", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}), json!({}), true),
            (json!({"secret": {"secretName": "s", "items": [{"key": "ca.crt", "path": "x"}]}}), json!({}), false),
            (json!({"secret": {"secretName": "s", "items": []}}), json!({}), true),
            (json!({"secret": {"secretName": "s", "items": "x"}}), json!({}), false),
            (json!({"projected": {"sources": [{}, {"secret": {"name": "s"}}]}}), json!({}), true),
            (json!({"projected": {"sources": [{"configMap": {"name": "s"}}]}}), json!({}), false),
            (json!({"configMap": {"name": "s"}}), json!({}), false),
        ];
        for (volume, mount, expected) in table {
            assert_eq!(shows_ca(volume.clone(), mount), expected, "{volume}");
        }
    }
}
