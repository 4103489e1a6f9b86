//! What job pods get: the trust bundle, and variables that lead programs to it. PURE.
//!
//! The trust bundle is a `ConfigMap` of public certificates, so that a job pod refers to no Secret of ours. Programs
//! either *add* the file of a variable to what they trust, or have it *replace* that; the latter only ever get the file
//! with the public roots in it. Init containers have images and duties of their own, and are left alone.

use serde_json::{Value, json};

use super::{Additions, Obstacle, has_name, is_of_mesh, may_add_volume, mount, variable};
use crate::{
    admission::{
        kind::BUILD,
        pod::{MountPlace, volume},
        pod_view::{ContainerView, MountView, PodView, VolumeView},
    },
    config::{Config, PublicRoots},
    names::{CONFIGMAP_TRUST, KEY_BUNDLE, KEY_CA, MOUNT_JOB_CERTS, MOUNT_TRUST, VOLUME_TRUST},
    trust::BundleFiles,
};

/// Fetches sources, caches and artifacts; the rest are services of the user.
const HELPER: &str = "helper";
/// The runner itself tells git in `helper` which CA its GitLab has; git has this variable overrule that.
const GIT_VARIABLE: &str = "GIT_SSL_CAINFO";
/// Read by OpenSSL, Go and what is made with them; each reads the file and the directories.
const FILE_VARIABLE: &str = "SSL_CERT_FILE";
const DIRECTORY_VARIABLE: &str = "SSL_CERT_DIR";
/// Where images have their own certificates: Debian and Alpine, Red Hat, and what kaniko's image says of itself.
const DIRECTORIES_OF_IMAGES: &str = "/etc/ssl/certs:/etc/pki/tls/certs:/kaniko/ssl/certs";

pub(super) struct JobInjector<'a> {
    services: bool,
    /// Names and values.
    variables: Vec<(&'a str, String)>,
}

impl<'a> JobInjector<'a> {
    /// Variables lead only to files that the trust bundle has. A former one, or one of another revision, may have been made for
    /// the other value of `publicRoots`; then the variables for that are set.
    pub(super) fn new(trust: BundleFiles, is_former: bool, config: &'a Config) -> Self {
        let file = |key: &str| format!("{MOUNT_TRUST}/{key}");
        let additive = config.variables.additive.iter().map(|name| (name.as_str(), file(KEY_CA)));
        let mut variables: Vec<_> = additive.collect();
        let wants_bundle = config.public_roots == PublicRoots::Builtin;
        if trust.has_bundle && (wants_bundle || is_former && !trust.has_hashes) {
            variables.extend(config.variables.replacing.iter().map(|name| (name.as_str(), file(KEY_BUNDLE))));
        } else if trust.has_hashes && (!wants_bundle || is_former) {
            variables.push((DIRECTORY_VARIABLE, format!("{MOUNT_TRUST}:{DIRECTORIES_OF_IMAGES}")));
        }
        Self { services: config.inject.services, variables }
    }
}

impl super::Injector for JobInjector<'_> {
    fn concerns(&self, container: &ContainerView<'_>, _: bool) -> bool {
        has_name(container, &[BUILD, HELPER]) || self.services && !is_of_mesh(container)
    }

    fn additions(&self, pod: &PodView<'_>, container: &ContainerView<'_>) -> Result<Additions, Obstacle> {
        let mut additions = Additions::default();
        match MountPlace::of(pod, container, MOUNT_TRUST) {
            MountPlace::Free => {
                may_add_volume(pod, VOLUME_TRUST, is_ours)?;
                additions.mounts.push(mount(VOLUME_TRUST, MOUNT_TRUST));
            }
            MountPlace::Mounted { mount } if shows_trust(pod, mount) => {}
            MountPlace::Mounted { .. } | MountPlace::Below => {
                return Err(Obstacle::ForeignMount("something else is mounted where the trust bundle would be"));
            }
            MountPlace::Within => return Err(Obstacle::Blocked("the mount would lie within another volume")),
        }
        // GitLab's documentation tells users to mount their own certificates there.
        if MountPlace::of(pod, container, MOUNT_JOB_CERTS) == MountPlace::Free {
            may_add_volume(pod, VOLUME_TRUST, is_ours)?;
            additions.mounts.push(mount(VOLUME_TRUST, MOUNT_JOB_CERTS));
        }
        for (name, value) in &self.variables {
            if *name == GIT_VARIABLE && has_name(container, &[HELPER]) {
                continue;
            }
            // curl before 8.2 reads the directories only, where both are set: the user's file would count for nothing.
            let rival = if *name == DIRECTORY_VARIABLE { variable(container, FILE_VARIABLE) } else { None };
            match variable(container, name).or(rival) {
                None => additions.variables.push(json!({"name": name, "value": value})),
                Some(former) if *former.value == **value => {}
                Some(former) => additions.kept.push(former.name.to_string()),
            }
        }
        Ok(additions)
    }

    fn volume_name(&self) -> &'static str {
        VOLUME_TRUST
    }

    fn volume(&self) -> Value {
        // Optional: were it deleted in this very moment, the job would still start.
        json!({"name": VOLUME_TRUST, "configMap": {"name": CONFIGMAP_TRUST, "optional": true}})
    }
}

fn shows_trust(pod: &PodView<'_>, mount: &MountView<'_>) -> bool {
    &*mount.name == VOLUME_TRUST && !mount.is_partial() && volume(pod, VOLUME_TRUST).is_some_and(is_ours)
}

/// A volume that shows something else, or not all of it, is not ours: a variable could dangle.
fn is_ours(volume: &VolumeView<'_>) -> bool {
    volume.config_map.as_ref().is_some_and(|source| &*source.name == CONFIGMAP_TRUST && source.items.is_empty())
}
