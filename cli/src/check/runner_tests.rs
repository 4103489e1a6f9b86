//! Tables for manager pods and the token that they read. PURE.

use super::super::testing::{assert_only, bad, facts, manager, unseen};
use super::*;

fn judged(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let config = Config::default();
    let mut facts = facts(&config);
    facts.namespaces[0].managers = Ok(vec![manager("https://gitlab.example.com", None)]);
    change(&mut facts);
    judge(&facts, &config)
}

fn written(facts: &mut Facts, source: Option<&str>, clone: &str) {
    let moment = |text: &str| Some(text.parse().unwrap());
    match source {
        Some(source) => facts.sources[0].as_mut().unwrap().as_mut().unwrap().written = moment(source),
        None => facts.sources[0] = Err(unseen()),
    }
    facts.namespaces[0].clones[0].as_mut().unwrap().as_mut().unwrap().written = moment(clone);
}

#[test]
fn a_manager_is_as_old_as_its_token_or_younger() {
    // The pod started at the beginning of 2026-01-02.
    let (before, same, after) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z");
    for (source, clone, is_old) in [
        (Some(before), before, false),
        (Some(same), same, false),
        (Some(after), after, true),
        // The clone was restored, and the token is the one of before.
        (Some(before), after, false),
        // The source was labelled, and the token is the one of before.
        (Some(after), before, false),
        (None, before, false),
        (None, after, true),
    ] {
        let findings = judged(|facts| written(facts, source, clone));
        if is_old {
            assert_only(&findings, "fault manager-token: runs since 2026-01-02T00:00:00Z, and");
        } else {
            assert_eq!(bad(&findings), [""; 0], "{source:?} {clone}");
        }
    }
}

#[test]
fn a_runner_that_is_restarted_should_let_its_jobs_end() {
    let config = Config::from_yaml("restart: {deployments: [gitlab-runner]}").unwrap();
    let told = |is_graceful| {
        let mut facts = facts(&config);
        let mut manager = manager("https://gitlab.example.com", None);
        manager.is_graceful = is_graceful;
        facts.namespaces[0].managers = Ok(vec![manager]);
        judge(&facts, &config)
    };
    assert_only(&told(false), "warning manager-token: is restarted when its token changes, and its jobs end with it");
    assert_eq!(bad(&told(true)), [""; 0]);
}

#[test]
fn another_secret_is_no_token() {
    let findings = judged(|facts| {
        written(facts, Some("2026-01-03T00:00:00Z"), "2026-01-03T00:00:00Z");
        for secret in [&mut facts.sources[0], &mut facts.namespaces[0].clones[0]] {
            secret.as_mut().unwrap().as_mut().unwrap().shapes.clear();
        }
    });
    assert_eq!(bad(&findings), [""; 0]);
}

#[test]
fn a_clone_that_lags_behind_does_not_speak_for_its_source() {
    let findings = judged(|facts| {
        facts.sources[0] = Ok(Some(super::super::testing::source(&[("runner-token", "glrt-canary2")])));
        written(facts, Some("2026-01-03T00:00:00Z"), "2026-01-01T00:00:00Z");
    });
    assert_only(&findings, "fault manager-token: runs since");
}

#[test]
fn one_that_does_not_run_reads_it_later() {
    let findings = judged(|facts| {
        written(facts, Some("2026-01-03T00:00:00Z"), "2026-01-03T00:00:00Z");
        facts.namespaces[0].managers.as_mut().unwrap()[0].started = None;
    });
    assert_eq!(bad(&findings), [""; 0]);
    assert_only(&judged(|facts| facts.namespaces[0].managers = Err(unseen())), "unseen manager-token");
    assert_eq!(bad(&judged(|facts| facts.namespaces[0].managers = Ok(Vec::new()))), [""; 0]);
}
