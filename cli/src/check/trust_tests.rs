//! Tables for `certsSecretName` and the trust bundle. PURE.

use super::super::{
    certificate::tests::pem,
    testing::{MOUNTED, assert_only, bad, certs, facts, manager, unseen},
};
use super::*;

const URL: &str = "https://gitlab.example.com";

/// With these certificates, and this manager pod. The trust bundle is left out.
fn judged(found: Option<CertsFacts>, manager: Option<Manager>) -> Vec<Finding> {
    let config = Config::from_yaml("certs: {inject: {jobs: false}}").unwrap();
    let mut facts = facts(&config);
    facts.namespaces[0].certs = Ok(found);
    facts.namespaces[0].managers = Ok(manager.into_iter().collect());
    judge(&facts, &config)
}

#[test]
fn needed_or_not() {
    let mut without_mount = manager(URL, None);
    without_mount.demands.clear();
    assert_eq!(bad(&judged(None, None)), [""; 0]);
    assert_only(&judged(None, Some(without_mount)), "warning certs: is not there, and the runner calls https://gitlab");
    assert_only(
        &judged(None, Some(manager("http://g", None))),
        "fault certs: is not there, and pod gitlab-runner/manager mounts it",
    );
    let mut facts = facts(&Config::default());
    facts.namespaces[0].certs = Err(unseen());
    assert_only(&judge(&facts, &Config::default()), "unseen certs");
}

#[test]
fn readable_and_valid() {
    let (valid, expired, late) = (pem(&[], (-9, 200)), pem(&[], (-9, -1)), pem(&[], (-300, 9)));
    let both = format!("{valid}{expired}");
    for (data, expected) in [
        (vec![("ca.crt", "canary")], "fault certs: key ca.crt is of no use: it is not PEM"),
        (vec![("ca.crt", &*valid), ("x.pem", "canary")], "fault certs: key x.pem"),
        (vec![("ca.crt", "")], "fault certs: there is no CA certificate in it"),
        (vec![("other", "canary")], "fault certs: there is no CA certificate in it"),
        (vec![("ca.crt", &*expired)], "fault certs: no certificate in it is valid"),
        (vec![("ca.crt", &*both)], "warning certs: one in it is not valid"),
        (vec![("ca.crt", &*late)], "warning certs: one is about to end"),
        (vec![("ca.crt", &*valid), ("tls.key", "canary")], "warning certs: has tls.key, and not its other half"),
        (vec![("ca.crt", &*expired), ("tls.key", "canary")], "fault certs: no certificate in it is valid"),
    ] {
        let findings = judged(Some(certs(&data)), None);
        assert_only(&findings, expected);
        assert!(!format!("{findings:?}").contains("canary"), "{findings:?}");
    }
}

#[test]
fn the_file_that_the_runner_reads() {
    let (ca, leaf, other) =
        (pem(&[], (-9, 200)), pem(&["gitlab.example.com"], (-9, 200)), pem(&["other.example.com"], (-9, 200)));
    let host = "gitlab.example.com.crt";
    let own = Some("/etc/ssl/own.pem");
    for (data, ca_file) in [
        (vec![("ca.crt", &*ca)], Some(MOUNTED)),
        (vec![("ca.crt", &*ca)], own),
        (vec![(host, &*ca)], None),
        (vec![(host, &*leaf)], None),
    ] {
        let findings = judged(Some(certs(&data)), Some(manager(URL, ca_file)));
        assert_eq!(bad(&findings), [""; 0], "{ca_file:?}");
    }
    let expired = pem(&[], (-9, -1));
    for (data, ca_file, expected, remediation) in [
        (
            vec![(host, &*ca)],
            Some(MOUNTED),
            "fault certs-host: reads ca.crt, which gitlab-runner-certs has not",
            "kubectl delete pod/manager",
        ),
        // It was created before its certificates.
        (
            vec![("ca.crt", &*ca)],
            None,
            "fault certs-host: finds no CA for gitlab.example.com",
            "kubectl delete pod/manager",
        ),
        (
            vec![("a.crt", &*ca), ("b.crt", &*ca)],
            None,
            "warning certs-host: finds no CA for gitlab.example.com",
            "gitlab.example.com.crt",
        ),
        (
            vec![(host, &*other)],
            None,
            "fault certs-host: gitlab.example.com.crt holds a certificate for other.example.com",
            "key ca.crt",
        ),
    ] {
        let findings = judged(Some(certs(&data)), Some(manager(URL, ca_file)));
        assert_only(&findings, expected);
        assert!(findings.iter().any(|finding| finding.remediation.contains(remediation)), "{findings:?}");
    }
    // A valid one beside it is no help to who reads the other.
    let beside = judged(Some(certs(&[("ca.crt", &expired), ("b.crt", &ca)])), Some(manager(URL, Some(MOUNTED))));
    assert!(
        bad(&beside)
            .iter()
            .any(|told| told.starts_with("fault certs-host: reads ca.crt for gitlab.example.com, and that")),
        "{beside:?}"
    );
    let mut by_label = manager(URL, None);
    by_label.opted_out = true;
    assert_only(&judged(Some(certs(&[("ca.crt", &ca)])), Some(by_label)), "warning certs-host: finds no CA");
    let config = Config::default();
    let mut facts = facts(&config);
    facts.namespaces[0].certs = Ok(Some(certs(&[("ca.crt", &ca)])));
    facts.namespaces[0].managers = Ok(vec![manager(URL, None)]);
    facts.namespaces[0].opted_out = true;
    let findings = hosts(&facts.namespaces[0], facts.now, &config);
    assert!(findings[0].remediation.contains("gitlab.example.com.crt"), "nothing is injected there: {findings:?}");
    let plain = judged(Some(certs(&[("ca.crt", &ca)])), Some(manager("http://user:canary@gitlab:8181", None)));
    assert_eq!(bad(&plain), [""; 0]);
    assert!(!format!("{plain:?}").contains("canary"), "{plain:?}");
    assert_eq!(without_user("user:canary@gitlab"), "gitlab");
}

#[test]
fn a_clone_is_mended_where_its_source_is() {
    let config = Config::from_yaml("certs: {from: infra}").unwrap();
    let mut facts = facts(&config);
    facts.namespaces[0].certs = Ok(Some(certs(&[("ca.crt", &pem(&[], (-9, -1)))])));
    let findings = judge(&facts, &config);
    assert!(findings[0].remediation.contains("gitlab-runner-certs -n infra --type=merge"), "{findings:?}");
    facts.namespaces[0].certs = Ok(Some(certs(&[("ca.crt", "not PEM")])));
    assert!(judge(&facts, &config)[0].remediation.contains("-n infra"));
}

#[test]
fn trust_bundles() {
    use gitlab_runner_webhook::{sync::BundleState, trust::bundle::build};
    use k8s_openapi::api::core::v1::ConfigMap;
    let config = Config::from_yaml("certs: {publicRoots: none}").unwrap();
    let (ca, secret) = (pem(&[], (-9, 200)), super::super::testing::secret);
    let built = build(secret("gitlab-runner", &[("ca.crt", &ca)]).data.as_ref(), config.public_roots).unwrap();
    let map = |data: serde_json::Value, by: &str| {
        let metadata = serde_json::json!({
            "namespace": "gitlab-runner",
            "labels": {"app.kubernetes.io/managed-by": by},
            "annotations": {"gitlab-runner-webhook/source": "gitlab-runner/gitlab-runner-certs"},
        });
        let map: ConfigMap = serde_json::from_value(serde_json::json!({"metadata": metadata, "data": data})).unwrap();
        Ok(Some(BundleState::from(map)))
    };
    let right = serde_json::to_value(built.data()).unwrap();
    let with = |trust| {
        let mut facts = facts(&config);
        facts.namespaces[0].certs = Ok(Some(certs(&[("ca.crt", &ca)])));
        facts.namespaces[0].trust = trust;
        judge(&facts, &config)
    };
    assert_eq!(bad(&with(map(right.clone(), "gitlab-runner-webhook"))), [""; 0]);
    assert_only(&with(map(right, "somebody")), "fault trust-bundle: is not ours");
    assert_only(
        &with(map(serde_json::json!({"ca.crt": "x"}), "gitlab-runner-webhook")),
        "fault trust-bundle: is not what",
    );
    assert_only(&with(Ok(None)), "fault trust-bundle: is not there");
    assert_only(&with(Err(unseen())), "unseen trust-bundle");
}
