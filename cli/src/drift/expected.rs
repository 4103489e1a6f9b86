//! What is to be in the cluster for a configuration: the shipped manifests and those that follow from it. PURE.

use std::fmt;

use gitlab_runner_webhook::{
    config::{Config, TlsMode},
    names::{APP, SECRET_CA},
};
use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::Value;

use super::Program;
use crate::{
    json::{at, items},
    manifests,
};

/// Does not depend on the configuration.
const BASE_RBAC: &str = include_str!("../../../manifests/base/rbac.yaml");
const BASE_GUARD: &str = include_str!("../../../manifests/base/guard.yaml");

/// A role or a binding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace, if it is in one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// A role as it is to be.
#[derive(Clone, Debug)]
pub struct Role {
    /// Its name.
    pub named: Named,
    /// What it grants.
    pub rules: Vec<PolicyRule>,
}

/// The roles of the `ServiceAccount`: cluster-wide, and with component namespaced-rbac where that is possible.
pub fn roles(program: &Program, config: &Config) -> Vec<Vec<Role>> {
    let base: Vec<_> = read_roles(BASE_RBAC, program)
        .into_iter()
        // Components tls-files and cert-manager take them away.
        .filter(|role| program.tls == TlsMode::SelfManaged || !role.named.name.ends_with("-pki"))
        .collect();
    let with = |files: &[&str]| {
        let mut roles = base.clone();
        for file in files {
            roles.extend(read_roles(&manifests::content(file, config, "")?, program));
        }
        Some(roles)
    };
    let forms = [with(&["rbac.yaml"]), with(&["namespaced-rbac/cluster-role.yaml", "namespaced-rbac/roles.yaml"])];
    forms.into_iter().flatten().collect()
}

/// The entries of a webhook configuration.
pub fn webhooks(kind: &str, program: &Program, config: &Config) -> Vec<Value> {
    let found = rendered("webhooks.yaml", program, config).into_iter().find(|object| at(object, &["kind"]) == kind);
    items(at(&found.unwrap_or_default(), &["webhooks"])).cloned().collect()
}

/// Whether an entry is one of this webhook: `inject-2.pods...` is one of `inject.pods...`.
pub fn is_entry_of(name: &str, webhook: &str) -> bool {
    let parts = |name: &str| {
        let (what, rest) = name.split_once('.')?;
        let what = what.split_once('-').map_or(what, |(what, _)| what);
        Some((what.to_owned(), rest.to_owned()))
    };
    parts(name) == parts(webhook)
}

/// An admission policy, or its binding.
pub fn guard(kind: &str, name: &str, program: &Program, config: &Config) -> Value {
    let mut objects = rendered("guard.yaml", program, config);
    objects.extend(documents(&installed(BASE_GUARD, program)));
    objects
        .into_iter()
        .find(|object| at(object, &["kind"]) == kind && at(object, &["metadata", "name"]) == name)
        .unwrap_or_default()
}

fn rendered(path: &str, program: &Program, config: &Config) -> Vec<Value> {
    manifests::content(path, config, "").map(|text| documents(&installed(&text, program))).unwrap_or_default()
}

/// With the names under which the program is installed, where they are others than those shipped.
fn installed(text: &str, program: &Program) -> String {
    let Program { namespace, service, service_account, ca_secret, .. } = program;
    // A guard binds the ServiceAccount in whatever namespace it is.
    text.replace(&format!(".endsWith(':{APP}')"), &format!(".endsWith(':{service_account}')"))
        .replace(&format!("request.name == '{SECRET_CA}'"), &format!("request.name == '{ca_secret}'"))
        .replace(
            &format!("name: {APP}\n        namespace: {APP}\n"),
            &format!("name: {service}\n        namespace: {namespace}\n"),
        )
}

fn read_roles(text: &str, program: &Program) -> Vec<Role> {
    let roles = documents(text).into_iter().filter_map(|object| {
        let kind = match at(&object, &["kind"]).as_str()? {
            "Role" => "Role",
            "ClusterRole" => "ClusterRole",
            _ => return None,
        };
        let namespace = at(&object, &["metadata", "namespace"]).as_str();
        let namespace = namespace.map(|name| if name == APP { program.namespace.to_string() } else { name.to_owned() });
        let rules: Vec<PolicyRule> = serde_json::from_value(at(&object, &["rules"]).clone()).ok()?;
        Some(Role {
            named: Named { kind, namespace, name: at(&object, &["metadata", "name"]).as_str()?.to_owned() },
            rules: rules.into_iter().map(|rule| with_names(rule, program)).collect(),
        })
    });
    roles.collect()
}

fn with_names(mut rule: PolicyRule, program: &Program) -> PolicyRule {
    let resource = rule.resources.iter().flatten().next().map(String::as_str).unwrap_or_default().to_owned();
    for name in rule.resource_names.iter_mut().flatten() {
        let installed = match (resource.as_str(), name.as_str()) {
            ("secrets", SECRET_CA) => program.ca_secret.to_string(),
            ("mutatingwebhookconfigurations", APP) => program.webhook_configuration.clone(),
            _ => continue,
        };
        *name = installed;
    }
    rule
}

/// The objects of a text of ours.
fn documents(text: &str) -> Vec<Value> {
    let documents = text.split("\n---").map(|text| text.trim_start_matches("---"));
    documents.filter_map(|text| serde_saphyr::from_str::<Value>(text).ok()).filter(Value::is_object).collect()
}

#[cfg(test)]
#[path = "expected_tests.rs"]
mod tests;
