//! The one writer of clones, and the quorum reads that go before its writes.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::Secret;
use serde_json::json;

use super::state::{SecretState, SourceSecret};
use crate::{
    cluster::{Problem, Requests, Version},
    config::{CloneSpec, Config, NamespaceName},
    names::{ANNOTATION_CONTENT, ANNOTATION_SOURCE, APP, FIELD_MANAGER_CLONE, LABEL_MANAGED_BY},
    sync::{
        deletion_check,
        plan::{DeleteReason, Plan, UpdateReason, WriteOutcome},
    },
};

/// Source and clone as they are stored.
pub type Both = [Option<SecretState>; 2];

/// Reads sources and writes clones.
#[derive(Clone)]
pub struct CloneWriter {
    requests: Requests,
    config: Arc<Config>,
}

impl CloneWriter {
    /// Reads and writes by these requests.
    pub fn new(requests: Requests, config: Arc<Config>) -> Self {
        Self { requests, config }
    }

    /// The source as it is stored now.
    pub async fn read_source(&self, spec: &CloneSpec) -> Result<Option<SourceSecret>, Problem> {
        let secret: Option<Secret> = self.requests.get(&spec.from, spec.secret.as_str()).await?;
        Ok(secret.map(SourceSecret::from))
    }

    /// Source and clone as they are stored now.
    pub async fn read_both(&self, spec: &CloneSpec, namespace: &NamespaceName) -> Result<Both, Problem> {
        let source: Option<Secret> = self.requests.get(&spec.from, spec.secret.as_str()).await?;
        let clone: Option<Secret> = self.requests.get(namespace, spec.secret.as_str()).await?;
        Ok([source, clone].map(|secret| secret.map(SecretState::from)))
    }

    /// Carries out a plan for one clone.
    pub async fn carry_out(
        &self,
        plan: &Plan,
        spec: &CloneSpec,
        namespace: &NamespaceName,
        source: Option<&SourceSecret>,
        there: Option<&SecretState>,
    ) -> Result<WriteOutcome, Problem> {
        match (plan, source, there) {
            (Plan::Create, Some(source), _) => self.create(spec, namespace, source).await?,
            (Plan::Update(cause), Some(source), Some(there)) => {
                self.update(spec, namespace, source, there, *cause).await?;
            }
            (Plan::Replace(_), Some(source), Some(there)) => {
                self.delete(spec, namespace, there).await?;
                self.create(spec, namespace, source).await?;
            }
            (Plan::Delete(why), _, Some(there)) => {
                let selected = &[&self.config.runner_namespaces];
                if matches!(why, DeleteReason::NotSelected | DeleteReason::Leftover)
                    && deletion_check::is_still_selected(&self.requests, selected, namespace).await?
                {
                    return Ok(WriteOutcome::NotNeeded);
                }
                self.delete(spec, namespace, there).await?;
            }
            _ => return Ok(WriteOutcome::NotNeeded),
        }
        Ok(WriteOutcome::Written)
    }

    async fn create(&self, spec: &CloneSpec, namespace: &NamespaceName, source: &SourceSecret) -> Result<(), Problem> {
        let payload = &source.payload;
        let mut labels = spec.labels.clone();
        labels.insert(LABEL_MANAGED_BY.to_owned(), APP.to_owned());
        let clone = json!({
            "metadata": {"labels": labels, "annotations": annotations(spec, source)},
            "type": payload.secret_type(),
            "data": payload.data(),
        });
        self.requests.create::<Secret>(FIELD_MANAGER_CLONE, namespace, spec.secret.as_str(), clone).await
    }

    /// Makes an existing Secret the clone: its content exactly the source's, its metadata as it was
    /// plus our marks. Fails with a conflict when it is not the version that was observed.
    async fn update(
        &self,
        spec: &CloneSpec,
        namespace: &NamespaceName,
        source: &SourceSecret,
        target: &SecretState,
        cause: UpdateReason,
    ) -> Result<(), Problem> {
        let mut metadata = target.metadata.clone();
        if cause == UpdateReason::Marks || !target.is_managed_by_kyverno() {
            let labels = metadata.labels.get_or_insert_default();
            labels.extend(spec.labels.clone());
            labels.insert(LABEL_MANAGED_BY.to_owned(), APP.to_owned());
            let mut ours = annotations(spec, source);
            if cause == UpdateReason::Marks {
                ours.remove(ANNOTATION_CONTENT);
            }
            metadata.annotations.get_or_insert_default().extend(ours);
        }
        let clone = source.payload.to_secret(metadata, target.immutable);
        self.requests.replace(FIELD_MANAGER_CLONE, namespace, spec.secret.as_str(), &*clone).await
    }

    async fn delete(&self, spec: &CloneSpec, namespace: &NamespaceName, target: &SecretState) -> Result<(), Problem> {
        self.requests.delete::<Secret>(namespace, spec.secret.as_str(), Version::from(&target.metadata)).await
    }
}

/// Our annotations on a clone that gets the content of its source.
fn annotations(spec: &CloneSpec, source: &SourceSecret) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::from([(ANNOTATION_SOURCE.to_owned(), spec.source())]);
    if let Some(version) = source.state.metadata.resource_version.clone().filter(|_| spec.records_source_version) {
        annotations.insert(ANNOTATION_CONTENT.to_owned(), version);
    }
    annotations
}
