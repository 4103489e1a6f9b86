//! `caBundle` of our webhook configurations: watched by name, applied, and then owned by nobody.
//!
//! Who owns a field of an entry keeps the entry from going: a server-side apply of manifests without it would leave a stub
//! behind, which is invalid, and be refused as a whole. So our entry in `managedFields` goes as soon as it has come. The
//! field stays: an apply takes away only what its own manager owned.

use std::time::Duration;

use futures::{Stream, StreamExt as _};
use k8s_openapi::{
    ByteString,
    api::admissionregistration::v1::{
        MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
    },
};
use kube::Resource;
use serde::Deserialize;
use serde_json::json;

use super::registration::{Owned, Registration, WebhookKind};
use crate::{
    cluster::{Change, Problem, Query, Reason, Requests, WatchClient, watch},
    names::FIELD_MANAGER_CA_BUNDLE,
};

/// Writes `caBundle`.
pub struct CaBundlePublisher {
    requests: Requests,
    /// Of both configurations.
    name: String,
}

impl CaBundlePublisher {
    /// Of the configurations of this name.
    pub fn new(requests: Requests, name: String) -> Self {
        Self { requests, name }
    }

    /// `<resource>/<name>`.
    pub fn object(&self, kind: WebhookKind) -> String {
        format!("{}/{}", kind.resource(), self.name)
    }

    /// What happens to a configuration.
    pub fn watch(
        &self,
        kind: WebhookKind,
        client: &WatchClient,
        timeout: Duration,
    ) -> impl Stream<Item = Change<Registration>> + Send + use<> {
        let query = match kind {
            WebhookKind::Mutating => Query::of::<MutatingWebhookConfiguration>(None, self.object(kind)),
            WebhookKind::Validating => Query::of::<ValidatingWebhookConfiguration>(None, self.object(kind)),
        };
        watch(client, query.named(&self.name), timeout, |raw| {
            #[derive(Deserialize)]
            struct Found {
                webhooks: Option<Vec<Webhook>>,
            }
            #[derive(Deserialize)]
            #[serde(rename_all = "camelCase")]
            struct Webhook {
                name: String,
                client_config: WebhookClientConfig,
            }
            let found: Found = serde_json::from_str(raw.json)?;
            let webhooks = found.webhooks.into_iter().flatten();
            let webhooks = webhooks.map(|webhook| (webhook.name, webhook.client_config.ca_bundle));
            let version = raw.metadata.resource_version.clone();
            Ok(Some(Registration::new(webhooks, &raw.managed_fields, version)))
        })
        .boxed()
    }

    /// Puts `caBundle` into the webhooks that were seen, where it is another, and touches nothing else. Owns no field then.
    /// Fails with a conflict if the configuration is no longer as it was seen: another replica may have been first.
    pub async fn publish(&self, kind: WebhookKind, seen: &Registration, ca_bundle: &str) -> Result<(), Problem> {
        match kind {
            WebhookKind::Mutating => self.publish_as::<MutatingWebhookConfiguration>(seen, ca_bundle).await,
            WebhookKind::Validating => self.publish_as::<ValidatingWebhookConfiguration>(seen, ca_bundle).await,
        }
    }

    async fn publish_as<K: Resource<DynamicType = ()>>(
        &self,
        seen: &Registration,
        ca_bundle: &str,
    ) -> Result<(), Problem> {
        let owned = if seen.has(ca_bundle) {
            seen.owned().clone()
        } else {
            let ca_bundle = ByteString(ca_bundle.as_bytes().to_vec());
            let webhook = |name| json!({"name": name, "clientConfig": {"caBundle": ca_bundle}});
            let webhooks: Vec<_> = seen.names().map(webhook).collect();
            let applied = json!({"metadata": {"resourceVersion": seen.version()}, "webhooks": webhooks});
            let stored = self.requests.apply_cluster::<K>(FIELD_MANAGER_CA_BUNDLE, &self.name, applied).await?;
            Owned::of(stored.managed_fields.as_deref().unwrap_or_default())
        };
        let Some(patch) = owned.removal() else { return Ok(()) };
        match self.requests.patch_cluster::<K>(FIELD_MANAGER_CA_BUNDLE, &self.name, patch).await {
            // It is not where it was: another replica was first, or somebody applied. The watch brings what is there now.
            Err(problem) if matches!(problem.reason, Reason::Invalid | Reason::Conflict) => Ok(()),
            result => result,
        }
    }
}
