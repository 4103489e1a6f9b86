//! What manager pods get: `certsSecretName` where the runner chart mounts it, and the variables that gitlab-runner
//! reads. PURE.
//!
//! gitlab-runner trusts the file of `CI_SERVER_TLS_CA_FILE`; without that, `<host of CI_SERVER_URL>.crt` among its
//! certificates, if there is one (`network/client.go`). Hence:
//!
//! | the Secret has | variable |
//! |---|---|
//! | `ca.crt` | that file, whatever else there is |
//! | `<host>.crt` | none: the runner finds it |
//! | one other key with CAs | that file |
//! | several others | none, and a warning: the variable takes one file |
//!
//! Keys with CAs are mounted in any case, for a manager with runners on several hosts. `tls.crt` and `tls.key` follow
//! when both are there and the configuration allows it; no other key of the Secret ever does.

use serde_json::{Value, json};

use super::{Additions, Obstacle, is_of_mesh, may_add_volume, mount, variable};
use crate::{
    admission::{
        decision::Warning,
        kind::runs_entrypoint,
        pod::{MountPlace, shows},
        pod_view::{ContainerView, MountView, PodView, VolumeView},
    },
    config::Config,
    names::{KEY_CA, KEY_TLS_CERT, KEY_TLS_KEY, MOUNT_MANAGER_CERTS, VOLUME_CERTS},
    trust::{Ca, Certs},
};

const URL_VARIABLE: &str = "CI_SERVER_URL";
const CA_VARIABLE: &str = "CI_SERVER_TLS_CA_FILE";
/// One is of no use without the other.
const CLIENT_PAIR: [(&str, &str); 2] =
    [("CI_SERVER_TLS_CERT_FILE", KEY_TLS_CERT), ("CI_SERVER_TLS_KEY_FILE", KEY_TLS_KEY)];

pub(super) struct ManagerInjector<'a> {
    secret: &'a str,
    /// Keys of the Secret with CAs, `ca.crt` first.
    cas: Vec<String>,
    client_pair: bool,
}

/// How the runner gets at its CA.
enum CertsSource<'a> {
    /// It is told by a variable.
    Variable(&'a str),
    /// It looks for `<host>.crt` itself.
    Host(&'a str),
}

impl<'a> ManagerInjector<'a> {
    pub(super) fn new(certs: &Certs, config: &'a Config) -> Self {
        let ca = (certs.ca == Ca::Valid).then(|| KEY_CA.to_owned());
        Self {
            secret: config.certs_secret_name.as_str(),
            cas: ca.into_iter().chain(certs.other_cas.iter().cloned()).collect(),
            client_pair: certs.client_pair && config.inject.client_certificate,
        }
    }

    fn source(&self, container: &ContainerView<'_>) -> Result<CertsSource<'_>, Obstacle> {
        let of_host = || {
            let key = format!("{}.crt", host(&variable(container, URL_VARIABLE)?.value)?);
            self.cas.iter().map(String::as_str).find(|ca| *ca == key)
        };
        match self.cas.as_slice() {
            [first, ..] if first == KEY_CA => Ok(CertsSource::Variable(first)),
            cas => match (of_host(), cas) {
                (Some(key), _) => Ok(CertsSource::Host(key)),
                (None, [only]) => Ok(CertsSource::Variable(only)),
                (None, _) => Err(Obstacle::Blocked("its Secret has neither ca.crt nor <host>.crt, but several others")),
            },
        }
    }

    /// Sets variables that belong together, unless the user set one of them.
    fn set(&self, container: &ContainerView<'_>, variables: &[(&str, &str)], additions: &mut Additions) {
        let file = |key: &str| format!("{MOUNT_MANAGER_CERTS}/{key}");
        let is_of_user =
            |(name, key): &&(&str, &str)| variable(container, name).is_some_and(|former| *former.value != *file(key));
        let of_user: Vec<String> = variables.iter().filter(is_of_user).map(|(name, _)| (*name).to_owned()).collect();
        if !of_user.is_empty() {
            additions.kept.extend(of_user);
            return;
        }
        let missing = variables.iter().filter(|(name, _)| variable(container, name).is_none());
        let added: Vec<Value> = missing.map(|(name, key)| json!({"name": name, "value": file(key)})).collect();
        if !added.is_empty() && variables == CLIENT_PAIR {
            additions.warnings.push(Warning::new(format!(
                "CI jobs receive tls.key of Secret {}; certs.inject.clientCertificate: false stops that",
                self.secret
            )));
        }
        additions.variables.extend(added);
    }

    /// A volume of our name that shows keys of another Secret, or keys under other names, is not ours.
    fn is_ours(&self, volume: &VolumeView<'_>) -> bool {
        volume.secret.as_ref().is_some_and(|source| {
            let is_same = !source.items.is_empty() && source.items.iter().all(|item| item.key == item.path);
            is_same && &*source.name == self.secret
        })
    }
}

impl super::Injector for ManagerInjector<'_> {
    fn concerns(&self, container: &ContainerView<'_>, has_entrypoint: bool) -> bool {
        if has_entrypoint { runs_entrypoint(container) } else { !is_of_mesh(container) }
    }

    fn additions(&self, pod: &PodView<'_>, container: &ContainerView<'_>) -> Result<Additions, Obstacle> {
        let source = self.source(container)?;
        let (CertsSource::Variable(key) | CertsSource::Host(key)) = source;
        let ours = MountView { name: VOLUME_CERTS.into(), ..MountView::default() };
        let (mut additions, mut shown_by) = (Additions::default(), None);
        match MountPlace::of(pod, container, MOUNT_MANAGER_CERTS) {
            MountPlace::Free => {
                if !may_add_volume(pod, VOLUME_CERTS, |volume| self.is_ours(volume))? {
                    shown_by = Some(&ours);
                }
                additions.mounts.push(mount(VOLUME_CERTS, MOUNT_MANAGER_CERTS));
            }
            MountPlace::Mounted { mount } if shows(pod, mount, self.secret, key) => shown_by = Some(mount),
            MountPlace::Mounted { .. } | MountPlace::Below => return Err(Obstacle::ForeignMount("")),
            MountPlace::Within => return Err(Obstacle::Blocked("the mount would lie within another volume")),
        }
        let is_shown = |key: &str| shown_by.is_none_or(|mount| shows(pod, mount, self.secret, key));
        if let CertsSource::Variable(key) = source
            && is_shown(key)
        {
            self.set(container, &[(CA_VARIABLE, key)], &mut additions);
        }
        if self.client_pair && CLIENT_PAIR.iter().all(|(_, key)| is_shown(key)) {
            self.set(container, &CLIENT_PAIR, &mut additions);
        }
        Ok(additions)
    }

    fn volume_name(&self) -> &'static str {
        VOLUME_CERTS
    }

    fn volume(&self) -> Value {
        let pair = self.client_pair.then_some([KEY_TLS_CERT, KEY_TLS_KEY]);
        let keys = self.cas.iter().map(String::as_str).chain(pair.into_iter().flatten());
        let items: Vec<Value> = keys.map(|key| json!({"key": key, "path": key})).collect();
        json!({
            "name": VOLUME_CERTS,
            "secret": {"secretName": self.secret, "items": items, "optional": true},
        })
    }

    fn refused(&self, obstacle: &Obstacle) -> String {
        match obstacle {
            Obstacle::ForeignMount(_) => {
                format!("CI_SERVER_TLS_* not set: {MOUNT_MANAGER_CERTS} is not mounted from Secret {}", self.secret)
            }
            Obstacle::Blocked(why) => format!("no CA injected into a container of this pod: {why}"),
        }
    }
}

/// The host of a URL, as gitlab-runner takes it: without the port.
pub fn host(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (_, address) = authority.rsplit_once('@').unwrap_or(("", authority));
    address.split(':').next().filter(|host| !host.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (url, expected) in [
            ("https://gitlab.example.com", Some("gitlab.example.com")),
            ("https://u:p@gitlab.example.com:8443/ci?x#y", Some("gitlab.example.com")),
            ("http://gitlab-webservice-default.gitlab.svc:8181", Some("gitlab-webservice-default.gitlab.svc")),
            ("gitlab.example.com", None),
            ("https://", None),
            ("", None),
        ] {
            assert_eq!(host(url), expected, "{url}");
        }
    }
}
