//! What happened to the objects of a name in all namespaces, as a watch saw it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use futures::StreamExt as _;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{WatchEvent, WatchParams},
};
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

/// The writes of each object from the start on, by namespace. Ends when dropped.
pub struct History {
    writes: Arc<Mutex<BTreeMap<String, Writes>>>,
    task: JoinHandle<()>,
}

/// What was written to one object.
#[derive(Clone, Copy, Debug, Default)]
pub struct Writes {
    /// Creations and changes.
    pub puts: usize,
    pub deletes: usize,
}

impl Writes {
    pub fn all(self) -> usize {
        self.puts + self.deletes
    }
}

impl History {
    /// Of the objects of this name, from now on.
    pub async fn of<K>(client: &Client, name: &str) -> Self
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
    {
        let api: Api<K> = Api::all(client.clone());
        let params = WatchParams::default().fields(&format!("metadata.name={name}"));
        let list = api.list_metadata(&kube::api::ListParams::default().fields(&format!("metadata.name={name}"))).await;
        let mut version = list.unwrap().metadata.resource_version.unwrap();
        let writes = Arc::<Mutex<BTreeMap<String, Writes>>>::default();
        let shared = Arc::clone(&writes);
        let task = tokio::spawn(async move {
            loop {
                let mut events = api.watch_metadata(&params, &version).await.unwrap().boxed();
                while let Some(event) = events.next().await {
                    let (object, is_delete) = match event.unwrap() {
                        WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                        WatchEvent::Deleted(object) => (object, true),
                        WatchEvent::Bookmark(_) => continue,
                        WatchEvent::Error(status) => panic!("{status:?}"),
                    };
                    version = object.resource_version().unwrap();
                    let mut all = shared.lock().unwrap();
                    let writes = all.entry(object.namespace().unwrap()).or_default();
                    if is_delete {
                        writes.deletes += 1;
                    } else {
                        writes.puts += 1;
                    }
                }
            }
        });
        Self { writes, task }
    }

    /// What was written in a namespace.
    pub fn writes(&self, namespace: &str) -> Writes {
        self.writes.lock().unwrap().get(namespace).copied().unwrap_or_default()
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.task.abort();
    }
}
