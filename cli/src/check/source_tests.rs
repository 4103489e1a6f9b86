//! Tables for sources, runner namespaces and clones. PURE.

use super::super::testing::{TOKEN, assert_only, bad, clone, facts, manager, source, unseen};
use super::*;

fn judged(config: &Config, change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let mut facts = facts(config);
    change(&mut facts);
    let findings = judge(&facts, config);
    assert!(findings.iter().all(|finding| !format!("{finding:?}").contains("canary")), "{findings:?}");
    findings
}

#[test]
fn all_is_well() {
    assert_eq!(bad(&judged(&Config::default(), |_| {})), [""; 0]);
}

#[test]
fn sources_and_tokens() {
    let same = |data: &[(&str, &str)]| {
        judged(&Config::default(), |facts| {
            facts.sources = vec![Ok(Some(source(data)))];
            facts.namespaces[0].clones = vec![Ok(Some(clone(data, &[])))];
        })
    };
    for (data, expected) in [
        (vec![("runner-token", "glrt-canary")], "fault source: has no key runner-registration-token"),
        (vec![("runner-registration-token", "")], "fault source: has no key runner-token"),
        (
            vec![("runner-token", "canary\n"), ("runner-registration-token", "")],
            "fault token: runner-token begins or ends",
        ),
        (
            vec![("runner-token", "canary"), ("runner-registration-token", " canary")],
            "fault token: runner-registration-token",
        ),
        (
            vec![("runner-token", ""), ("runner-registration-token", "canary")],
            "warning token: holds a registration token",
        ),
        (vec![("runner-token", ""), ("runner-registration-token", "\n")], "fault token: runner-token and"),
    ] {
        let findings = same(&data);
        let first = bad(&findings).into_iter().next().unwrap();
        assert!(first.starts_with(expected), "{first}");
    }
}

#[test]
fn a_secret_without_tokens_has_no_such_keys() {
    let config = Config::from_yaml("clones: [{secret: pull, from: infra}]").unwrap();
    let findings = judged(&config, |facts| facts.sources = vec![Ok(Some(source(&[("auth", "canary\n")])))]);
    assert!(bad(&findings).iter().all(|told| told.contains("clone")), "{findings:?}");
    let demanding = judged(&config, |facts| {
        facts.sources = vec![Ok(Some(source(&[("auth", "x")])))];
        let mut manager = manager("https://g", None);
        manager.demands.insert("pull".to_owned(), vec!["other".to_owned()]);
        facts.namespaces[0].managers = Ok(vec![manager]);
    });
    assert!(bad(&demanding)[0].starts_with("fault source: has no key other"), "what its pods mount counts");
}

#[test]
fn clones() {
    let config = Config::default();
    let with = |there: Seen<Option<SecretFacts>>| judged(&config, |facts| facts.namespaces[0].clones = vec![there]);
    let edited = [("runner-token", "canary2"), ("runner-registration-token", "")];
    let kyverno = ["generate.kyverno.io/policy-name=sync-gitlab-runner-secret"];
    assert_only(&with(Ok(None)), "fault clone: is not there");
    assert_only(&with(Ok(Some(clone(&edited, &[])))), "fault clone: differs from its source; ours");
    assert_only(&with(Ok(Some(source(&TOKEN)))), "warning clone: equals its source; foreign");
    assert_only(&with(Err(unseen())), "unseen clone: could not see");
    let kyvernos = with(Ok(Some(clone(&TOKEN, &kyverno))));
    assert_only(&kyvernos, "warning clone: equals its source; still has Kyverno's labels");
    let remediation = |findings: &[Finding], remediation: &str| {
        assert!(findings.iter().any(|finding| finding.remediation.starts_with(remediation)), "{findings:?}");
    };
    remediation(&kyvernos, "gitlab-runner-webhook migrate --policy sync-gitlab-runner-secret");
    let nameless = with(Ok(Some(clone(&TOKEN, &["generate.kyverno.io/rule-name=x"]))));
    remediation(
        &nameless,
        "kubectl label secret gitlab-gitlab-runner-secret -n gitlab-runner generate.kyverno.io/rule-name-",
    );
    for kyvernos in [Ok(true), Err(unseen())] {
        let alive = judged(&config, |facts| {
            facts.kyverno = kyvernos;
            facts.namespaces[0].clones = vec![Ok(Some(clone(&TOKEN, &kyverno)))];
        });
        assert_eq!(bad(&alive), [""; 0], "the policy itself is the finding");
    }
    let refuse =
        Config::from_yaml("clones: [{secret: gitlab-gitlab-runner-secret, from: gitlab, onForeignTarget: refuse}]");
    let refused = judged(&refuse.unwrap(), |facts| facts.namespaces[0].clones = vec![Ok(Some(source(&edited)))]);
    assert_only(&refused, "fault clone: differs from its source; foreign");
    assert!(refused.iter().any(|finding| finding.remediation.contains("kubectl delete secret")), "{refused:?}");
}

#[test]
fn without_a_source_that_is_the_only_fault() {
    let gone = |clones| {
        judged(&Config::default(), |facts| {
            facts.sources = vec![Ok(None)];
            facts.namespaces[0].clones = clones;
        })
    };
    assert_only(&gone(vec![Ok(None)]), "fault source: is not there");
    assert_only(&gone(vec![Ok(Some(clone(&TOKEN, &[])))]), "fault source: is not there");
    let unseen = judged(&Config::default(), |facts| facts.sources = vec![Err(unseen())]);
    assert_eq!(bad(&unseen).len(), 2, "{unseen:?}");
}

#[test]
fn runner_namespaces() {
    for (presence, expected) in [
        (Ok(Presence::Absent), "warning runner-namespace: is not there"),
        (Ok(Presence::Terminating), "warning runner-namespace: is being deleted"),
        (Err(unseen()), "unseen runner-namespace"),
    ] {
        let findings = judged(&Config::default(), |facts| facts.namespaces[0].presence = presence);
        assert_only(&findings, expected);
    }
    assert_only(&judged(&Config::default(), |facts| facts.unlisted = vec![unseen()]), "unseen runner-namespace");
}
