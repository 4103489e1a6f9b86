//! What Kyverno leaves behind, and a stand-in that does with it what the code of Kyverno does.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, ResourceExt as _,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
    },
    core::GroupVersionKind,
};
use serde_json::{Value, json};
use test_support::{Cluster, cluster::SECRET, control_plane::ControlPlane, fixture};
use tokio::task::JoinHandle;

pub const POLICY: &str = "sync-gitlab-runner-secret";
const PREFIX: &str = "generate.kyverno.io/";

/// How a clone came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Created and replaced by the background controller: 1.11 to 1.19, and Big Bang's policy.
    Put,
    /// By server-side apply, with `useServerSideApply`.
    Apply,
    /// With the labels of 1.10 beside the others.
    Legacy,
}

impl Shape {
    /// The field manager of its fields.
    pub fn manager(self) -> &'static str {
        if self == Self::Apply { "kyverno-generate" } else { "background-controller" }
    }
}

/// Which Kyverno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Keeps the clones of a deleted policy.
    V1_18,
    /// Deletes them.
    V1_19,
}

pub async fn install_kinds(plane: &ControlPlane) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": fixture("kyverno/crds.yaml")});
    plane.kubectl_with_stdin(&["apply", "-f", "-"], &list.to_string()).await.unwrap();
    plane.kubectl(&["wait", "--for=condition=Established", "--all", "crd", "--timeout=60s"]).await.unwrap();
}

pub fn kind(group: &str, version: &str, kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

pub fn policies(client: &Client) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &kind("kyverno.io", "v1", "ClusterPolicy"))
}

pub fn requests(client: &Client) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), "default", &kind("kyverno.io", "v2", "UpdateRequest"))
}

/// Creates the policy of the fixture, changed by a merge patch.
pub async fn create_policy(client: &Client, change: impl FnOnce(&mut Value)) -> DynamicObject {
    let mut policy = fixture("kyverno/policy.yaml").remove(0);
    change(&mut policy);
    let policy = serde_json::from_value(policy).unwrap();
    policies(client).create(&PostParams::default(), &policy).await.unwrap()
}

/// The policy with `selectorLabels`, for the namespaces with these labels.
pub fn by_labels(policy: &mut Value, labels: &Value) {
    let rule = &mut policy["spec"]["rules"][0];
    rule["match"]["resources"]["selector"]["matchLabels"] = labels.clone();
    rule["generate"]["namespace"] = json!("{{request.object.metadata.name}}");
}

fn labels(policy: &str, shape: Shape) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = [
        ("policy-name", policy),
        ("policy-namespace", ""),
        ("rule-name", "sync-gitlab-runner-secret"),
        ("trigger-version", "v1"),
        ("trigger-group", ""),
        ("trigger-kind", "Namespace"),
        ("trigger-namespace", ""),
        ("trigger-uid", "0f0f0f0f-0000-4000-8000-000000000000"),
        ("source-group", ""),
        ("source-version", "v1"),
        ("source-kind", "Secret"),
        ("source-namespace", "gitlab"),
        ("source-uid", "0f0f0f0f-0000-4000-8000-000000000001"),
        ("clone-source", ""),
    ]
    .into_iter()
    .map(|(key, value)| (format!("{PREFIX}{key}"), value.to_owned()))
    .collect();
    if shape == Shape::Legacy {
        all.insert(format!("{PREFIX}source-name"), SECRET.to_owned());
        all.insert(format!("{PREFIX}trigger-name"), "gitlab-runner".to_owned());
    }
    all.insert("app.kubernetes.io/managed-by".to_owned(), "kyverno".to_owned());
    // Copied from the source.
    all.insert("app".to_owned(), "gitlab".to_owned());
    all.insert("heritage".to_owned(), "Helm".to_owned());
    all
}

/// Makes the clone that Kyverno would have made.
pub async fn create_clone(cluster: &Cluster, namespace: &str, shape: Shape, data: &[(&str, &str)]) -> Secret {
    let mut secret = test_support::cluster::secret(SECRET, data);
    secret.metadata.labels = Some(labels(POLICY, shape));
    let applied = "kubectl.kubernetes.io/last-applied-configuration".to_owned();
    secret.metadata.annotations = Some(BTreeMap::from([(applied, "{\"data\":\"copied-canary\"}".to_owned())]));
    secret.type_ = Some("Opaque".to_owned());
    let api = cluster.secrets(namespace);
    if shape == Shape::Apply {
        let params = PatchParams::apply(shape.manager()).force();
        return api.patch(SECRET, &params, &Patch::Apply(&secret)).await.unwrap();
    }
    let params = PostParams { field_manager: Some(shape.manager().to_owned()), ..PostParams::default() };
    api.create(&params, &secret).await.unwrap()
}

/// Does what the code of Kyverno does (`pkg/webhooks/resource/generation/handler.go`, `pkg/policy/generate.go`): with a
/// policy that synchronizes, a clone that loses its labels gets them back; from 1.19 on, a policy that synchronizes
/// takes the clones that carry its labels with it. Kyverno itself does not run here.
pub struct StandIn(JoinHandle<()>);

impl StandIn {
    pub async fn start(client: Client, version: Version) -> Self {
        let (policies, secrets) = (policies(&client), Api::<Secret>::all(client.clone()));
        let params = || WatchParams::default().timeout(290);
        let start = |version: Option<String>| version.expect("a resourceVersion");
        let list = policies.list(&ListParams::default()).await.unwrap();
        let mut of_policies = policies.watch(&params(), &start(list.metadata.resource_version)).await.unwrap().boxed();
        let name = format!("metadata.name={SECRET}");
        let list = secrets.list(&ListParams::default().fields(&name)).await.unwrap();
        let mut known: BTreeMap<String, BTreeMap<String, String>> =
            list.items.iter().map(|secret| (secret.namespace().unwrap(), secret.labels().clone())).collect();
        let mut of_secrets =
            secrets.watch(&params().fields(&name), &start(list.metadata.resource_version)).await.unwrap().boxed();
        Self(tokio::spawn(async move {
            loop {
                tokio::select! {
                    event = of_policies.next() => {
                        if let Some(Ok(WatchEvent::Deleted(policy))) = event
                            && version == Version::V1_19
                            && synchronizes(&policy)
                        {
                            delete_clones(&client, &policy.name_any()).await;
                        }
                    }
                    event = of_secrets.next() => match event {
                        Some(Ok(WatchEvent::Added(secret) | WatchEvent::Modified(secret))) => {
                            let former = known.insert(secret.namespace().unwrap(), secret.labels().clone());
                            relabel(&client, former.unwrap_or_default(), &secret).await;
                        }
                        Some(_) => {}
                        None => return,
                    },
                }
            }
        }))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn synchronizes(policy: &DynamicObject) -> bool {
    policy.data["spec"]["rules"].as_array().unwrap().iter().any(|rule| {
        rule["generate"]["synchronize"] == true && rule["generate"]["orphanDownstreamOnPolicyDelete"] != true
    })
}

async fn delete_clones(client: &Client, policy: &str) {
    let selector = format!("{PREFIX}policy-name={policy},app.kubernetes.io/managed-by=kyverno");
    let found = Api::<Secret>::all(client.clone()).list(&ListParams::default().labels(&selector)).await.unwrap();
    for clone in found {
        let api: Api<Secret> = Api::namespaced(client.clone(), &clone.namespace().unwrap());
        let _ = api.delete(&clone.name_any(), &DeleteParams::default()).await;
    }
}

async fn relabel(client: &Client, former: BTreeMap<String, String>, secret: &Secret) {
    let Some(policy) = former.get(&format!("{PREFIX}policy-name")) else { return };
    if secret.labels().contains_key(&format!("{PREFIX}policy-name")) {
        return;
    }
    let lives = policies(client).get_opt(policy).await.unwrap();
    if lives.is_some_and(|policy| policy.data["spec"]["rules"][0]["generate"]["synchronize"] == true) {
        let api: Api<Secret> = Api::namespaced(client.clone(), &secret.namespace().unwrap());
        let patch = Patch::Merge(json!({"metadata": {"labels": former}}));
        let _ = api
            .patch(
                &secret.name_any(),
                &PatchParams { field_manager: Some("background-controller".to_owned()), ..PatchParams::default() },
                &patch,
            )
            .await;
    }
}
