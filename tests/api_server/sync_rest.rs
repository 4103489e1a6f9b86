//! What it does not do: no write and no request beyond watches at rest, no write after a restart,
//! nothing that the shipped rights do not name.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use test_support::{
    Cluster, Setup,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE, secret},
    control_plane::ControlPlane,
};

use crate::{BINARY, mission::TOKEN};

const MANIFEST_ACCOUNT: &str = "gitlab-runner-webhook";

#[tokio::test(flavor = "multi_thread")]
async fn at_rest_and_after_a_restart_nothing_is_written() {
    let cluster = Cluster::start_as(ControlPlane::builder().audit_starts(true), Setup::default()).await;
    cluster.create_namespace(SOURCE_NAMESPACE, &[]).await;
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &TOKEN).await;
    cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
    let tool = cluster.tool(BINARY).await.start().await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &TOKEN).await;

    // The one place where time itself is what is tested.
    let before = cluster.requests().await.len();
    tokio::time::sleep(Duration::from_secs(61)).await;
    let requests = cluster.requests().await;
    let since = &requests[before..];
    assert!(since.iter().any(|request| request.verb == "watch"), "the minute was seen");
    for request in since {
        assert_eq!(request.verb, "watch", "{request:?}");
    }
    // Three watches, each opened anew once, with a record of its start and of its end.
    assert!(since.len() <= 8, "{} requests in a minute", since.len());

    let before = cluster.writes().await.len();
    for _ in 0..3 {
        let next = cluster.tool(BINARY).await.start().await;
        assert!(next.stop().await.success());
    }
    assert!(tool.stop().await.success());
    let last = cluster.tool(BINARY).await.start().await;
    // It is ready when it has listed; a rotation that arrives shows that it looked at everything.
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", "rotated")]).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", "rotated")]).await;
    drop(last);
    assert_eq!(cluster.writes().await.len() - before, 1, "the rotation alone was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_rights_open_nothing_else() {
    let cluster = Cluster::start().await;
    for namespace in [SOURCE_NAMESPACE, RUNNER_NAMESPACE, "elsewhere"] {
        cluster.create_namespace(namespace, &[]).await;
        cluster.put_secret(namespace, "another", &[("password", "p")]).await;
    }
    let client = cluster.plane.service_account_client(MANIFEST_ACCOUNT, MANIFEST_ACCOUNT).await.unwrap();
    let forbidden = |what: String, result: Result<(), kube::Error>| match result {
        Err(kube::Error::Api(status)) if status.code == 403 => {}
        other => panic!("{what}: {other:?}"),
    };
    let apply = |name: &str| {
        let params = PatchParams::apply("somebody").force();
        let body = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"k": "v"}});
        (params, Patch::Apply(body))
    };

    for namespace in [SOURCE_NAMESPACE, RUNNER_NAMESPACE, "elsewhere", "kube-system", MANIFEST_ACCOUNT] {
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let say = |verb: &str| format!("{verb} in {namespace}");
        forbidden(say("get another"), api.get("another").await.map(drop));
        forbidden(say("list"), api.list(&ListParams::default()).await.map(drop));
        let named = ListParams::default().fields("metadata.name=another");
        forbidden(say("list another"), api.list(&named).await.map(drop));
        let others = ListParams::default().fields(&format!("metadata.name!={SECRET}"));
        forbidden(say("list all but one"), api.list(&others).await.map(drop));
        forbidden(say("create another"), api.create(&PostParams::default(), &secret("fresh", &TOKEN)).await.map(drop));
        // POST carries no name: even the cloned name can only be created by server-side apply.
        forbidden(say("post"), api.create(&PostParams::default(), &secret(SECRET, &TOKEN)).await.map(drop));
        let (params, body) = apply("fresh");
        forbidden(say("apply fresh"), api.patch("fresh", &params, &body).await.map(drop));
        let (params, body) = apply("another");
        forbidden(say("apply another"), api.patch("another", &params, &body).await.map(drop));
        forbidden(say("delete another"), api.delete("another", &DeleteParams::default()).await.map(drop));
        let all = ListParams::default();
        forbidden(say("delete all"), api.delete_collection(&DeleteParams::default(), &all).await.map(drop));
    }
    let all: Api<Secret> = Api::all(client.clone());
    forbidden("list every Secret".into(), all.list(&ListParams::default()).await.map(drop));
    let namespaces: Api<Namespace> = Api::all(client.clone());
    forbidden("list namespaces".into(), namespaces.list(&ListParams::default()).await.map(drop));
    forbidden("get kube-system".into(), namespaces.get("kube-system").await.map(drop));

    // And what the program lives on works.
    let clone: Api<Secret> = Api::namespaced(client.clone(), RUNNER_NAMESPACE);
    let (params, body) = apply(SECRET);
    clone.patch(SECRET, &params, &body).await.expect("apply by name creates");
    let named = ListParams::default().fields(&format!("metadata.name={SECRET}"));
    assert_eq!(all.list(&named).await.expect("list by name").items.len(), 1);

    let can = cluster
        .plane
        .kubectl(&[
            "auth",
            "can-i",
            "--list",
            "--as",
            &format!("system:serviceaccount:{MANIFEST_ACCOUNT}:{MANIFEST_ACCOUNT}"),
        ])
        .await
        .unwrap();
    // Columns: resource, URLs, names, verbs.
    let granted: Vec<_> = can
        .lines()
        .filter(|line| line.starts_with("secrets"))
        .filter_map(|line| line.split_whitespace().nth(2))
        .collect();
    assert!(!granted.is_empty() && granted.iter().all(|names| *names != "[]"), "{can}");
}
