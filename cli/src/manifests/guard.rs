//! The policy that binds writes to runner namespaces. PURE.

use std::collections::{BTreeMap, BTreeSet};

use gitlab_runner_webhook::{
    config::Config,
    names::{APP, HARMLESS_TYPES, LABEL_MANAGED_BY, RESERVED_TYPES},
};

use super::{
    header, selectors,
    text::{cel_list, fill},
};

pub(super) fn policy(config: &Config) -> String {
    let sources: BTreeSet<_> = config.clones.iter().map(|clone| clone.from.as_str()).collect();
    let by_label = config.with_trust().iter().any(|selection| !selection.selectors.is_empty());
    let trust = match selectors::condition(&config.trust_namespaces) {
        condition if condition.is_empty() => String::new(),
        condition => fill(include_str!("templates/guard-trust.yaml"), &[("trust_namespaces", condition)]),
    };
    let or_trust = if trust.is_empty() { "" } else { "variables.isTrustBundle || " };
    let labels = if by_label { include_str!("templates/guard-labels.yaml") } else { "" };
    let (deployments, pods, annotation) = if config.restart.is_empty() {
        ("", "", "")
    } else {
        (
            include_str!("templates/guard-deployments.yaml"),
            include_str!("templates/guard-pods.yaml"),
            include_str!("templates/guard-annotation.yaml"),
        )
    };
    fill(
        include_str!("templates/guard.yaml"),
        &[
            header(),
            ("labels", labels.to_owned()),
            ("deployments", deployments.to_owned()),
            ("pods", pods.to_owned()),
            ("annotation", annotation.to_owned()),
            ("our_labels", our_labels(config)),
            ("types", cel_list(HARMLESS_TYPES)),
            ("reserved", reserved()),
            ("trust", trust),
            ("or_trust", or_trust.to_owned()),
            ("runner_namespaces", selectors::condition(&config.runner_namespaces)),
            ("sources", cel_list(sources)),
        ],
    )
}

/// Each label that a clone may get, with its values, as a map in CEL.
fn our_labels(config: &Config) -> String {
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::from([(LABEL_MANAGED_BY, BTreeSet::from([APP]))]);
    for (key, value) in config.clones.iter().flat_map(|clone| &clone.labels) {
        labels.entry(key).or_default().insert(value);
    }
    let labels: Vec<_> = labels.into_iter().map(|(key, values)| format!("'{key}': {}", cel_list(values))).collect();
    format!("{{{}}}", labels.join(", "))
}

/// The types of [`RESERVED_TYPES`], as a regular expression.
fn reserved() -> String {
    let domains: Vec<_> = RESERVED_TYPES.iter().map(|domain| domain.replace('.', "[.]")).collect();
    format!("^([^/]*[.])?({})/", domains.join("|"))
}
