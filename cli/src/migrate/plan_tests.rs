use serde_json::json;

use super::*;

const POLICY: &str = "sync-gitlab-runner-secret";

fn rule(labels: &Value, namespace: &str) -> Value {
    json!({
        "name": "r",
        "match": {"resources": {"kinds": ["Namespace"], "selector": {"matchLabels": labels}}},
        "generate": {
            "apiVersion": "v1", "kind": "Secret", "name": "gitlab-gitlab-runner-secret", "namespace": namespace,
            "synchronize": true, "clone": {"namespace": "gitlab", "name": "gitlab-gitlab-runner-secret"},
        },
    })
}

fn big_bang() -> Value {
    rule(&json!({"kubernetes.io/metadata.name": "gitlab-runner"}), "gitlab-runner")
}

fn namespace(name: &str, labels: &[(&str, &str)]) -> Namespace {
    let mut labels: BTreeMap<_, _> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    labels.insert(LABEL_NAMESPACE_NAME.to_owned(), name.to_owned());
    Namespace { name: name.to_owned(), labels, terminating: false }
}

fn found(rules: &[Value], config: &str) -> Found {
    Found {
        policy: Some(json!({"metadata": {"name": POLICY}, "spec": {"rules": rules}})),
        generating: Some(false),
        namespaces: vec![namespace("gitlab", &[]), namespace("gitlab-runner", &[]), namespace("other", &[])],
        left: BTreeSet::from([("gitlab-runner".to_owned(), "gitlab-gitlab-runner-secret".to_owned())]),
        has_requests: false,
        deployment: Some(json!({
            "metadata": {"generation": 2}, "spec": {"replicas": 1},
            "status": {"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1},
        })),
        config: Ok(Config::from_yaml(config).unwrap()),
        managed_by: None,
    }
}

fn plan(found: &Found) -> Plan {
    Plan::new(&POLICY.parse().unwrap(), found, false)
}

fn targets(plan: &Plan) -> Vec<&str> {
    plan.targets.iter().map(|target| target.namespace.as_str()).collect()
}

fn words(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(ToString::to_string).collect()
}

fn refused(found: &Found, words: &[&str]) {
    let plan = plan(found);
    let said = plan.refusals.join("\n");
    assert!(!said.is_empty() && plan.steps.is_empty(), "{plan:?}");
    for word in words {
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn the_policy_is_orphaned_before_and_removed_after_the_clones_are_taken_over() {
    let plan = plan(&found(&[big_bang()], ""));
    assert_eq!(plan.refusals, Vec::<String>::new());
    assert_eq!(words(&plan), ["orphan", "drop-requests", "take-over", "remove", "drop-requests", "verify"]);
    assert_eq!(targets(&plan), ["gitlab-runner"]);
    assert!(plan.synchronized);
}

#[test]
fn without_policy_what_it_left_is_taken_over_and_without_that_nothing_is_done() {
    let mut gone = found(&[], "");
    gone.policy = None;
    assert_eq!(words(&plan(&gone)), ["drop-requests", "take-over", "verify"]);
    gone.left.clear();
    assert!(plan(&gone).steps.is_empty() && plan(&gone).refusals.is_empty());
    // Interrupted after the policy was deleted: Kyverno 1.19 deletes by name what a request of such a policy names.
    gone.has_requests = true;
    assert_eq!(words(&plan(&gone)), ["drop-requests", "verify"]);
    assert!(plan(&gone).notes[0].contains("still has in hand"), "{:?}", plan(&gone).notes);
}

#[test]
fn what_the_policy_covers_the_program_must_cover() {
    let trigger = "{{request.object.metadata.name}}";
    let labelled = |config: &str| {
        let mut found = found(&[rule(&json!({"runner": "yes", "tier": "ci"}), trigger)], config);
        found.namespaces.push(namespace("a", &[("runner", "yes"), ("tier", "ci")]));
        found.left.clear();
        found
    };
    let selectors = |selector: &str| format!("runnerNamespaces: {{names: [], selectors: [{selector}]}}");
    for covers in [
        "{matchLabels: {runner: 'yes'}}",
        "{matchLabels: {runner: 'yes', tier: ci}}",
        "{matchExpressions: [{key: tier, operator: In, values: [ci, build]}]}",
        "{matchExpressions: [{key: runner, operator: Exists}]}",
    ] {
        let plan = plan(&labelled(&selectors(covers)));
        assert_eq!((plan.refusals.len(), targets(&plan)), (0, vec!["a"]), "{covers}: {:?}", plan.refusals);
    }
    // It has the namespace that is there, not the one that is made tomorrow.
    refused(&labelled("runnerNamespaces: {names: [a]}"), &["no selector", "runner=yes"]);
    refused(&labelled(&selectors("{matchLabels: {runner: 'yes', team: x}}")), &["no selector", "namespace a"]);
    refused(&found(&[big_bang()], "runnerNamespaces: {names: [other]}"), &["does not cover namespace gitlab-runner"]);
    let elsewhere = "clones: [{secret: gitlab-gitlab-runner-secret, from: infra}]";
    refused(
        &found(&[big_bang()], elsewhere),
        &["does not clone Secret gitlab-gitlab-runner-secret from namespace gitlab"],
    );
    // A clone that the policy once made, where it does not any more.
    let mut stray = found(&[big_bang()], "");
    stray.left.insert(("other".to_owned(), "gitlab-gitlab-runner-secret".to_owned()));
    refused(&stray, &["does not cover namespace other"]);
}

#[test]
fn namespaces_that_go_and_the_source_itself_are_no_targets() {
    let config = "runnerNamespaces: {names: [], selectors: [{matchLabels: {runner: 'yes'}}]}";
    let mut found = found(&[rule(&json!({"runner": "yes"}), "{{request.object.metadata.name}}")], config);
    found.left.clear();
    found.namespaces = vec![namespace("gitlab", &[("runner", "yes")]), namespace("going", &[("runner", "yes")])];
    found.namespaces[1].terminating = true;
    let plan = plan(&found);
    assert!(plan.refusals.is_empty() && plan.targets.is_empty(), "{plan:?}");
}

#[test]
fn what_kyverno_made_for_nobody_is_ours_where_the_configuration_says_so() {
    let mut namespaces = found(&[], "").namespaces;
    let is = |namespaces: &[Namespace], of: &str, secret: &str| is_clone(&Config::default(), namespaces, of, secret);
    let secret = "gitlab-gitlab-runner-secret";
    assert!(is(&namespaces, "gitlab-runner", secret));
    assert!(!is(&namespaces, "gitlab-runner", "other") && !is(&namespaces, "gitlab", secret));
    assert!(!is(&namespaces, "other", secret) && !is(&namespaces, "nowhere", secret));
    namespaces[1].terminating = true;
    assert!(!is(&namespaces, "gitlab-runner", secret));
}

#[test]
fn a_program_that_is_not_there_or_not_ready_takes_nothing_over() {
    let mut missing = found(&[big_bang()], "");
    missing.deployment = None;
    refused(&missing, &["not installed", "--namespace"]);
    assert_eq!(plan(&missing).refusals.len(), 1, "what is not there is not judged");
    assert!(plan(&missing).configuration.is_some(), "and what it needs is said");
    for (pointer, value) in [
        ("/status/availableReplicas", 0),
        ("/status/updatedReplicas", 0),
        ("/status/observedGeneration", 1),
        ("/status/replicas", 2),
        ("/spec/replicas", 0),
    ] {
        let mut found = found(&[big_bang()], "");
        *found.deployment.as_mut().unwrap().pointer_mut(pointer).unwrap() = json!(value);
        refused(&found, &["not ready", "rollout status"]);
    }
    let mut unknown = found(&[big_bang()], "");
    unknown.config = Err("no ConfigMap".to_owned());
    refused(&unknown, &["no ConfigMap"]);
}

#[test]
fn a_policy_that_would_come_back_is_left_unless_its_manager_rests() {
    let mut managed = found(&[big_bang()], "");
    let labels = json!({"helm.toolkit.fluxcd.io/name": "x", "helm.toolkit.fluxcd.io/namespace": "y"});
    managed.managed_by = ManagedBy::of(&json!({"metadata": {"labels": labels}}));
    refused(&managed, &["flux suspend"]);
    let forced = Plan::new(&POLICY.parse().unwrap(), &managed, true);
    assert!(forced.refusals.is_empty() && forced.notes[0].contains("--force-managed"));
    managed.managed_by.as_mut().unwrap().state = State::Suspended;
    let plan = plan(&managed);
    assert!(plan.refusals.is_empty() && plan.notes[0].contains("suspended"), "{plan:?}");
}

#[test]
fn a_configuration_that_cannot_be_is_not_shown() {
    let found = found(&[rule(&json!({"kubernetes.io/metadata.name": "kube-system"}), "kube-system")], "");
    refused(&found, &["no configuration can say", "kube-system"]);
    assert_eq!(plan(&found).configuration, None);
}

#[test]
fn a_generating_policy_of_the_same_name_keeps_its_clones() {
    let mut both = found(&[big_bang()], "");
    both.generating = Some(true);
    refused(&both, &["GeneratingPolicy sync-gitlab-runner-secret lives"]);
    both.policy = None;
    refused(&both, &["GeneratingPolicy sync-gitlab-runner-secret lives"]);
    both.generating = None;
    let plan = plan(&both);
    assert!(plan.refusals.is_empty() && plan.notes[0].contains("is not known: you may not get it"), "{plan:?}");
}

#[test]
fn a_policy_that_does_more_is_refused_whole() {
    let mut more = big_bang();
    more["mutate"] = json!({"targets": ["x"]});
    refused(&found(&[big_bang(), more], ""), &["does more than this program can", "mutate"]);
}
