use serde_json::json;

use super::*;
use crate::sync::testing::secret;

const ACTIVE: Namespace = Namespace { terminating: false };

fn name(name: &str) -> NamespaceName {
    name.parse().unwrap()
}

fn target(namespace: &str) -> Target {
    Target { subject: Subject::Clone(0), namespace: name(namespace) }
}

fn state() -> SecretState {
    SecretState::from(secret(json!({"stringData": {"k": "v"}})))
}

fn marked(targets: BTreeSet<Target>) -> Vec<String> {
    let clones = targets.into_iter().filter(|target| target.subject == Subject::Clone(0));
    clones.map(|target| target.namespace.to_string()).collect()
}

#[test]
fn what_vanished_while_the_watch_was_down_is_looked_at() {
    let (config, mut observed) = (Config::default(), Observed::new(1, 1));
    for change in [Change::ListBegins, Change::Listed((name("a"), state())), Change::ListEnds] {
        observed.secret(&config, 0, change);
    }
    assert!(observed.target(0, &name("a")).is_some());
    assert!(observed.secret(&config, 0, Change::ListBegins).is_empty());
    let listed = observed.secret(&config, 0, Change::Listed((name("gitlab"), state())));
    assert!(listed.is_empty() && observed.target(0, &name("a")).is_some(), "half a list says nothing");
    observed.namespace(&config, 0, Change::Applied((name("gitlab-runner"), ACTIVE)));
    assert_eq!(marked(observed.secret(&config, 0, Change::ListEnds)), ["a", "gitlab", "gitlab-runner"]);
    assert!(observed.target(0, &name("a")).is_none());
    assert!(matches!(observed.source(&config, 0), SourceView::Present(_)));
}

#[test]
fn missing_is_known_only_after_the_first_list() {
    let (config, mut observed) = (Config::default(), Observed::new(1, 1));
    assert!(matches!(observed.source(&config, 0), SourceView::NotLoaded));
    observed.secret(&config, 0, Change::ListBegins);
    assert!(matches!(observed.source(&config, 0), SourceView::NotLoaded));
    observed.secret(&config, 0, Change::ListEnds);
    assert!(matches!(observed.source(&config, 0), SourceView::Missing));
    observed.secret(&config, 0, Change::Applied((name("gitlab"), state())));
    observed.secret(&config, 0, Change::Deleted((name("gitlab"), state())));
    assert!(matches!(observed.source(&config, 0), SourceView::Missing));
}

#[test]
fn nobody_is_unselected_before_every_watch_has_listed() {
    let mut config = Config::default();
    config.runner_namespaces.names.clear();
    let mut observed = Observed::new(2, 1);
    for change in [Change::ListBegins, Change::Listed((name("a"), state())), Change::ListEnds] {
        observed.secret(&config, 0, change);
    }
    for change in [Change::ListBegins, Change::ListEnds] {
        assert!(observed.namespace(&config, 0, change).is_empty());
    }
    assert_eq!(observed.namespace_of(&config, &target("a")), NamespaceView::NotLoaded);
    observed.namespace(&config, 1, Change::ListBegins);
    assert_eq!(marked(observed.namespace(&config, 1, Change::ListEnds)), ["a"], "now it can be said");
    assert_eq!(observed.namespace_of(&config, &target("a")), NamespaceView::NotSelected);
}

#[test]
fn a_namespace_is_selected_as_long_as_one_watch_delivers_it() {
    let (config, mut observed) = (Config::default(), Observed::new(2, 1));
    observed.secret(&config, 0, Change::ListEnds);
    for watch in [0, 1] {
        observed.namespace(&config, watch, Change::Applied((name("a"), ACTIVE)));
        observed.namespace(&config, watch, Change::ListEnds);
    }
    observed.namespace(&config, 0, Change::Applied((name("a"), ACTIVE)));
    assert_eq!(observed.namespace_of(&config, &target("a")), NamespaceView::Active);
    assert_eq!(marked(observed.namespace(&config, 0, Change::Deleted((name("a"), ACTIVE)))), ["a"]);
    assert_eq!(observed.namespace_of(&config, &target("a")), NamespaceView::NotSelected, "nothing is left there");
    assert_eq!(observed.namespace_of(&config, &target("gitlab-runner")), NamespaceView::Absent);
    assert_eq!(observed.namespace_of(&config, &target("gitlab")), NamespaceView::OfSource);
}

#[test]
fn a_trust_namespace_has_a_bundle_and_no_clone() {
    let config = Config::from_yaml("trustNamespaces: {names: [ci], selectors: [{matchLabels: {ci: 'yes'}}]}").unwrap();
    let mut observed = Observed::new(3, 1).with_trust_namespaces(2);
    observed.secret(&config, 0, Change::ListEnds);
    observed.bundle(Change::ListEnds);
    for (watch, namespace) in ["gitlab-runner", "ci", "labelled"].into_iter().enumerate() {
        observed.namespace(&config, watch, Change::Applied((name(namespace), ACTIVE)));
        observed.namespace(&config, watch, Change::ListEnds);
    }
    let trust = |namespace: &str| Target { subject: Subject::Trust, namespace: name(namespace) };
    for (watch, namespace) in ["gitlab-runner", "ci", "labelled"].into_iter().enumerate() {
        observed.namespace(&config, watch, Change::Applied((name(namespace), ACTIVE)));
        assert_eq!(observed.namespace_of(&config, &trust(namespace)), NamespaceView::Active);
        let of_clone = observed.namespace_of(&config, &target(namespace));
        assert_eq!(of_clone == NamespaceView::Active, namespace == "gitlab-runner", "{namespace}");
    }
    assert_eq!(observed.runner_namespaces(), BTreeSet::from([name("gitlab-runner")]));
    observed.namespace(&config, 1, Change::Deleted((name("ci"), ACTIVE)));
    assert_eq!(observed.namespace_of(&config, &trust("ci")), NamespaceView::Absent);
    assert_eq!(observed.namespace_of(&config, &target("ci")), NamespaceView::NotSelected);
}

#[test]
fn that_a_namespace_left_is_known_only_to_who_saw_it_selected() {
    let (config, mut observed) = (Config::default(), Observed::new(1, 1));
    for change in [
        Change::ListBegins,
        Change::Listed((name("a"), state())),
        Change::Listed((name("b"), state())),
        Change::Listed((name("c"), state())),
        Change::ListEnds,
    ] {
        observed.secret(&config, 0, change);
    }
    for change in [Change::Listed((name("a"), ACTIVE)), Change::Listed((name("b"), ACTIVE)), Change::ListEnds] {
        observed.namespace(&config, 0, change);
    }
    observed.namespace(&config, 0, Change::Deleted((name("a"), ACTIVE)));
    // And one vanished while the watch was down.
    for change in [Change::ListBegins, Change::ListEnds] {
        observed.namespace(&config, 0, change);
    }
    let view = |observed: &Observed, name| observed.namespace_of(&config, &target(name));
    assert_eq!(view(&observed, "a"), NamespaceView::Left);
    assert_eq!(view(&observed, "b"), NamespaceView::Left);
    assert_eq!(view(&observed, "c"), NamespaceView::NotSelected, "never selected");
    observed.namespace(&config, 0, Change::Applied((name("a"), ACTIVE)));
    assert_eq!(view(&observed, "a"), NamespaceView::Active);
}

#[test]
fn a_change_of_the_source_reaches_every_clone_and_that_of_a_clone_only_itself() {
    let (config, mut observed) = (Config::default(), Observed::new(1, 1));
    for namespace in ["a", "b"] {
        observed.namespace(&config, 0, Change::Applied((name(namespace), ACTIVE)));
    }
    let changed = observed.secret(&config, 0, Change::Applied((name("gitlab"), state())));
    assert_eq!(marked(changed), ["a", "b", "gitlab"]);
    assert_eq!(marked(observed.secret(&config, 0, Change::Applied((name("b"), state())))), ["b"]);
}
