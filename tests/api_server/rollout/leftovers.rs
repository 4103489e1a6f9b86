//! What is found in a namespace that is not selected: deleted late, and only if this program wrote it.

use k8s_openapi::{api::core::v1::ConfigMap, jiff::Timestamp};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use test_support::{
    Cluster,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE},
    wait,
};

use super::{BINARY, TRUST};

const TOKEN: [(&str, &str); 1] = [("runner-token", "t")];

/// A clone or trust bundle as this program makes it.
fn marked(kind: &str, name: &str, source: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": kind,
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/managed-by": "gitlab-runner-webhook"},
            "annotations": {"gitlab-runner-webhook/source": source},
        },
        "data": {},
    })
}

/// Makes both in a namespace, by this field manager.
async fn dress_up(cluster: &Cluster, namespace: &str, manager: &str) {
    let params = |kind: &str| PatchParams::apply(&format!("{manager}-{kind}")).force();
    let clone = marked("Secret", SECRET, &format!("{SOURCE_NAMESPACE}/{SECRET}"));
    let bundle = marked("ConfigMap", TRUST, &format!("{namespace}/gitlab-runner-certs"));
    let maps: Api<ConfigMap> = Api::namespaced(cluster.admin.clone(), namespace);
    maps.patch(TRUST, &params("trust"), &Patch::Apply(&bundle)).await.unwrap();
    if namespace != SOURCE_NAMESPACE {
        cluster.secrets(namespace).patch(SECRET, &params("clone"), &Patch::Apply(&clone)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_looks_like_ours_is_not_deleted_and_what_is_ours_is_after_a_delay() {
    let cluster = Cluster::with_source(&TOKEN).await;
    for namespace in [RUNNER_NAMESPACE, "tenant", "former"] {
        cluster.create_namespace(namespace, &[]).await;
    }
    dress_up(&cluster, "tenant", "tenant").await;
    dress_up(&cluster, "former", "gitlab-runner-webhook").await;
    // No clone is ever where a source is, whoever made it.
    dress_up(&cluster, SOURCE_NAMESPACE, "gitlab-runner-webhook").await;
    let tool = cluster.tool(BINARY).await.flag("--cleanup-delay", "3").start().await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;
    for object in [SECRET, TRUST] {
        let waits =
            |line: &Value| line["seconds"].is_number() && line["object"] == object && line["namespace"] == "former";
        tool.logged("that it waits", waits).await;
    }
    let maps = |namespace: &str| Api::<ConfigMap>::namespaced(cluster.admin.clone(), namespace);
    wait::until("what was ours is gone", async || {
        let is_gone =
            cluster.secret("former", SECRET).await.is_none() && maps("former").get_opt(TRUST).await.unwrap().is_none();
        is_gone.then_some(())
    })
    .await;
    for object in [SECRET, TRUST] {
        let of_former = |line: &Value| line["object"] == object && line["namespace"] == "former";
        let at = |line: Value| -> Timestamp { line["timestamp"].as_str().unwrap().parse().unwrap() };
        let found = at(tool.logged("that it waits", |line| of_former(line) && line["seconds"].is_number()).await);
        let deleted = at(tool.logged("its end", |line| of_former(line) && line["action"] == "delete").await);
        assert!(deleted.duration_since(found).as_secs() >= 3, "{object} was deleted {deleted}, and found {found}");
    }
    assert!(cluster.secret("tenant", SECRET).await.is_some());
    for namespace in ["tenant", SOURCE_NAMESPACE] {
        assert!(maps(namespace).get_opt(TRUST).await.unwrap().is_some(), "{namespace}");
    }
    let deletes = cluster.writes().await.into_iter().filter(|write| write.verb == "delete");
    let of: Vec<_> = deletes.map(|write| write.namespace).collect();
    assert_eq!(of, ["former", "former"], "nothing else was tried either");
}
