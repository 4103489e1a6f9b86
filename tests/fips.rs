//! The program with the FIPS module of AWS-LC: it says so, and serves a real API server.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "the lints spare test functions, not what they share")]

use test_support::{
    Cluster,
    cluster::{RUNNER_NAMESPACE, SECRET, free_port},
    wait,
};

#[tokio::test(flavor = "multi_thread")]
async fn it_is_in_fips_mode_and_serves() {
    let token = [("runner-token", "t")];
    let cluster = Cluster::with_source(&token).await;
    cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
    cluster.plane.service_account_ready(RUNNER_NAMESPACE, "default").await.unwrap();
    let port = free_port();
    cluster.register_webhooks_without_ca(port, "Fail").await;

    let listen = format!("127.0.0.1:{port}");
    let builder = cluster.tool(env!("CARGO_BIN_EXE_gitlab-runner-webhook")).await;
    let tool = builder.self_managed().flag("--listen", &listen).start().await;
    tool.logged("its mode", |line| line["message"] == "cryptography" && line["fips"] == true).await;
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &token).await;

    wait::until("a pod is let in", async || cluster.try_pod().await.ok()).await;
}
