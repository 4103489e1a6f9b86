//! Every state of the clones, from one unbroken watch.

use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, WatchEvent, WatchParams},
};
use test_support::{
    Cluster,
    cluster::{SECRET, has_data},
    wait,
};
use tokio::task::JoinHandle;

/// Namespace, and the Secret, or nothing when it was deleted.
type State = (String, Option<Secret>);

pub struct Recorder {
    seen: Arc<Mutex<Vec<State>>>,
    task: JoinHandle<()>,
}

impl Recorder {
    /// From now on.
    pub async fn start(cluster: &Cluster) -> Self {
        let api: Api<Secret> = Api::all(cluster.admin.clone());
        let name = format!("metadata.name={SECRET}");
        let list = api.list(&ListParams::default().fields(&name)).await.unwrap();
        let version = list.metadata.resource_version.unwrap();
        let seen: Arc<Mutex<Vec<State>>> = Arc::default();
        let all = Arc::clone(&seen);
        let mut stream = api.watch(&WatchParams::default().fields(&name).timeout(294), &version).await.unwrap().boxed();
        let task = tokio::spawn(async move {
            while let Some(Ok(event)) = stream.next().await {
                let state = match event {
                    WatchEvent::Added(secret) | WatchEvent::Modified(secret) => {
                        (secret.namespace().unwrap(), Some(secret))
                    }
                    WatchEvent::Deleted(secret) => (secret.namespace().unwrap(), None),
                    _ => continue,
                };
                all.lock().unwrap().push(state);
            }
        });
        Self { seen, task }
    }

    /// Everything up to now of a namespace.
    pub async fn states(&self, cluster: &Cluster, namespace: &str) -> Vec<Option<Secret>> {
        // A state of our own marks the end: when it was seen, so was all that was before.
        let end = format!("end-{}", wait::unique());
        cluster.put_secret("default", SECRET, &[("end", &end)]).await;
        wait::until("the watch has come to its end", || async {
            assert!(!self.task.is_finished(), "the watch broke");
            let seen = self.seen.lock().unwrap();
            let is_end = |secret: &Secret| has_data(secret, &[("end", &end)]);
            seen.iter().any(|(_, state)| state.as_ref().is_some_and(is_end)).then_some(())
        })
        .await;
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|(of, _)| of == namespace).map(|(_, state)| state.clone()).collect()
    }

    /// The clone was there all the time, and never held anything else.
    pub async fn held_throughout(&self, cluster: &Cluster, namespace: &str, data: &[(&str, &str)]) -> usize {
        let states = self.states(cluster, namespace).await;
        for state in &states {
            let there = state.as_ref().unwrap_or_else(|| panic!("the clone in {namespace} was gone"));
            assert!(has_data(there, data), "the clone in {namespace} held something else");
        }
        states.len()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}
