//! Each change of the configuration, applied by each way in which users apply: it goes through while the program runs, and
//! `caBundle` is right afterwards.

use gitlab_runner_webhook::{
    names::{APP, FIELD_MANAGER_CA_BUNDLE, SECRET_CA},
    pki::KEY_CURRENT_CERT,
};
use serde_json::{Value, json};
use test_support::{
    Cluster, Tool,
    cluster::{RUNNER_NAMESPACE, free_port},
    wait,
};

use crate::BINARY;

const KINDS: [&str; 2] = ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"];

const SHIPPED: &str = "";
/// From the shipped one and back: entries come and go, last ones and first ones, of one configuration and of both.
const CONFIGS: [(&str, &str); 6] = [
    (
        "selectors",
        "runnerNamespaces: {names: [gitlab-runner], selectors: [{matchLabels: {a: b}}, {matchLabels: {c: d}}]}",
    ),
    ("no names", "runnerNamespaces: {names: [], selectors: [{matchLabels: {a: b}}]}"),
    ("injection off", "certs: {inject: {manager: false, jobs: false}}"),
    ("gate off", "gate: {giveUpAfter: 0s}"),
    ("a namespace more", "runnerNamespaces: {names: [gitlab-runner, builds]}"),
    ("a clone more", "clones: [{secret: gitlab-gitlab-runner-secret, from: gitlab}, {secret: registry, from: infra}]"),
];

struct Fixture {
    cluster: Cluster,
    port: u16,
    _tool: Tool,
}

impl Fixture {
    async fn new() -> Self {
        let cluster = Cluster::with_source(&[("runner-token", "token-of-the-runner")]).await;
        cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
        let port = free_port();
        let tool =
            cluster.tool(BINARY).await.self_managed().flag("--listen", &format!("127.0.0.1:{port}")).start().await;
        Self { cluster, port, _tool: tool }
    }

    /// Both webhook configurations that follow from a configuration, as a list for kubectl.
    fn list(&self, config: &str) -> String {
        let mut manifests = self.cluster.manifests().configured(config).reached_at_port(self.port);
        manifests.objects.retain(|object| object["webhooks"].is_array());
        json!({"apiVersion": "v1", "kind": "List", "items": manifests.objects}).to_string()
    }

    async fn object(&self, kind: &str) -> Value {
        let arguments = ["get", kind, APP, "-o", "json", "--show-managed-fields"];
        serde_json::from_str(&self.cluster.plane.kubectl(&arguments).await.unwrap()).unwrap()
    }

    /// Waits until each entry trusts the CA, and nobody but who applied owns a field.
    async fn settled(&self, what: &str) {
        wait::until(format!("{what}: caBundle is right and nobody's"), async || {
            let secret = self.cluster.secret(APP, SECRET_CA).await?;
            let expected = serde_json::to_value(&secret.data?[KEY_CURRENT_CERT]).unwrap();
            for kind in KINDS {
                let object = self.object(kind).await;
                let webhooks = object["webhooks"].as_array().into_iter().flatten();
                let is_right = webhooks.clone().all(|webhook| webhook["clientConfig"]["caBundle"] == expected);
                let managers = object["metadata"]["managedFields"].as_array().into_iter().flatten();
                if !is_right || managers.clone().any(|entry| entry["manager"] == FIELD_MANAGER_CA_BUNDLE) {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    async fn every_change(&self, first: &[&str], then: &[&str]) {
        let run = async |arguments: &[&str], config: &str, what: &str| {
            let answer = self.cluster.plane.kubectl_with_stdin(arguments, &self.list(config)).await;
            answer.unwrap_or_else(|error| panic!("{arguments:?}: {what}: {error}"));
            self.settled(what).await;
        };
        run(first, SHIPPED, "installed").await;
        for (what, config) in CONFIGS {
            run(then, config, what).await;
            run(then, SHIPPED, &format!("{what}, undone")).await;
        }
        // From each to the next, too.
        for (what, config) in CONFIGS {
            run(then, config, what).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn by_server_side_apply_as_flux_does() {
    let apply = ["apply", "--server-side", "--field-manager=kustomize-controller", "-f", "-"];
    Fixture::new().await.every_change(&apply, &apply).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_client_side_apply() {
    let apply = ["apply", "-f", "-"];
    Fixture::new().await.every_change(&apply, &apply).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_replace() {
    Fixture::new().await.every_change(&["create", "-f", "-"], &["replace", "-f", "-"]).await;
}

/// What a version that owned `caBundle` has left behind goes; and at rest nothing is written.
#[tokio::test(flavor = "multi_thread")]
async fn ownership_that_is_found_goes_and_at_rest_nothing_is_written() {
    let fixture = Fixture::new().await;
    let apply = ["apply", "--server-side", "--field-manager=kustomize-controller", "-f", "-"];
    fixture.cluster.plane.kubectl_with_stdin(&apply, &fixture.list(SHIPPED)).await.unwrap();
    fixture.settled("installed").await;
    let versions = async || {
        let version = async |kind| fixture.object(kind).await["metadata"]["resourceVersion"].clone();
        (version(KINDS[0]).await, version(KINDS[1]).await)
    };
    let mut as_ours: Value = serde_json::from_str(&fixture.list(SHIPPED)).unwrap();
    let ca_bundle = fixture.object(KINDS[0]).await["webhooks"][0]["clientConfig"]["caBundle"].clone();
    for object in as_ours["items"].as_array_mut().unwrap() {
        object["metadata"].as_object_mut().unwrap().retain(|key, _| key == "name");
        for webhook in object["webhooks"].as_array_mut().unwrap() {
            *webhook = json!({"name": webhook["name"], "clientConfig": {"caBundle": ca_bundle}});
        }
    }
    let manager = format!("--field-manager={FIELD_MANAGER_CA_BUNDLE}");
    let former = ["apply", "--server-side", "--validate=false", &manager, "-f", "-"];
    let answer = fixture.cluster.plane.kubectl_with_stdin(&former, &as_ours.to_string()).await.unwrap();
    assert!(answer.contains("serverside-applied"), "{answer}");
    fixture.settled("found").await;

    // Two replicas more look at it, and two of three end.
    let writes = fixture.cluster.writes().await.len();
    let before = versions().await;
    for _ in 0..2 {
        let tool = fixture.cluster.tool(BINARY).await.self_managed().start().await;
        assert!(tool.stop().await.success());
    }
    assert_eq!((versions().await, fixture.cluster.writes().await.len()), (before, writes));
}
