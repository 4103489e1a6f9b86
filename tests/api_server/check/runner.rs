//! What the runner depends on: the source and its token, the clone, the certificates.

use serde_json::json;
use test_support::{
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE},
    documents, wait,
};

use super::{CANARY, CERTS, Fixture, certificate, certs};

#[tokio::test(flavor = "multi_thread")]
async fn a_source_or_token_that_is_of_no_use() {
    let mut fixture = Fixture::new().await;
    let source = format!("{SOURCE_NAMESPACE}/{SECRET}");
    fixture.cluster.delete_secret(SOURCE_NAMESPACE, SECRET).await;
    fixture.finds(&[&format!("source {source}")]).await.mends("helm upgrade");
    let registration = format!("GR1348941{CANARY}");
    let glrt = format!("glrt-{CANARY}");
    for (data, expected, mend) in [
        (vec![("runner-token", &*glrt)], "source", "stringData"),
        (vec![("runner-token", &*format!("{glrt}\n")), ("runner-registration-token", "")], "token", "tr -d"),
        (vec![("runner-token", ""), ("runner-registration-token", &*registration)], "token", "base64 < token.txt"),
        (vec![("runner-token", ""), ("runner-registration-token", "")], "token", "base64 < token.txt"),
    ] {
        fixture.new_token(&data).await;
        let told = fixture.finds(&[&format!("{expected} {source}")]).await;
        told.mends(mend);
        // As it stands; of who has to make a token first, what comes after that.
        let commands = told.mend();
        let (made, commands) = match commands.split_once(", then\n") {
            Some((_, commands)) => (format!("printf %s '{glrt}3' > token.txt\n"), commands.to_owned()),
            None => (String::new(), commands),
        };
        let folder = fixture.cluster.plane.dir().display().to_string();
        fixture.shell(&format!("cd {folder}\n{made}{commands}")).await;
        fixture.restart_runner().await;
        fixture.settled().await;
    }
    fixture.tells_nothing_secret().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_pod_from_before_its_token() {
    let mut fixture = Fixture::new().await;
    fixture.second_after_the_runner_started().await;
    let rotated = format!("glrt-{CANARY}2");
    fixture.put_token(&[("runner-token", &rotated), ("runner-registration-token", "")]).await;
    let told = fixture.finds(&["manager-token pod"]).await;
    assert!(told.mend().starts_with("kubectl rollout restart deployment/gitlab-runner -n gitlab-runner"));
    fixture.shell(&told.mend()).await;
    fixture.settled().await;
    fixture.tells_nothing_secret().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kyverno_left_and_its_policy() {
    let mut fixture = Fixture::new().await;
    let label = [
        "label",
        "secret",
        SECRET,
        "-n",
        RUNNER_NAMESPACE,
        "generate.kyverno.io/policy-name=sync-gitlab-runner-secret",
    ];
    fixture.kubectl(&label).await.unwrap();
    let told = fixture.finds(&[&format!("clone {RUNNER_NAMESPACE}/{SECRET}")]).await;
    // Where somebody can be asked, it asks.
    fixture.shell(&told.mend().replace("   #", " --yes   #")).await;
    fixture.settled().await;

    fixture.apply(&documents(KYVERNO)).await;
    fixture.kubectl(&["wait", "--for=condition=Established", "crd/clusterpolicies.kyverno.io"]).await.unwrap();
    fixture.settled().await;
    let policy = json!({"apiVersion": "kyverno.io/v1", "kind": "ClusterPolicy", "metadata": {"name": "sync-gitlab-runner-secret"}});
    fixture.apply(&[policy]).await;
    fixture.finds(&["kyverno ClusterPolicy sync-gitlab-runner-secret"]).await.mends("gitlab-runner-webhook migrate");
    fixture.kubectl(&["delete", "clusterpolicy", "sync-gitlab-runner-secret"]).await.unwrap();
    fixture.settled().await;
    fixture.tells_nothing_secret().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_are_missing_or_of_no_use() {
    let mut fixture = Fixture::new().await;
    let (subject, ca) = (format!("certs {RUNNER_NAMESPACE}/{CERTS}"), certificate(&[], 300));
    fixture.cluster.delete_secret(RUNNER_NAMESPACE, CERTS).await;
    fixture.finds(&[&subject]).await.mends("kubectl create secret generic gitlab-runner-certs");
    for (content, says) in
        [(CANARY.to_owned(), "it holds no certificate"), (certificate(&[], -1), "no certificate in it is valid")]
    {
        fixture.put_certs(&[("ca.crt", &content)]).await;
        let told = fixture.finds(&[&subject]).await;
        assert!(told.what().contains(says), "{}", told.pretty());
        fixture.put_certs(&certs(&ca)).await;
        fixture.settled().await;
    }
    fixture.put_certs(&[("ca.crt", &ca), ("tls.key", CANARY)]).await;
    fixture.finds(&[&subject]).await.mends("tls.crt and tls.key");
    fixture.put_certs(&certs(&ca)).await;
    fixture.settled().await;
    fixture.tells_nothing_secret().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_for_another_host_than_that_of_the_runner() {
    let mut fixture = Fixture::new().await;
    let ca = certificate(&[], 300);
    // Whatever the keys are called, the runner is told of every CA.
    fixture.put_certs(&[("a.example.com.crt", &ca), ("b.example.com.crt", &ca)]).await;
    fixture.settled().await;
    fixture.put_certs(&[("gitlab.example.com.crt", &certificate(&["other.example.com"], 300))]).await;
    fixture.finds(&["certs-host pod"]).await.mends("Put the CA that issued");
    fixture.put_certs(&certs(&ca)).await;
    fixture.settled().await;
    fixture.tells_nothing_secret().await;
}

impl Fixture {
    /// Puts a token, and lets everything follow: the clone, and a new manager pod.
    async fn new_token(&self, data: &[(&str, &str)]) {
        self.put_token(data).await;
        self.cluster.clone_with(RUNNER_NAMESPACE, SECRET, data).await;
        self.restart_runner().await;
    }

    /// The API server counts in seconds: what is written now is later than the start of the manager pod.
    async fn second_after_the_runner_started(&self) {
        let path = "jsonpath={.items[0].status.containerStatuses[0].state.running.startedAt}";
        let get = ["get", "pods", "-n", RUNNER_NAMESPACE, "-l", "app=gitlab-runner", "-o", path];
        let started: k8s_openapi::jiff::Timestamp = self.kubectl(&get).await.unwrap().trim().parse().unwrap();
        wait::until("the next second", || async {
            (k8s_openapi::jiff::Timestamp::now().as_second() > started.as_second()).then_some(())
        })
        .await;
    }
}

/// The definition of Kyverno's policies, as far as this test needs it.
const KYVERNO: &str = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: clusterpolicies.kyverno.io}
spec:
  group: kyverno.io
  scope: Cluster
  names: {kind: ClusterPolicy, plural: clusterpolicies, singular: clusterpolicy}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";
