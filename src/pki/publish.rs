//! `caBundle` of our webhook configurations: watched by name, applied by a field manager that owns nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt as _};
use k8s_openapi::{
    ByteString,
    api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
    jiff::Timestamp,
};
use kube::{Api, Client, runtime::watcher};
use serde_json::json;

use super::authority::{AuthorityId, Leaf};
use crate::{
    cluster::{Change, Problem, Requests, watch},
    names::FIELD_MANAGER_CA_BUNDLE,
    pem,
};

/// Which of the two webhook configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Injects and warns.
    Mutating,
    /// Gates.
    Validating,
}

/// A webhook configuration as it was last seen: the name and `caBundle` of each of its webhooks, in their order. An
/// apply that names them in another order would change theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration(Vec<(String, Vec<u8>)>);

/// Writes `caBundle`.
pub struct Publisher {
    requests: Requests,
    /// Of both configurations.
    name: String,
}

/// What is known of both configurations, and since when each CA is in all of them.
#[derive(Default)]
pub struct Publication {
    known: BTreeMap<Kind, Option<Registration>>,
    trusted_since: BTreeMap<AuthorityId, Instant>,
}

impl Kind {
    /// The resource, as in RBAC rules.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Mutating => "mutatingwebhookconfigurations",
            Self::Validating => "validatingwebhookconfigurations",
        }
    }
}

impl Publisher {
    /// Of the configurations of this name.
    pub fn new(requests: Requests, name: String) -> Self {
        Self { requests, name }
    }

    /// `<resource>/<name>`.
    pub fn object(&self, kind: Kind) -> String {
        format!("{}/{}", kind.resource(), self.name)
    }

    /// What happens to the mutating configuration.
    pub fn watch_mutating(
        &self,
        client: Client,
        timeout: Duration,
    ) -> impl Stream<Item = Change<Registration>> + Send + use<> {
        let api: Api<MutatingWebhookConfiguration> = Api::all(client);
        watch(api, self.selector(), timeout, self.object(Kind::Mutating), |found: MutatingWebhookConfiguration| {
            let webhooks = found.webhooks.into_iter().flatten();
            Some(Registration(webhooks.map(|webhook| entry(webhook.name, webhook.client_config.ca_bundle)).collect()))
        })
        .boxed()
    }

    /// What happens to the validating configuration.
    pub fn watch_validating(
        &self,
        client: Client,
        timeout: Duration,
    ) -> impl Stream<Item = Change<Registration>> + Send + use<> {
        let api: Api<ValidatingWebhookConfiguration> = Api::all(client);
        watch(api, self.selector(), timeout, self.object(Kind::Validating), |found: ValidatingWebhookConfiguration| {
            let webhooks = found.webhooks.into_iter().flatten();
            Some(Registration(webhooks.map(|webhook| entry(webhook.name, webhook.client_config.ca_bundle)).collect()))
        })
        .boxed()
    }

    /// Puts `caBundle` into the webhooks that were seen, and touches nothing else.
    pub async fn publish(&self, kind: Kind, seen: &Registration, ca_bundle: &str) -> Result<(), Problem> {
        let ca_bundle = ByteString(ca_bundle.as_bytes().to_vec());
        let names = seen.0.iter().map(|(name, _)| name);
        let webhooks: Vec<_> =
            names.map(|name| json!({"name": name, "clientConfig": {"caBundle": ca_bundle}})).collect();
        let object = json!({"webhooks": webhooks});
        let manager = FIELD_MANAGER_CA_BUNDLE;
        match kind {
            Kind::Mutating => {
                self.requests.apply_cluster::<MutatingWebhookConfiguration>(manager, &self.name, object).await
            }
            Kind::Validating => {
                self.requests.apply_cluster::<ValidatingWebhookConfiguration>(manager, &self.name, object).await
            }
        }
    }

    fn selector(&self) -> watcher::Config {
        watcher::Config::default().fields(&format!("metadata.name={}", self.name))
    }
}

impl Publication {
    /// Notes what is stored; `None`: no such configuration. Says whether it is news that it is there, or is not.
    pub fn set(&mut self, kind: Kind, registration: Option<Registration>, now: Instant) -> bool {
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

    /// The configurations with another `caBundle` than this in one of their webhooks.
    pub fn differing<'a>(&'a self, ca_bundle: &'a str) -> impl Iterator<Item = (Kind, &'a Registration)> {
        self.present().filter(|(_, found)| found.0.iter().any(|(_, there)| there != ca_bundle.as_bytes()))
    }

    /// Since when each webhook of ours trusts this CA; `None`: one does not.
    pub fn trusted_since(&self, id: &AuthorityId) -> Option<Instant> {
        self.trusted_since.get(id).copied()
    }

    /// Whether a leaf would be accepted with each `caBundle` as it is stored.
    pub fn accepts(&self, leaf: &Leaf, name: &str, now: Timestamp) -> bool {
        let bundles: BTreeSet<&[u8]> =
            self.present().flat_map(|(_, found)| found.0.iter().map(|(_, bundle)| bundle.as_slice())).collect();
        bundles.into_iter().all(|bundle| {
            pem::certificates(bundle).is_ok_and(|certificates| leaf.is_accepted(name, &certificates, now))
        })
    }

    fn present(&self) -> impl Iterator<Item = (Kind, &Registration)> {
        self.known.iter().filter_map(|(kind, found)| Some((*kind, found.as_ref()?)))
    }

    /// The CAs that are in every `caBundle`.
    fn trusted(&self) -> BTreeSet<AuthorityId> {
        let bundles = self.present().flat_map(|(_, found)| found.0.iter().map(|(_, bundle)| bundle));
        let ids = bundles.map(|bundle| -> BTreeSet<AuthorityId> {
            pem::certificates(bundle).unwrap_or_default().iter().map(|der| AuthorityId::of(der)).collect()
        });
        ids.reduce(|all, these| &all & &these).unwrap_or_default()
    }
}

fn entry(name: String, ca_bundle: Option<ByteString>) -> (String, Vec<u8>) {
    (name, ca_bundle.unwrap_or_default().0)
}
