//! What is known of our webhook configurations, and since when each CA is in all of them. PURE: the time is an argument.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use json_patch::{Patch, PatchOperation, RemoveOperation, TestOperation, jsonptr::PointerBuf};
use k8s_openapi::{ByteString, apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry, jiff::Timestamp};

use super::authority::{AuthorityId, Leaf};
use crate::{names::FIELD_MANAGER_CA_BUNDLE, pem};

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
pub struct Owned(Vec<usize>);

/// What is known of both configurations, and since when each CA is in all of them.
#[derive(Default)]
pub struct Publication {
    known: BTreeMap<WebhookKind, Option<Registration>>,
    trusted_since: BTreeMap<AuthorityId, Instant>,
}

impl WebhookKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Mutating, Self::Validating];

    /// The resource, as in RBAC rules.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Mutating => "mutatingwebhookconfigurations",
            Self::Validating => "validatingwebhookconfigurations",
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
    /// Of webhooks, each with its name and `caBundle`.
    pub fn new(
        webhooks: impl IntoIterator<Item = (String, Option<ByteString>)>,
        managers: &[ManagedFieldsEntry],
        version: Option<String>,
    ) -> Self {
        let webhooks = webhooks.into_iter().map(|(name, ca_bundle)| (name, ca_bundle.unwrap_or_default().0));
        Self { webhooks: webhooks.collect(), owned: Owned::of(managers), version }
    }

    /// The names of its webhooks.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.webhooks.iter().map(|(name, _)| name)
    }

    /// Its `resourceVersion`.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Where our field manager is in its `managedFields`.
    pub fn owned(&self) -> &Owned {
        &self.owned
    }

    /// Whether each of its webhooks has this `caBundle`.
    pub fn has(&self, ca_bundle: &str) -> bool {
        self.webhooks.iter().all(|(_, there)| there == ca_bundle.as_bytes())
    }
}

impl Owned {
    /// Looks for our field manager.
    pub fn of(entries: &[ManagedFieldsEntry]) -> Self {
        let is_ours = |entry: &ManagedFieldsEntry| entry.manager.as_deref() == Some(FIELD_MANAGER_CA_BUNDLE);
        let ours: Vec<_> = entries.iter().enumerate().filter(|(_, entry)| is_ours(entry)).map(|(at, _)| at).collect();
        // The API server takes no list away: who alone owns fields goes on owning them.
        Self(if ours.len() < entries.len() { ours } else { Vec::new() })
    }

    /// Takes our entries out, where they still are. `None`: there are none.
    pub fn removal(&self) -> Option<Patch> {
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
