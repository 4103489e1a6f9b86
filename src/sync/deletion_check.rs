//! Before something is deleted because its namespace is not selected: is the namespace selected after all?

use k8s_openapi::api::core::v1::Namespace;
use kube::core::{PartialObjectMeta, SelectorExt as _};

use crate::{
    cluster::{Problem, Requests},
    config::{NamespaceName, NamespaceSelection},
};

/// Whether a namespace is a runner namespace after all, by a quorum read, so that nothing is deleted there for not being in
/// one. The watch may have shown an object before its namespace.
pub(super) async fn is_still_selected(
    requests: &Requests,
    runner_namespaces: &NamespaceSelection,
    namespace: &NamespaceName,
) -> Result<bool, Problem> {
    if runner_namespaces.names.contains(namespace) {
        return Ok(true);
    }
    if runner_namespaces.selectors.is_empty() {
        return Ok(false);
    }
    let found: Option<PartialObjectMeta<Namespace>> = requests.get_cluster(namespace.as_str()).await?;
    let labels = found.and_then(|namespace| namespace.metadata.labels).unwrap_or_default();
    Ok(runner_namespaces.selectors.iter().any(|selector| selector.matches(&labels)))
}
