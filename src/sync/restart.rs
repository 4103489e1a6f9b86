//! Rotation that arrives: Deployments whose pods are replaced when the content of a clone changes, because GitLab Runner
//! reads its token once, at its start.
//!
//! What a Deployment's pods were last started for stands in an annotation of theirs, so a restart of this program, or
//! another replica that does the same, changes nothing. A Deployment without the annotation is left alone until the
//! content changes while somebody watches: it may have been started a moment ago.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;
use tokio::{sync::mpsc, time};

use crate::{
    backoff,
    brake::{Brake, Rival},
    cluster::{Problem, Reason, Requests, Standing, Standings},
    config::{Config, DeploymentName, NamespaceName},
    names::{ANNOTATION_RESTARTED_FOR, FIELD_MANAGER_RESTART},
    telemetry::metrics::{Metrics, WriteLabels},
};

/// Attempts after failures; then the next change tries again.
const ATTEMPTS: u32 = 6;

/// What the clones of a namespace hold now.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Content {
    namespace: NamespaceName,
    /// Versions of the sources, as the clones say them.
    versions: String,
    /// Whether this process saw it change, or merely found it.
    changed: bool,
}

/// Tells what clones hold. Only the sync loop has it.
pub(super) struct CloneContents {
    config: Arc<Config>,
    sender: mpsc::UnboundedSender<Content>,
    /// What the clones of each namespace last said, in the order of the configuration; nothing, if one never did.
    known: HashMap<NamespaceName, Vec<String>>,
    /// Where this process has just written content.
    wrote: HashSet<NamespaceName>,
}

/// Restarts Deployments, one at a time.
pub(super) struct Restarts {
    requests: Requests,
    standings: Standings,
    brakes: HashMap<(NamespaceName, DeploymentName), Brake<()>>,
    /// Where content changed while another revision of our Deployment wrote.
    missed: HashSet<NamespaceName>,
    deployments: BTreeSet<DeploymentName>,
    metrics: Metrics,
    contents: mpsc::UnboundedReceiver<Content>,
}

/// Both ends.
pub(super) fn channel(config: Arc<Config>, requests: Requests, metrics: Metrics) -> (CloneContents, Restarts) {
    let (sender, contents) = mpsc::unbounded_channel();
    let deployments = config.restart.clone();
    let told = CloneContents { config, sender, known: HashMap::new(), wrote: HashSet::new() };
    (
        told,
        Restarts {
            requests,
            standings: Standings::fixed(Standing::Active),
            brakes: HashMap::new(),
            missed: HashSet::new(),
            deployments,
            metrics,
            contents,
        },
    )
}

impl CloneContents {
    /// Content was written into a clone of this namespace.
    pub(super) fn wrote(&mut self, namespace: &NamespaceName) {
        if !self.config.restart.is_empty() {
            self.wrote.insert(namespace.clone());
        }
    }

    /// Says all that is known once more: this replica has begun to write.
    pub(super) fn repeat(&self) {
        for (namespace, versions) in &self.known {
            let content = Content { namespace: namespace.clone(), versions: versions.join("."), changed: false };
            let _ = self.sender.send(content);
        }
    }

    /// The clones of a namespace say these versions of their sources; nothing, if one is not there or says none.
    pub(super) fn are(&mut self, namespace: &NamespaceName, mut versions: Vec<String>) {
        let former = self.known.get(namespace).map(Vec::as_slice).unwrap_or_default();
        // A clone that is away for a moment comes back with what it had, or with what is new.
        for (version, former) in versions.iter_mut().zip(former).filter(|(version, _)| version.is_empty()) {
            version.clone_from(former);
        }
        if former == versions || versions.iter().all(String::is_empty) {
            return;
        }
        let changed = differ(former.iter().map(String::as_str), versions.iter().map(String::as_str));
        let changed = self.wrote.remove(namespace) || changed;
        let content = Content { namespace: namespace.clone(), versions: versions.join("."), changed };
        self.known.insert(namespace.clone(), versions);
        let _ = self.sender.send(content);
    }
}

impl Restarts {
    /// The same, but only while clones are this replica's to write.
    pub(super) fn with_standings(self, standings: Standings) -> Self {
        Self { standings, ..self }
    }

    /// Runs until the sync loop ends.
    pub(super) async fn run(mut self) {
        while let Some(first) = self.contents.recv().await {
            let mut latest = BTreeMap::from([(first.namespace.clone(), first)]);
            while let Ok(mut content) = self.contents.try_recv() {
                content.changed |= latest.get(&content.namespace).is_some_and(|former| former.changed);
                latest.insert(content.namespace.clone(), content);
            }
            let deployments = self.deployments.clone();
            for mut content in latest.into_values() {
                content.changed |= self.missed.remove(&content.namespace);
                if !self.standings.is_active() {
                    // Who writes sees to it. Should that end before it did, this replica does when it takes over.
                    if content.changed {
                        self.missed.insert(content.namespace);
                    }
                    continue;
                }
                for deployment in &deployments {
                    self.see_to(deployment, &content).await;
                }
            }
        }
    }

    async fn see_to(&mut self, deployment: &DeploymentName, content: &Content) {
        let (object, namespace) = (deployment.as_str(), content.namespace.as_str());
        let key = (content.namespace.clone(), deployment.clone());
        self.brakes.retain(|_, brake| !brake.is_idle(Instant::now()));
        // Two sources by turns would restart it for ever.
        if let Some(due) = self.brakes.get(&key).and_then(|brake| brake.due(&(), Rival::Other, Instant::now())) {
            tracing::warn!(object, namespace, "Deployment restarted too often; the next restart waits for a minute");
            time::sleep_until(due.into()).await;
        }
        if !self.standings.is_active() {
            return;
        }
        for attempt in 0..ATTEMPTS {
            let result = self.restart(deployment, content).await;
            let word = result.as_ref().map_or_else(|problem| problem.reason.as_str(), |_| "ok");
            let labels = WriteLabels { object: object.to_owned(), action: "restart", result: word };
            match result {
                Ok(false) => return,
                Ok(true) => {
                    self.metrics.writes.get_or_create(&labels).inc();
                    self.brakes.entry(key).or_default().wrote((), Rival::Other, Instant::now());
                    return tracing::info!(object, namespace, "Deployment restarted, because a clone has new content");
                }
                Err(problem) => {
                    self.metrics.writes.get_or_create(&labels).inc();
                    tracing::warn!(object, namespace, reason = word, detail = %problem, "Deployment not restarted");
                    if matches!(problem.reason, Reason::Forbidden | Reason::Denied | Reason::Invalid) {
                        return;
                    }
                    let pause = backoff::pause(attempt, Duration::from_millis(500), Duration::from_secs(30));
                    time::sleep(pause.max(problem.retry_after.unwrap_or_default())).await;
                    // Another revision may have restarted it for newer content meanwhile.
                    if !self.standings.is_active() {
                        return;
                    }
                }
            }
        }
    }

    /// `false`: there was nothing to do.
    async fn restart(&self, deployment: &DeploymentName, content: &Content) -> Result<bool, Problem> {
        let (namespace, name) = (&content.namespace, deployment.as_str());
        let Some(there) = self.requests.get::<Deployment>(namespace, name).await? else { return Ok(false) };
        let template = there.spec.map(|spec| spec.template).and_then(|template| template.metadata);
        let annotations = template.and_then(|metadata| metadata.annotations).unwrap_or_default();
        let former = annotations.get(ANNOTATION_RESTARTED_FOR);
        let missed = former.is_some_and(|former| differ(former.split('.'), content.versions.split('.')));
        if former == Some(&content.versions) || !(content.changed || missed) {
            return Ok(false);
        }
        let annotation = json!({ANNOTATION_RESTARTED_FOR: content.versions});
        let object = json!({"spec": {"template": {"metadata": {"annotations": annotation}}}});
        self.requests.apply::<Deployment>(FIELD_MANAGER_RESTART, namespace, name, object).await?;
        Ok(true)
    }
}

/// Whether a clone says another version than before. One that says its first has not changed.
fn differ<'a>(former: impl Iterator<Item = &'a str>, now: impl Iterator<Item = &'a str>) -> bool {
    former.zip(now).any(|(former, now)| !former.is_empty() && !now.is_empty() && former != now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_several_clones_one_that_appears_or_comes_back_is_no_change() {
        let config = "clones: [{secret: a, from: x}, {secret: b, from: x}]\nrestart: {deployments: [d]}";
        let config = Arc::new(Config::from_yaml(config).unwrap());
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let mut contents = CloneContents { config, sender, known: HashMap::new(), wrote: HashSet::new() };
        let namespace: NamespaceName = "n".parse().unwrap();
        let mut are = |versions: [&str; 2], wrote: bool| {
            if wrote {
                contents.wrote(&namespace);
            }
            contents.are(&namespace, versions.map(str::to_owned).to_vec());
            receiver.try_recv().ok().map(|content| (content.versions, content.changed))
        };
        let told = |versions: &str, changed| Some((versions.to_owned(), changed));
        assert_eq!(are(["", ""], false), None);
        assert_eq!(are(["5", ""], false), told("5.", false), "found");
        assert_eq!(are(["5", "7"], false), told("5.7", false), "the other one appears");
        assert_eq!(are(["", "7"], false), None, "it is deleted");
        assert_eq!(are(["5", "7"], false), None, "and comes back");
        assert_eq!(are(["5", "9"], false), told("5.9", true), "another replica wrote");
        assert_eq!(are(["8", "9"], true), told("8.9", true));
        assert_eq!(are(["8", "9"], false), None);
    }

    #[test]
    fn what_pods_were_started_for_is_compared_clone_by_clone() {
        let table =
            [("5", "5", false), ("5", "6", true), ("5.", "5.7", false), ("5.7", "5.", false), ("5.7", "6.7", true)];
        for (former, now, expected) in table {
            assert_eq!(differ(former.split('.'), now.split('.')), expected, "{former} {now}");
        }
    }
}
