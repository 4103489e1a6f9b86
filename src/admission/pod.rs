//! Pods: what is mounted where, and patches that only append. PURE.

use std::path::{Path, PathBuf};

use json_patch::{AddOperation, PatchOperation, jsonptr::PointerBuf};
use serde_json::Value;

use super::pod_view::{ContainerView, FilesView, MountView, PodView, VolumeView};

/// The volume of this name.
pub(super) fn volume<'a>(pod: &'a PodView<'_>, name: &str) -> Option<&'a VolumeView<'a>> {
    pod.spec.volumes.iter().find(|volume| &*volume.name == name)
}

/// Whether the pod is for Windows nodes, by any of the ways in which it can ask for them.
pub(super) fn is_windows(pod: &PodView<'_>) -> bool {
    const LABELS: [&str; 2] = ["kubernetes.io/os", "beta.kubernetes.io/os"];
    const WINDOWS: &str = "windows";
    let terms = &pod.spec.affinity.node_affinity.required.node_selector_terms;
    &*pod.spec.os.name == WINDOWS
        || LABELS.iter().any(|label| pod.spec.node_selector.get(label) == Some(WINDOWS))
        || terms.iter().flat_map(|term| &term.match_expressions).any(|expression| {
            LABELS.contains(&&*expression.key)
                && &*expression.operator == "In"
                && expression.values.iter().any(|value| &**value == WINDOWS)
        })
}

/// Whether some container mounts a volume of this name, be it there or not.
pub(super) fn mounts_volume(pod: &PodView<'_>, name: &str) -> bool {
    pod.all_containers().flat_map(ContainerView::mounts).any(|mount| &*mount.name == name)
}

/// Appends to the list `list` of the object at `path`, once for each list: the second time it would be there.
pub(super) fn append(is_there: bool, path: &[&str], list: &str, added: Vec<Value>) -> Vec<PatchOperation> {
    let add = |last: &[&str], value| {
        let path = PointerBuf::from_tokens(path.iter().chain(&[list]).chain(last).copied());
        PatchOperation::Add(AddOperation { path, value })
    };
    if added.is_empty() {
        Vec::new()
    } else if is_there {
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
        mount: &'a MountView<'a>,
    },
    /// Something is mounted below it: a mount here would take the place of the user's arrangement.
    Below,
    /// It lies within a volume in which the container runtime may not be able to make a directory,
    /// which would keep the container from starting.
    Within,
}

impl<'a> MountPlace<'a> {
    /// Looks at the mounts of a container.
    pub(super) fn of(pod: &PodView<'_>, container: &'a ContainerView<'_>, path: &str) -> Self {
        let path = Path::new(path);
        let mut around: Option<(PathBuf, &MountView<'_>)> = None;
        let mut below = false;
        for mount in &container.volume_mounts {
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
fn mount_path(mount: &MountView<'_>) -> Option<PathBuf> {
    let path = Some(&*mount.mount_path).filter(|path| !path.is_empty())?;
    // kubelet takes a relative path as one from the root.
    Some(Path::new("/").join(path).components().collect())
}

/// Directories are made in an emptyDir without asking anyone; in other volumes that may fail
/// (read-only, squashed root) or last longer than the pod.
fn is_writable(pod: &PodView<'_>, mount: &MountView<'_>) -> bool {
    volume(pod, &mount.name).is_some_and(|volume| volume.empty_dir.is_some()) && !mount.read_only
}

impl MountView<'_> {
    /// Whether it shows a part of its volume only.
    pub(super) fn is_partial(&self) -> bool {
        !self.sub_path.is_empty() || !self.sub_path_expr.is_empty()
    }
}

/// Whether a mount shows this key of a Secret as a file of the same name.
pub(super) fn shows(pod: &PodView<'_>, mount: &MountView<'_>, secret: &str, key: &str) -> bool {
    let Some(volume) = volume(pod, &mount.name).filter(|_| !mount.is_partial()) else { return false };
    volume.secrets().any(|source| &*source.name == secret && selects(source, key))
}

/// Without `items`, or with none in it, a volume has each key as a file.
fn selects(source: &FilesView<'_>, key: &str) -> bool {
    source.items.is_empty() || source.items.iter().any(|item| &*item.key == key && &*item.path == key)
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
            let operations = append(object["env"].is_array(), &["a", "b/c"], "env", vec![json!(1), json!(2)]);
            assert_eq!(json!(operations), expected);
        }
        assert!(append(false, &[], "env", Vec::new()).is_empty());
    }

    #[test]
    fn places() {
        let mounted = |mounts: Value| {
            let pod = json!({"spec": {
                "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "secret", "secret": {"secretName": "s"}}],
                "containers": [{"volumeMounts": mounts}],
            }});
            let pod = PodView::of(&pod).unwrap();
            match MountPlace::of(&pod, pod.spec.containers.iter().next().unwrap(), "/etc/x/certs") {
                MountPlace::Free => "free",
                MountPlace::Mounted { .. } => "mounted",
                MountPlace::Below => "below",
                MountPlace::Within => "within",
            }
        };
        let table = [
            (json!(null), "free"),
            (json!([{}, {"mountPath": null}, {"mountPath": ""}]), "free"),
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
            let pod = json!({"spec": {"volumes": [volume], "containers": [{"volumeMounts": [mount]}]}});
            let pod = PodView::of(&pod).unwrap();
            let container = pod.spec.containers.iter().next().unwrap();
            shows(&pod, container.volume_mounts.iter().next().unwrap(), "s", "ca.crt")
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
            (json!({"projected": {"sources": [{}, {"secret": {"name": "s"}}]}}), json!({}), true),
            (json!({"projected": {"sources": [{"configMap": {"name": "s"}}]}}), json!({}), false),
            (json!({"configMap": {"name": "s"}}), json!({}), false),
        ];
        for (volume, mount, expected) in table {
            assert_eq!(shows_ca(volume.clone(), mount), expected, "{volume}");
        }
    }
}
