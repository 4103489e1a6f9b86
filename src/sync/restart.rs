//! Rotation that arrives: Deployments whose pods are replaced when the content of a clone changes, because GitLab Runner
//! reads its token once, at its start.
//!
//! What a Deployment's pods were last started for stands in an annotation of theirs, so a restart of this program, or
//! another replica that does the same, changes nothing. A Deployment without the annotation is left alone until the
//! content changes while somebody watches: it may have been started a moment ago.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;
use tokio::{sync::mpsc, time};

use crate::{
    backoff,
    cluster::{Problem, Reason, Requests},
    config::{Config, DeploymentName, NamespaceName},
    names::{ANNOTATION_RESTARTED_FOR, FIELD_MANAGER_RESTART},
    telemetry::metrics::{Metrics, WriteLabels},
};

/// Attempts after failures; then the next change tries again.
const ATTEMPTS: u32 = 6;

/// What the clones of a namespace hold now.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Content {
    namespace: NamespaceName,
    /// Versions of the sources, as the clones say them.
    versions: String,
    /// Whether this process saw it change, or merely found it.
    changed: bool,
}

/// Tells what clones hold. Only the sync loop has it.
pub(super) struct Contents {
    config: Arc<Config>,
    sender: mpsc::UnboundedSender<Content>,
    /// What was told last.
    known: HashMap<NamespaceName, String>,
    /// Where this process has just written content.
    wrote: HashSet<NamespaceName>,
}

/// Restarts Deployments, one at a time.
pub(super) struct Restarts {
    requests: Requests,
    deployments: BTreeSet<DeploymentName>,
    metrics: Metrics,
    contents: mpsc::UnboundedReceiver<Content>,
}

/// Both ends.
pub(super) fn channel(config: Arc<Config>, requests: Requests, metrics: Metrics) -> (Contents, Restarts) {
    let (sender, contents) = mpsc::unbounded_channel();
    let deployments = config.restart.clone();
    let told = Contents { config, sender, known: HashMap::new(), wrote: HashSet::new() };
    (told, Restarts { requests, deployments, metrics, contents })
}

impl Contents {
    /// Content was written into a clone of this namespace.
    pub(super) fn wrote(&mut self, namespace: &NamespaceName) {
        if !self.config.restart.is_empty() {
            self.wrote.insert(namespace.clone());
        }
    }

    /// All clones of a namespace equal their sources, and say these versions of them.
    pub(super) fn are(&mut self, namespace: &NamespaceName, versions: impl Iterator<Item = Option<String>>) {
        if self.config.restart.is_empty() {
            return;
        }
        let versions: Vec<_> = versions.map(Option::unwrap_or_default).collect();
        if versions.iter().all(String::is_empty) {
            return;
        }
        let versions = versions.join(".");
        let former = self.known.insert(namespace.clone(), versions.clone());
        if former.as_ref() == Some(&versions) {
            return;
        }
        let changed = self.wrote.remove(namespace) || former.is_some();
        let _ = self.sender.send(Content { namespace: namespace.clone(), versions, changed });
    }
}

impl Restarts {
    /// Runs until the sync loop ends.
    pub(super) async fn run(mut self) {
        while let Some(content) = self.contents.recv().await {
            for deployment in &self.deployments {
                self.see_to(deployment, &content).await;
            }
        }
    }

    async fn see_to(&self, deployment: &DeploymentName, content: &Content) {
        let (object, namespace) = (deployment.as_str(), content.namespace.as_str());
        for attempt in 0..ATTEMPTS {
            let result = self.restart(deployment, content).await;
            let word = result.as_ref().map_or_else(|problem| problem.reason.as_str(), |_| "ok");
            let labels = WriteLabels { object: object.to_owned(), action: "restart", result: word };
            match result {
                Ok(false) => return,
                Ok(true) => {
                    self.metrics.writes.get_or_create(&labels).inc();
                    return tracing::info!(object, namespace, "Deployment restarted, because a clone has new content");
                }
                Err(problem) => {
                    self.metrics.writes.get_or_create(&labels).inc();
                    tracing::warn!(object, namespace, reason = word, detail = %problem, "Deployment not restarted");
                    if matches!(problem.reason, Reason::Forbidden | Reason::Denied | Reason::Invalid) {
                        return;
                    }
                    let pause = backoff::pause(attempt, Duration::from_millis(500), Duration::from_secs(30));
                    time::sleep(pause.max(problem.retry_after.unwrap_or_default())).await;
                }
            }
        }
    }

    /// `false`: there was nothing to do.
    async fn restart(&self, deployment: &DeploymentName, content: &Content) -> Result<bool, Problem> {
        let (namespace, name) = (&content.namespace, deployment.as_str());
        let Some(there) = self.requests.get::<Deployment>(namespace, name).await? else { return Ok(false) };
        let template = there.spec.map(|spec| spec.template).and_then(|template| template.metadata);
        let annotations = template.and_then(|metadata| metadata.annotations).unwrap_or_default();
        let former = annotations.get(ANNOTATION_RESTARTED_FOR);
        if former == Some(&content.versions) || (former.is_none() && !content.changed) {
            return Ok(false);
        }
        let annotation = json!({ANNOTATION_RESTARTED_FOR: content.versions});
        let object = json!({"spec": {"template": {"metadata": {"annotations": annotation}}}});
        self.requests.apply::<Deployment>(FIELD_MANAGER_RESTART, namespace, name, object).await?;
        Ok(true)
    }
}
