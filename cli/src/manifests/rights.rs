//! RBAC: every rule is bound to the names of the configuration. PURE.

use std::collections::{BTreeMap, BTreeSet};

use gitlab_runner_webhook::{
    config::{Config, DeploymentName, NamespaceName, SecretName},
    names::{CONFIGMAP_TRUST, event},
};

use super::{
    clones, header,
    text::{fill, flow, scalar},
};

pub(super) fn cluster_role(config: &Config) -> String {
    fill(
        include_str!("templates/rbac.yaml"),
        &[
            header(),
            ("clones", clones(config)),
            ("certs", certs(config)),
            ("events", events(config)),
            ("deployments", deployments(config)),
            ("namespaces", namespaces(config)),
        ],
    )
}

fn deployments(config: &Config) -> String {
    if config.restart.is_empty() {
        return String::new();
    }
    let names = flow(config.restart.iter().map(DeploymentName::as_str));
    fill(include_str!("templates/rbac-deployments.yaml"), &[("deployments", names)])
}

/// The names of the Events about clones and trust bundles.
fn events(config: &Config) -> String {
    let clones = config.clones.iter().map(|clone| clone.secret.as_str());
    let names: BTreeSet<_> = clones.chain([CONFIGMAP_TRUST]).map(event).collect();
    flow(names.iter().map(String::as_str))
}

/// `certsSecretName`, unless the rules of clones hold it already.
fn certs(config: &Config) -> String {
    let certs = &config.certs_secret_name;
    if config.clones.iter().any(|clone| clone.secret == *certs) {
        return String::new();
    }
    fill(include_str!("templates/rbac-certs.yaml"), &[("certs", flow([certs.as_str()]))])
}

fn namespaces(config: &Config) -> String {
    if config.with_trust().iter().all(|selection| selection.selectors.is_empty()) {
        let names = flow(named(config));
        fill(include_str!("templates/rbac-namespaces-by-name.yaml"), &[("namespaces", names)])
    } else {
        include_str!("templates/rbac-namespaces-by-label.yaml").to_owned()
    }
}

/// The namespaces that are selected by name.
fn named(config: &Config) -> impl Iterator<Item = &str> {
    config.with_trust().into_iter().flat_map(|selection| selection.names.iter().map(NamespaceName::as_str))
}

/// What has to stay cluster-wide when [`roles`] have the rest.
pub(super) fn reading_cluster_role(config: &Config) -> String {
    let clones = config.clones.iter().map(|clone| &clone.secret);
    let secrets: BTreeSet<_> = clones.chain([&config.certs_secret_name]).map(SecretName::as_str).collect();
    let namespaces = flow(named(config));
    fill(
        include_str!("templates/namespaced-cluster-role.yaml"),
        &[header(), ("secrets", flow(secrets)), ("namespaces", namespaces)],
    )
}

/// A Role in each namespace with a source, and in each runner or trust namespace.
pub(super) fn roles(config: &Config) -> String {
    let mut sources: BTreeMap<&NamespaceName, Vec<&str>> = BTreeMap::new();
    for clone in &config.clones {
        sources.entry(&clone.from).or_default().push(clone.secret.as_str());
    }
    let of_sources = sources.into_iter().map(|(namespace, secrets)| {
        role("Sources: read, never written.", namespace, &rule("secrets", &flow(secrets), "[get]"))
    });

    let bundle = rule("configmaps", &flow([CONFIGMAP_TRUST]), "[get, create, patch, update, delete]");
    let certs = rule("secrets", &flow([config.certs_secret_name.as_str()]), "[get]");
    let mut rules = rule("secrets", &clones(config), "[get, create, patch, update, delete]");
    if !config.clones.iter().any(|clone| clone.secret == config.certs_secret_name) {
        rules += &certs;
    }
    rules += &bundle;
    rules += &rule("events", &events(config), "[create, patch]");
    rules += &deployments(config);
    let names = config.runner_namespaces.names.iter();
    let of_runners = names.map(|namespace| role("A runner namespace.", namespace, &rules));

    let events = rule("events", &flow([event(CONFIGMAP_TRUST).as_str()]), "[create, patch]");
    let rules = certs + &bundle + &events;
    let names = config.trust_namespaces.names.iter();
    let of_trust = names.map(|namespace| role("A trust namespace.", namespace, &rules));

    let (_, header) = header();
    header + "\n" + &of_sources.chain(of_runners).chain(of_trust).collect::<String>()
}

fn role(what: &str, namespace: &NamespaceName, rules: &str) -> String {
    fill(
        include_str!("templates/namespaced-role.yaml"),
        &[("what", what.to_owned()), ("namespace", scalar(namespace.as_str())), ("rules", rules.to_owned())],
    )
}

fn rule(resource: &str, names: &str, verbs: &str) -> String {
    fill(
        include_str!("templates/namespaced-rule.yaml"),
        &[("resource", resource.to_owned()), ("names", names.to_owned()), ("verbs", verbs.to_owned())],
    )
}
