//! The mission as most tests begin it: a source, and a runner namespace.

use test_support::{
    Cluster,
    cluster::{RUNNER_NAMESPACE, SECRET, SOURCE_NAMESPACE},
};

/// `certsSecretName`.
pub const CERTS: &str = "gitlab-runner-certs";
/// The trust bundle.
pub const TRUST: &str = "gitlab-runner-webhook-trust";
/// What the source holds at first.
pub const TOKEN: [(&str, &str); 1] = [("runner-token", "the-token")];

/// A cluster with both.
pub async fn mission() -> Cluster {
    let cluster = Cluster::with_source(&TOKEN).await;
    cluster.create_namespace(RUNNER_NAMESPACE, &[]).await;
    cluster
}

/// Changes the source.
pub async fn rotate(cluster: &Cluster, token: &str) {
    cluster.put_secret(SOURCE_NAMESPACE, SECRET, &[("runner-token", token)]).await;
}

/// Waits until the clone has followed.
pub async fn followed(cluster: &Cluster, token: &str) {
    cluster.clone_with(RUNNER_NAMESPACE, SECRET, &[("runner-token", token)]).await;
}
