//! What job pods get: the trust bundle, and variables that lead programs to it. PURE.
//!
//! The trust bundle is a `ConfigMap` of public certificates, so that a job pod refers to no Secret of ours. Programs
//! either *add* the file of a variable to what they trust, or have it *replace* that; the latter only ever get the file
//! with the public roots in it. Init containers have images and duties of their own, and are left alone.

use serde_json::json;

use super::{Additions, Obstacle, Volume, has_name, is_of_mesh, trust_volume, variable};
use crate::{
    admission::{
        kind::BUILD,
        pod::MountPlace,
        pod_view::{ContainerView, PodView},
    },
    config::{Config, PublicRoots},
    names::{KEY_BUNDLE, KEY_CA, MOUNT_JOB_CERTS, MOUNT_TRUST},
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
        trust_volume::mount(pod, container, &mut additions)?;
        // GitLab's documentation tells users to mount their own certificates there.
        if MountPlace::of(pod, container, MOUNT_JOB_CERTS) == MountPlace::Free {
            trust_volume::mount_at(pod, MOUNT_JOB_CERTS, &mut additions)?;
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

    fn volumes(&self) -> Vec<Volume> {
        vec![trust_volume::definition()]
    }
}
