//! The watches that feed the stores: one for each name, none of anything else.
//!
//! Each runs in a task of its own, in which its objects are decoded, so that the sync loop gets what is small and ready.

use std::{
    collections::{BTreeSet, HashMap},
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace as NamespaceObject, Secret};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::{Notify, mpsc, watch as channel},
    task::{JoinSet, block_in_place},
};

use super::{
    clone::SecretState,
    filtered::{FilteredObject, Selected, forward},
    observe::Namespace,
    selection::Selection,
    trust_bundle::BundleState,
};
use crate::{
    cluster::{Change, Problem, Query, Raw, Requests, WatchClient, WatchHealth, watch},
    config::{Config, NamespaceName, SecretName},
    names::{APP, CONFIGMAP_TRUST, LABEL_MANAGED_BY},
    telemetry::{
        health::Health,
        metrics::{Metrics, WatchKind},
    },
    trust::CertsState,
    wiped::Wiped,
};

/// Changes that wait for the sync loop.
const WAITING: usize = 256;
/// Largest metadata, in bytes, that is kept of an object of ours outside of the runner namespaces.
const SMALL: usize = 16 * 1024;
/// Between two lists of one watch because a read contradicted it.
const DOUBT: Duration = Duration::from_secs(10);

/// A change, and which store it is for.
pub enum StoreEvent {
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

/// All watches, with a readiness gate each.
pub struct Watches {
    events: mpsc::Receiver<StoreEvent>,
    tasks: JoinSet<()>,
    health: HashMap<Id, WatchHealth>,
    selection: Selection,
    selected_sender: channel::Sender<Option<Arc<BTreeSet<NamespaceName>>>>,
    doubts: HashMap<usize, Doubt>,
    of_namespaces: usize,
    metrics: Metrics,
}

/// How the watch of a clone is told to list anew.
struct Doubt {
    notify: Arc<Notify>,
    last: Option<Instant>,
}

impl Watches {
    /// Starts the watches.
    pub fn new(
        config: &Config,
        timeout: Duration,
        client: &WatchClient,
        requests: &Requests,
        health: &Arc<Health>,
        metrics: Metrics,
    ) -> Self {
        let (sender, events) = mpsc::channel(WAITING);
        let (selected_sender, all_selected) = channel::channel(None);
        let mut watches = Self {
            events,
            tasks: JoinSet::new(),
            health: HashMap::new(),
            selection: Selection::default(),
            selected_sender,
            doubts: HashMap::new(),
            of_namespaces: 0,
            metrics,
        };

        // Those of runner namespaces come first.
        let queries = config.with_trust().into_iter().flat_map(|selection| {
            let named = selection
                .names
                .iter()
                .map(|name| Query::of::<NamespaceObject>(None, format!("namespaces/{name}")).named(name.as_str()));
            let labelled = selection.selectors.iter().map(|selector| {
                Query::of::<NamespaceObject>(None, format!("namespaces with labels {selector}")).labelled(selector)
            });
            named.chain(labelled)
        });
        for (index, query) in queries.enumerate() {
            watches.add(health, Id::Namespace(index), query.what());
            let changes = watch(client, query.metadata_only().anew(), timeout, |raw| {
                let name = raw.metadata.name.as_deref().and_then(|name| name.parse::<NamespaceName>().ok());
                Ok(name.map(|name| (name, Namespace::from(&raw.metadata))))
            });
            let sender = sender.clone();
            watches.tasks.spawn(async move {
                let mut changes = Box::pin(changes);
                while let Some(change) = changes.next().await {
                    if sender.send(StoreEvent::Namespace(index, change)).await.is_err() {
                        return;
                    }
                }
            });
            watches.selection.add();
            watches.of_namespaces += 1;
        }

        for (index, spec) in config.clones.iter().enumerate() {
            let query = of_secret(&spec.secret);
            watches.add(health, Id::Secret(index), query.what());
            watches.doubts.insert(index, Doubt { notify: query.doubt(), last: None });
            let (selected, from) = (all_selected.clone(), spec.from.clone());
            let changes = watch(client, query, timeout, move |raw| {
                let Some(namespace) = namespace_of(raw) else { return Ok(None) };
                let is_read = namespace == from || is_selected(&selected, &namespace);
                view(namespace, raw, is_read, || SecretState::of(raw), || SecretState::unread(raw.metadata.clone()))
            });
            let (reads, name) = (requests.clone(), spec.secret.clone());
            let read = move |namespace| read_secret(reads.clone(), name.clone(), namespace, SecretState::from);
            let event = move |change| StoreEvent::Secret(index, change);
            watches.tasks.spawn(forward(Box::pin(changes), all_selected.clone(), read, sender.clone(), event));
        }

        let query = of_secret(&config.certs_secret_name);
        watches.add(health, Id::Certs, query.what());
        let (selected, roots) = (all_selected.clone(), config.public_roots);
        let changes = watch(client, query, timeout, move |raw| {
            let Some(namespace) = namespace_of(raw) else { return Ok(None) };
            if !is_selected(&selected, &namespace) {
                // That there is one is to be known: else it would look like gone.
                return Ok(Some(FilteredObject {
                    namespace,
                    state: CertsState::unread(),
                    is_kept: true,
                    is_unread: true,
                }));
            }
            let secret = Wiped::from(serde_json::from_str::<Secret>(raw.json)?);
            let state = beside_others(|| CertsState::new(&secret, roots));
            Ok(Some(FilteredObject { namespace, state, is_kept: true, is_unread: false }))
        });
        let (reads, name) = (requests.clone(), config.certs_secret_name.clone());
        let read = move |namespace| {
            let convert = move |secret: Secret| beside_others(|| CertsState::new(&secret, roots));
            read_secret(reads.clone(), name.clone(), namespace, convert)
        };
        watches.tasks.spawn(forward(Box::pin(changes), all_selected.clone(), read, sender.clone(), StoreEvent::Certs));

        let query = Query::of::<ConfigMap>(None, format!("configmaps/{CONFIGMAP_TRUST} in all namespaces"));
        let query = query.named(CONFIGMAP_TRUST).large();
        watches.add(health, Id::Bundle, query.what());
        let selected = all_selected.clone();
        let changes = watch(client, query, timeout, move |raw| {
            let Some(namespace) = namespace_of(raw) else { return Ok(None) };
            let is_read = is_selected(&selected, &namespace);
            view(namespace, raw, is_read, || BundleState::of(raw), || BundleState::unread(raw.metadata.clone()))
        });
        let requests = requests.clone();
        let read = move |namespace: NamespaceName| {
            let requests = requests.clone();
            async move {
                let map: Option<ConfigMap> = requests.get(&namespace, CONFIGMAP_TRUST).await?;
                Ok(map.map(BundleState::from))
            }
        };
        watches.tasks.spawn(forward(Box::pin(changes), all_selected, read, sender, StoreEvent::Bundle));
        watches
    }

    /// How many watches of namespaces there are.
    pub fn namespace_watches(&self) -> usize {
        self.of_namespaces
    }

    /// The next change. Failures are logged, once for each change of reason, and counted.
    pub async fn next(&mut self) -> Option<StoreEvent> {
        let event = tokio::select! {
            biased;
            Some(ended) = self.tasks.join_next() => match ended {
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                _ => return pending().await,
            },
            event = self.events.recv() => event?,
        };
        match &event {
            StoreEvent::Namespace(index, change) => {
                if self.selection.note(*index, change)
                    && let Some(namespaces) = self.selection.namespaces()
                {
                    self.selected_sender.send_replace(Some(Arc::new(namespaces)));
                }
                self.note(Id::Namespace(*index), change);
            }
            StoreEvent::Secret(index, change) => self.note(Id::Secret(*index), change),
            StoreEvent::Certs(change) => self.note(Id::Certs, change),
            StoreEvent::Bundle(change) => self.note(Id::Bundle, change),
        }
        Some(event)
    }

    /// A read contradicted the watch of this clone spec: it lists anew.
    pub fn doubt(&mut self, clone: usize) {
        if let Some(doubt) = self.doubts.get_mut(&clone)
            && doubt.last.is_none_or(|last| last.elapsed() > DOUBT)
        {
            doubt.last = Some(Instant::now());
            doubt.notify.notify_one();
        }
    }

    /// Whether the watch of this clone spec is failing at the moment.
    pub fn is_blind(&self, clone: usize) -> bool {
        self.health.get(&Id::Secret(clone)).is_some_and(WatchHealth::is_failing)
    }

    fn note<T>(&mut self, id: Id, change: &Change<T>) {
        if let Some(watch) = self.health.get_mut(&id) {
            watch.note(change);
        }
    }

    fn add(&mut self, health: &Arc<Health>, id: Id, what: &str) {
        let kind = match id {
            Id::Namespace(_) => WatchKind::Namespace,
            Id::Secret(_) | Id::Certs => WatchKind::Secret,
            Id::Bundle => WatchKind::ConfigMap,
        };
        self.health.insert(id, WatchHealth::new(health, self.metrics.clone(), kind, what));
    }
}

fn of_secret(name: &SecretName) -> Query {
    Query::of::<Secret>(None, format!("secrets/{name} in all namespaces")).named(name.as_str()).large()
}

fn namespace_of(raw: &Raw<'_>) -> Option<NamespaceName> {
    raw.metadata.namespace.as_deref()?.parse().ok()
}

fn is_selected(selected: &Selected, namespace: &NamespaceName) -> bool {
    selected.borrow().as_ref().is_some_and(|all| all.contains(namespace))
}

/// In a namespace that is not looked into, only what says of itself that it is ours is kept: that may have to go.
fn view<T>(
    namespace: NamespaceName,
    raw: &Raw<'_>,
    is_read: bool,
    whole: impl FnOnce() -> serde_json::Result<T>,
    unread: impl FnOnce() -> T,
) -> serde_json::Result<Option<FilteredObject<T>>> {
    let is_kept = is_read || (is_ours(raw) && size(raw) <= SMALL);
    let state = if is_kept { whole()? } else { unread() };
    Ok(Some(FilteredObject { namespace, state, is_kept, is_unread: !is_kept }))
}

fn is_ours(raw: &Raw<'_>) -> bool {
    raw.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL_MANAGED_BY)).is_some_and(|by| by == APP)
}

/// Of what somebody can put into metadata.
fn size(raw: &Raw<'_>) -> usize {
    let metadata = &raw.metadata;
    let maps = metadata.labels.iter().chain(&metadata.annotations).flatten();
    let owners = metadata.owner_references.iter().flatten().map(|owner| owner.name.len() + owner.uid.len());
    maps.map(|(key, value)| key.len() + value.len()).sum::<usize>()
        + owners.sum::<usize>()
        + metadata.finalizers.iter().flatten().map(String::len).sum::<usize>()
}

/// Reads the Secret of this name in a namespace.
async fn read_secret<T>(
    requests: Requests,
    name: SecretName,
    namespace: NamespaceName,
    convert: impl FnOnce(Secret) -> T,
) -> Result<Option<T>, Problem> {
    let secret: Option<Secret> = requests.get(&namespace, name.as_str()).await?;
    Ok(secret.map(convert))
}

/// Certificates by the thousand take a while: meanwhile others go on.
fn beside_others<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        _ => work(),
    }
}
