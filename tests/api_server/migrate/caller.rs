//! Whoever runs the command, with certain rights.

use std::path::PathBuf;

use k8s_openapi::{
    api::{
        core::v1::ServiceAccount,
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, api::PostParams};
use serde_json::{Value, json};
use test_support::Cluster;

/// A kubeconfig of somebody who may do this, everywhere, and nothing else.
pub async fn who_may(cluster: &Cluster, name: &str, rules: &Value) -> PathBuf {
    let metadata = || ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.admin.clone(), "default");
    let account = ServiceAccount { metadata: metadata(), ..ServiceAccount::default() };
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let role: ClusterRole = serde_json::from_value(json!({"metadata": metadata(), "rules": rules})).unwrap();
    Api::all(cluster.admin.clone()).create(&PostParams::default(), &role).await.unwrap();
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": metadata(),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}],
    }))
    .unwrap();
    Api::all(cluster.admin.clone()).create(&PostParams::default(), &binding).await.unwrap();
    cluster.plane.service_account_kubeconfig("default", name).await.unwrap()
}
