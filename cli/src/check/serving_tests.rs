//! Tables for Deployment, Service, registration and TLS. PURE.

use gitlab_runner_webhook::config::Config;
use serde_json::json;

use super::super::{
    certificate::tests::pem,
    facts::Unseen,
    testing::{assert_only, at_mut, bad, base64, deployment, facts, unseen},
};
use super::*;
use crate::rollout::Rollout;

fn judged(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let mut facts = facts(&Config::default());
    change(&mut facts);
    judge(&facts)
}

fn mutating(facts: &mut Facts) -> &mut Value {
    facts.serving.mutating.as_mut().unwrap().as_mut().unwrap()
}

#[test]
fn all_is_well() {
    assert_eq!(bad(&judged(|_| {})), [""; 0]);
}

#[test]
fn deployments() {
    let with = |change: fn(&mut Rollout)| {
        let mut found = deployment(2, 2);
        found.problem = Some("quota".to_owned());
        change(&mut found);
        Ok(Some(found))
    };
    let serving =
        |wanted, available| Ok(Some(Rollout { problem: Some("quota".to_owned()), ..deployment(wanted, available) }));
    for (found, expected) in [
        (serving(2, 0), "fault deployment: none of 2 replicas is available: the program does not serve: quota"),
        (serving(0, 0), "fault deployment: is scaled to 0"),
        (serving(2, 1), "warning deployment: 1 of 2"),
        (with(|found| found.updated = 1), "warning deployment: 1 of 2 replicas are of the latest version: quota"),
        (with(|found| found.version = Some("0.0.1".to_owned())), "warning deployment: is of version 0.0.1, and this"),
        (Ok(None), "fault deployment: there is no such Deployment"),
        (Err(unseen()), "unseen deployment"),
    ] {
        assert_only(&judged(|facts| facts.deployment = found), expected);
    }
    for (found, expected) in [
        (Ok(Some(0)), "fault endpoints: the Service has no ready"),
        (Ok(None), "fault endpoints: there is no"),
        (Err(unseen()), "unseen endpoints"),
    ] {
        assert_only(&judged(|facts| facts.serving.endpoints = found), expected);
    }
}

#[test]
fn nothing_to_try_it_with_is_no_fault() {
    assert_eq!(bad(&judged(|facts| facts.serving.reach = Reach::NotTried("there is no namespace"))), [""; 0]);
}

#[test]
fn reached_or_not() {
    for (reach, expected, remediation) in [
        (Reach::Silent, "fault reach: a pod is let in", "NetworkPolicy"),
        (Reach::Failed("x509: unknown authority".to_owned()), "fault reach: the program does not serve", "ca-bundle"),
        (Reach::Failed("connect: connection refused".to_owned()), "fault reach", "kubectl get pods"),
        (Reach::Failed("context deadline exceeded".to_owned()), "fault reach", "NetworkPolicy"),
        (Reach::Unseen(Unseen("forbidden: no".to_owned())), "unseen reach: could not see: forbidden", "create pods"),
        (Reach::Unseen(Unseen("quota: no".to_owned())), "unseen reach: could not see: quota", "stands above"),
    ] {
        let findings = judged(|facts| facts.serving.reach = reach);
        assert_only(&findings, expected);
        assert!(
            findings.iter().any(|finding| finding.check == Check::Reach && finding.remediation.contains(remediation)),
            "{remediation}"
        );
    }
}

#[test]
fn registered_or_not() {
    assert_only(&judged(|facts| facts.serving.validating = Ok(None)), "fault registration: is not there");
    assert_only(&judged(|facts| facts.serving.validating = Err(unseen())), "unseen registration");
    assert_eq!(bad(&judged(|facts| mutating(facts)["webhooks"] = json!([]))), [""; 0]);
}

#[test]
fn ca_bundles_that_are_of_no_use() {
    for (bundle, expected) in [
        (String::new(), "is empty"),
        ("%".to_owned(), "is not base64"),
        (base64("canary"), "is of no use: it is not PEM"),
        (base64("-----BEGIN X-----\n"), "holds no certificate"),
        (base64(&pem(&[], (-100, 265))), "lacks the CA of Secret"),
    ] {
        let findings = judged(|facts| *at_mut(mutating(facts), "/webhooks/1/clientConfig/caBundle") = bundle.into());
        assert_only(
            &findings,
            &format!("fault ca-bundle: caBundle of warn.namespaces.gitlab-runner-webhook {expected}"),
        );
    }
    let expired = base64(&pem(&[], (-100, -1)));
    let findings = judged(|facts| *at_mut(mutating(facts), "/webhooks/0/clientConfig/caBundle") = expired.into());
    assert_only(&findings, "fault ca-bundle: no CA in caBundle of inject.pods.gitlab-runner-webhook is valid");
}

#[test]
fn the_serving_ca() {
    let certificates = |days| Ok(Some(Certificate::all(pem(&[], days).as_bytes())));
    let of_ca = |found| {
        let findings = judged(|facts| facts.serving.certificates = found);
        bad(&findings).into_iter().filter(|told| told.contains("serving-ca")).collect::<Vec<_>>()
    };
    assert!(of_ca(certificates((-100, -1)))[0].starts_with("fault serving-ca: the serving CA is not valid"));
    assert!(of_ca(certificates((-360, 5)))[0].starts_with("warning serving-ca: the serving CA is about to end"));
    assert!(of_ca(Ok(None))[0].starts_with("fault serving-ca: is not there"));
    assert!(of_ca(Ok(Some(Ok(Vec::new()))))[0].starts_with("fault serving-ca: holds no certificate"));
    assert!(
        of_ca(Ok(Some(Certificate::all(b"canary"))))[0].starts_with("fault serving-ca: its certificate is of no use")
    );
    // caBundle tells, too.
    assert!(of_ca(Err(unseen())).is_empty());
    let nothing = judged(|facts| {
        facts.serving.certificates = Err(unseen());
        (facts.serving.mutating, facts.serving.validating) = (Ok(None), Ok(None));
    });
    assert!(bad(&nothing).iter().any(|told| told.starts_with("unseen serving-ca")), "{nothing:?}");
}

#[test]
fn a_leaf_from_a_file_is_to_be_accepted() {
    let leaf = pem(&["gitlab-runner-webhook.gitlab-runner-webhook.svc"], (-100, 100));
    let findings = judged(|facts| {
        facts.program.tls = TlsMode::Files;
        facts.serving.certificates = Ok(Some(Certificate::all(leaf.as_bytes())));
    });
    let told = bad(&findings);
    assert!(
        told.len() == 2 && told.iter().all(|told| told.contains("does not accept the certificate of Secret")),
        "{told:?}"
    );
    // One that is its own root is trusted as it is, even if it says that it is a CA.
    for (name, is_accepted) in [("gitlab-runner-webhook.gitlab-runner-webhook.svc", true), ("elsewhere.svc", false)] {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
        let findings = judged(|facts| {
            facts.program.tls = TlsMode::Files;
            facts.serving.certificates = Ok(Some(Certificate::all(root.as_bytes())));
            for found in [&mut facts.serving.mutating, &mut facts.serving.validating] {
                for webhook in found.as_mut().unwrap().as_mut().unwrap()["webhooks"].as_array_mut().unwrap() {
                    webhook["clientConfig"]["caBundle"] = base64(&root).into();
                }
            }
        });
        assert_eq!(bad(&findings).is_empty(), is_accepted, "{findings:?}");
    }
}

#[test]
fn callers_are_told_and_no_fault_either_way() {
    let told = |client_ca: Option<&str>| {
        let findings = judged(|facts| facts.serving.client_ca = client_ca.map(str::to_owned));
        assert_eq!(bad(&findings), [""; 0]);
        findings.into_iter().find(|finding| finding.check == Check::Callers).unwrap().what
    };
    assert!(told(None).contains("are not asked for"));
    assert!(told(Some("/client-ca/ca.crt")).contains("/client-ca/ca.crt"));
    let words = "remote error: tls: certificate required";
    let findings = judged(|facts| facts.serving.reach = Reach::Failed(words.to_owned()));
    let remediation = findings.into_iter().find(|finding| finding.check == Check::Reach).unwrap().remediation;
    assert!(remediation.contains("--admission-control-config-file"), "{remediation}");
}
