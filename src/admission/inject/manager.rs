//! What manager pods get: the trust bundle, and perhaps a client's certificate, by the variables that gitlab-runner
//! reads. PURE.
//!
//! gitlab-runner trusts the file of `CI_SERVER_TLS_CA_FILE` beside what its image trusts, and hands the file as it is to
//! every job; without that variable it looks for `<host>.crt` among its certificates, and hands on that
//! (`network/client.go`, `shells/abstract.go`). So it is told of `ca.crt` of the trust bundle in any case: every private
//! CA, whatever the runner's user, home or hosts are, in a form that it reads, and never a key. It reads the file anew
//! when that changes.
//!
//! `tls.crt` and `tls.key` come from `certsSecretName` itself, for no key is ever copied, and only as a pair that is a
//! client's. No other key of the Secret is mounted.

use serde_json::{Value, json};

use super::{Additions, Obstacle, Volume, is_of_mesh, may_add_volume, trust_volume, variable};
use crate::{
    admission::{
        decision::Warning,
        kind::runs_entrypoint,
        pod::{MountPlace, shows},
        pod_view::{ContainerView, PodView, VolumeView},
    },
    config::Config,
    names::{KEY_TLS_CERT, KEY_TLS_KEY, MOUNT_CLIENT, MOUNT_TRUST, VOLUME_CERTS},
    trust::{BundleFiles, Certs, ClientPair, PairFlaw},
};

const CA_VARIABLE: &str = "CI_SERVER_TLS_CA_FILE";
/// One is of no use without the other.
const CLIENT_PAIR: [(&str, &str); 2] =
    [("CI_SERVER_TLS_CERT_FILE", KEY_TLS_CERT), ("CI_SERVER_TLS_KEY_FILE", KEY_TLS_KEY)];

pub(super) struct ManagerInjector<'a> {
    secret: &'a str,
    ca_file: String,
    client_pair: bool,
    /// What is said of a pair that is there and not given.
    flaw: Option<PairFlaw>,
}

impl<'a> ManagerInjector<'a> {
    /// `certs`: `certsSecretName`, where it is known.
    pub(super) fn new(trust: BundleFiles, certs: Option<&Certs>, config: &'a Config) -> Self {
        let pair = certs.map(|certs| certs.client_pair).filter(|_| config.inject.client_certificate);
        let pair = pair.unwrap_or_default();
        Self {
            secret: config.certs_secret_name.as_str(),
            ca_file: format!("{MOUNT_TRUST}/{}", trust.least()),
            client_pair: pair == ClientPair::Usable,
            flaw: pair.flaw(),
        }
    }

    fn add_client_pair(
        &self,
        pod: &PodView<'_>,
        container: &ContainerView<'_>,
        additions: &mut Additions,
    ) -> Result<(), Obstacle> {
        let pair = CLIENT_PAIR.map(|(name, key)| (name, format!("{MOUNT_CLIENT}/{key}")));
        let of_user =
            pair.iter().filter(|(name, file)| variable(container, name).is_some_and(|former| *former.value != **file));
        let of_user: Vec<String> = of_user.map(|(name, _)| (*name).to_owned()).collect();
        if !of_user.is_empty() {
            additions.kept.extend(of_user);
            return Ok(());
        }
        match MountPlace::of(pod, container, MOUNT_CLIENT) {
            MountPlace::Free => {
                may_add_volume(pod, VOLUME_CERTS, |volume| self.is_ours(volume))?;
                additions.mount(VOLUME_CERTS, MOUNT_CLIENT);
            }
            MountPlace::Mounted { mount } if CLIENT_PAIR.iter().all(|(_, key)| shows(pod, mount, self.secret, key)) => {
            }
            MountPlace::Mounted { .. } | MountPlace::Below => {
                return Err(Obstacle::ForeignMount(
                    "something else is mounted where the client's certificate would be",
                ));
            }
            MountPlace::Within => return Err(Obstacle::Blocked("the mount would lie within another volume")),
        }
        let missing: Vec<_> = pair.iter().filter(|(name, _)| variable(container, name).is_none()).collect();
        if !missing.is_empty() {
            additions.warnings.push(Warning::new(format!(
                "CI jobs receive tls.key of Secret {}; certs.inject.clientCertificate: false stops that",
                self.secret
            )));
        }
        additions.variables.extend(missing.into_iter().map(|(name, file)| json!({"name": name, "value": file})));
        Ok(())
    }

    /// A volume of our name that shows keys of another Secret, or keys under other names, is not ours.
    fn is_ours(&self, volume: &VolumeView<'_>) -> bool {
        volume.secret.as_ref().is_some_and(|source| {
            let shows = |key: &str| source.items.iter().any(|item| &*item.key == key && &*item.path == key);
            &*source.name == self.secret && CLIENT_PAIR.iter().all(|(_, key)| shows(key))
        })
    }

    fn volume_of_pair(&self) -> Value {
        let items = CLIENT_PAIR.map(|(_, key)| json!({"key": key, "path": key}));
        json!({
            "name": VOLUME_CERTS,
            "secret": {"secretName": self.secret, "items": items, "optional": true},
        })
    }
}

impl super::Injector for ManagerInjector<'_> {
    fn concerns(&self, container: &ContainerView<'_>, has_entrypoint: bool) -> bool {
        if has_entrypoint { runs_entrypoint(container) } else { !is_of_mesh(container) }
    }

    fn additions(&self, pod: &PodView<'_>, container: &ContainerView<'_>) -> Result<Additions, Obstacle> {
        let mut additions = Additions::default();
        trust_volume::mount(pod, container, &mut additions)?;
        additions.set(container, CA_VARIABLE, &self.ca_file);
        if let Some(flaw) = self.flaw {
            additions
                .warnings
                .push(Warning::new(format!("no client certificate for the runner: {flaw} (Secret {})", self.secret)));
        }
        if self.client_pair
            && let Err(obstacle) = self.add_client_pair(pod, container, &mut additions)
        {
            let why = obstacle.why();
            additions.warnings.push(Warning::new(format!("no client certificate for the runner: {why}")));
        }
        Ok(additions)
    }

    fn volumes(&self) -> Vec<Volume> {
        vec![trust_volume::definition(), (VOLUME_CERTS, self.volume_of_pair())]
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
