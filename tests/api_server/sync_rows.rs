//! The rows of the contract about source, clone and namespace, in each order in which
//! namespace, source and tool can come.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use test_support::{
    Cluster, Tool,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE, has_data, secret},
    wait,
};

use crate::BINARY;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Namespace,
    Source,
    Tool,
}

const ORDERS: [[Part; 3]; 6] = {
    use Part::{Namespace, Source, Tool};
    [
        [Namespace, Source, Tool],
        [Namespace, Tool, Source],
        [Source, Namespace, Tool],
        [Source, Tool, Namespace],
        [Tool, Namespace, Source],
        [Tool, Source, Namespace],
    ]
};

/// Plays a row of the contract after each order of arrivals.
async fn in_every_order(row: impl AsyncFn(&Cluster, &Tool)) {
    let cluster = Cluster::start().await;
    cluster.create_namespace(SOURCE_NAMESPACE, &[]).await;
    for order in ORDERS {
        eprintln!("order {order:?}");
        let mut tool = None;
        for part in order {
            match part {
                Part::Namespace => drop(cluster.create_namespace(RUNNER_NAMESPACE, &[]).await),
                Part::Source => drop(cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "first")]).await),
                Part::Tool => tool = Some(cluster.tool(BINARY).await.start().await),
            }
        }
        let tool = tool.expect("the tool is part of each order");
        cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "first")]).await;

        row(&cluster, &tool).await;

        assert!(tool.stop().await.success());
        cluster.delete_namespace(RUNNER_NAMESPACE).await;
        cluster.delete_secret(SOURCE_NAMESPACE, SECRET).await;
    }
}

/// Nothing but our marks: nothing of the source's labels, annotations, owners, finalizers.
#[tokio::test(flavor = "multi_thread")]
async fn clone_is_made_in_every_order_and_owns_the_least() {
    in_every_order(async |cluster, _| {
        let clone = cluster.secret(RUNNER_NAMESPACE, SECRET).await.unwrap();
        assert_eq!(clone.labels().len(), 1, "{:?}", clone.labels());
        assert_eq!(clone.annotations().len(), 1, "{:?}", clone.annotations());
        assert_eq!(clone.annotations()["gitlab-runner-webhook/source"], format!("{SOURCE_NAMESPACE}/{SECRET}"));
        assert!(clone.owner_references().is_empty() && clone.finalizers().is_empty() && clone.immutable.is_none());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_data_changes() {
    in_every_order(async |cluster, _| {
        cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "second"), ("extra", "x")]).await;
        cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "second"), ("extra", "x")]).await;

        // Somebody else co-owns a key and a label. The key goes with the source's, the label stays.
        let co_owned = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": SECRET, "labels": {"team": "ci"}},
            "data": {"extra": "eA=="},
        });
        let params = PatchParams::apply("somebody-else").force();
        cluster.secrets(RUNNER_NAMESPACE).patch(SECRET, &params, &Patch::Apply(&co_owned)).await.unwrap();
        cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "third")]).await;
        let clone = cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "third")]).await;
        assert_eq!(clone.labels()["team"], "ci");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_labels_change() {
    in_every_order(async |cluster, _| {
        let before = cluster.writes().await.len();
        let labels =
            json!({"metadata": {"labels": {"chart": "gitlab-9.10.1"}, "annotations": {"a": "b"}, "finalizers": null}});
        cluster.patch_secret(SOURCE_NAMESPACE, SECRET, &labels).await;
        // One watch brings source and clones in order: when the edit is repaired, the labels were seen.
        edit_and_see_it_repaired(cluster, "first").await;
        assert_eq!(cluster.writes().await.len() - before, 1, "the repair alone was written");
        assert!(!cluster.secret(RUNNER_NAMESPACE, SECRET).await.unwrap().labels().contains_key("chart"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clone_is_edited_deleted_or_stripped() {
    in_every_order(async |cluster, _| {
        edit_and_see_it_repaired(cluster, "first").await;
        cluster.delete_secret(RUNNER_NAMESPACE, SECRET).await;
        cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "first")]).await;
        for marks in
            [json!({"labels": null}), json!({"annotations": null}), json!({"labels": null, "annotations": null})]
        {
            cluster.patch_secret(RUNNER_NAMESPACE, SECRET, &json!({"metadata": marks})).await;
            cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "first")]).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clone_is_immutable() {
    in_every_order(async |cluster, _| {
        let frozen = cluster.patch_secret(RUNNER_NAMESPACE, SECRET, &json!({"immutable": true})).await;
        cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "fourth")]).await;
        let clone = cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "fourth")]).await;
        assert_ne!(clone.uid(), frozen.uid());
        assert_eq!(clone.immutable, None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_type_changes() {
    in_every_order(async |cluster, _| {
        let former = cluster.secret(RUNNER_NAMESPACE, SECRET).await.unwrap();
        cluster.delete_secret(SOURCE_NAMESPACE, SECRET).await;
        let mut typed = secret(SECRET, &[("runner-token", "fifth")]);
        typed.type_ = Some("example.com/token".to_owned());
        cluster.secrets(SOURCE_NAMESPACE).create(&PostParams::default(), &typed).await.unwrap();
        let clone = cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "fifth")]).await;
        assert_eq!(clone.type_.as_deref(), Some("example.com/token"));
        assert_ne!(clone.uid(), former.uid());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn source_is_deleted_and_created_again() {
    in_every_order(async |cluster, tool| {
        let clone = cluster.secret(RUNNER_NAMESPACE, SECRET).await.unwrap();
        cluster.delete_secret(SOURCE_NAMESPACE, SECRET).await;
        tool.clones_in_state(SECRET, "source-missing", 1.0).await;
        let kept = cluster.secret(RUNNER_NAMESPACE, SECRET).await.expect("the clone stays");
        assert_eq!(kept.resource_version(), clone.resource_version());

        cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "sixth")]).await;
        cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "sixth")]).await;
        tool.clones_in_state(SECRET, "synced", 1.0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn namespace_terminates_and_comes_back() {
    in_every_order(async |cluster, tool| {
        // Something with a finalizer holds the namespace in Terminating; the clone is deleted with the rest.
        let maps: Api<ConfigMap> = Api::namespaced(cluster.admin.clone(), RUNNER_NAMESPACE);
        let brake = json!({"metadata": {"name": "brake", "finalizers": ["example.com/brake"]}});
        maps.create(&PostParams::default(), &serde_json::from_value(brake).unwrap()).await.unwrap();
        let before = cluster.writes().await.len();
        cluster.namespaces().delete(RUNNER_NAMESPACE, &DeleteParams::default()).await.unwrap();
        tool.clones_in_state(SECRET, "namespace-terminating", 1.0).await;
        wait::until("the clone went with its namespace", || async {
            cluster.secret(RUNNER_NAMESPACE, SECRET).await.is_none().then_some(())
        })
        .await;
        cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "seventh")]).await;
        maps.patch("brake", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"finalizers": null}})))
            .await
            .unwrap();
        tool.clones_in_state(SECRET, "namespace-absent", 1.0).await;
        assert_eq!(cluster.writes().await.len(), before, "nothing is written to a namespace that goes");

        cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
        cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "seventh")]).await;
    })
    .await;
}

async fn edit_and_see_it_repaired(cluster: &Cluster, token: &str) {
    let edit = json!({"stringData": {"runner-token": "edited", "stray": "x"}});
    let edited = cluster.patch_secret(RUNNER_NAMESPACE, SECRET, &edit).await;
    cluster
        .secret_that("is repaired", RUNNER_NAMESPACE, SECRET, |there| {
            has_data(there, &[("runner-token", token)]) && there.resource_version() != edited.resource_version()
        })
        .await;
}
