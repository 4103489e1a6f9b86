//! What admission knows of the cluster: published by sync, read, and waited for.
//!
//! This is the one place where the two flows of the program meet.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use crate::{
    config::{NamespaceName, SecretName},
    trust::{BundleFiles, Certs},
};

/// Handle to the latest [`Snapshot`]. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SharedSnapshot(Arc<watch::Sender<Arc<Snapshot>>>);

impl SharedSnapshot {
    /// With this one as the first.
    pub fn new(snapshot: Snapshot) -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(snapshot))))
    }

    /// The latest one.
    pub fn load(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.borrow())
    }

    /// Publishes a newer one.
    pub fn publish(&self, snapshot: Snapshot) {
        self.0.send_replace(Arc::new(snapshot));
    }

    /// The later ones.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.subscribe()
    }

    /// Waits until this is true of the latest one, for at most as long as said. Whether it is.
    pub async fn wait_for(&self, patience: Duration, mut is_true: impl FnMut(&Snapshot) -> bool) -> bool {
        matches!(timeout(patience, self.subscribe().wait_for(|snapshot| is_true(snapshot))).await, Ok(Ok(_)))
    }
}

/// The cluster as last seen by the watches.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Each configured source, by Secret name, with the namespace it is expected in.
    pub sources: BTreeMap<SecretName, (NamespaceName, SourcePresence)>,
    /// `certsSecretName` as it is in each namespace that has it.
    pub certs: BTreeMap<NamespaceName, Certs>,
    /// Whether `certs` is complete: "not loaded yet" must never look like "not there".
    pub certs_loaded: bool,
    /// Where there is one that was not read yet, for its namespace was not selected when it came.
    pub certs_unread: BTreeSet<NamespaceName>,
    /// The trust bundle that pods of a namespace may be given: the current one, what was right a moment ago, or what another
    /// revision publishes.
    pub trust: BTreeMap<NamespaceName, BundleFiles>,
    /// The namespaces whose trust bundle is about to be put right.
    pub trust_unsettled: BTreeSet<NamespaceName>,
    /// Runner namespaces that are there.
    pub namespaces: BTreeSet<NamespaceName>,
    /// Whether `namespaces` and the clones in them are completely known.
    pub clones_loaded: bool,
    /// Since when each clone is not what its source is, by its name and namespace. In step: not in here.
    pub out_of_step: BTreeMap<(SecretName, NamespaceName), Instant>,
    /// Clones that something else keeps changing: their content may be anybody's until they are repaired.
    pub contended: BTreeSet<(SecretName, NamespaceName)>,
    /// Whether another revision of our Deployment writes: what it writes may follow from another configuration.
    pub is_passive: bool,
    /// The way back: clones of which a read showed something else than stands here.
    pub doubts: Doubts,
}

impl Snapshot {
    /// Whether `certsSecretName` in a namespace is known, or that it is not there.
    pub fn knows_certs(&self, namespace: &str) -> bool {
        self.certs_loaded && !self.certs_unread.contains(namespace)
    }
}

/// Clones of which a read by admission contradicts what the watches know. Holds each at most once, and only such as a
/// snapshot knows the namespace of. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Doubts(Arc<Doubtful>);

#[derive(Debug, Default)]
struct Doubtful {
    clones: Mutex<BTreeSet<(SecretName, NamespaceName)>>,
    raised: Notify,
}

impl Doubts {
    /// Has sync look at a clone by reads.
    pub fn raise(&self, secret: SecretName, namespace: NamespaceName) {
        self.clones().insert((secret, namespace));
        self.0.raised.notify_one();
    }

    /// Until there is one.
    pub async fn raised(&self) {
        self.0.raised.notified().await;
    }

    /// All that there are.
    pub fn take(&self) -> BTreeSet<(SecretName, NamespaceName)> {
        std::mem::take(&mut *self.clones())
    }

    /// A panic while the lock was held leaves a set that is still whole.
    fn clones(&self) -> std::sync::MutexGuard<'_, BTreeSet<(SecretName, NamespaceName)>> {
        self.0.clones.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A source as far as admission needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourcePresence {
    /// The watch has not delivered its first list.
    NotLoaded,
    /// There is no such Secret.
    Missing,
    /// It is there.
    Present,
}
