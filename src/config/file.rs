//! The configuration file: strict YAML, every field with a default.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kube::core::Expression;
use serde::Deserialize;

use super::{
    CloneSpec, Config, DeploymentName, GateConfig, GateThen, Inject, NamespaceName, NamespaceSelection,
    OnForeignTarget, OnSourceDeleted, PublicRoots, SecretName, Variables,
    error::{ConfigError, invalid},
    labels::{SelectorFile, check_label},
};
use crate::names;

/// Namespaces that a label selector never selects, beside those of sources.
const NEVER_BY_LABEL: [&str; 4] = [names::APP, "kube-node-lease", "kube-public", "kube-system"];

impl Config {
    /// Reads a configuration file's content. An empty file is the default configuration.
    ///
    /// # Errors
    /// Names the field and what is expected.
    pub fn from_yaml(yaml: &str) -> Result<Self, ConfigError> {
        let blank = yaml
            .lines()
            .all(|line| matches!(line.trim().split_once('#').map_or(line.trim(), |(head, _)| head), "" | "---"));
        let file: File = if blank {
            File::default()
        } else {
            serde_saphyr::from_str(yaml).map_err(|error| ConfigError::Yaml(error.to_string()))?
        };
        file.check()
    }
}

impl Default for Config {
    #[expect(clippy::expect_used, reason = "the defaults are constants, checked by a test")]
    fn default() -> Self {
        File::default().check().expect("the defaults are valid")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct File {
    runner_namespaces: RunnerNamespacesFile,
    trust_namespaces: TrustNamespacesFile,
    clones: Vec<CloneFile>,
    certs_secret_name: SecretName,
    certs: CertsFile,
    gate: GateFile,
    restart: RestartFile,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct RestartFile {
    deployments: BTreeSet<DeploymentName>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct RunnerNamespacesFile {
    names: BTreeSet<NamespaceName>,
    selectors: Vec<SelectorFile>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct TrustNamespacesFile {
    names: BTreeSet<NamespaceName>,
    selectors: Vec<SelectorFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CloneFile {
    secret: SecretName,
    from: NamespaceName,
    #[serde(default)]
    on_source_deleted: OnSourceDeleted,
    #[serde(default)]
    on_foreign_target: OnForeignTarget,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct CertsFile {
    from: Option<NamespaceName>,
    public_roots: PublicRoots,
    inject: InjectFile,
    variables: VariablesFile,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[expect(clippy::struct_excessive_bools, reason = "the fields of the file, each on its own")]
struct InjectFile {
    manager: bool,
    client_certificate: bool,
    jobs: bool,
    services: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct VariablesFile {
    additive: Vec<String>,
    directory: Vec<String>,
    java: Vec<String>,
    replacing: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct GateFile {
    give_up_after: String,
    then: GateThen,
}

impl Default for File {
    fn default() -> Self {
        Self {
            runner_namespaces: RunnerNamespacesFile::default(),
            trust_namespaces: TrustNamespacesFile::default(),
            clones: vec![default_clone()],
            certs_secret_name: default_certs_secret_name(),
            certs: CertsFile::default(),
            gate: GateFile::default(),
            restart: RestartFile::default(),
        }
    }
}

impl Default for RunnerNamespacesFile {
    fn default() -> Self {
        Self { names: default_names(), selectors: Vec::new() }
    }
}

impl Default for InjectFile {
    fn default() -> Self {
        Self { manager: true, client_certificate: true, jobs: true, services: false }
    }
}

impl Default for VariablesFile {
    /// Those whose effect was measured: docs/trust.md. `GIT_SSL_CAINFO` is not among them: it would overrule the CA that the
    /// runner itself gives git for its GitLab, to which `GIT_SSL_CAPATH` adds. Nor are `SSL_CERT_FILE`, `CURL_CA_BUNDLE` and
    /// `CARGO_HTTP_CAINFO`: they would replace what `SSL_CERT_DIR` adds to.
    fn default() -> Self {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            additive: names(&["NODE_EXTRA_CA_CERTS", "DENO_CERT"]),
            directory: names(&["SSL_CERT_DIR", "GIT_SSL_CAPATH"]),
            java: names(&["JAVA_TOOL_OPTIONS"]),
            replacing: names(&["REQUESTS_CA_BUNDLE", "PIP_CERT", "AWS_CA_BUNDLE"]),
        }
    }
}

impl Default for GateFile {
    fn default() -> Self {
        Self { give_up_after: "10s".to_owned(), then: GateThen::default() }
    }
}

impl From<InjectFile> for Inject {
    fn from(file: InjectFile) -> Self {
        Self {
            manager: file.manager,
            client_certificate: file.client_certificate,
            jobs: file.jobs,
            services: file.services,
        }
    }
}

impl File {
    fn check(self) -> Result<Config, ConfigError> {
        let RunnerNamespacesFile { names, selectors } = self.runner_namespaces;
        let NamespaceSelection { names, mut selectors } = selection("runnerNamespaces", names, selectors)?;
        if names.is_empty() && selectors.is_empty() {
            return Err(invalid("runnerNamespaces", "name at least one namespace or give at least one selector"));
        }
        let TrustNamespacesFile { names: of_trust, selectors: by_label } = self.trust_namespaces;
        let mut trust = selection("trustNamespaces", of_trust, by_label)?;
        if let Some(name) = trust.names.intersection(&names).next() {
            return Err(invalid(
                "trustNamespaces.names",
                format!("{:?} is a runner namespace, which gets the trust bundle anyway", name.as_str()),
            ));
        }

        let mut clones: Vec<CloneSpec> = Vec::new();
        for (index, clone) in self.clones.into_iter().enumerate() {
            let field = format!("clones[{index}]");
            if clones.iter().any(|other| other.secret == clone.secret) {
                return Err(invalid(
                    format!("{field}.secret"),
                    format!("{:?} is cloned twice; a clone has one source", clone.secret.as_str()),
                ));
            }
            if trust.names.contains(&clone.from) {
                return Err(invalid(
                    format!("{field}.from"),
                    format!("{:?} is a trust namespace too; nothing is written where a source is", clone.from.as_str()),
                ));
            }
            if names.contains(&clone.from) {
                return Err(invalid(
                    format!("{field}.from"),
                    format!("{:?} is a runner namespace too; a source cannot be its own clone", clone.from.as_str()),
                ));
            }
            for (key, value) in &clone.labels {
                check_label(&format!("{field}.labels"), key, value)?;
            }
            clones.push(clone.into_spec());
        }

        if let Some(from) = self.certs.from {
            if trust.names.contains(&from) {
                return Err(invalid(
                    "certs.from",
                    format!("{:?} is a trust namespace; nothing is written where a source is", from.as_str()),
                ));
            }
            if names.contains(&from) {
                return Err(invalid(
                    "certs.from",
                    format!("{:?} is a runner namespace; leave the field out", from.as_str()),
                ));
            }
            if clones.iter().any(|clone| clone.secret == self.certs_secret_name) {
                return Err(invalid("certs.from", "certsSecretName is in clones already; leave one of the two out"));
            }
            let clone = CloneFile { secret: self.certs_secret_name.clone(), from, ..default_clone() };
            clones.push(CloneSpec { holds_certs: true, ..clone.into_spec() });
        }

        // No label makes a runner namespace of what the cluster, this program or a source lives in. Said by the selector
        // itself, it holds for watches, webhooks and guard alike.
        let never = NEVER_BY_LABEL.into_iter().map(str::to_owned);
        let never: BTreeSet<_> = never.chain(clones.iter().map(|clone| clone.from.to_string())).collect();
        for selector in selectors.iter_mut().chain(&mut trust.selectors) {
            selector.extend([Expression::NotIn(names::LABEL_NAMESPACE_NAME.to_owned(), never.clone())]);
        }

        let records_source_version = !self.restart.deployments.is_empty();
        for clone in &mut clones {
            clone.records_source_version = records_source_version;
        }

        Ok(Config {
            runner_namespaces: NamespaceSelection { names, selectors },
            trust_namespaces: trust,
            clones,
            certs_secret_name: self.certs_secret_name,
            public_roots: self.certs.public_roots,
            inject: self.certs.inject.into(),
            variables: self.certs.variables.check()?,
            gate: self.gate.check()?,
            restart: self.restart.deployments,
        })
    }
}

fn selection(
    field: &str,
    names: BTreeSet<NamespaceName>,
    files: Vec<SelectorFile>,
) -> Result<NamespaceSelection, ConfigError> {
    for name in &names {
        if name.as_str() == names::APP || name.as_str().starts_with("kube-") {
            return Err(invalid(
                format!("{field}.names"),
                format!("{name:?} cannot be selected: the cluster or this webhook itself lives there"),
            ));
        }
    }
    let mut selectors = Vec::new();
    for (index, file) in files.into_iter().enumerate() {
        selectors.push(file.check(&format!("{field}.selectors[{index}]"))?);
    }
    Ok(NamespaceSelection { names, selectors })
}

impl CloneFile {
    fn into_spec(self) -> CloneSpec {
        CloneSpec {
            secret: self.secret,
            from: self.from,
            on_source_deleted: self.on_source_deleted,
            on_foreign_target: self.on_foreign_target,
            labels: self.labels,
            holds_certs: false,
            records_source_version: false,
        }
    }
}

impl VariablesFile {
    fn check(self) -> Result<Variables, ConfigError> {
        let mut seen = BTreeSet::new();
        for (field, names) in [
            ("additive", &self.additive),
            ("directory", &self.directory),
            ("java", &self.java),
            ("replacing", &self.replacing),
        ] {
            for name in names {
                let field = format!("certs.variables.{field}");
                let first = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
                let valid = name.bytes().next().is_some_and(first)
                    && name.bytes().all(|byte| first(byte) || byte.is_ascii_digit());
                if !valid {
                    return Err(invalid(field, format!("{name:?} is not a variable name: letters, digits and '_'")));
                }
                if name == "SSL_CERT_DIR" && !field.ends_with("directory") {
                    return Err(invalid(
                        field,
                        "SSL_CERT_DIR names directories; put it into certs.variables.directory",
                    ));
                }
                if !seen.insert(name.clone()) {
                    return Err(invalid(field, format!("{name:?} is there twice")));
                }
            }
        }
        Ok(Variables { additive: self.additive, directory: self.directory, java: self.java, replacing: self.replacing })
    }
}

impl GateFile {
    fn check(self) -> Result<GateConfig, ConfigError> {
        let Some(give_up_after) = duration(&self.give_up_after) else {
            return Err(invalid(
                "gate.giveUpAfter",
                format!("{:?} is not a duration such as 500ms, 10s or 5m; 0s means no gate", self.give_up_after),
            ));
        };
        Ok(GateConfig { give_up_after, then: self.then })
    }
}

/// A whole number with its unit.
fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        "h" => Some(Duration::from_secs(number.checked_mul(3600)?)),
        _ => None,
    }
}

fn default_names() -> BTreeSet<NamespaceName> {
    BTreeSet::from([literal("gitlab-runner")])
}

fn default_clone() -> CloneFile {
    CloneFile {
        secret: literal("gitlab-gitlab-runner-secret"),
        from: literal("gitlab"),
        on_source_deleted: OnSourceDeleted::default(),
        on_foreign_target: OnForeignTarget::default(),
        labels: BTreeMap::new(),
    }
}

fn default_certs_secret_name() -> SecretName {
    literal("gitlab-runner-certs")
}

#[expect(clippy::expect_used, reason = "literals of this file, each parsed by a test")]
fn literal<T: std::str::FromStr<Err = super::NameError>>(name: &str) -> T {
    name.parse().expect("a valid name")
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
