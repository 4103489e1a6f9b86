//! How the program's own Deployment does. PURE.

use k8s_openapi::api::apps::v1;

use super::facts::Deployment;

impl Deployment {
    /// What its status says.
    pub fn new(deployment: &v1::Deployment) -> Self {
        let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let status = deployment.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        let is_bad = |kind: &str, value: &str| match kind {
            "ReplicaFailure" => value == "True",
            "Available" | "Progressing" => value == "False",
            _ => false,
        };
        let mut problems: Vec<_> = conditions.filter(|condition| is_bad(&condition.type_, &condition.status)).collect();
        // The most telling first.
        problems.sort_by_key(|condition| condition.type_ != "ReplicaFailure");
        let problem = problems.first().and_then(|condition| condition.message.clone());
        let labels = deployment.metadata.labels.as_ref();
        Self {
            wanted,
            available: status.and_then(|status| status.available_replicas).unwrap_or(0),
            updated: status.and_then(|status| status.updated_replicas).unwrap_or(0),
            version: labels.and_then(|labels| labels.get("app.kubernetes.io/version")).cloned(),
            problem,
        }
    }
}
