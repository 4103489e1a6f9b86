//! Tables for webhooks and guards beside the configuration. PURE.

use serde_json::json;

use super::super::testing::{assert_only, at_mut, bad, facts, unseen};
use super::*;

const TWO: &str = "runnerNamespaces: {names: [gitlab-runner, two], selectors: [{matchLabels: {team: ci}}]}";

fn judged(config: &Config, change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let mut facts = facts(config);
    change(&mut facts);
    judge(&facts, config)
}

fn validating(facts: &mut Facts) -> &mut Value {
    facts.serving.validating.as_mut().unwrap().as_mut().unwrap()
}

#[test]
fn what_is_written_for_a_configuration_agrees_with_it() {
    for yaml in ["", TWO, "gate: {giveUpAfter: 0s}", "certs: {from: infra, inject: {manager: false, jobs: false}}"] {
        let config = Config::from_yaml(yaml).unwrap();
        assert_eq!(bad(&judged(&config, |_| {})), [""; 0], "{yaml}");
    }
}

#[test]
fn another_configuration_disagrees_in_every_place() {
    let facts = facts(&Config::default());
    let told = bad(&judge(&facts, &Config::from_yaml(TWO).unwrap()));
    assert_eq!(told.len(), 3, "{told:#?}");
    assert!(told[0].contains("inject-2.pods.gitlab-runner-webhook is missing"), "{told:#?}");
    assert!(told[2].starts_with("fault guards: differs from what the configuration says in variables"), "{told:#?}");
}

#[test]
fn each_difference_of_a_webhook_is_named() {
    for (pointer, value, expected) in [
        (
            "/webhooks/0/namespaceSelector/matchExpressions/0/values",
            json!(["x"]),
            "namespaceSelector.matchExpressions[0].values[0]",
        ),
        ("/webhooks/0/objectSelector", json!({}), "objectSelector.matchExpressions"),
        ("/webhooks/0/rules/0/operations", json!(["CREATE", "UPDATE"]), "rules[0].operations"),
        ("/webhooks/0/matchConditions", json!([]), "matchConditions"),
        ("/webhooks/0/clientConfig/service/path", json!("/x"), "clientConfig.service.path"),
        ("/webhooks/0/timeoutSeconds", json!(30), "timeoutSeconds"),
    ] {
        let findings = judged(&Config::default(), |facts| *at_mut(validating(facts), pointer) = value);
        assert_only(
            &findings,
            "fault webhooks: differs from what the configuration says in gate.pods.gitlab-runner-webhook: ",
        );
        assert!(bad(&findings)[0].ends_with(expected), "{findings:?}");
    }
    let surplus = judged(&Config::default(), |facts| {
        at_mut(validating(facts), "/webhooks").as_array_mut().unwrap().push(json!({"name": "x.example.com"}));
    });
    assert_only(&surplus, "fault webhooks: differs from what the configuration says in x.example.com is one too many");
}

#[test]
fn what_may_vary_is_no_difference() {
    let findings = judged(&Config::default(), |facts| {
        *at_mut(validating(facts), "/webhooks/0/failurePolicy") = json!("Ignore");
        *at_mut(validating(facts), "/webhooks/0/clientConfig") =
            json!({"url": "https://127.0.0.1:1/validate/pods", "caBundle": "eA=="});
    });
    assert_eq!(bad(&findings), [""; 0]);
    let warning = judged(&Config::default(), |facts| {
        let mutating = facts.serving.mutating.as_mut().unwrap().as_mut().unwrap();
        *at_mut(mutating, "/webhooks/1/failurePolicy") = json!("Fail");
    });
    assert!(bad(&warning)[0].ends_with("warn.namespaces.gitlab-runner-webhook: failurePolicy"), "{warning:?}");
}

#[test]
fn guards() {
    let config = Config::default();
    assert_only(&judged(&config, |facts| facts.guards[0].1 = Ok(None)), "fault guards: is not there");
    let unbound = judged(&config, |facts| facts.guards[1].2 = Ok(None));
    assert_only(&unbound, "fault guards: its ValidatingAdmissionPolicyBinding is not there");
    assert_only(&judged(&config, |facts| facts.guards[1].1 = Err(unseen())), "unseen guards");
    let change = |index: usize, pointer: &'static str, value: Value| {
        judged(&Config::default(), |facts| {
            let guard = &mut facts.guards[index];
            let object = if pointer.contains("Actions") { &mut guard.2 } else { &mut guard.1 };
            *at_mut(object.as_mut().unwrap().as_mut().unwrap(), pointer) = value;
        })
    };
    let weaker = "fault guards: differs from what the configuration says in ";
    assert_only(&change(0, "/spec/failurePolicy", json!("Ignore")), &format!("{weaker}failurePolicy"));
    let narrow = json!({"resourceRules": [], "namespaceSelector": {"matchLabels": {"a": "b"}}});
    assert_only(&change(0, "/spec/matchConstraints", narrow), &format!("{weaker}matchConstraints"));
    let condition = "/spec/matchConditions/0/expression";
    let nobody =
        "fault guards: does not bind ServiceAccount gitlab-runner-webhook/gitlab-runner-webhook: matchConditions[0]";
    let of_another = json!("request.userInfo.username == 'system:serviceaccount:elsewhere:gitlab-runner-webhook'");
    for expression in [json!("false"), of_another] {
        assert_only(&change(1, condition, expression), nobody);
    }
    let audit = change(1, "/spec/validationActions", json!(["Audit"]));
    assert_only(&audit, "fault guards: its ValidatingAdmissionPolicyBinding differs");
    assert_eq!(bad(&change(1, "/spec/validationActions", json!(["Audit", "Deny"]))), [""; 0]);
}
