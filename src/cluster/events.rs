//! Events: what `kubectl describe` and `kubectl get events` show, where a person looks first.
//!
//! Best effort: work never waits for one, and never fails by one. Each object that is told about has one Event, under a
//! name that RBAC can be bound to; the next occurrence is written over the last one, with the count that went before.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Event as CoreEvent},
    jiff::Timestamp,
};
use serde_json::json;
use tokio::{sync::Notify, time};

use super::{Requests, Standings};
use crate::{
    brake::{Brake, Rival},
    config::NamespaceName,
    names::{self, APP, FIELD_MANAGER_EVENT},
    shutdown::Shutdown,
};

/// A state must last this long to be told: most pass by themselves.
const SETTLED: Duration = Duration::from_secs(2);
/// Between two writes: a thousand namespaces with the same problem must not become a load.
const PACE: Duration = Duration::from_millis(200);
/// Longest wait for one write.
const DEADLINE: Duration = Duration::from_secs(5);
/// Objects that wait to be told about; what comes beyond that is dropped.
const MAX_WAITING: usize = 2048;

/// What is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// What it is about. It may not exist.
    pub regarding: Regarding,
    /// Whether somebody has to do something about it.
    pub is_warning: bool,
    /// The state, from a closed set: the word of log and metrics.
    pub reason: &'static str,
    /// A sentence without any data of a Secret.
    pub note: String,
}

/// What an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Regarding {
    /// Its namespace, and the Event's.
    pub namespace: NamespaceName,
    /// Its kind, such as `Secret`.
    pub kind: &'static str,
    /// Its API version, such as `v1`.
    pub api_version: &'static str,
    /// Its name.
    pub name: String,
    /// Its `metadata.uid`.
    pub uid: Uid,
}

/// `metadata.uid`: `kubectl describe` looks for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Uid {
    /// As it was seen; `None`: the object is not there.
    Seen(Option<String>),
    /// That of a Deployment, which nobody here watches: it is asked for when there is something to tell.
    OfDeployment,
}

impl Regarding {
    /// The program's own Deployment, in its own namespace.
    pub fn own_deployment(namespace: NamespaceName) -> Self {
        Self { namespace, kind: "Deployment", api_version: "apps/v1", name: APP.to_owned(), uid: Uid::OfDeployment }
    }
}

/// Takes in what is to be told. Clones share the same list.
#[derive(Clone, Default)]
pub struct EventQueue(Arc<Waiting>);

#[derive(Default)]
struct Waiting {
    /// The latest record of each object, by namespace and name of the Event.
    latest: Mutex<BTreeMap<(NamespaceName, String), EventRecord>>,
    news: Notify,
}

/// Writes Events, for ever.
pub struct EventWriter {
    events: EventQueue,
    requests: Requests,
    instance: String,
    standings: Standings,
    history: EventHistory,
    brakes: HashMap<(NamespaceName, String), Brake<()>>,
    /// The latest of those that are written too often, and when each may be written.
    late: BTreeMap<(NamespaceName, String), (Instant, EventRecord)>,
}

/// The problems that were told and are not over: of each Event which, how often, and since when.
#[derive(Default)]
struct EventHistory(HashMap<(NamespaceName, String), ReportedEvent>);

#[derive(Clone, Copy)]
struct ReportedEvent {
    reason: &'static str,
    count: u32,
    first: Timestamp,
}

impl EventQueue {
    /// What waits to be written about an object of this name: whether it is a warning, its reason and its note.
    #[cfg(test)]
    pub(crate) fn waiting(&self, name: &str) -> Option<(bool, &'static str, String)> {
        let latest = self.0.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let record = latest.values().find(|record| record.regarding.name == name)?;
        Some((record.is_warning, record.reason, record.note.clone()))
    }

    /// Notes a record; a later one about the same object takes its place.
    pub fn tell(&self, record: EventRecord) {
        let key = (record.regarding.namespace.clone(), names::event(&record.regarding.name));
        let mut latest = self.0.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.len() < MAX_WAITING || latest.contains_key(&key) {
            latest.insert(key, record);
            self.0.news.notify_one();
        }
    }

    /// Notes a record that could not be written, unless there is a later one.
    fn give_back(&self, key: (NamespaceName, String), record: EventRecord) {
        self.0.latest.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_insert(record);
    }

    fn take(&self) -> Option<((NamespaceName, String), EventRecord)> {
        self.0.latest.lock().unwrap_or_else(PoisonError::into_inner).pop_first()
    }
}

impl EventWriter {
    /// Writes by these requests what `events` take in. `instance` says which replica it is.
    pub fn new(events: EventQueue, requests: Requests, instance: String, standings: Standings) -> Self {
        let (history, brakes, late) = Default::default();
        Self { events, requests: requests.within(DEADLINE), instance, standings, history, brakes, late }
    }

    /// Runs until shutdown.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.requested() => {}
            () = self.tell_on() => {}
        }
    }

    async fn tell_on(&mut self) {
        loop {
            let due = self.late.values().map(|(due, _)| *due).min();
            tokio::select! {
                () = self.events.0.news.notified() => time::sleep(SETTLED).await,
                () = time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
            }
            let now = Instant::now();
            for (key, (_, record)) in self.late.extract_if(.., |_, (due, _)| *due <= now) {
                self.events.give_back(key, record);
            }
            while let Some(((namespace, name), record)) = self.events.take() {
                self.write(namespace, name, &record).await;
                time::sleep(PACE).await;
            }
        }
    }

    async fn write(&mut self, namespace: NamespaceName, name: String, record: &EventRecord) {
        let EventRecord { regarding, is_warning, reason, note } = record;
        let now = Timestamp::now();
        let key = (namespace.clone(), name.clone());
        self.brakes.retain(|_, brake| !brake.is_idle(Instant::now()));
        if self.standings.is_superseded() {
            return;
        }
        let due = self.brakes.get(&key).and_then(|brake| brake.due(&(), Rival::Other, Instant::now()));
        if let Some(due) = due {
            self.late.insert(key, (due, record.clone()));
            return;
        }
        self.late.remove(&key);
        let Some(ReportedEvent { count, first, .. }) = self.history.told(&key, record, now) else { return };
        let uid = match &regarding.uid {
            Uid::Seen(uid) => uid.clone(),
            Uid::OfDeployment => self.uid_of_deployment(regarding).await,
        };
        let event = json!({
            "metadata": {},
            "involvedObject": {
                "apiVersion": regarding.api_version,
                "kind": regarding.kind,
                "namespace": namespace.as_str(),
                "name": regarding.name,
                "uid": uid,
            },
            "type": if *is_warning { "Warning" } else { "Normal" },
            "reason": camel_case(reason),
            "message": note,
            "count": count,
            "firstTimestamp": format!("{first:.0}"),
            "lastTimestamp": format!("{now:.0}"),
            "source": {"component": APP},
            "reportingComponent": APP,
            "reportingInstance": self.instance,
        });
        match self.requests.apply::<CoreEvent>(FIELD_MANAGER_EVENT, &namespace, &name, event).await {
            Ok(()) => {
                self.brakes.entry(key.clone()).or_default().wrote((), Rival::Other, Instant::now());
                self.history.note(key, record, ReportedEvent { reason, count, first });
            }
            Err(problem) => tracing::debug!(reason = problem.reason.as_str(), detail = %problem, "event not told"),
        }
    }

    /// Without an answer, `kubectl get events` shows the Event all the same.
    async fn uid_of_deployment(&self, regarding: &Regarding) -> Option<String> {
        self.requests.get::<Deployment>(&regarding.namespace, &regarding.name).await.ok()??.metadata.uid
    }
}

impl EventHistory {
    /// What an Event about this says of the past; `None`: it is not worth one, for the problem that is over passed
    /// before it was told.
    fn told(&self, key: &(NamespaceName, String), record: &EventRecord, now: Timestamp) -> Option<ReportedEvent> {
        let former = self.0.get(key).copied();
        if !record.is_warning && former.is_none() {
            return None;
        }
        let same = former.filter(|told| told.reason == record.reason);
        let (count, first) = same.map_or((1, now), |told| (told.count.saturating_add(1), told.first));
        Some(ReportedEvent { reason: record.reason, count, first })
    }

    /// It was told. What is over is forgotten, so that this does not grow with all that ever was.
    fn note(&mut self, key: (NamespaceName, String), record: &EventRecord, told: ReportedEvent) {
        if record.is_warning {
            self.0.insert(key, told);
        } else {
            self.0.remove(&key);
        }
    }
}

/// `source-missing` as Kubernetes writes reasons: `SourceMissing`.
fn camel_case(reason: &str) -> String {
    let words = reason.split('-').map(|word| {
        let mut letters = word.chars();
        letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect::<String>()
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(namespace: &str, name: &str, reason: &'static str) -> EventRecord {
        let namespace = namespace.parse().unwrap();
        let regarding =
            Regarding { namespace, kind: "Secret", api_version: "v1", name: name.to_owned(), uid: Uid::Seen(None) };
        EventRecord { regarding, is_warning: true, reason, note: String::new() }
    }

    #[test]
    fn reasons_are_words_as_kubernetes_writes_them() {
        for (reason, written) in [("source-missing", "SourceMissing"), ("synced", "Synced"), ("", "")] {
            assert_eq!(camel_case(reason), written);
        }
    }

    #[test]
    fn of_each_object_the_latest_is_told_and_the_list_is_bounded() {
        let events = EventQueue::default();
        for reason in ["source-missing", "forbidden"] {
            events.tell(record("a", "secret", reason));
        }
        assert_eq!(events.take().unwrap().1.reason, "forbidden");
        assert!(events.take().is_none());
        for number in 0..MAX_WAITING + 9 {
            events.tell(record("a", &format!("secret-{number}"), "forbidden"));
        }
        assert_eq!(std::iter::from_fn(|| events.take()).count(), MAX_WAITING);
    }

    #[test]
    fn a_problem_is_counted_while_it_lasts_and_its_end_is_told_only_after_it_was() {
        let mut history = EventHistory::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut tell = |reason, is_warning, second| {
            let record = EventRecord { is_warning, ..record("a", "secret", reason) };
            let key = ("a".parse().unwrap(), "event".to_owned());
            let told = history.told(&key, &record, at(second))?;
            history.note(key, &record, told);
            Some((told.count, told.first))
        };
        assert_eq!(tell("synced", false, 1), None, "it passed before it was told");
        assert_eq!(tell("forbidden", true, 2), Some((1, at(2))));
        assert_eq!(tell("forbidden", true, 3), Some((2, at(2))));
        assert_eq!(tell("quota", true, 4), Some((1, at(4))));
        assert_eq!(tell("synced", false, 5), Some((1, at(5))));
        assert_eq!(tell("synced", false, 6), None);
        assert_eq!(tell("quota", true, 7), Some((1, at(7))));
    }

    #[test]
    fn a_name_of_any_length_makes_the_name_of_an_event() {
        assert_eq!(names::event("token"), "gitlab-runner-webhook.token");
        assert_eq!(names::event(&"a".repeat(253)).len(), 253);
    }
}
