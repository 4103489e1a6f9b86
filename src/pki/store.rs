//! The CA Secret: watched by name, written by compare-and-swap. The one writer of it.

use std::{collections::BTreeMap, time::Duration};

use futures::{Stream, StreamExt as _};
use k8s_openapi::{ByteString, api::core::v1::Secret, jiff::Timestamp};
use kube::api::ObjectMeta;
use serde_json::json;

use super::{keyring::Keyring, plan::Stored};
use crate::{
    cluster::{Change, Problem, Query, Requests, WatchClient, watch},
    config::{NamespaceName, SecretName},
    names::{APP, FIELD_MANAGER_CA, LABEL_MANAGED_BY},
    wiped::{Wiped, forget_last_applied, wipe},
};

/// The Secret as it was last seen.
#[derive(Clone)]
pub struct StoredSecret {
    metadata: ObjectMeta,
    kind: Option<String>,
    data: BTreeMap<String, ByteString>,
}

/// Reads and writes the CA Secret.
pub struct CaSecretStore {
    requests: Requests,
    namespace: NamespaceName,
    name: SecretName,
}

impl CaSecretStore {
    /// Of the Secret of this name.
    pub fn new(requests: Requests, namespace: NamespaceName, name: SecretName) -> Self {
        Self { requests, namespace, name }
    }

    /// `<namespace>/<name>`, for logs.
    pub fn object(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// What to call the watch.
    pub fn what(&self) -> String {
        format!("secrets/{} in namespace {}", self.name, self.namespace)
    }

    /// What happens to the Secret.
    pub fn watch(
        &self,
        client: &WatchClient,
        timeout: Duration,
    ) -> impl Stream<Item = Change<StoredSecret>> + Send + use<> {
        let query = Query::of::<Secret>(Some(self.namespace.as_str()), self.what()).named(self.name.as_str());
        watch(client, query, timeout, |raw| serde_json::from_str(raw.json).map(|secret: Secret| Some(secret.into())))
            .boxed()
    }

    /// The Secret as it is stored now.
    pub async fn get(&self) -> Result<Option<StoredSecret>, Problem> {
        let secret: Option<Secret> = self.requests.get(&self.namespace, self.name.as_str()).await?;
        Ok(secret.map(StoredSecret::from))
    }

    /// The time at the API server.
    pub async fn time(&self) -> Result<Timestamp, Problem> {
        self.requests.time::<Secret>(&self.namespace, self.name.as_str()).await
    }

    /// Makes the Secret hold this. Fails with a conflict if it is not, or no longer, as it was seen.
    pub async fn write(&self, keyring: &Keyring, seen: Option<&StoredSecret>) -> Result<(), Problem> {
        let Some(seen) = seen else {
            let data = keyring.data().into_iter();
            let data: BTreeMap<_, _> = data.filter_map(|(key, value)| Some((key, ByteString(value?.into())))).collect();
            let secret = json!({
                "metadata": {"labels": {LABEL_MANAGED_BY: APP}},
                "type": "Opaque",
                "data": data,
            });
            return self.requests.create::<Secret>(FIELD_MANAGER_CA, &self.namespace, self.name.as_str(), secret).await;
        };
        // What others keep in it stays: a Secret of type kubernetes.io/tls cannot be without its two keys.
        let mut data = seen.data.clone();
        for (key, value) in keyring.data() {
            match value {
                Some(value) => data.insert(key.to_owned(), ByteString(value.into_bytes())),
                None => data.remove(key),
            };
        }
        let mut metadata = seen.metadata.clone();
        metadata.labels.get_or_insert_default().insert(LABEL_MANAGED_BY.to_owned(), APP.to_owned());
        let secret = Secret { metadata, type_: seen.kind.clone(), data: Some(data), ..Secret::default() };
        let secret = Wiped::from(secret);
        self.requests.replace(FIELD_MANAGER_CA, &self.namespace, self.name.as_str(), &*secret).await
    }
}

impl StoredSecret {
    /// What can be done with it; `names` are what leaves are issued for.
    pub fn read(&self, names: &[String]) -> Stored {
        match Keyring::read(&self.data, names) {
            Ok(found) => {
                if !found.useless.is_empty() {
                    tracing::warn!(keys = ?found.useless, "part of the CA Secret is of no use");
                }
                Stored::Keyring { keyring: found.keyring, tidy: found.useless.is_empty() }
            }
            Err(error) => Stored::Useless(error),
        }
    }
}

impl Drop for StoredSecret {
    fn drop(&mut self) {
        wipe(&mut self.data);
    }
}

impl From<Secret> for StoredSecret {
    fn from(secret: Secret) -> Self {
        let mut metadata = secret.metadata;
        metadata.managed_fields = None;
        forget_last_applied(&mut metadata);
        Self { metadata, kind: secret.type_, data: secret.data.unwrap_or_default() }
    }
}
