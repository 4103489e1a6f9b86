//! Tables for `certsSecretName` and the trust bundle. PURE.

use super::super::{
    certificate::tests::pem,
    testing::{INJECTED, assert_only, bad, certs, facts, manager, unseen},
};
use super::*;

const URL: &str = "https://gitlab.example.com";

/// With these certificates, and this manager pod. The trust bundle is left out.
fn judged(found: Option<CertsFacts>, manager: Option<Manager>) -> Vec<Finding> {
    let config = Config::default();
    let mut facts = facts(&config);
    facts.namespaces[0].certs = Ok(found);
    facts.namespaces[0].managers = Ok(manager.into_iter().collect());
    judge(&facts, &config).into_iter().filter(|finding| finding.check != Check::TrustBundle).collect()
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
    let with_key = format!("{valid}-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----\n");
    for (data, expected) in [
        (vec![("ca.crt", "canary")], "fault certs: key ca.crt is of no use: it holds no certificate"),
        (vec![("ca.crt", &*valid), ("x.pem", "canary")], "fault certs: key x.pem"),
        (vec![("ca.crt", "")], "fault certs: there is no CA certificate in it"),
        (vec![("other", "canary")], "fault certs: there is no CA certificate in it"),
        (vec![("ca.crt", &*expired)], "fault certs: no certificate in it is valid"),
        (vec![("ca.crt", &*both)], "warning certs: one in it is not valid"),
        (vec![("ca.crt", &*late)], "warning certs: one is about to end"),
        (vec![("ca.crt", &*valid), ("tls.key", "canary")], "warning certs: has tls.key, and not its other half"),
        (vec![("ca.crt", &*expired), ("tls.key", "canary")], "fault certs: no certificate in it is valid"),
        (vec![("ca.crt", &*with_key)], "warning certs: key ca.crt holds a private key"),
        (
            vec![("ca.crt", &*valid), ("tls.crt", &*valid), ("tls.key", "canary")],
            "warning certs: no client certificate for the runner: tls.crt is the certificate of a CA",
        ),
    ] {
        let findings = judged(Some(certs(&data)), None);
        assert_only(&findings, expected);
        assert!(!format!("{findings:?}").contains("canary"), "{findings:?}");
    }
}

#[test]
fn what_the_runner_is_told_of() {
    let (ca, leaf, other) =
        (pem(&[], (-9, 200)), pem(&["gitlab.example.com"], (-9, 200)), pem(&["other.example.com"], (-9, 200)));
    let host = "gitlab.example.com.crt";
    let key = "-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----\n";
    let raw = |key: &str| Some(format!("/home/gitlab-runner/.gitlab-runner/certs/{key}"));
    let injected = || Some(INJECTED.to_owned());
    for (data, ca_file) in [
        (vec![("ca.crt", &*ca)], injected()),
        (vec![("ca.crt", &*ca)], Some("/etc/ssl/own.pem".to_owned())),
        (vec![("ca.crt", &*ca)], raw("ca.crt")),
        (vec![(host, &*leaf)], injected()),
        (vec![(host, &*other), ("ca.crt", &*ca)], injected()),
    ] {
        let findings = judged(Some(certs(&data)), Some(manager(URL, ca_file.as_deref())));
        assert_eq!(bad(&findings), [""; 0], "{ca_file:?}");
    }
    for (data, ca_file, expected, remediation) in [
        // It was created before its certificates.
        (
            vec![("ca.crt", &*ca)],
            None,
            "fault certs-host: knows no CA for gitlab.example.com",
            "kubectl delete pod/manager",
        ),
        (
            vec![(host, &*other)],
            injected(),
            "fault certs-host: knows only the certificate of a server, for other.example.com",
            "key ca.crt",
        ),
    ] {
        let findings = judged(Some(certs(&data)), Some(manager(URL, ca_file.as_deref())));
        assert_only(&findings, expected);
        assert!(findings.iter().any(|finding| finding.remediation.contains(remediation)), "{findings:?}");
    }
    // What the user's own variable names is handed to jobs as it is.
    let combined = format!("{ca}{key}");
    let findings = judged(Some(certs(&[(host, &combined)])), Some(manager(URL, raw(host).as_deref())));
    let told =
        "fault certs-host: hands key gitlab.example.com.crt of the Secret to every job, and a private key is in it";
    assert!(bad(&findings).contains(&told.to_owned()), "{findings:?}");
    let mut by_label = manager(URL, None);
    by_label.opted_out = true;
    assert_only(&judged(Some(certs(&[("ca.crt", &ca)])), Some(by_label.clone())), "warning certs-host: knows no CA");
    assert_eq!(bad(&judged(Some(certs(&[(host, &ca)])), Some(by_label))), [""; 0]);
    let config = Config::default();
    let mut facts = facts(&config);
    facts.namespaces[0].certs = Ok(Some(certs(&[("ca.crt", &ca)])));
    facts.namespaces[0].managers = Ok(vec![manager(URL, None)]);
    facts.namespaces[0].opted_out = true;
    let findings = hosts(&facts.namespaces[0], &config);
    assert!(findings[0].remediation.contains("gitlab.example.com.crt"), "nothing is injected there: {findings:?}");
    let plain = judged(Some(certs(&[("ca.crt", &ca)])), Some(manager("http://user:canary@gitlab:8181", None)));
    assert_eq!(bad(&plain), [""; 0]);
    assert!(!format!("{plain:?}").contains("canary"), "{plain:?}");
    assert_eq!(without_user("user:canary@gitlab"), "gitlab");
}

#[test]
fn jobs_in_a_namespace_of_their_own() {
    let config = Config::default();
    let told = |jobs: &str| {
        let mut facts = facts(&config);
        let mut manager = manager(URL, Some(INJECTED));
        manager.jobs_in = Some(jobs.to_owned());
        facts.namespaces[0].managers = Ok(vec![manager]);
        judge(&facts, &config).into_iter().filter(|finding| finding.check == Check::TrustBundle).collect::<Vec<_>>()
    };
    assert_eq!(bad(&told("gitlab-runner")), [""; 0]);
    assert_only(&told("ci-jobs"), "warning trust-bundle: its jobs run in namespace ci-jobs, without a trust bundle");
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
