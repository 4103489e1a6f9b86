//! What the check says when rights, the API server or the program are out of its reach.

use std::collections::BTreeSet;

use serde_json::Value;
use test_support::{
    cluster::{RUNNER_NAMESPACE, SECRET},
    documents, repository,
};

use super::{Fixture, OWN, base64, certificate, text};

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_seen_is_named_and_no_fault() {
    let mut fixture = Fixture::new().await;
    let docs = std::fs::read_to_string(repository().join("docs/check.md")).unwrap();
    let yaml = docs.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a ClusterRole");
    fixture.apply(&documents(yaml)).await;
    for (account, role) in [("reader", "view"), ("checker", "gitlab-runner-webhook-check")] {
        fixture.kubectl(&["create", "serviceaccount", account, "-n", "default"]).await.unwrap();
        let (role, subject) = (format!("--clusterrole={role}"), format!("--serviceaccount=default:{account}"));
        fixture.kubectl(&["create", "clusterrolebinding", account, &role, &subject]).await.unwrap();
    }
    let checker = fixture.cluster.plane.service_account_kubeconfig("default", "checker").await.unwrap();
    let told = fixture.check_as(&checker, &[]).await;
    assert_eq!((told.code, told.bad().len()), (0, 0), "{}", told.pretty());

    let reader = fixture.cluster.plane.service_account_kubeconfig("default", "reader").await.unwrap();
    let told = fixture.check_as(&reader, &[]).await;
    assert_eq!((told.code, told.of(&["fault"]).len()), (2, 0), "{}", told.pretty());
    let unseen = told.of(&["unseen"]);
    for check in ["source", "clone", "registration", "certs", "rights", "guards", "reach"] {
        assert!(unseen.iter().any(|told| told.starts_with(check)), "{check}: {}", told.pretty());
    }
    for check in ["runner-namespace", "deployment", "endpoints", "configuration"] {
        let is_ok = |finding: &Value| finding["check"] == check && finding["level"] == "ok";
        assert!(told.findings().any(is_ok), "{check}");
    }
    let (code, text) = fixture.run(&reader, &[]).await;
    assert_eq!(code, 2, "{text}");
    let forbidden = "could not see: get secrets/gitlab-gitlab-runner-secret in namespace gitlab: forbidden";
    assert!(text.contains(forbidden), "{text}");
    assert!(!text.contains('\u{1b}'), "no colour, for this is no terminal");

    // An API server that does not answer.
    let nowhere = fixture.cluster.plane.dir().join("nowhere");
    let admin = std::fs::read_to_string(fixture.cluster.plane.admin_kubeconfig()).unwrap();
    std::fs::write(&nowhere, admin.replace(fixture.cluster.plane.url(), "https://127.0.0.1:1")).unwrap();
    let told = fixture.check_as(&nowhere, &["--timeout", "2"]).await;
    assert_eq!((told.code, told.findings().count()), (2, 1), "{}", told.pretty());
    assert_eq!(told.bad(), BTreeSet::from(["cluster https://127.0.0.1:1/".to_owned()]));
    fixture.tells_nothing_secret().await;
}

/// With what the program keeps right while it runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_down() {
    let mut fixture = Fixture::new().await;
    let clone = format!("clone {RUNNER_NAMESPACE}/{SECRET}");
    let bundle = format!("trust-bundle {RUNNER_NAMESPACE}/gitlab-runner-webhook-trust");
    let ca = format!("serving-ca Secret {OWN}/gitlab-runner-webhook-ca");
    let ca_bundle = "ca-bundle MutatingWebhookConfiguration gitlab-runner-webhook";
    let other = "ca-bundle ValidatingWebhookConfiguration gitlab-runner-webhook";
    let down = "reach from the API server";
    let set = |pem: &str| {
        let value = base64(pem);
        format!(
            "kubectl patch mutatingwebhookconfiguration gitlab-runner-webhook --type=json -p \
             '[{{\"op\":\"replace\",\"path\":\"/webhooks/0/clientConfig/caBundle\",\"value\":\"{value}\"}}]'"
        )
    };
    let edit = "kubectl patch secret gitlab-gitlab-runner-secret -n gitlab-runner --type=merge -p '{\"stringData\":{\"runner-token\":\"edited\"}}'";
    let put_ca = |pem: &str| {
        format!(
            "kubectl patch secret gitlab-runner-webhook-ca -n gitlab-runner-webhook --type=merge -p '{{\"data\":{{\"ca.crt\":\"{}\"}}}}'",
            base64(pem)
        )
    };
    let faults: [(String, &[&str]); 7] = [
        ("true".to_owned(), &[]),
        ("kubectl delete secret gitlab-gitlab-runner-secret -n gitlab-runner".to_owned(), &[&clone]),
        (edit.to_owned(), &[&clone]),
        ("kubectl delete configmap gitlab-runner-webhook-trust -n gitlab-runner".to_owned(), &[&bundle]),
        (set("canary7f3a"), &[ca_bundle]),
        (set(&certificate(&[], -1)), &[ca_bundle]),
        (put_ca(&certificate(&[], -1)), &[&ca, ca_bundle, other]),
    ];
    for (plant, expected) in faults {
        fixture.stop().await;
        fixture.shell(&plant).await;
        let told = fixture.finds(&[expected, &[down]].concat()).await;
        let finding = told.findings().find(|finding| finding["check"] == "reach").unwrap();
        assert!(text(finding, "what").starts_with("the program does not serve"), "{finding}");
        fixture.start().await;
        fixture.settled().await;
    }
    // Whoever drops what the API server sends keeps it waiting: that is no time-out of the check.
    fixture.stop().await;
    let silent = tokio::net::TcpListener::bind(("127.0.0.1", fixture.port)).await.unwrap();
    let told = fixture.finds(&[down]).await;
    assert!(told.what().contains("context deadline exceeded") || told.what().contains("imeout"), "{}", told.what());
    told.mends("NetworkPolicy");
    drop(silent);
    fixture.start().await;
    fixture.settled().await;
    fixture.tells_nothing_secret().await;
}
