use gitlab_runner_webhook::config::Config;

use super::*;

fn rule(matches: &Value, namespace: &str) -> Value {
    json!({
        "name": "sync-gitlab-runner-secret",
        "match": matches,
        "generate": {
            "generateExisting": true, "apiVersion": "v1", "kind": "Secret", "name": "gitlab-gitlab-runner-secret",
            "namespace": namespace, "synchronize": true,
            "clone": {"namespace": "gitlab", "name": "gitlab-gitlab-runner-secret"},
        },
    })
}

fn policy(rules: &[Value]) -> Value {
    json!({"kind": "ClusterPolicy", "metadata": {"name": "p"}, "spec": {"rules": rules}})
}

fn by_label(labels: &Value) -> Value {
    json!({"resources": {"kinds": ["Namespace"], "selector": {"matchLabels": labels}}})
}

fn read(rules: &[Value]) -> Policy {
    Policy::read(&policy(rules)).unwrap()
}

fn problem(rules: &[Value]) -> String {
    Policy::read(&policy(rules)).unwrap_err().join("; ")
}

#[test]
fn big_bangs_rule_names_one_namespace() {
    let policy = read(&[rule(&by_label(&json!({"kubernetes.io/metadata.name": "gitlab-runner"})), "gitlab-runner")]);
    assert_eq!(policy.covered.names, BTreeSet::from(["gitlab-runner".to_owned()]));
    assert!(policy.covered.selectors.is_empty() && policy.rules[0].synchronize);
    let config = Config::from_yaml(&policy.configuration(&"p".parse().unwrap())).unwrap();
    assert_eq!(config.clones, Config::default().clones);
    assert_eq!(config.runner_namespaces.names, Config::default().runner_namespaces.names);
}

#[test]
fn the_namespace_of_the_source_is_no_runner_namespace() {
    let trigger = "{{request.object.metadata.name}}";
    let both = json!({"resources": {"kinds": ["Namespace"], "names": ["gitlab", "gitlab-runner"]}});
    let policy = read(&[rule(&both, trigger)]);
    let config = Config::from_yaml(&policy.configuration(&"p".parse().unwrap())).unwrap();
    assert_eq!(config.runner_namespaces.names, Config::default().runner_namespaces.names);
    // Of two sources in two namespaces, each has a clone in the other's: no configuration says that.
    let mut other = rule(&both, trigger);
    other["generate"]["clone"]["namespace"] = json!("gitlab-runner");
    other["generate"]["clone"]["name"] = json!("other");
    other["generate"]["name"] = json!("other");
    let policy = read(&[rule(&both, trigger), other]);
    Config::from_yaml(&policy.configuration(&"p".parse().unwrap())).unwrap_err();
}

#[test]
fn selector_labels_become_selectors() {
    let mut second = rule(&by_label(&json!({"tier": "ci", "team": "a"})), "{{ request.object.metadata.name }}");
    second["name"] = json!("sync-gitlab-runner-secret-1");
    let policy = read(&[rule(&by_label(&json!({"runner": "yes"})), "{{request.object.metadata.name}}"), second]);
    assert!(policy.covered.names.is_empty());
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    assert!(policy.covered.has("a", &labels(&[("runner", "yes")])));
    assert!(policy.covered.has("a", &labels(&[("tier", "ci"), ("team", "a")])));
    assert!(!policy.covered.has("a", &labels(&[("tier", "ci")])));
    let config = Config::from_yaml(&policy.configuration(&"p".parse().unwrap())).unwrap();
    assert!(config.runner_namespaces.names.is_empty());
    assert_eq!(config.runner_namespaces.selectors.len(), 2);
}

#[test]
fn names_are_understood_in_every_shape() {
    let trigger = "{{request.object.metadata.name}}";
    let shapes = [
        json!({"resources": {"kinds": ["v1/Namespace"], "names": ["a", "b"]}}),
        json!({"any": [{"resources": {"kinds": ["Namespace"], "name": "a"}}, {"resources": {"kinds": ["Namespace"], "names": ["b"]}}]}),
        json!({"all": [{"resources": {"kinds": ["Namespace"], "names": ["a", "b"], "operations": ["CREATE"]}}]}),
        json!({"resources": {"kinds": ["Namespace"], "selector": {"matchExpressions": [
            {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}]}}}),
    ];
    for shape in shapes {
        let names = read(&[rule(&shape, trigger)]).covered.names;
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["a", "b"], "{shape}");
    }
    let both = json!({"resources": {"kinds": ["Namespace"], "names": ["a"], "selector": {"matchLabels": {"x": "y"}}}});
    let covered = read(&[rule(&both, trigger)]).covered;
    let labels = |name: &str| BTreeMap::from([("x".into(), "y".into()), (LABEL_NAMESPACE_NAME.into(), name.into())]);
    assert!(covered.has("a", &labels("a")) && !covered.has("b", &labels("b")));
}

#[test]
fn synchronize_false_is_a_policy_that_was_orphaned() {
    let mut orphaned = rule(&by_label(&json!({"runner": "yes"})), "{{request.object.metadata.name}}");
    orphaned["generate"]["synchronize"] = json!(false);
    assert!(!read(&[orphaned]).rules[0].synchronize);
}

#[test]
fn whatever_else_a_policy_does_is_named() {
    let good = rule(&by_label(&json!({"runner": "yes"})), "{{request.object.metadata.name}}");
    let with = |pointer: &str, value: Value| {
        let mut rule = good.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        rule.pointer_mut(parent).unwrap()[key] = value;
        rule
    };
    let table = [
        (with("/validate", json!({"message": "x"})), "something else as well"),
        (with("/mutate", json!({"targets": [1]})), "mutate"),
        (with("/exclude", json!({"any": [{"resources": {"names": ["x"]}}]})), "exclude"),
        (with("/preconditions", json!({"all": [{"key": "a"}]})), "preconditions"),
        (with("/generate/kind", json!("ConfigMap")), "else than a Secret"),
        (with("/generate/data", json!({"a": "b"})), "generate.data"),
        (with("/generate/cloneList", json!({"kinds": ["v1/Secret"]})), "generate.cloneList"),
        (with("/generate/foreach", json!([{"list": "x"}])), "generate.foreach"),
        (with("/generate/name", json!("other")), "another name"),
        (with("/generate/namespace", json!("{{request.object.metadata.labels.x}}")), "generate.namespace"),
        (with("/match/resources/kinds", json!(["Pod"])), "else than Namespace"),
        (with("/match/resources/names", json!(["team-*"])), "pattern"),
        (with("/match/resources/selector", json!({"matchLabels": {"a": "b*"}})), "pattern"),
        (with("/match/resources/selector", json!({})), "every namespace"),
        (with("/match/resources/annotations", json!({"a": "b"})), "match.resources.annotations"),
        (with("/match/subjects", json!([{"kind": "User"}])), "match.subjects"),
        (with("/match/all", json!([{"resources": {}}, {"resources": {}}])), "match.all"),
        (json!({"name": "r", "validate": {"message": "m"}, "match": {}}), "rule r"),
    ];
    for (rule, words) in table {
        let problem = problem(std::slice::from_ref(&rule));
        assert!(problem.contains(words), "{rule}\n -> {problem}");
    }
    assert!(problem(&[]).contains("no rules"));
    let mut other = rule(&by_label(&json!({"else": "where"})), "{{request.object.metadata.name}}");
    other["generate"]["name"] = json!("registry");
    other["generate"]["clone"]["name"] = json!("registry");
    assert!(problem(&[good.clone(), other]).contains("different namespaces"));
}
