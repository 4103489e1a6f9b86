//! Six things happen in every order, none waiting for what the one before leads to.

use std::{sync::Arc, time::Duration};

use gitlab_runner_webhook::config::Config;
use gitlab_runner_webhook_cli::manifests;
use k8s_openapi::api::{
    admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
    core::v1::Pod,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use test_support::{Balancer, cluster::SECRET, documents};
use tokio::sync::Notify;

use crate::{
    arena::{Arena, Slot, current},
    perturbation::Program,
    story::{token, token_of},
};

/// Far more than anything takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Happening {
    Namespace,
    Source,
    Rotation,
    CloneDeleted,
    Pod,
    Restart,
}

/// One order of all of them.
pub type Order = [Happening; 6];

/// All 720.
pub fn all() -> Vec<Order> {
    use Happening::{CloneDeleted, Namespace, Pod, Restart, Rotation, Source};
    let mut orders = Vec::new();
    let mut order = [Namespace, Source, Rotation, CloneDeleted, Pod, Restart];
    permute(&mut order, 0, &mut orders);
    orders
}

fn permute(order: &mut Order, from: usize, orders: &mut Vec<Order>) {
    if from == order.len() {
        orders.push(*order);
    }
    for index in from..order.len() {
        order.swap(from, index);
        permute(order, from + 1, orders);
        order.swap(from, index);
    }
}

/// As [`PERTURB`](crate) names it.
pub fn name(order: Order) -> String {
    order.iter().map(|one| format!("{one:?}").to_lowercase()).collect::<Vec<_>>().join("-")
}

/// The program in a slot, called by the API server for pods of its runner namespace.
pub struct Stage<'a> {
    arena: &'a Arena,
    slot: Slot,
    program: Arc<Program>,
    balancer: Balancer,
    _proxy: test_support::TapProxy,
}

impl<'a> Stage<'a> {
    pub async fn new(arena: &'a Arena, slot: Slot) -> Self {
        let (proxy, _, program) = arena.program(&slot, None, "keep").await;
        let balancer = Balancer::start().await;
        let stage = Self { arena, slot, program, balancer, _proxy: proxy };
        stage.register().await;
        stage.start().await;
        stage
    }

    /// The webhooks that follow from the configuration of this slot, under a name of its own.
    async fn register(&self) {
        let yaml = self.slot.config("keep");
        let files = manifests::render(&Config::from_yaml(&yaml).expect("a configuration"), &yaml);
        let file = files.iter().find(|file| file.path == "webhooks.yaml").expect("the webhooks");
        let url = format!("https://127.0.0.1:{}", self.balancer.port);
        for mut object in documents(&file.content) {
            for webhook in object["webhooks"].as_array_mut().expect("webhooks") {
                let path = webhook["clientConfig"]["service"]["path"].as_str().expect("a path").to_owned();
                let ca = k8s_openapi::ByteString(self.arena.cluster.certificate.ca_pem.clone().into());
                webhook["clientConfig"] = json!({"url": format!("{url}{path}"), "caBundle": ca});
            }
            let name = format!("slot-{}", self.slot.number);
            object["metadata"]["name"] = json!(name);
            let (admin, params) = (self.arena.cluster.admin.clone(), PatchParams::apply("installer"));
            let is_mutating = object["kind"] == "MutatingWebhookConfiguration";
            let applied = if is_mutating {
                let api: Api<MutatingWebhookConfiguration> = Api::all(admin);
                api.patch(&name, &params, &Patch::Apply(object)).await.map(drop)
            } else {
                let api: Api<ValidatingWebhookConfiguration> = Api::all(admin);
                api.patch(&name, &params, &Patch::Apply(object)).await.map(drop)
            };
            applied.expect("the webhooks are registered");
        }
    }

    async fn start(&self) {
        self.program.start().await;
        let port = self.program.ready().await;
        self.balancer.route_to(vec![port]);
    }

    /// Lets all of it happen, in this order.
    ///
    /// # Errors
    /// What did not come to be, or came to be and must not.
    pub async fn play(&self, order: &Order) -> Result<(), String> {
        let (arena, slot) = (self.arena, &self.slot);
        arena.cluster.create_namespace(&slot.source, &[]).await;
        let played = tokio::time::timeout(PATIENCE, self.happen(order)).await;
        let result = match played {
            Ok(result) => result,
            Err(_) => Err(format!(
                "{} s are over; the clone: {:?}; the source: {:?}\n{}",
                PATIENCE.as_secs(),
                self.numbers(&slot.clone_key()),
                self.numbers(&slot.source_key()),
                self.program.log().await
            )),
        };
        arena.clean(slot).await;
        result
    }

    async fn happen(&self, order: &Order) -> Result<(), String> {
        let asked = Notify::new();
        let pod = async {
            asked.notified().await;
            self.pod().await
        };
        // The pod is tried beside what follows.
        let ((), pod) = tokio::join!(self.happenings(order, &asked), pod);
        pod?;
        let slot = &self.slot;
        let (clone, source) = (slot.clone_key(), slot.source_key());
        self.arena
            .history
            .until(|all| {
                let now = |key| all.get(key).and_then(current).and_then(token_of);
                now(&source) == Some(2) && now(&clone) == Some(2)
            })
            .await;
        let numbers = self.numbers(&clone);
        match numbers.windows(2).find(|pair| pair[1] < pair[0]) {
            Some(_) => Err(format!("the clone went back: {numbers:?}")),
            None => Ok(()),
        }
    }

    async fn happenings(&self, order: &Order, asked: &Notify) {
        let (cluster, slot) = (&self.arena.cluster, &self.slot);
        let mut number = 1;
        for happening in order {
            match happening {
                Happening::Namespace => self.arena.create_namespace(&slot.run).await,
                Happening::Source => {
                    // Where a rotation made it first, it is made anew.
                    let _ = cluster.secrets(&slot.source).delete(SECRET, &DeleteParams::default()).await;
                    self.put(number).await;
                }
                Happening::Rotation => {
                    number = 2;
                    self.put(number).await;
                }
                Happening::CloneDeleted => {
                    let _ = cluster.secrets(&slot.run).delete(SECRET, &DeleteParams::default()).await;
                }
                Happening::Pod => asked.notify_one(),
                Happening::Restart => {
                    self.program.kill().await;
                    self.start().await;
                }
            }
        }
    }

    async fn put(&self, number: usize) {
        self.arena.cluster.put_secret(&self.slot.source, SECRET, &[("runner-token", &token(number))]).await;
    }

    fn numbers(&self, key: &crate::arena::Key) -> Vec<usize> {
        let entries = self.arena.history.of(key);
        entries.iter().filter_map(|entry| token_of(entry.object.as_ref()?)).collect()
    }

    /// A pod that uses the clone, tried until it is let in. At some moment between the request and the pod's creation, its
    /// clone was not older than the source was when it was asked for.
    async fn pod(&self) -> Result<(), String> {
        let pods: Api<Pod> = Api::namespaced(self.arena.cluster.admin.clone(), &self.slot.run);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"generateName": "p-"},
            "spec": {
                "containers": [{"name": "c", "image": "i"}],
                "volumes": [{"name": "token", "secret": {"secretName": SECRET}}],
            },
        }))
        .expect("a Pod");
        loop {
            let history = &self.arena.history;
            let sent = history.revision();
            let wanted = history.of(&self.slot.source_key()).last().and_then(|entry| token_of(entry.object.as_ref()?));
            match pods.create(&PostParams::default(), &pod).await {
                Ok(created) => {
                    let revision = created.resource_version().and_then(|version| version.parse::<u64>().ok());
                    let revision = revision.expect("a pod has a revision");
                    // What was before this mark was seen before it.
                    self.arena.cluster.put_secret(&self.slot.source, "mark", &[]).await;
                    let key = ("Secret", self.slot.source.clone(), "mark".to_owned());
                    history.until(|all| all.get(&key).is_some_and(|entries| !entries.is_empty())).await;
                    return self.was_current(wanted, sent, revision);
                }
                // The namespace or its ServiceAccount is not there, the program is not, or the gate says no.
                Err(kube::Error::Api(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => return Err(format!("the pod: {error}")),
            }
        }
    }

    fn was_current(&self, wanted: Option<usize>, sent: u64, created: u64) -> Result<(), String> {
        let entries = self.arena.history.of(&self.slot.clone_key());
        let before = entries.iter().rev().find(|entry| entry.revision <= sent);
        let between = entries.iter().filter(|entry| (sent + 1..=created).contains(&entry.revision));
        let mut states = before.into_iter().chain(between).map(|entry| entry.object.as_ref().and_then(token_of));
        if states.any(|state| state.is_some() && state >= wanted) {
            return Ok(());
        }
        let all: Vec<(u64, Option<usize>)> =
            entries.iter().map(|entry| (entry.revision, entry.object.as_ref().and_then(token_of))).collect();
        Err(format!("a pod at {created}, asked for at {sent} with token {wanted:?}, was let in; the clone: {all:?}"))
    }

    /// Ends the program.
    pub async fn end(&self) {
        self.program.kill().await;
    }
}

#[test]
fn each_order_is_there_once() {
    let orders = all();
    let distinct: std::collections::BTreeSet<_> = orders.iter().collect();
    assert_eq!((orders.len(), distinct.len()), (720, 720));
}
