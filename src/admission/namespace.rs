//! A new runner namespace whose source is missing: said at once, to whoever creates it. PURE.

use std::collections::BTreeMap;

use kube::core::SelectorExt as _;

use super::{
    decision::{Decision, Warning},
    pod_view::PodView,
};
use crate::{
    config::{Config, NamespaceSelection},
    names::LABEL_NAMESPACE_NAME,
    snapshot::{Snapshot, SourcePresence},
};

/// Looks at a namespace that is being created. It is always let in, unchanged.
pub(super) fn review(namespace: &PodView<'_>, config: &Config, snapshot: &Snapshot) -> Decision {
    let (reason, warnings) = if is_runner_namespace(namespace, &config.runner_namespaces) {
        let warnings = missing_sources(config, snapshot);
        (if warnings.is_empty() { "runner-namespace" } else { "source-missing" }, warnings)
    } else {
        ("other-namespace", Vec::new())
    };
    Decision { reason, warnings, ..Decision::default() }
}

fn missing_sources(config: &Config, snapshot: &Snapshot) -> Vec<Warning> {
    let is_missing = |secret| matches!(snapshot.sources.get(secret), Some((_, SourcePresence::Missing)));
    let missing = config.clones.iter().filter(|clone| is_missing(&clone.secret));
    missing
        .map(|clone| Warning::new(format!("Secret {} is missing; it is cloned here once it exists", clone.source())))
        .collect()
}

fn is_runner_namespace(namespace: &PodView<'_>, runner_namespaces: &NamespaceSelection) -> bool {
    let labels = namespace.metadata.labels.iter();
    let labels: BTreeMap<String, String> = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    // The API server sets this label when it reads a namespace, with the name as its value.
    let name = labels.get(LABEL_NAMESPACE_NAME).map_or(&*namespace.metadata.name, String::as_str);
    runner_namespaces.names.contains(name)
        || runner_namespaces.selectors.iter().any(|selector| selector.matches(&labels))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn review(namespace: &Value, config: &Config, snapshot: &Snapshot) -> Decision {
        super::review(&PodView::of(namespace).unwrap(), config, snapshot)
    }

    fn snapshot(view: SourcePresence) -> Snapshot {
        let clone = &Config::default().clones[0];
        Snapshot { sources: [(clone.secret.clone(), (clone.from.clone(), view))].into(), ..Snapshot::default() }
    }

    fn namespace(name: &str) -> Value {
        json!({"metadata": {"name": name, "labels": {LABEL_NAMESPACE_NAME: name, "team": "x"}}})
    }

    #[test]
    fn warns_of_a_missing_source_in_runner_namespaces_only() {
        let by_label =
            Config::from_yaml("runnerNamespaces: {names: [], selectors: [{matchLabels: {team: x}}]}").unwrap();
        let by_name = Config::default();
        let table = [
            (&by_name, "gitlab-runner", SourcePresence::Missing, "source-missing"),
            (&by_name, "gitlab-runner", SourcePresence::Present, "runner-namespace"),
            (&by_name, "gitlab-runner", SourcePresence::NotLoaded, "runner-namespace"),
            (&by_name, "other", SourcePresence::Missing, "other-namespace"),
            (&by_label, "other", SourcePresence::Missing, "source-missing"),
        ];
        for (config, name, view, reason) in table {
            let decision = review(&namespace(name), config, &snapshot(view));
            assert_eq!((decision.reason, decision.word()), (reason, "allowed"), "{name} {view:?}");
            assert_eq!(decision.warnings.len(), usize::from(reason == "source-missing"));
        }
    }

    #[test]
    fn the_warning_names_the_source() {
        let decision = review(&namespace("gitlab-runner"), &Config::default(), &snapshot(SourcePresence::Missing));
        assert_eq!(
            decision.warnings[0].to_string(),
            "Secret gitlab/gitlab-gitlab-runner-secret is missing; it is cloned here once it exists"
        );
    }

    #[test]
    fn before_the_first_list_nothing_is_said() {
        let decision = review(&namespace("gitlab-runner"), &Config::default(), &Snapshot::default());
        assert!(decision.warnings.is_empty());
    }

    #[test]
    fn any_shape_will_do() {
        for odd in [json!({}), json!({"metadata": null}), json!({"metadata": {"labels": null, "name": null}})] {
            assert_eq!(review(&odd, &Config::default(), &Snapshot::default()).reason, "other-namespace");
        }
    }
}
