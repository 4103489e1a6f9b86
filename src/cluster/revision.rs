//! Which replicas write: those of one revision of our Deployment.
//!
//! During a rollout, replicas of two revisions live side by side, and their configurations or compiled-in roots may
//! differ. If both reconciled, each would undo the other's writes. So one revision writes: the newest that has a ready
//! replica, and the newest of all where none has one. A rollback makes its revision the newest. The replicas of the
//! others serve admission from memory. Outside of a Deployment, every process writes.
//!
//! # RBAC
//! `list` and `watch` of `replicasets` in our own namespace. Without that right every replica writes, as outside of a
//! Deployment, and only the brakes bound a disagreement.

use std::{cmp::Ordering, collections::BTreeMap, pin::pin, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::ReplicaSet;
use kube::ResourceExt as _;
use tokio::{sync::watch as channel, time};

use super::{Change, Problem, Query, Raw, Reason, WatchClient, store::ObjectStore, watch};
use crate::{config::NamespaceName, shutdown::Shutdown};

/// The Deployment controller's label on a `ReplicaSet` and its pods.
const LABEL_HASH: &str = "pod-template-hash";
/// The Deployment controller's annotation on a `ReplicaSet`. It rises with each change of the template, rollbacks too.
const ANNOTATION_REVISION: &str = "deployment.kubernetes.io/revision";
/// Longest wait for the first list. Then this replica writes: a cluster without clones is worse than two writers.
const PATIENCE: Duration = Duration::from_secs(10);

/// What this replica does besides serving admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing yet: the `ReplicaSets` are not listed.
    Pending,
    /// It writes.
    Active,
    /// Nothing but certificates, until one replica of its revision is ready: another revision writes.
    Standby,
    /// Nothing any more: a newer revision writes.
    Superseded,
}

/// The latest standing, for every part that writes. Clones share it.
#[derive(Clone, Debug)]
pub struct Standings {
    current: channel::Receiver<Standing>,
    is_known: bool,
}

/// Follows the `ReplicaSets` of our Deployment.
pub struct RevisionWatch {
    client: WatchClient,
    namespace: NamespaceName,
    timeout: Duration,
    hash: String,
    sender: channel::Sender<Standing>,
}

/// A `ReplicaSet` as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Revision {
    hash: String,
    deployment: String,
    number: u64,
    has_ready: bool,
}

impl Standing {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Standby => "standby",
            Self::Superseded => "superseded",
        }
    }
}

impl Standings {
    /// Always this one.
    pub fn fixed(standing: Standing) -> Self {
        Self { current: channel::channel(standing).1, is_known: false }
    }

    /// The present one.
    pub fn current(&self) -> Standing {
        *self.current.borrow()
    }

    /// Whether this is a replica of a Deployment, whose revisions are told apart.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// Whether clones and trust bundles are this replica's to write.
    pub fn is_active(&self) -> bool {
        self.current() == Standing::Active
    }

    /// Whether a newer revision has taken over.
    pub fn is_superseded(&self) -> bool {
        self.current() == Standing::Superseded
    }

    /// Returns when it is another one; never, if it is fixed.
    pub async fn changed(&mut self) {
        if self.current.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl RevisionWatch {
    /// For a pod with this `pod-template-hash` in our own namespace.
    pub fn new(client: WatchClient, namespace: NamespaceName, hash: String, timeout: Duration) -> (Self, Standings) {
        let (sender, receiver) = channel::channel(Standing::Pending);
        let standings = Standings { current: receiver, is_known: true };
        (Self { client, namespace, timeout, hash, sender }, standings)
    }

    /// Runs until shutdown. The standing stays what it was last: a replica that is draining takes over nothing.
    pub async fn run(self, mut shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.requested() => {}
            () = self.follow() => {}
        }
    }

    async fn follow(self) {
        let Self { client, namespace, timeout, hash, sender } = self;
        let query = Query::of::<ReplicaSet>(Some(namespace.as_str()), format!("replicasets in namespace {namespace}"));
        let decode = |raw: &Raw<'_>| Ok(Revision::of(&serde_json::from_str(raw.json)?));
        let mut changes = pin!(watch(&client, query, timeout, decode));
        let mut store = ObjectStore::default();
        let mut failed = None;
        let patience = time::sleep(PATIENCE);
        let mut patience = pin!(patience);
        loop {
            tokio::select! {
                change = changes.next() => match change {
                    None => return,
                    Some(Change::Failed(problem)) => note_failure(&sender, &mut failed, &problem),
                    Some(change) => {
                        store.apply(change);
                        if store.is_loaded() {
                            failed = None;
                            set(&sender, decide(&hash, store.objects()));
                        }
                    }
                },
                () = patience.as_mut(), if *sender.borrow() == Standing::Pending => set(&sender, Standing::Active),
            }
        }
    }
}

impl Revision {
    fn of(set: &ReplicaSet) -> Option<(String, Self)> {
        let number = set.annotations().get(ANNOTATION_REVISION)?.parse().ok()?;
        let hash = set.labels().get(LABEL_HASH)?.clone();
        let owner = set.owner_references().iter().find(|owner| owner.controller == Some(true))?;
        let deployment = (owner.kind == "Deployment").then(|| owner.uid.clone())?;
        let ready = set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default();
        Some((set.name_any(), Self { hash, deployment, number, has_ready: ready > 0 }))
    }
}

/// The standing of the replicas with this hash.
fn decide(hash: &str, revisions: &BTreeMap<String, Revision>) -> Standing {
    // A pod that no ReplicaSet of a Deployment made has no rival that could be told.
    let Some(own) = revisions.values().find(|revision| revision.hash == hash) else { return Standing::Active };
    let of_ours = || revisions.values().filter(|revision| revision.deployment == own.deployment);
    let newest_of = |revisions: &mut dyn Iterator<Item = &Revision>| revisions.map(|revision| revision.number).max();
    match newest_of(&mut of_ours().filter(|revision| revision.has_ready)) {
        Some(writes) => match own.number.cmp(&writes) {
            Ordering::Less => Standing::Superseded,
            Ordering::Equal => Standing::Active,
            Ordering::Greater => Standing::Standby,
        },
        // Whichever gets ready first writes; to get ready, each may write certificates.
        None if newest_of(&mut of_ours()) == Some(own.number) => Standing::Active,
        None => Standing::Standby,
    }
}

fn note_failure(sender: &channel::Sender<Standing>, failed: &mut Option<Reason>, problem: &Problem) {
    if failed.replace(problem.reason) != Some(problem.reason) {
        tracing::warn!(
            reason = problem.reason.as_str(),
            detail = %problem,
            impact = "a replica of another revision may write, too",
            "the revisions of the own Deployment are not visible; retrying"
        );
    }
    // A right that is missing does not come by waiting.
    if problem.reason == Reason::Forbidden && *sender.borrow() == Standing::Pending {
        set(sender, Standing::Active);
    }
}

fn set(sender: &channel::Sender<Standing>, next: Standing) {
    let changed = sender.send_if_modified(|standing| std::mem::replace(standing, next) != next);
    if changed {
        tracing::info!(standing = next.as_str(), "standing among the revisions of the Deployment");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(name: &str, revision: u32, ready: u32) -> Value {
        json!({
            "metadata": {
                "name": format!("app-{name}"),
                "labels": {LABEL_HASH: name},
                "annotations": {ANNOTATION_REVISION: revision.to_string()},
                "ownerReferences": [
                    {"apiVersion": "apps/v1", "kind": "Deployment", "name": "app", "uid": "1", "controller": true},
                ],
            },
            "spec": {"selector": {}},
            "status": {"replicas": ready, "readyReplicas": ready},
        })
    }

    fn standings(sets: &[Value]) -> Vec<Standing> {
        let parsed = sets.iter().map(|set| serde_json::from_value(set.clone()).unwrap());
        let revisions = parsed.filter_map(|set| Revision::of(&set)).collect();
        let hashes = sets.iter().map(|set| set["metadata"]["labels"][LABEL_HASH].as_str().unwrap());
        hashes.map(|hash| decide(hash, &revisions)).collect()
    }

    #[test]
    fn the_newest_revision_with_a_ready_replica_writes() {
        use Standing::{Active, Standby, Superseded};
        let table = [
            // Installed, and started.
            (vec![set("a", 1, 0)], vec![Active]),
            (vec![set("a", 1, 2)], vec![Active]),
            // A rollout: begun, taken over, ended.
            (vec![set("a", 1, 2), set("b", 2, 0)], vec![Active, Standby]),
            (vec![set("a", 1, 2), set("b", 2, 1)], vec![Superseded, Active]),
            (vec![set("a", 1, 0), set("b", 2, 2)], vec![Superseded, Active]),
            // None is ready: the newest may never be, and no other one is held up by that.
            (vec![set("a", 1, 0), set("b", 2, 0)], vec![Standby, Active]),
            // The new one fails, and another one is rolled out.
            (vec![set("a", 1, 2), set("b", 2, 0), set("c", 3, 0)], vec![Active, Standby, Standby]),
            // Rolled back: its number is the highest again.
            (vec![set("a", 3, 1), set("b", 2, 1)], vec![Active, Superseded]),
            // Numbers, not words.
            (vec![set("a", 9, 1), set("b", 10, 1)], vec![Superseded, Active]),
        ];
        for (sets, expected) in table {
            assert_eq!(standings(&sets), expected, "{sets:#?}");
        }
    }

    #[test]
    fn who_is_of_no_deployment_writes() {
        let mut alone = set("a", 1, 1);
        alone["metadata"]["ownerReferences"] = json!([]);
        let mut of_another = set("b", 2, 1);
        of_another["metadata"]["ownerReferences"][0]["uid"] = json!("2");
        assert_eq!(standings(&[alone, of_another, set("c", 1, 1)]), [Standing::Active; 3]);
    }
}
