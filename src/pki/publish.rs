//! `caBundle` of our webhook configurations: watched by name, applied, and then owned by nobody.
//!
//! Who owns a field of an entry keeps the entry from going: a server-side apply of manifests without it would leave a stub
//! behind, which is invalid, and be refused as a whole. So our entry in `managedFields` goes as soon as it has come. The
//! field stays: an apply takes away only what its own manager owned.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt as _};
use json_patch::{Patch, PatchOperation, RemoveOperation, TestOperation, jsonptr::PointerBuf};
use k8s_openapi::{
    ByteString,
    api::admissionregistration::v1::{
        MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
    },
    apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry,
    jiff::Timestamp,
};
use kube::Resource;
use serde::Deserialize;
use serde_json::json;

use super::authority::{AuthorityId, Leaf};
use crate::{
    cluster::{Change, Problem, Query, Reason, Requests, WatchClient, watch},
    names::FIELD_MANAGER_CA_BUNDLE,
    pem,
};

/// Which of the two webhook configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WebhookKind {
    /// Injects and warns.
    Mutating,
    /// Gates.
    Validating,
}

/// A webhook configuration as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The name and `caBundle` of each of its webhooks, in their order. An apply that names them in another order would
    /// change theirs.
    webhooks: Vec<(String, Vec<u8>)>,
    owned: Owned,
    /// Its `resourceVersion`.
    version: Option<String>,
}

/// Where our field manager is in the `managedFields` of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Owned(Vec<usize>);

/// Writes `caBundle`.
pub struct CaBundlePublisher {
    requests: Requests,
    /// Of both configurations.
    name: String,
}

/// What is known of both configurations, and since when each CA is in all of them.
#[derive(Default)]
pub struct Publication {
    known: BTreeMap<WebhookKind, Option<Registration>>,
    trusted_since: BTreeMap<AuthorityId, Instant>,
}

impl WebhookKind {
    /// The resource, as in RBAC rules.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Mutating => "mutatingwebhookconfigurations",
            Self::Validating => "validatingwebhookconfigurations",
        }
    }
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
            let entries = webhooks.map(|webhook| entry(webhook.name, webhook.client_config.ca_bundle));
            Ok(Some(Registration {
                webhooks: entries.collect(),
                owned: Owned::of(&raw.managed_fields),
                version: raw.metadata.resource_version.clone(),
            }))
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
            seen.owned.clone()
        } else {
            let ca_bundle = ByteString(ca_bundle.as_bytes().to_vec());
            let names = seen.webhooks.iter().map(|(name, _)| name);
            let webhooks: Vec<_> =
                names.map(|name| json!({"name": name, "clientConfig": {"caBundle": ca_bundle}})).collect();
            let applied = json!({"metadata": {"resourceVersion": seen.version}, "webhooks": webhooks});
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

impl Publication {
    /// Notes what is stored; `None`: no such configuration. Says whether it is news that it is there, or is not.
    pub fn set(&mut self, kind: WebhookKind, registration: Option<Registration>, now: Instant) -> bool {
        let is_there = registration.is_some();
        let was_there = self.known.insert(kind, registration).map(|former| former.is_some());
        let trusted = self.trusted();
        self.trusted_since.retain(|id, _| trusted.contains(id));
        for id in trusted {
            self.trusted_since.entry(id).or_insert(now);
        }
        was_there != Some(is_there)
    }

    /// Whether both are known to be there or not.
    pub fn is_known(&self) -> bool {
        self.known.len() == 2
    }

    /// Whether neither is there: no API server calls us.
    pub fn is_unregistered(&self) -> bool {
        self.is_known() && self.present().next().is_none()
    }

    /// The configurations with another `caBundle` than this in one of their webhooks, or with a field that we own.
    pub fn differing<'a>(&'a self, ca_bundle: &'a str) -> impl Iterator<Item = (WebhookKind, &'a Registration)> {
        self.present().filter(|(_, found)| !found.has(ca_bundle) || found.owned.removal().is_some())
    }

    /// Since when each webhook of ours trusts this CA; `None`: one does not.
    pub fn trusted_since(&self, id: &AuthorityId) -> Option<Instant> {
        self.trusted_since.get(id).copied()
    }

    /// Whether a leaf would be accepted with each `caBundle` as it is stored.
    pub fn accepts(&self, leaf: &Leaf, name: &str, now: Timestamp) -> bool {
        let bundles: BTreeSet<&[u8]> =
            self.present().flat_map(|(_, found)| found.webhooks.iter().map(|(_, bundle)| bundle.as_slice())).collect();
        bundles.into_iter().all(|bundle| {
            pem::certificates(bundle).is_ok_and(|certificates| leaf.is_accepted(name, &certificates, now))
        })
    }

    fn present(&self) -> impl Iterator<Item = (WebhookKind, &Registration)> {
        self.known.iter().filter_map(|(kind, found)| Some((*kind, found.as_ref()?)))
    }

    /// The CAs that are in every `caBundle`.
    fn trusted(&self) -> BTreeSet<AuthorityId> {
        let bundles = self.present().flat_map(|(_, found)| found.webhooks.iter().map(|(_, bundle)| bundle));
        let ids = bundles.map(|bundle| -> BTreeSet<AuthorityId> {
            pem::certificates(bundle).unwrap_or_default().iter().map(|der| AuthorityId::of(der)).collect()
        });
        ids.reduce(|all, these| &all & &these).unwrap_or_default()
    }
}

impl Registration {
    /// Whether each of its webhooks has this `caBundle`.
    fn has(&self, ca_bundle: &str) -> bool {
        self.webhooks.iter().all(|(_, there)| there == ca_bundle.as_bytes())
    }
}

impl Owned {
    fn of(entries: &[ManagedFieldsEntry]) -> Self {
        let is_ours = |entry: &ManagedFieldsEntry| entry.manager.as_deref() == Some(FIELD_MANAGER_CA_BUNDLE);
        let ours: Vec<_> = entries.iter().enumerate().filter(|(_, entry)| is_ours(entry)).map(|(at, _)| at).collect();
        // The API server takes no list away: who alone owns fields goes on owning them.
        Self(if ours.len() < entries.len() { ours } else { Vec::new() })
    }

    /// Takes our entries out, where they still are. `None`: there are none.
    fn removal(&self) -> Option<Patch> {
        if self.0.is_empty() {
            return None;
        }
        let at = |index: usize, field: &[&str]| {
            let index = index.to_string();
            PointerBuf::from_tokens(["metadata", "managedFields", index.as_str()].iter().chain(field).copied())
        };
        // From the last one on, so that those before it stay where they are.
        let operations = self.0.iter().rev().flat_map(|index| {
            let value = FIELD_MANAGER_CA_BUNDLE.into();
            [
                PatchOperation::Test(TestOperation { path: at(*index, &["manager"]), value }),
                PatchOperation::Remove(RemoveOperation { path: at(*index, &[]) }),
            ]
        });
        Some(Patch(operations.collect()))
    }
}

fn entry(name: String, ca_bundle: Option<ByteString>) -> (String, Vec<u8>) {
    (name, ca_bundle.unwrap_or_default().0)
}
