//! The configuration file: strict YAML, every field with a default.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::core::Selector;
use serde::Deserialize;

use super::{CloneSpec, Config, Inject, NamespaceName, OnForeignTarget, OnSourceDeleted, RunnerNamespaces, SecretName};
use crate::names;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not YAML, an unknown field, or a value of the wrong form.
    #[error("{0}")]
    Yaml(String),
    /// Each field is fine on its own, but not together.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field, as a path in the file.
        field: String,
        /// What is wrong with it, and what is expected.
        problem: String,
    },
}

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
    fn default() -> Self {
        Self {
            runner_namespaces: RunnerNamespaces { names: default_names(), selectors: Vec::new() },
            clones: vec![default_clone().into_spec()],
            certs_secret_name: default_certs_secret_name(),
            inject: InjectFile::default().into(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct File {
    runner_namespaces: RunnerNamespacesFile,
    clones: Vec<CloneFile>,
    certs_secret_name: SecretName,
    certs: CertsFile,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct RunnerNamespacesFile {
    names: BTreeSet<NamespaceName>,
    selectors: Vec<SelectorFile>,
}

/// A `LabelSelector` that refuses unknown fields: a misspelt `matchLabel` would match everything.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct SelectorFile {
    match_labels: BTreeMap<String, String>,
    match_expressions: Vec<RequirementFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RequirementFile {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
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
    inject: InjectFile,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct InjectFile {
    manager: bool,
    client_certificate: bool,
    jobs: bool,
}

impl Default for File {
    fn default() -> Self {
        Self {
            runner_namespaces: RunnerNamespacesFile::default(),
            clones: vec![default_clone()],
            certs_secret_name: default_certs_secret_name(),
            certs: CertsFile::default(),
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
        Self { manager: true, client_certificate: true, jobs: true }
    }
}

impl From<InjectFile> for Inject {
    fn from(file: InjectFile) -> Self {
        Self { manager: file.manager, client_certificate: file.client_certificate, jobs: file.jobs }
    }
}

impl File {
    fn check(self) -> Result<Config, ConfigError> {
        let names = self.runner_namespaces.names;
        for name in &names {
            if name.as_str() == names::APP || name.as_str().starts_with("kube-") {
                return Err(invalid(
                    "runnerNamespaces.names",
                    format!("{name:?} cannot be a runner namespace: the cluster or this webhook itself lives there"),
                ));
            }
        }
        let mut selectors = Vec::new();
        for (index, selector) in self.runner_namespaces.selectors.into_iter().enumerate() {
            selectors.push(selector.check(&format!("runnerNamespaces.selectors[{index}]"))?);
        }
        if names.is_empty() && selectors.is_empty() {
            return Err(invalid("runnerNamespaces", "name at least one namespace or give at least one selector"));
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

        Ok(Config {
            runner_namespaces: RunnerNamespaces { names, selectors },
            clones,
            certs_secret_name: self.certs_secret_name,
            inject: self.certs.inject.into(),
        })
    }
}

impl CloneFile {
    fn into_spec(self) -> CloneSpec {
        CloneSpec {
            secret: self.secret,
            from: self.from,
            on_source_deleted: self.on_source_deleted,
            on_foreign_target: self.on_foreign_target,
            labels: self.labels,
        }
    }
}

impl SelectorFile {
    fn check(self, field: &str) -> Result<Selector, ConfigError> {
        if self.match_labels.is_empty() && self.match_expressions.is_empty() {
            return Err(invalid(
                field,
                "an empty selector would match every namespace; give matchLabels or matchExpressions",
            ));
        }
        for (key, value) in &self.match_labels {
            check_label_key(&format!("{field}.matchLabels"), key)?;
            check_label_value(&format!("{field}.matchLabels.{key}"), value)?;
        }
        for (index, expression) in self.match_expressions.iter().enumerate() {
            let field = format!("{field}.matchExpressions[{index}]");
            check_label_key(&format!("{field}.key"), &expression.key)?;
            for value in &expression.values {
                check_label_value(&format!("{field}.values"), value)?;
            }
            let problem = match (expression.operator.as_str(), expression.values.is_empty()) {
                ("In" | "NotIn", false) | ("Exists" | "DoesNotExist", true) => continue,
                ("In" | "NotIn", true) => "In and NotIn need at least one value",
                ("Exists" | "DoesNotExist", false) => "Exists and DoesNotExist take no values",
                _ => "operator is one of In, NotIn, Exists, DoesNotExist",
            };
            return Err(invalid(field, problem));
        }
        let selector = LabelSelector {
            match_labels: Some(self.match_labels),
            match_expressions: Some(
                self.match_expressions
                    .into_iter()
                    .map(|expression| LabelSelectorRequirement {
                        key: expression.key,
                        operator: expression.operator,
                        values: Some(expression.values).filter(|values| !values.is_empty()),
                    })
                    .collect(),
            ),
        };
        selector.try_into().map_err(|error| invalid(field, format!("{error:?}")))
    }
}

/// Labels that a clone may not be given: they are ours, or another controller would take the clone for its own.
fn check_label(field: &str, key: &str, value: &str) -> Result<(), ConfigError> {
    if key == names::LABEL_MANAGED_BY || key.starts_with(names::LABEL_PREFIX_KYVERNO) {
        return Err(invalid(field, format!("{key:?} says who owns a clone and cannot be configured")));
    }
    check_label_key(field, key)?;
    check_label_value(&format!("{field}.{key}"), value)
}

/// Source: <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set>.
fn check_label_key(field: &str, key: &str) -> Result<(), ConfigError> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if !name.is_empty() && is_label_word(name) && prefix.is_none_or(|prefix| prefix.parse::<SecretName>().is_ok()) {
        return Ok(());
    }
    Err(invalid(
        field,
        format!(
            "{key:?} is not a label key: expected [prefix/]name, name of at most 63 letters, digits, '-', '_' and '.'"
        ),
    ))
}

fn check_label_value(field: &str, value: &str) -> Result<(), ConfigError> {
    if is_label_word(value) {
        return Ok(());
    }
    Err(invalid(field, format!("{value:?} is not a label value: at most 63 letters, digits, '-', '_' and '.'")))
}

fn is_label_word(word: &str) -> bool {
    let bytes = word.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && bytes.first().is_none_or(u8::is_ascii_alphanumeric)
        && bytes.last().is_none_or(u8::is_ascii_alphanumeric)
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { field: field.into(), problem: problem.into() }
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
mod tests {
    use super::*;

    fn error(yaml: &str) -> String {
        Config::from_yaml(yaml).expect_err(yaml).to_string()
    }

    #[test]
    fn an_empty_file_is_the_mission() {
        for yaml in ["", "\n", "# only a comment\n", "---\n", "{}", "runnerNamespaces: {}"] {
            let config = Config::from_yaml(yaml).expect(yaml);
            assert_eq!(config.runner_namespaces.names, default_names(), "{yaml:?}");
            assert_eq!(config.clones, Config::default().clones);
            assert_eq!(config.clones[0].source(), "gitlab/gitlab-gitlab-runner-secret");
            assert_eq!(config.certs_secret_name.as_str(), "gitlab-runner-certs");
        }
    }

    #[test]
    fn every_field_is_read() {
        let config = Config::from_yaml(
            "runnerNamespaces:\n  names: [a, b]\n  selectors:\n  - matchLabels: {team: x}\n    \
             matchExpressions: [{key: env, operator: In, values: [dev, prod]}]\n\
             clones:\n- {secret: s, from: src, onSourceDeleted: delete, onForeignTarget: refuse, labels: {a: b}}\n\
             certsSecretName: ca\ncerts: {inject: {manager: false, clientCertificate: false, jobs: false}}\n",
        )
        .unwrap();
        assert_eq!(config.runner_namespaces.names.len(), 2);
        assert_eq!(config.runner_namespaces.selectors[0].to_string(), "team=x,env in (dev,prod)");
        assert_eq!(config.clones[0].on_source_deleted, OnSourceDeleted::Delete);
        assert_eq!(config.clones[0].on_foreign_target, OnForeignTarget::Refuse);
        assert_eq!(config.clones[0].labels["a"], "b");
        assert_eq!(config.certs_secret_name.as_str(), "ca");
        assert_eq!(config.inject, Inject { manager: false, client_certificate: false, jobs: false });
    }

    #[test]
    fn each_error_names_the_field_and_what_is_expected() {
        let table = [
            ("runnerNamespace: {}", "runnerNamespace", "runnerNamespaces"),
            ("runnerNamespaces: {names: [Git_Lab]}", "Git_Lab", "lower-case"),
            ("runnerNamespaces: {names: []}", "runnerNamespaces", "at least one"),
            ("runnerNamespaces: {names: [kube-system]}", "runnerNamespaces.names", "kube-system"),
            ("runnerNamespaces: {names: [gitlab-runner-webhook]}", "runnerNamespaces.names", "itself"),
            ("runnerNamespaces: {selectors: [{}]}", "runnerNamespaces.selectors[0]", "every namespace"),
            ("runnerNamespaces: {selectors: [{matchLabel: {a: b}}]}", "matchLabel", "matchLabels"),
            ("runnerNamespaces: {selectors: [{matchLabels: {'a b': c}}]}", "selectors[0].matchLabels", "label key"),
            ("runnerNamespaces: {selectors: [{matchLabels: {a: '-'}}]}", "matchLabels.a", "label value"),
            (
                "runnerNamespaces: {selectors: [{matchExpressions: [{key: a, operator: Equals}]}]}",
                "matchExpressions[0]",
                "one of In, NotIn",
            ),
            (
                "runnerNamespaces: {selectors: [{matchExpressions: [{key: a, operator: In}]}]}",
                "[0]",
                "at least one value",
            ),
            ("clones: [{secret: s}]", "from", "missing"),
            ("clones: [{secret: s, from: a}, {secret: s, from: b}]", "clones[1].secret", "twice"),
            ("clones: [{secret: s, from: gitlab-runner}]", "clones[0].from", "own clone"),
            ("clones: [{secret: s, from: a, onSourceDeleted: drop}]", "drop", "keep"),
            ("clones: [{secret: s, from: a, labels: {app.kubernetes.io/managed-by: x}}]", "clones[0].labels", "owns"),
            ("certs: {inject: {manager: maybe}}", "maybe", "bool"),
            ("certsSecretName: a/b", "a/b", "Secret name"),
            ("clones: [", "line 1", ""),
            ("- a", "", ""),
        ];
        for (yaml, names, expects) in table {
            let error = error(yaml);
            assert!(error.contains(names) && error.contains(expects), "{yaml}\n -> {error}");
        }
    }
}
