//! The trust bundle as a volume: the same files for manager and job pods, at the same place. PURE.

use serde_json::{Value, json};

use super::{Additions, Obstacle, Volume, may_add_volume};
use crate::{
    admission::{
        pod::{MountPlace, volume},
        pod_view::{ContainerView, MountView, PodView, VolumeView},
    },
    names::{CONFIGMAP_TRUST, MOUNT_TRUST, VOLUME_TRUST},
};

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

/// The volume.
pub(super) fn definition() -> Volume {
    // Optional: were it deleted in this very moment, the pod would still start.
    (VOLUME_TRUST, json!({"name": VOLUME_TRUST, "configMap": {"name": CONFIGMAP_TRUST, "optional": true}}) as Value)
}

fn shows_trust(pod: &PodView<'_>, mount: &MountView<'_>) -> bool {
    &*mount.name == VOLUME_TRUST && !mount.is_partial() && volume(pod, VOLUME_TRUST).is_some_and(is_ours)
}

/// A volume that shows something else, or not all of it, is not ours: a variable could dangle.
fn is_ours(volume: &VolumeView<'_>) -> bool {
    volume.config_map.as_ref().is_some_and(|source| &*source.name == CONFIGMAP_TRUST && source.items.is_empty())
}
