//! The program's own Deployment in a cluster: what it was told, and where its files are from. PURE.

use gitlab_runner_webhook::names::APP;
use serde_json::Value;

use crate::json::{at, items};

/// The Deployment's container of ours.
#[derive(Clone, Debug)]
pub struct Installed {
    container: Value,
    volumes: Value,
    /// Its `ServiceAccount`.
    pub service_account: String,
}

/// A key of a ConfigMap or a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Name of the object.
    pub object: String,
    /// The key.
    pub key: String,
}

/// Where the configuration that it runs with is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// It is given none.
    Defaults,
    /// A key of a ConfigMap.
    ConfigMap(Key),
    /// A file that comes from no ConfigMap.
    File(String),
}

impl Installed {
    /// Reads a Deployment.
    pub fn of(deployment: &Value) -> Option<Self> {
        let spec = at(deployment, &["spec", "template", "spec"]);
        let containers = at(spec, &["containers"]);
        let is_ours = |container: &&Value| at(container, &["name"]).as_str() == Some(APP);
        let container = items(containers).find(is_ours).or(items(containers).next())?;
        let account = at(spec, &["serviceAccountName"]).as_str().filter(|name| !name.is_empty());
        Some(Self {
            container: container.clone(),
            volumes: at(spec, &["volumes"]).clone(),
            service_account: account.unwrap_or("default").to_owned(),
        })
    }

    /// The image, for a pod that is never made.
    pub fn image(&self) -> Option<&str> {
        at(&self.container, &["image"]).as_str()
    }

    /// What a flag, or else its environment variable, says.
    pub fn setting(&self, flag: &str) -> Option<String> {
        let words: Vec<_> = ["command", "args"].iter().flat_map(|list| items(at(&self.container, &[list]))).collect();
        let long = format!("--{flag}");
        let given = words.iter().enumerate().rev().find_map(|(index, word)| {
            let rest = word.as_str()?.strip_prefix(&long)?;
            match rest.strip_prefix('=') {
                Some(value) => Some(value.to_owned()),
                None if rest.is_empty() => words.get(index + 1)?.as_str().map(str::to_owned),
                None => None,
            }
        });
        let variable = format!("GITLAB_RUNNER_WEBHOOK_{}", flag.replace('-', "_").to_ascii_uppercase());
        let env = || items(at(&self.container, &["env"])).find(|entry| at(entry, &["name"]) == variable.as_str());
        given.or_else(|| at(env()?, &["value"]).as_str().map(str::to_owned))
    }

    /// Where the configuration is from.
    pub fn config_source(&self) -> ConfigSource {
        match self.setting("config") {
            None => ConfigSource::Defaults,
            Some(path) => match self.behind(&path, "configMap", "name") {
                Some(key) => ConfigSource::ConfigMap(key),
                None => ConfigSource::File(path),
            },
        }
    }

    /// The Secret behind a file of the container.
    pub fn secret_of(&self, path: &str) -> Option<Key> {
        self.behind(path, "secret", "secretName")
    }

    fn behind(&self, path: &str, kind: &str, name: &str) -> Option<Key> {
        let mounts = items(at(&self.container, &["volumeMounts"])).filter_map(|mount| {
            let folder = at(mount, &["mountPath"]).as_str()?.trim_end_matches('/');
            let rest = path.strip_prefix(folder)?.strip_prefix('/')?;
            Some((folder.len(), at(mount, &["name"]), rest))
        });
        let (_, volume, file) = mounts.max_by_key(|(length, ..)| *length)?;
        let volume = items(&self.volumes).find(|there| at(there, &["name"]) == volume)?;
        let direct = [(at(volume, &[kind]), name)].into_iter();
        let projected = items(at(volume, &["projected", "sources"])).map(|source| (at(source, &[kind]), "name"));
        direct.chain(projected).find_map(|(source, name)| {
            let object = at(source, &[name]).as_str()?.to_owned();
            let chosen = at(source, &["items"]);
            let key = match chosen.as_array() {
                Some(chosen) => at(chosen.iter().find(|item| at(item, &["path"]) == file)?, &["key"]).as_str()?,
                None => file,
            };
            Some(Key { object, key: key.to_owned() })
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shipped() -> Value {
        serde_saphyr::from_str(include_str!("../../manifests/base/deployment.yaml")).unwrap()
    }

    #[test]
    fn the_shipped_deployment() {
        let installed = Installed::of(&shipped()).unwrap();
        assert_eq!(installed.service_account, "gitlab-runner-webhook");
        let key = Key { object: "gitlab-runner-webhook-config".to_owned(), key: "config.yaml".to_owned() };
        assert_eq!(installed.config_source(), ConfigSource::ConfigMap(key));
        assert_eq!(installed.setting("tls"), None);
        for path in ["/elsewhere/config.yaml", "/etc/gitlab-runner-webhook/other.yaml"] {
            let mut deployment = shipped();
            deployment["spec"]["template"]["spec"]["containers"][0]["args"] = json!(["--config", path]);
            assert_eq!(Installed::of(&deployment).unwrap().config_source(), ConfigSource::File(path.to_owned()));
        }
        let mut deployment = shipped();
        let container = &mut deployment["spec"]["template"]["spec"]["containers"][0];
        (container["args"], container["env"]) = (json!([]), json!([]));
        assert_eq!(Installed::of(&deployment).unwrap().config_source(), ConfigSource::Defaults);
    }

    #[test]
    fn flags_win_over_variables() {
        let mut deployment = shipped();
        let container = &mut deployment["spec"]["template"]["spec"]["containers"][0];
        container["env"] = json!([
            {"name": "GITLAB_RUNNER_WEBHOOK_TLS", "value": "files"},
            {"name": "GITLAB_RUNNER_WEBHOOK_CA_SECRET", "value": "of-env"},
        ]);
        container["args"] = json!(["--ca-secret", "of-flag", "--tls-cert=/x", "--service=a", "--service=b"]);
        let installed = Installed::of(&deployment).unwrap();
        for (flag, value) in [("tls", "files"), ("ca-secret", "of-flag"), ("service", "b"), ("tls-cert", "/x")] {
            assert_eq!(installed.setting(flag).as_deref(), Some(value), "{flag}");
        }
        assert_eq!(installed.setting("config"), None);
    }

    #[test]
    fn a_secret_among_the_sources_of_a_volume() {
        let mut deployment = shipped();
        let sources = &mut deployment["spec"]["template"]["spec"]["volumes"][0]["projected"]["sources"];
        let items = json!([{"key": "tls.crt", "path": "tls/tls.crt"}]);
        sources.as_array_mut().unwrap().push(json!({"secret": {"name": "s", "items": items}}));
        // A Secret in a projected volume has `name`, one of its own `secretName`.
        let installed = Installed::of(&deployment).unwrap();
        let expected = Key { object: "s".to_owned(), key: "tls.crt".to_owned() };
        assert_eq!(installed.secret_of("/etc/gitlab-runner-webhook/tls/tls.crt"), Some(expected));
    }
}
