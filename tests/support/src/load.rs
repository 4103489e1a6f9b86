//! Pods created without a pause, each of which must be let in.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Request, StatusCode};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    Cluster,
    cluster::{RUNNER_NAMESPACE, SECRET},
    wait,
};

/// Every so many pods one is stored; the others are dry runs, which are reviewed alike.
const STORED: usize = 50;
/// Every so many pods one uses the clone, and so meets the gate, too.
const MANAGERS: usize = 4;
/// What begins the name of a volume in each pod that went through inject.
const INJECTED: &str = "gitlab-runner-webhook-";

/// Creates pods in the runner namespace through the API server, until it is stopped.
pub struct Load {
    shared: Arc<Shared>,
    workers: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    created: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Load {
    /// Starts that many workers, each of which creates one pod after the other.
    pub fn start(cluster: &Cluster, workers: usize) -> Self {
        let shared = Arc::<Shared>::default();
        let run = |_| work(cluster.admin.clone(), Arc::clone(&shared));
        Self { workers: (0..workers).map(run).collect(), shared }
    }

    /// How many pods were let in so far.
    pub fn created(&self) -> usize {
        self.shared.created.load(Relaxed)
    }

    /// How many pods were not let in so far.
    pub fn failed(&self) -> usize {
        self.failures().len()
    }

    /// Why pods were not let in so far.
    pub fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().expect("the failures").clone()
    }

    /// Waits until that many more were let in.
    pub async fn more(&self, pods: usize) {
        let wanted = self.created() + pods;
        wait::within(wait::PATIENCE * 20, format!("{pods} more pods are let in"), || async {
            (self.created() >= wanted).then_some(())
        })
        .await;
    }

    /// Ends it and returns how many pods were let in, and what became of the others.
    pub async fn stop(mut self) -> (usize, Vec<String>) {
        self.shared.stop.store(true, Relaxed);
        while let Some(ended) = self.workers.join_next().await {
            ended.expect("the worker went on");
        }
        (self.created(), self.failures())
    }
}

async fn work(client: Client, shared: Arc<Shared>) {
    while !shared.stop.load(Relaxed) {
        match create(&client).await {
            Ok(()) => drop(shared.created.fetch_add(1, Relaxed)),
            Err(failure) => shared.failures.lock().expect("the failures").push(failure),
        }
    }
}

async fn create(client: &Client) -> Result<(), String> {
    let number = wait::unique();
    let name = format!("load-{number}");
    let pod = if number.is_multiple_of(MANAGERS) { manager_pod(&name) } else { job_pod(&name) };
    let query = if number.is_multiple_of(STORED) { "" } else { "?dryRun=All" };
    for _ in 0..10 {
        let request = Request::post(format!("/api/v1/namespaces/{RUNNER_NAMESPACE}/pods{query}"))
            .header("content-type", "application/json")
            .body(Body::from(pod.to_string().into_bytes()))
            .expect("a request");
        let (head, body) = client.send(request).await.map_err(|error| error.to_string())?.into_parts();
        let body = body.collect_bytes().await.map_err(|error| error.to_string())?;
        let body = String::from_utf8_lossy(&body);
        if head.status == StatusCode::TOO_MANY_REQUESTS {
            // The gate: as client-go does.
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        }
        return if head.status.is_success() && body.contains(INJECTED) { Ok(()) } else { Err(body.into_owned()) };
    }
    Err("turned away ten times".to_owned())
}

fn job_pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"job.runner.gitlab.com/pod": name}},
        "spec": {"containers": [{"name": "build", "image": "alpine"}, {"name": "helper", "image": "helper"}]},
    })
}

fn manager_pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "containers": [{"name": "gitlab-runner", "image": "gitlab-runner"}],
            "volumes": [{"name": "token", "secret": {"secretName": SECRET}}],
        },
    })
}
