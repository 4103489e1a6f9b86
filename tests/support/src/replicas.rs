//! Several replicas behind a Service: what the kubelet and kube-proxy do for them, with real Endpoints.

use std::{
    collections::HashMap,
    process::ExitStatus,
    sync::{Arc, Mutex},
    time::Duration,
};

use control_plane::NODE;
use k8s_openapi::api::core::v1::{Endpoints, Pod};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::{Balancer, Cluster, Tool, ToolBuilder, wait};

const NAME: &str = "gitlab-runner-webhook";

/// Replicas, each with a Pod object of the shipped labels, so that the real endpoints controller publishes it; and a
/// load balancer that follows the Endpoints some time later, as the rules on a node do.
pub struct Replicas<'a> {
    cluster: &'a Cluster,
    /// What the webhooks are reached at.
    pub balancer: Arc<Balancer>,
    ports: Arc<Mutex<HashMap<String, u16>>>,
    lag: Arc<Mutex<Duration>>,
    proxy: JoinHandle<()>,
}

/// One replica.
pub struct Replica {
    /// Name of its pod.
    pub pod: String,
    /// Its process.
    pub tool: Tool,
}

impl<'a> Replicas<'a> {
    /// None yet, in a cluster that has nodes. `lag` is the time from a change of the Endpoints to the first connection that follows it.
    pub async fn new(cluster: &'a Cluster, lag: Duration) -> Self {
        let balancer = Arc::new(Balancer::start().await);
        let ports = Arc::<Mutex<HashMap<String, u16>>>::default();
        let api: Api<Endpoints> = Api::namespaced(cluster.admin.clone(), NAME);
        let lag = Arc::new(Mutex::new(lag));
        let proxy = tokio::spawn(follow(api, Arc::clone(&balancer), Arc::clone(&ports), Arc::clone(&lag)));
        Self { cluster, balancer, ports, lag, proxy }
    }

    /// From now on it takes this long from a change of the Endpoints to the first connection that follows it.
    pub fn lag(&self, lag: Duration) {
        *self.lag.lock().expect("the lag") = lag;
    }

    /// Starts one more and waits until it is ready and among the Endpoints. What is called does not know it yet.
    pub async fn add(&self, builder: ToolBuilder) -> Replica {
        let pod = format!("{NAME}-{}", wait::unique());
        let tool = builder.flag("--pod-name", &pod).flag("--namespace", NAME).start().await;
        let port = tool.webhook_port().await;
        self.ports.lock().expect("the ports").insert(pod.clone(), port);
        self.create_pod(&pod).await;
        let endpoints: Api<Endpoints> = Api::namespaced(self.cluster.admin.clone(), NAME);
        wait::until(format!("{pod} is among the Endpoints"), || async {
            let there =
                endpoints.get_opt(NAME).await.expect("an answer").as_ref().is_some_and(|all| pods(all).contains(&pod));
            there.then_some(())
        })
        .await;
        Replica { pod, tool }
    }

    /// Waits until connections go to this replica.
    pub async fn routed(&self, replica: &Replica) {
        let port = replica.tool.webhook_port().await;
        wait::until("the balancer knows the replica", || async {
            self.balancer.routes().contains(&port).then_some(())
        })
        .await;
    }

    /// Deletes its pod and asks it to end, as the kubelet does in the same moment.
    pub async fn terminate(&self, replica: &Replica) {
        self.delete_pod(&replica.pod).await;
        replica.tool.signal("TERM").await;
    }

    /// Waits for its end.
    pub async fn ended(&self, mut replica: Replica) -> (ExitStatus, Tool) {
        let status = replica.tool.ended().await;
        (status, replica.tool)
    }

    /// Ends it without a word. No new connection goes there from then on.
    pub async fn kill(&self, replica: Replica) {
        let port = replica.tool.webhook_port().await;
        replica.tool.kill().await;
        self.ports.lock().expect("the ports").remove(&replica.pod);
        self.balancer.route_to(self.balancer.routes().into_iter().filter(|other| *other != port).collect());
        self.delete_pod(&replica.pod).await;
    }

    async fn create_pod(&self, name: &str) {
        let api: Api<Pod> = Api::namespaced(self.cluster.admin.clone(), NAME);
        let labels = json!({"app.kubernetes.io/name": NAME, "app.kubernetes.io/instance": NAME});
        let pod = json!({
            "metadata": {"name": name, "labels": labels},
            "spec": {
                "nodeName": NODE,
                "serviceAccountName": NAME,
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": NAME, "image": NAME, "ports": [{"name": "webhook", "containerPort": 10250}],
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                }],
            },
        });
        let pod = serde_json::from_value(pod).expect("a Pod");
        api.create(&PostParams::default(), &pod).await.expect("the pod is created");
    }

    async fn delete_pod(&self, name: &str) {
        let api: Api<Pod> = Api::namespaced(self.cluster.admin.clone(), NAME);
        api.delete(name, &DeleteParams::default().grace_period(0)).await.expect("the pod is deleted");
    }
}

impl Drop for Replicas<'_> {
    fn drop(&mut self) {
        self.proxy.abort();
    }
}

async fn follow(
    api: Api<Endpoints>,
    balancer: Arc<Balancer>,
    ports: Arc<Mutex<HashMap<String, u16>>>,
    lag: Arc<Mutex<Duration>>,
) {
    use futures::TryStreamExt as _;
    let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let changes = watcher(api, config).applied_objects();
    let outcome = changes
        .try_for_each(|endpoints| {
            let (balancer, ports) = (Arc::clone(&balancer), Arc::clone(&ports));
            let due = tokio::time::Instant::now() + *lag.lock().expect("the lag");
            tokio::spawn(async move {
                tokio::time::sleep_until(due).await;
                let ports = ports.lock().expect("the ports");
                balancer.route_to(pods(&endpoints).iter().filter_map(|pod| ports.get(pod).copied()).collect());
            });
            std::future::ready(Ok(()))
        })
        .await;
    outcome.expect("the watch of the Endpoints goes on");
}

/// Names of the ready pods.
fn pods(endpoints: &Endpoints) -> Vec<String> {
    let ready = endpoints.subsets.iter().flatten().flat_map(|subset| subset.addresses.iter().flatten());
    ready.filter_map(|address| address.target_ref.as_ref()?.name.clone()).collect()
}
