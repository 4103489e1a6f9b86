//! The watches that feed the stores: one for each name, none of anything else.

use std::{collections::HashMap, pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, stream::SelectAll};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace as NamespaceObject, Secret};
use kube::{Api, Client, ResourceExt as _, core::PartialObjectMeta, runtime::watcher};

use super::{observe::Namespace, secret::SecretState};
use crate::{
    cluster::{Change, WatchHealth, watch},
    config::{Config, NamespaceName, SecretName},
    names::CONFIGMAP_TRUST,
    telemetry::{
        health::Health,
        metrics::{Metrics, WatchKind},
    },
    trust::{BundleState, CertsState},
    wiped::Wiped,
};

/// A change, and which store it is for.
pub enum Event {
    /// Of the namespace watch of this index.
    Namespace(usize, Change<(NamespaceName, Namespace)>),
    /// Of the clone spec of this index.
    Secret(usize, Change<(NamespaceName, SecretState)>),
    /// Of `certsSecretName`.
    Certs(Change<(NamespaceName, CertsState)>),
    /// Of the trust bundles.
    Bundle(Change<(NamespaceName, BundleState)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Id {
    Namespace(usize),
    Secret(usize),
    Certs,
    Bundle,
}

/// All watches as one stream, with a readiness gate each.
pub struct Watches {
    events: SelectAll<Pin<Box<dyn Stream<Item = Event> + Send>>>,
    health: HashMap<Id, WatchHealth>,
    of_namespaces: usize,
    metrics: Metrics,
}

impl Watches {
    /// Prepares the watches; nothing is sent before the first [`Watches::next`].
    pub fn new(config: &Config, timeout: Duration, client: Client, health: &Arc<Health>, metrics: Metrics) -> Self {
        let mut watches = Self { events: SelectAll::new(), health: HashMap::new(), of_namespaces: 0, metrics };

        let names = config.runner_namespaces.names.iter();
        let by_name = names.map(|name| {
            (watcher::Config::default().fields(&format!("metadata.name={name}")), format!("namespaces/{name}"))
        });
        let by_label = config.runner_namespaces.selectors.iter().map(|selector| {
            (watcher::Config::default().labels_from(selector), format!("namespaces with labels {selector}"))
        });
        for (index, (selector, what)) in by_name.chain(by_label).enumerate() {
            let api: Api<PartialObjectMeta<NamespaceObject>> = Api::all(client.clone());
            watches.add(health, Id::Namespace(index), &what);
            let changes = watch(api, selector, timeout, what, |object| {
                Some((object.name_any().parse().ok()?, Namespace::from(&object.metadata)))
            });
            watches.push(changes, move |change| Event::Namespace(index, change));
            watches.of_namespaces += 1;
        }

        for (index, spec) in config.clones.iter().enumerate() {
            let what = watches.add_secret(health, Id::Secret(index), &spec.secret);
            let changes = watch(Api::all(client.clone()), of_name(&spec.secret), timeout, what, |secret: Secret| {
                Some((secret.namespace()?.parse().ok()?, SecretState::from(secret)))
            });
            watches.push(changes, move |change| Event::Secret(index, change));
        }

        let name = &config.certs_secret_name;
        let what = watches.add_secret(health, Id::Certs, name);
        let roots = config.public_roots;
        let changes = watch(Api::all(client.clone()), of_name(name), timeout, what, move |secret: Secret| {
            let secret = Wiped::from(secret);
            Some((secret.namespace()?.parse().ok()?, CertsState::new(&secret, roots)))
        });
        watches.push(changes, Event::Certs);

        let what = format!("configmaps/{CONFIGMAP_TRUST} in all namespaces");
        watches.add(health, Id::Bundle, &what);
        let selector = watcher::Config::default().fields(&format!("metadata.name={CONFIGMAP_TRUST}"));
        let changes = watch(Api::all(client), selector, timeout, what, |map: ConfigMap| {
            Some((map.namespace()?.parse().ok()?, BundleState::from(map)))
        });
        watches.push(changes, Event::Bundle);
        watches
    }

    /// How many watches of namespaces there are.
    pub fn namespace_watches(&self) -> usize {
        self.of_namespaces
    }

    /// The next change. Failures are logged, once for each change of reason, and counted.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.events.next().await?;
        match &event {
            Event::Namespace(index, change) => self.note(Id::Namespace(*index), change),
            Event::Secret(index, change) => self.note(Id::Secret(*index), change),
            Event::Certs(change) => self.note(Id::Certs, change),
            Event::Bundle(change) => self.note(Id::Bundle, change),
        }
        Some(event)
    }

    fn note<T>(&mut self, id: Id, change: &Change<T>) {
        if let Some(watch) = self.health.get_mut(&id) {
            watch.note(change);
        }
    }

    fn add_secret(&mut self, health: &Arc<Health>, id: Id, name: &SecretName) -> String {
        let what = format!("secrets/{name} in all namespaces");
        self.add(health, id, &what);
        what
    }

    fn add(&mut self, health: &Arc<Health>, id: Id, what: &str) {
        let kind = match id {
            Id::Namespace(_) => WatchKind::Namespace,
            Id::Secret(_) | Id::Certs => WatchKind::Secret,
            Id::Bundle => WatchKind::ConfigMap,
        };
        self.health.insert(id, WatchHealth::new(health, self.metrics.clone(), kind, what));
    }

    fn push<T: Send + 'static>(
        &mut self,
        changes: impl Stream<Item = Change<(NamespaceName, T)>> + Send + 'static,
        event: impl Fn(Change<(NamespaceName, T)>) -> Event + Send + 'static,
    ) {
        self.events.push(Box::pin(changes.map(event)));
    }
}

fn of_name(name: &SecretName) -> watcher::Config {
    watcher::Config::default().fields(&format!("metadata.name={name}"))
}
