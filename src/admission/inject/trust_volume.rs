//! The trust bundle as a volume: the same files for manager and job pods, at the same place. PURE.

use serde_json::json;

use super::{Additions, Obstacle, Volume, may_add_volume};
use crate::{
    admission::{
        pod::{MountPlace, volume},
        pod_view::{ContainerView, FilesView, MountView, PodView, VolumeView},
    },
    names::{CONFIGMAP_TRUST, KEY_BUNDLE, KEY_CA, MOUNT_TRUST, VOLUME_TRUST},
};

/// Where images have their own certificates: Debian and Alpine, Red Hat, and what kaniko's image says of itself.
const DIRECTORIES_OF_IMAGES: &str = "/etc/ssl/certs:/etc/pki/tls/certs:/kaniko/ssl/certs";

/// The value of `SSL_CERT_DIR`: the trust bundle, and the directories of images.
///
/// OpenSSL, Go and most others read each directory of the list. Some take the list for the path of one: rustls-native-certs
/// 0.8.1 then trusts nothing, openssl-probe 0.1, Perl and httpx before 0.28 forget it. So the list *is* such a path, too:
/// the volume has a folder of that name with the same certificates.
pub(super) fn directories() -> String {
    format!("{MOUNT_TRUST}/:{DIRECTORIES_OF_IMAGES}")
}

/// Mounts the trust bundle where the variables point, unless it is there.
pub(super) fn mount(
    pod: &PodView<'_>,
    container: &ContainerView<'_>,
    additions: &mut Additions,
) -> Result<(), Obstacle> {
    match MountPlace::of(pod, container, MOUNT_TRUST) {
        MountPlace::Free => mount_at(pod, MOUNT_TRUST, additions),
        MountPlace::Mounted { mount } if shows_trust(pod, mount) => Ok(()),
        MountPlace::Mounted { .. } | MountPlace::Below => {
            Err(Obstacle::ForeignMount("something else is mounted where the trust bundle would be"))
        }
        MountPlace::Within => Err(Obstacle::Blocked("the mount would lie within another volume")),
    }
}

/// Mounts the trust bundle at a place that is free.
pub(super) fn mount_at(pod: &PodView<'_>, path: &str, additions: &mut Additions) -> Result<(), Obstacle> {
    may_add_volume(pod, VOLUME_TRUST, is_ours)?;
    additions.mount(VOLUME_TRUST, path);
    Ok(())
}

/// The volume: each key as a file, and some once more in the folder that is called like the list.
pub(super) fn definition() -> Volume {
    let list_as_folder = [(KEY_BUNDLE, "00000000.0"), (KEY_CA, "00000001.0")]
        .map(|(key, file)| json!({"key": key, "path": format!(":{DIRECTORIES_OF_IMAGES}/{file}")}));
    // Optional: were it deleted in this very moment, the pod would still start.
    let sources = json!([
        {"configMap": {"name": CONFIGMAP_TRUST, "optional": true}},
        {"configMap": {"name": CONFIGMAP_TRUST, "optional": true, "items": list_as_folder}},
    ]);
    (VOLUME_TRUST, json!({"name": VOLUME_TRUST, "projected": {"sources": sources}}))
}

fn shows_trust(pod: &PodView<'_>, mount: &MountView<'_>) -> bool {
    &*mount.name == VOLUME_TRUST && !mount.is_partial() && volume(pod, VOLUME_TRUST).is_some_and(is_ours)
}

/// A volume that shows something else, or not all of it, is not ours: a variable could dangle.
fn is_ours(volume: &VolumeView<'_>) -> bool {
    let shows = |source: &Option<FilesView<'_>>| source.as_ref().is_some_and(|map| &*map.name == CONFIGMAP_TRUST);
    let mut sources = volume.projected.sources.iter();
    let first = sources.next().is_some_and(|source| {
        shows(&source.config_map) && source.config_map.as_ref().is_some_and(|map| map.items.is_empty())
    });
    first && sources.all(|source| shows(&source.config_map))
}
