//! The one writer of trust bundles.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::json;

use super::state::{BundleState, source};
use crate::{
    cluster::{Problem, Requests, Version},
    config::{Config, NamespaceName},
    names::{ANNOTATION_SOURCE, APP, CONFIGMAP_TRUST, FIELD_MANAGER_TRUST, LABEL_MANAGED_BY},
    sync::{
        deletion_check,
        plan::{DeleteReason, Plan, WriteOutcome},
    },
    trust::bundle::{self, BundleError, TrustBundle},
    wiped::Wiped,
};

/// Writes trust bundles.
#[derive(Clone)]
pub struct BundleWriter {
    requests: Requests,
    config: Arc<Config>,
}

impl BundleWriter {
    /// Writes by these requests.
    pub fn new(requests: Requests, config: Arc<Config>) -> Self {
        Self { requests, config }
    }

    /// Carries out a plan for one trust bundle.
    pub async fn carry_out(
        &self,
        plan: &Plan,
        namespace: &NamespaceName,
        there: Option<&BundleState>,
    ) -> Result<WriteOutcome, Problem> {
        match (plan, there) {
            (Plan::Delete(why), Some(there)) => {
                let is_wanted = match why {
                    DeleteReason::SourceDeleted => !self.has_no_source(namespace).await?,
                    DeleteReason::NotSelected | DeleteReason::Leftover => {
                        deletion_check::is_still_selected(&self.requests, &self.config.with_trust(), namespace).await?
                    }
                };
                if is_wanted {
                    return Ok(WriteOutcome::NotNeeded);
                }
                self.withdraw(namespace, there).await?;
                Ok(WriteOutcome::Written)
            }
            (Plan::Create | Plan::Update(_) | Plan::Replace(_), there) => self.publish(namespace, there).await,
            (Plan::NoAction(_) | Plan::Delete(_), _) => Ok(WriteOutcome::NotNeeded),
        }
    }

    /// Makes the trust bundle what follows from `certsSecretName` as it is stored now.
    async fn publish(&self, namespace: &NamespaceName, there: Option<&BundleState>) -> Result<WriteOutcome, Problem> {
        // The watch is about to bring what this read found; the next look settles it.
        let Ok(bundle) = self.read(namespace).await? else { return Ok(WriteOutcome::NotNeeded) };
        match there {
            None => self.create(namespace, &bundle).await?,
            Some(there) if there.immutable => {
                self.withdraw(namespace, there).await?;
                self.create(namespace, &bundle).await?;
            }
            Some(there) => {
                let mut metadata = there.metadata.clone();
                metadata.labels.get_or_insert_default().insert(LABEL_MANAGED_BY.to_owned(), APP.to_owned());
                let annotations = metadata.annotations.get_or_insert_default();
                let source = source(namespace, &self.config.certs_secret_name);
                annotations.insert(ANNOTATION_SOURCE.to_owned(), source);
                let map = ConfigMap {
                    metadata,
                    data: Some(bundle.data().clone()),
                    binary_data: Some(bundle.binary().clone()),
                    ..ConfigMap::default()
                };
                self.requests.replace(FIELD_MANAGER_TRUST, namespace, CONFIGMAP_TRUST, &map).await?;
            }
        }
        Ok(WriteOutcome::Written)
    }

    /// Whether no trust bundle follows from `certsSecretName` as it is stored now. The watch of that Secret may be behind
    /// the watch of trust bundles: what it does not show is not gone.
    async fn has_no_source(&self, namespace: &NamespaceName) -> Result<bool, Problem> {
        Ok(matches!(self.read(namespace).await?, Err(BundleError::NoCa)))
    }

    async fn read(&self, namespace: &NamespaceName) -> Result<Result<TrustBundle, BundleError>, Problem> {
        let secret: Option<Secret> = self.requests.get(namespace, self.config.certs_secret_name.as_str()).await?;
        // The runner's client key may be in it.
        let secret = secret.map(Wiped::from);
        Ok(bundle::build(secret.as_ref().and_then(|secret| secret.data.as_ref()), self.config.public_roots))
    }

    /// Deletes exactly the trust bundle that was observed.
    async fn withdraw(&self, namespace: &NamespaceName, there: &BundleState) -> Result<(), Problem> {
        self.requests.delete::<ConfigMap>(namespace, CONFIGMAP_TRUST, Version::from(&there.metadata)).await
    }

    async fn create(&self, namespace: &NamespaceName, bundle: &TrustBundle) -> Result<(), Problem> {
        let map = json!({
            "metadata": {
                "labels": {LABEL_MANAGED_BY: APP},
                "annotations": {ANNOTATION_SOURCE: source(namespace, &self.config.certs_secret_name)},
            },
            "data": bundle.data(),
            "binaryData": bundle.binary(),
        });
        self.requests.create::<ConfigMap>(FIELD_MANAGER_TRUST, namespace, CONFIGMAP_TRUST, map).await
    }
}
