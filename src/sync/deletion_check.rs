//! Before something is deleted because its namespace is not selected: is the namespace selected after all?

use k8s_openapi::api::core::v1::Namespace;
use kube::core::{PartialObjectMeta, SelectorExt as _};

use crate::{
    cluster::{Problem, Requests},
    config::{NamespaceName, NamespaceSelection},
};

/// Whether a namespace is selected after all, by a quorum read, so that nothing is deleted there for not being in one that
/// is. The watch may have shown an object before its namespace.
pub(super) async fn is_still_selected(
    requests: &Requests,
    selections: &[&NamespaceSelection],
    namespace: &NamespaceName,
) -> Result<bool, Problem> {
    if selections.iter().any(|selection| selection.names.contains(namespace)) {
        return Ok(true);
    }
    if selections.iter().all(|selection| selection.selectors.is_empty()) {
        return Ok(false);
    }
    let found: Option<PartialObjectMeta<Namespace>> = requests.get_cluster(namespace.as_str()).await?;
    let labels = found.and_then(|namespace| namespace.metadata.labels).unwrap_or_default();
    Ok(selections.iter().flat_map(|selection| &selection.selectors).any(|selector| selector.matches(&labels)))
}
