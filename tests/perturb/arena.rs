//! One control plane for many runs at a time, and what became of each object in it, by a watch of our own.

use std::{collections::BTreeMap, sync::Arc};

use futures::StreamExt as _;
use gitlab_runner_webhook::names::CONFIGMAP_TRUST;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use kube::{
    Api, Resource,
    api::{DeleteParams, ListParams, PostParams},
    core::{ApiResource, DynamicObject},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde_json::{Value, json};
use test_support::{Cluster, Setup, TapProxy, ToolBuilder, cluster::SECRET, control_plane::ControlPlane};
use tokio::sync::watch;

use crate::perturbation::{Perturbation, Perturber, Program};

/// Runs at the same time.
pub const SLOTS: usize = 6;

const BINARY: &str = env!("CARGO_BIN_EXE_gitlab-runner-webhook");

/// The cluster, with namespaces for each slot.
pub struct Arena {
    pub cluster: Cluster,
    pub history: History,
}

/// The namespaces of one run at a time.
#[derive(Clone, Debug)]
pub struct Slot {
    pub number: usize,
    /// The runner namespace.
    pub run: String,
    /// Where the source is.
    pub source: String,
}

/// Kind, namespace and name.
pub type Key = (&'static str, String, String);

/// An object at one revision; without a value it was deleted.
#[derive(Clone, Debug)]
pub struct Entry {
    pub revision: u64,
    pub object: Option<Value>,
}

/// All states of an object, oldest first.
pub type Entries = Vec<Entry>;

/// What became of each Secret and ConfigMap.
#[derive(Clone, Default)]
pub struct History(Arc<watch::Sender<BTreeMap<Key, Entries>>>);

impl Slot {
    pub fn new(number: usize) -> Self {
        Self { number, run: format!("run-{number}"), source: format!("source-{number}") }
    }

    pub fn clone_key(&self) -> Key {
        ("Secret", self.run.clone(), SECRET.to_owned())
    }

    pub fn source_key(&self) -> Key {
        ("Secret", self.source.clone(), SECRET.to_owned())
    }

    pub fn bundle_key(&self) -> Key {
        ("ConfigMap", self.run.clone(), CONFIGMAP_TRUST.to_owned())
    }

    /// What the program of this slot is configured with.
    pub fn config(&self, on_source_deleted: &str) -> String {
        let clone = format!("{{secret: {SECRET}, from: {}, onSourceDeleted: {on_source_deleted}}}", self.source);
        format!(
            "runnerNamespaces: {{names: [{}]}}\nclones: [{clone}]\n\
             certs: {{publicRoots: none}}\ngate: {{giveUpAfter: 120s}}\n",
            self.run
        )
    }
}

impl Arena {
    pub async fn start() -> Self {
        let names: Vec<_> = (0..SLOTS).map(|number| Slot::new(number).run).collect();
        let config = format!("runnerNamespaces: {{names: [{}]}}", names.join(", "));
        // Namespaces are finalized here: kube-controller-manager waits five seconds before it does.
        let builder = ControlPlane::builder().controller_manager(false);
        let cluster = Cluster::start_as(builder, Setup { config: Some(&config) }).await;
        let history = History::default();
        history.follow::<Secret>("Secret", &cluster);
        history.follow::<ConfigMap>("ConfigMap", &cluster);
        Self { cluster, history }
    }

    /// The program of a slot behind a proxy of its own, not started yet.
    pub async fn program(
        &self,
        slot: &Slot,
        perturbation: Option<Perturbation>,
        on_source_deleted: &str,
    ) -> (TapProxy, Arc<Perturber>, Arc<Program>) {
        let client = self.cluster.plane.service_account_client("gitlab-runner-webhook", "gitlab-runner-webhook").await;
        let client = client.expect("a client of the shipped ServiceAccount");
        let file = self.cluster.plane.dir().join(format!("proxy-{}.kubeconfig", slot.number));
        let program = Arc::new(Program::new(self.tool(slot, &file, on_source_deleted)));
        let namespaces = [slot.run.clone(), slot.source.clone()];
        let perturber = Perturber::new(perturbation, namespaces, client.clone(), Arc::clone(&program));
        let perturber = Arc::new(perturber);
        let proxy = TapProxy::start(client, Arc::clone(&perturber)).await;
        std::fs::write(file, proxy.kubeconfig()).expect("the kubeconfig can be written");
        (proxy, perturber, program)
    }

    fn tool(&self, slot: &Slot, kubeconfig: &std::path::Path, on_source_deleted: &str) -> ToolBuilder {
        let tool = self.cluster.tool_from(BINARY, kubeconfig);
        tool.config(&slot.config(on_source_deleted)).flag("--log-level", "info")
    }

    /// Creates a namespace in which pods may be.
    pub async fn create_namespace(&self, name: &str) {
        self.cluster.create_namespace(name, &[]).await;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.cluster.admin.clone(), name);
        let account = serde_json::from_value(json!({"metadata": {"name": "default"}})).expect("a ServiceAccount");
        accounts.create(&PostParams::default(), &account).await.expect("the ServiceAccount is created");
    }

    /// Deletes a namespace with all that is in it, as kube-controller-manager does.
    pub async fn delete_namespace(&self, name: &str) {
        let namespaces = self.cluster.namespaces();
        let Ok(_) = namespaces.delete(name, &DeleteParams::default()).await else { return };
        self.empty::<Pod>(name).await;
        self.empty::<Secret>(name).await;
        self.empty::<ConfigMap>(name).await;
        self.empty::<ServiceAccount>(name).await;
        let mut namespace: Namespace = namespaces.get(name).await.expect("it is there until it is finalized");
        namespace.spec.get_or_insert_default().finalizers = Some(Vec::new());
        let gone = namespaces.replace_subresource("finalize", name, &PostParams::default(), &namespace).await;
        gone.expect("the namespace is finalized");
    }

    async fn empty<K>(&self, namespace: &str)
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.cluster.admin.clone(), namespace);
        let all = ListParams::default();
        api.delete_collection(&DeleteParams::default().grace_period(0), &all).await.expect("they are deleted");
    }

    /// Leaves nothing of a run behind.
    pub async fn clean(&self, slot: &Slot) {
        self.delete_namespace(&slot.run).await;
        self.delete_namespace(&slot.source).await;
        let of_slot = |key: &Key| [&slot.run, &slot.source].contains(&&key.1);
        self.history
            .until(|all| all.iter().filter(|(key, _)| of_slot(key)).all(|(_, entries)| current(entries).is_none()))
            .await;
        self.history.0.send_modify(|all| all.retain(|key, _| !of_slot(key)));
    }
}

/// An object as it is now.
pub fn current(entries: &Entries) -> Option<&Value> {
    entries.last()?.object.as_ref()
}

impl History {
    /// Waits until something is true.
    pub async fn until(&self, is_true: impl FnMut(&BTreeMap<Key, Entries>) -> bool) {
        self.0.subscribe().wait_for(is_true).await.expect("the sender lives");
    }

    /// What became of an object.
    pub fn of(&self, key: &Key) -> Entries {
        self.0.borrow().get(key).cloned().unwrap_or_default()
    }

    /// The latest revision of all.
    pub fn revision(&self) -> u64 {
        self.0.borrow().values().flatten().map(|entry| entry.revision).max().unwrap_or_default()
    }

    fn follow<K: Resource<DynamicType = ()>>(&self, kind: &'static str, cluster: &Cluster) {
        let api: Api<DynamicObject> = Api::all_with(cluster.admin.clone(), &ApiResource::erase::<K>(&()));
        let sender = Arc::clone(&self.0);
        tokio::spawn(async move {
            // Without a pause between attempts it spins once the runtime ends, and the runtime never does.
            let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
            while let Some(event) = events.next().await {
                match event {
                    // The last one comes when the control plane ends.
                    Ok(Event::Init | Event::InitDone) | Err(_) => {}
                    Ok(Event::InitApply(object) | Event::Apply(object)) => note(&sender, kind, &object, false),
                    Ok(Event::Delete(object)) => note(&sender, kind, &object, true),
                }
            }
        });
    }
}

fn note(sender: &watch::Sender<BTreeMap<Key, Entries>>, kind: &'static str, object: &DynamicObject, is_deleted: bool) {
    let mut object = serde_json::to_value(object).expect("JSON");
    let metadata = &mut object["metadata"];
    metadata.as_object_mut().expect("metadata").remove("managedFields");
    let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
    let revision = text("resourceVersion").parse().expect("a revision");
    let key = (kind, text("namespace"), text("name"));
    let entry = Entry { revision, object: (!is_deleted).then_some(object) };
    sender.send_modify(|all| {
        let entries = all.entry(key).or_default();
        if entries.last().is_none_or(|last| last.revision < entry.revision) {
            entries.push(entry);
        }
    });
}
