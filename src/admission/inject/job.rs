//! What job pods get: the trust bundle, and variables that lead programs to it. PURE.
//!
//! The trust bundle is a `ConfigMap` of public certificates, so that a job pod refers to no Secret of ours. What the image
//! trusts stays trusted: programs *add* the file or the directory of a variable to it. Those that only know how to
//! *replace* it get the file with the public roots in it. Init containers have images and duties of their own, and are
//! left alone.

use super::{Additions, Obstacle, Volume, has_name, is_of_mesh, trust_volume, variable};
use crate::{
    admission::{
        kind::BUILD,
        pod::MountPlace,
        pod_view::{ContainerView, PodView},
    },
    config::{Config, PublicRoots},
    names::{KEY_BUNDLE, KEY_JAVA, MOUNT_JOB_CERTS, MOUNT_TRUST},
    trust::BundleFiles,
};

/// Fetches sources, caches and artifacts; the rest are services of the user.
const HELPER: &str = "helper";
/// The runner itself tells git in `helper` which CA its GitLab has; git has this variable overrule that.
const GIT_VARIABLE: &str = "GIT_SSL_CAINFO";
/// Read by OpenSSL, Go and what is made with them; each reads the file and the directories.
const FILE_VARIABLE: &str = "SSL_CERT_FILE";
const DIRECTORY_VARIABLE: &str = "SSL_CERT_DIR";

pub(super) struct JobInjector<'a> {
    services: bool,
    /// Names and values.
    variables: Vec<(&'a str, String)>,
}

impl<'a> JobInjector<'a> {
    /// Variables lead only to files that the trust bundle has. One of another revision may have been made for the other value
    /// of `publicRoots`, and is about to change: then none lead to `bundle.crt`.
    pub(super) fn new(trust: BundleFiles, config: &'a Config) -> Self {
        let file = |key: &str| format!("{MOUNT_TRUST}/{key}");
        let additive = config.variables.additive.iter().map(|name| (name.as_str(), file(trust.least())));
        let mut variables: Vec<_> = additive.collect();
        let has_public_roots = trust.has_bundle && config.public_roots == PublicRoots::Builtin;
        for name in config.variables.directory.iter().filter(|_| trust.has_hashes) {
            match name.as_str() {
                DIRECTORY_VARIABLE => variables.push((DIRECTORY_VARIABLE, trust_volume::directories())),
                // Git over GnuTLS in Debian 12 knows one directory only, and forgets that of the image for ours.
                name if has_public_roots => variables.push((name, MOUNT_TRUST.to_owned())),
                _ => {}
            }
        }
        if has_public_roots && trust.has_java {
            // The type is said lest a JVM in FIPS mode takes it for its own default.
            let options =
                format!("-Djavax.net.ssl.trustStore={MOUNT_TRUST}/{KEY_JAVA} -Djavax.net.ssl.trustStoreType=JKS");
            variables.extend(config.variables.java.iter().map(|name| (name.as_str(), options.clone())));
        }
        if has_public_roots {
            // Too many CAs for hashed names: what the image trusts counts for less than the company's hosts.
            let instead = (!trust.has_hashes).then_some(FILE_VARIABLE);
            let replacing = config.variables.replacing.iter().map(String::as_str);
            let replacing = replacing.filter(|name| Some(*name) != instead).chain(instead);
            variables.extend(replacing.map(|name| (name, file(KEY_BUNDLE))));
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
            let is_overruled = *name == DIRECTORY_VARIABLE && variable(container, name).is_none();
            let rival = variable(container, FILE_VARIABLE).filter(|_| is_overruled);
            match rival {
                Some(rival) => additions.kept.push(rival.name.to_string()),
                None => additions.set(container, name, value),
            }
        }
        Ok(additions)
    }

    fn volumes(&self) -> Vec<Volume> {
        vec![trust_volume::definition()]
    }
}
