//! Our Deployment and its `ReplicaSets`, made by the real controllers; its pods run on a node that does not exist, and
//! the program beside them as a process for each.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use test_support::{Cluster, Manifests, Tool, wait};

use super::{APP, BINARY};

/// The Deployment of this program.
pub struct Revisions<'a> {
    cluster: &'a Cluster,
    deployments: Api<Deployment>,
    sets: Api<ReplicaSet>,
}

impl<'a> Revisions<'a> {
    /// The first revision.
    pub async fn new(cluster: &'a Cluster) -> Self {
        let deployments: Api<Deployment> = Api::namespaced(cluster.admin.clone(), APP);
        let shipped = Manifests::render("overlays/default").objects;
        let object = shipped.into_iter().find(|object| object["kind"] == "Deployment").unwrap();
        deployments.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
        let sets = Api::namespaced(cluster.admin.clone(), APP);
        Self { cluster, deployments, sets }
    }

    /// Rolls out what this stands for, which may be an earlier one, and waits until a pod of it is ready. Returns its
    /// `pod-template-hash`.
    pub async fn roll_out(&self, what: &str) -> String {
        self.roll_out_with(what, json!(null)).await;
        wait::until(format!("a replica of {what} is ready"), async || {
            let set = self.set(what).await?;
            (set.status.as_ref()?.ready_replicas? > 0).then(|| set.labels()["pod-template-hash"].clone())
        })
        .await
    }

    /// Rolls out what can never become ready. Returns its `pod-template-hash`.
    pub async fn roll_out_broken(&self, what: &str) -> String {
        // No node has that label.
        self.roll_out_with(what, json!({"no-such-node": ""})).await;
        let set = wait::until(format!("there is a ReplicaSet of {what}"), async || self.set(what).await).await;
        set.labels()["pod-template-hash"].clone()
    }

    async fn roll_out_with(&self, what: &str, node_selector: serde_json::Value) {
        let template = json!({"metadata": {"annotations": {"what": what}}, "spec": {"nodeSelector": node_selector}});
        let patch = Patch::Merge(json!({"spec": {"template": template}}));
        self.deployments.patch(APP, &PatchParams::default(), &patch).await.unwrap();
    }

    async fn set(&self, what: &str) -> Option<ReplicaSet> {
        let sets = self.sets.list(&kube::api::ListParams::default()).await.unwrap();
        let is_it = |set: &ReplicaSet| {
            let template = set.spec.as_ref()?.template.as_ref()?;
            (template.metadata.as_ref()?.annotations.as_ref()?.get("what")? == what).then_some(())
        };
        sets.items.into_iter().find(|set| is_it(set).is_some())
    }

    /// A process of a revision.
    pub async fn start(&self, hash: &str, config: &str) -> Tool {
        self.start_binary(BINARY, hash, config).await
    }

    /// A process of a revision, which is another build.
    pub async fn start_binary(&self, binary: &str, hash: &str, config: &str) -> Tool {
        let builder = self.cluster.tool(binary).await.config(config).flag("--namespace", APP);
        builder.flag("--pod-template-hash", hash).start().await
    }
}

/// Waits until a process says that this is its standing now.
pub async fn stands(tool: &Tool, standing: &str) {
    wait::until(format!("it is {standing}; its log:\n{}", tool.log_text()), async || {
        let lines = tool.log_lines();
        let last = lines.iter().rev().find_map(|line| line["standing"].as_str())?;
        (last == standing).then_some(())
    })
    .await;
}
