//! What was gathered of a cluster: names, times and shapes; no value of a Secret. PURE.

use std::{collections::BTreeMap, fmt};

use gitlab_runner_webhook::{
    config::{Config, NamespaceName, PublicRoots},
    names::{KEY_TLS_CERT, KEY_TLS_KEY},
    pem::PemError,
    sync::{BundleState, SecretState},
    trust::{self, Certs, CertsState},
};
use k8s_openapi::{
    api::{core::v1::Secret, rbac::v1::PolicyRule},
    jiff::Timestamp,
};
use serde_json::Value;

use super::{certificate::Certificate, manager::Manager};
use crate::{
    drift::{Named, Program},
    rollout::Rollout,
};

/// The name of an admission policy, the policy, and its binding.
pub type Guard = (&'static str, Seen<Option<Value>>, Seen<Option<Value>>);

/// What a read gave, or why it gave nothing.
pub type Seen<T> = Result<T, Unseen>;

/// Why something could not be seen: what was tried on what, and the API server's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unseen(pub String);

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything that is judged.
#[derive(Debug)]
pub struct Facts {
    /// When.
    pub now: Timestamp,
    /// The program as it is installed.
    pub program: Program,
    /// Its Deployment.
    pub deployment: Seen<Option<Rollout>>,
    /// Where the configuration is from, for people.
    pub config_origin: String,
    /// What it says, or why it cannot be used.
    pub config: Result<Config, Refused>,
    /// Each source, by the index of its clone in the configuration.
    pub sources: Vec<Seen<Option<SecretFacts>>>,
    /// Runner namespaces by label that could not be listed.
    pub unlisted: Vec<Unseen>,
    /// Runner namespaces.
    pub namespaces: Vec<RunnerNamespace>,
    /// How the program is registered and served.
    pub serving: Serving,
    /// What its `ServiceAccount` may do.
    pub rights: Rights,
    /// The admission policies by name, each with its binding.
    pub guards: Vec<Guard>,
    /// Whether Kyverno's policy is there.
    pub kyverno: Seen<bool>,
}

/// Why there is no configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is there and of no use.
    Invalid(String),
    /// It is not where the Deployment says.
    Missing(String),
    /// It could not be seen.
    Unseen(Unseen),
}

/// A Secret, without what is in it.
#[derive(Clone, Debug)]
pub struct SecretFacts {
    /// Everything but the content.
    pub state: SecretState,
    /// Each key, and what its value looks like.
    pub shapes: BTreeMap<String, Shape>,
    /// When its data was written last, as far as the API server knows.
    pub written: Option<Timestamp>,
}

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// There is nothing in it, or nothing but white space.
    pub is_empty: bool,
    /// It begins or ends with white space: a newline, mostly.
    pub has_blank_edge: bool,
}

impl SecretFacts {
    /// Looks at a Secret, and forgets what is in it.
    pub fn new(secret: Secret) -> Self {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_whitespace);
        let shape = |value: &[u8]| Shape {
            is_empty: value.trim_ascii().is_empty(),
            has_blank_edge: edge(value.first()) || edge(value.last()),
        };
        let data = secret.data.iter().flatten();
        let shapes = data.map(|(key, value)| (key.clone(), shape(&value.0))).collect();
        let fields = secret.metadata.managed_fields.iter().flatten();
        let writes = fields.filter(|entry| entry.fields_v1.as_ref().is_some_and(|own| own.0.get("f:data").is_some()));
        let written = writes.filter_map(|entry| Some(entry.time.as_ref()?.0)).max();
        let created = secret.metadata.creation_timestamp.as_ref().map(|time| time.0);
        Self { shapes, written: written.or(created), state: SecretState::from(secret) }
    }
}

/// A runner namespace; or one that gets the trust bundle only, without clones.
#[derive(Debug)]
pub struct RunnerNamespace {
    /// Its name.
    pub name: NamespaceName,
    /// Whether it is there.
    pub presence: Seen<Presence>,
    /// Whether its label says that nothing is injected.
    pub opted_out: bool,
    /// What has the name of each clone, by the index in the configuration.
    pub clones: Vec<Seen<Option<SecretFacts>>>,
    /// `certsSecretName`.
    pub certs: Seen<Option<CertsFacts>>,
    /// What has the name of the trust bundle.
    pub trust: Seen<Option<BundleState>>,
    /// Manager pods; where there is none, the templates of their Deployments.
    pub managers: Seen<Vec<Manager>>,
}

/// Whether a namespace is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is not.
    Absent,
    /// It is being deleted.
    Terminating,
    /// It is.
    Active,
}

/// `certsSecretName` in one namespace: certificates are public.
#[derive(Debug)]
pub struct CertsFacts {
    /// What admission knows of it, and the trust bundle that follows.
    pub state: CertsState,
    /// The certificates in each key that may hold a CA.
    pub files: BTreeMap<String, Result<Vec<Certificate>, PemError>>,
    /// Those of these keys that hold a private key, too.
    pub with_key: Vec<String>,
    /// Which of `tls.crt` and `tls.key` are there and not empty.
    pub client: Vec<&'static str>,
}

impl CertsFacts {
    /// Looks at the Secret, and forgets what is no certificate.
    pub fn new(secret: &Secret, roots: PublicRoots) -> Self {
        let data = secret.data.as_ref();
        let is_filled = |key: &str| data.and_then(|data| data.get(key)).is_some_and(|value| !value.0.is_empty());
        let read = |value| Ok(Certificate::parsed(trust::read(value)?.certificates));
        Self {
            files: trust::ca_keys(data).map(|(key, value)| (key.to_owned(), read(value))).collect(),
            with_key: trust::Cas::of(data).with_key,
            client: [KEY_TLS_CERT, KEY_TLS_KEY].into_iter().filter(|key| is_filled(key)).collect(),
            state: CertsState::new(secret, roots),
        }
    }

    /// What admission knows of it.
    pub fn certs(&self) -> &Certs {
        &self.state.certs
    }

    /// All certificates in keys that can be read.
    pub fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        self.files.values().flatten().flatten()
    }
}

/// How the program is registered and served.
#[derive(Debug)]
pub struct Serving {
    /// The `MutatingWebhookConfiguration`.
    pub mutating: Seen<Option<Value>>,
    /// The `ValidatingWebhookConfiguration`.
    pub validating: Seen<Option<Value>>,
    /// How many ready addresses the Service has; `None`: there is no Service.
    pub endpoints: Seen<Option<usize>>,
    /// The CAs of the CA Secret, the current one first; with files, the leaf and its chain. `None`: no such Secret.
    pub certificates: Seen<Option<Result<Vec<Certificate>, PemError>>>,
    /// The Secret that these are from.
    pub certificates_from: String,
    /// Whether the API server reached it about a pod that was never made.
    pub reach: Reach,
    /// The file of `--client-ca`, if the Deployment names one.
    pub client_ca: Option<String>,
}

/// What came of a dry run of a pod in a runner namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The program answered: this shows it.
    Answered(&'static str),
    /// The pod would have been let in, and nothing shows that the program was asked.
    Silent,
    /// The API server could not call it.
    Failed(String),
    /// There was nothing to try it with: why.
    NotTried(&'static str),
    /// Something else was in the way.
    Unseen(Unseen),
}

/// What a `ServiceAccount` may do.
#[derive(Debug, Default)]
pub struct Rights {
    /// What its bindings give.
    pub grants: Vec<Grant>,
    /// Bindings and roles that could not be read.
    pub unseen: Vec<Unseen>,
}

/// What one binding gives.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The binding, as kubectl names it, with its namespace.
    pub binding: Named,
    /// The role that it names.
    pub role: Named,
    /// The rules of the role; `None`: there is no such role.
    pub rules: Option<Vec<PolicyRule>>,
    /// Whether it is given to all accounts of the namespace: a platform does so, not whoever installs this program.
    pub is_for_group: bool,
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_secret_is_known_by_its_shape() {
        let table = [
            ("glrt-canary", false, false),
            ("glrt-canary\n", false, true),
            ("\tglrt-canary", false, true),
            ("", true, false),
            ("\n", true, true),
        ];
        for (value, is_empty, has_blank_edge) in table {
            let secret = Secret {
                data: Some(BTreeMap::from([("runner-token".to_owned(), ByteString(value.as_bytes().to_vec()))])),
                ..Secret::default()
            };
            let facts = SecretFacts::new(secret);
            assert_eq!(facts.shapes["runner-token"], Shape { is_empty, has_blank_edge }, "{value:?}");
            assert!(!format!("{facts:?}").contains("canary"), "{facts:?}");
        }
    }

    #[test]
    fn its_data_was_written_by_whoever_owns_data() {
        let secret = |fields: Value| {
            let metadata = json!({"creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": fields});
            SecretFacts::new(serde_json::from_value(json!({"metadata": metadata})).unwrap())
                .written
                .unwrap()
                .to_string()
        };
        let entry = |time: &str, fields: Value| json!({"manager": "m", "time": time, "fieldsV1": fields});
        let data = entry("2026-01-02T00:00:00Z", json!({"f:data": {".": {}}, "f:type": {}}));
        let labels = entry("2026-01-03T00:00:00Z", json!({"f:metadata": {"f:labels": {}}}));
        assert_eq!(secret(json!([data, labels])), "2026-01-02T00:00:00Z");
        assert_eq!(secret(json!([labels])), "2026-01-01T00:00:00Z", "else when it was made");
        assert_eq!(secret(json!([])), "2026-01-01T00:00:00Z");
    }
}
