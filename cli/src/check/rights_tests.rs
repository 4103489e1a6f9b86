//! Tables for rights. PURE.

use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::json;

use super::super::testing::{assert_only, bad, facts, grants, unseen};
use super::*;
use crate::drift::Program;

fn judged(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let config = Config::default();
    let mut facts = facts(&config);
    change(&mut facts);
    judge(&facts, &config)
}

fn rule(value: serde_json::Value) -> PolicyRule {
    serde_json::from_value(value).unwrap()
}

/// One more binding.
fn bound(rules: serde_json::Value) -> Vec<Finding> {
    judged(|facts| {
        let binding = Named { kind: "ClusterRoleBinding", namespace: None, name: "extra".to_owned() };
        let role = Named { kind: "ClusterRole", namespace: None, name: "extra".to_owned() };
        let rules = serde_json::from_value(rules).unwrap();
        facts.rights.grants.push(Grant { binding, role, rules: Some(rules), is_for_group: false });
    })
}

#[test]
fn both_forms_are_fine() {
    assert_eq!(bad(&judged(|_| {})), [""; 0]);
    let namespaced = judged(|facts| facts.rights.grants = grants(&Program::shipped(), &Config::default(), 1));
    assert_eq!(bad(&namespaced), [""; 0]);
}

#[test]
fn each_verb_that_is_taken_away_is_missed() {
    let config = Config::default();
    for form in [0, 1] {
        let all = grants(&Program::shipped(), &config, form);
        for (grant, rule) in all
            .iter()
            .enumerate()
            .flat_map(|(grant, found)| (0..found.rules.as_ref().unwrap().len()).map(move |rule| (grant, rule)))
        {
            let verbs = all[grant].rules.as_ref().unwrap()[rule].verbs.len();
            for verb in 0..verbs {
                let mut taken = String::new();
                let findings = judged(|facts| {
                    facts.rights.grants = all.clone();
                    taken = facts.rights.grants[grant].rules.as_mut().unwrap()[rule].verbs.remove(verb);
                });
                assert_only(&findings, &format!("fault rights: lacks {taken} "));
                assert!(findings[0].remediation.contains(&format!("verbs: [\"{taken}\"]")), "{findings:?}");
            }
        }
    }
}

#[test]
fn a_binding_that_is_missing_is_written_out() {
    let findings = judged(|facts| _ = facts.rights.grants.remove(0));
    assert_only(
        &findings,
        "fault rights: lacks get deployments.apps/gitlab-runner-webhook in namespace gitlab-runner-webhook, ",
    );
    assert!(findings[0].remediation.contains("kind: RoleBinding"), "{findings:?}");
    let roleless = judged(|facts| facts.rights.grants[0].rules = None);
    assert_only(&roleless, "fault rights: lacks get deployments.apps/gitlab-runner-webhook");
}

#[test]
fn what_is_too_much_is_named_with_who_gives_it() {
    for (rules, told) in [
        (json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}]), "list secrets"),
        (json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]), "do anything to everything"),
        (
            json!([{"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["x"], "verbs": ["get", "patch"]}]),
            "get+patch deployments.apps/x",
        ),
        (json!([{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]), "get URL /metrics"),
    ] {
        let findings = bound(rules);
        assert_only(&findings, &format!("fault rights: may, without need, {told}"));
        assert!(findings[0].remediation.contains("kubectl delete clusterrolebinding/extra"), "{findings:?}");
    }
    let name = "gitlab-gitlab-runner-secret";
    let same = json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": [name], "verbs": ["get"]}]);
    assert_eq!(bad(&bound(same)), [""; 0], "given twice is not too much");
}

#[test]
fn wide_rights_hold_narrow_ones() {
    let findings = judged(|facts| {
        let all = rule(json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}));
        facts.rights.grants.truncate(1);
        facts.rights.grants[0].binding.namespace = None;
        facts.rights.grants[0].rules = Some(vec![all]);
    });
    assert_only(&findings, "fault rights: may, without need, do anything to everything");
}

#[test]
fn what_was_not_read_is_not_missing() {
    let findings = judged(|facts| {
        facts.rights.grants.clear();
        facts.rights.unseen = vec![unseen()];
    });
    assert_only(&findings, "unseen rights");
}

#[test]
fn a_role_of_ours_is_written_anew_and_never_deleted() {
    let config = Config::from_yaml("clones: [{secret: other, from: gitlab}]").unwrap();
    let facts = facts(&Config::default());
    let findings = judge(&facts, &config);
    let surplus: Vec<_> = findings.iter().filter(|finding| finding.what.starts_with("may, without need")).collect();
    assert!(!surplus.is_empty(), "{findings:?}");
    for finding in surplus {
        assert!(
            finding.remediation.contains("gitlab-runner-webhook manifests") && !finding.remediation.contains("delete"),
            "{finding:?}"
        );
    }
}

#[test]
fn what_a_platform_gives_to_every_account_is_no_fault() {
    let findings = judged(|facts| {
        let name = || "system:image-pullers".to_owned();
        let binding = Named { kind: "RoleBinding", namespace: Some("gitlab-runner-webhook".to_owned()), name: name() };
        let role = Named { kind: "ClusterRole", namespace: None, name: name() };
        let rules =
            rule(json!({"apiGroups": ["image.openshift.io"], "resources": ["imagestreams/layers"], "verbs": ["get"]}));
        facts.rights.grants.push(Grant { binding, role, rules: Some(vec![rules]), is_for_group: true });
    });
    assert_only(&findings, "warning rights: may, without need, get imagestreams/layers");
    assert!(findings.iter().all(|finding| !finding.remediation.contains("delete")), "{findings:?}");
}
